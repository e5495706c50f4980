"""Elementwise maps once more, straight from their formulas, in 60-digit decimal arithmetic.

Slow and naive on purpose: nothing here shares code or tricks with the maps under test, and 60 digits leave room for
the subtractions that those avoid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Protocol

from torch import Tensor

from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.backwards import Backwards
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.elementwise.sigmoid_mixture import DeepSigmoid, LogisticMixture
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.elementwise.stacked import Stacked

DIGITS = 60
STEP = Decimal("1e-18")  # of the central difference: its error is far below 1e-20

Numbers = Sequence[Decimal]


class Oracle(Protocol):
    """The exact value of an elementwise map at `x` for one `theta` (params,)."""

    def __call__(self, elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
        """Evaluate in the caller's decimal context."""


def exact(oracle: Oracle, elementwise: Elementwise, x: float, theta: Tensor) -> tuple[float, float]:
    """Value and log-derivative at `x`, correct to float64."""
    with localcontext() as context:
        context.prec = DIGITS
        at = Decimal(x)
        rise = oracle(elementwise, at + STEP, theta) - oracle(elementwise, at - STEP, theta)
        return float(oracle(elementwise, at, theta)), float((rise / (2 * STEP)).ln())


def bin_probability(oracle: Oracle, elementwise: Elementwise, lower: float, upper: float, theta: Tensor) -> float:
    """log(F(upper) - F(lower)) of a family of CDFs, by subtraction in twice the digits."""
    with localcontext() as context:
        context.prec = 2 * DIGITS
        low, high = (_sigmoid(oracle(elementwise, Decimal(x), theta)) for x in (lower, upper))
        return float((high - low).ln()) if high > low else -math.inf


def affine(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`(x - shift) scale`: scale between exp(-2) and exp(5), a logistic curve through 1 with slope 1 at raw = 0."""
    shift, raw = _decimals(theta)
    low, high = Decimal(-2).exp(), Decimal(5).exp()
    odds = (1 - low) / (high - 1)
    odds *= (raw * (high - low) / ((1 - low) * (high - 1))).exp()
    return (x - shift) * (low + (high - low) * odds / (1 + odds))


def additive(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`x - shift`."""
    return x - _decimals(theta)[0]


def tanh_bump(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`x + (s - 1) / k tanh(k x + offset)`, s a softplus that is 1 at raw = 0 and stays above exp(-2)."""
    slope, steepness, offset = _decimals(theta)
    low, k = Decimal(-2).exp(), _squash(steepness, 3, 3).exp()
    s = low + (1 - low) * (1 + (Decimal(1).exp() - 1) * slope.exp()).ln()
    return x + (s - 1) / k * _tanh(k * x + offset)


def spline(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """Rational-quadratic spline in the published notation (Durkan et al. 2019, equation 4)."""
    assert isinstance(elementwise, RationalQuadraticSpline)
    k, bound = elementwise.bins, Decimal(elementwise.bound)
    if abs(x) >= bound:
        return x
    raw = _decimals(theta)
    xs, ys = _knots(raw[:k], bound), _knots(raw[k : 2 * k], bound)
    squashed = [_squash_to(value, Decimal("1e-3").ln(), Decimal(30).ln()).exp() for value in raw[2 * k :]]
    slopes = squashed if elementwise.tails == "none" else [Decimal(1), *squashed, Decimal(1)]
    n = max(i for i in range(k) if xs[i] <= x)
    width, height = xs[n + 1] - xs[n], ys[n + 1] - ys[n]
    s, xi = height / width, (x - xs[n]) / width
    numerator = height * (s * xi * xi + slopes[n] * xi * (1 - xi))
    return ys[n] + numerator / (s + (slopes[n + 1] + slopes[n] - 2 * s) * xi * (1 - xi))


def logistic_mixture(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`logit sum_k w_k s(a_k (x - m_k))`."""
    assert isinstance(elementwise, LogisticMixture)
    k = elementwise.components
    raw = _decimals(theta)
    slopes = [_squash(value, 7, 7).exp() for value in raw[2 * k :]]
    return _logit(_mix(raw[:k], [_sigmoid(a * (x - m)) for a, m in zip(slopes, raw[k : 2 * k], strict=True)]))


def deep_sigmoid(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """Layers of `logit sum_k w_k s(a_k x + b_k)`."""
    assert isinstance(elementwise, DeepSigmoid)
    layers, k = elementwise.layers, elementwise.units
    raw = _decimals(theta)
    block = layers * k
    for start in range(0, block, k):
        rows = slice(start, start + k)
        shifts, slopes = raw[block : 2 * block][rows], raw[2 * block :][rows]
        units = [_sigmoid(_squash(a, 7, 7).exp() * x + b) for a, b in zip(slopes, shifts, strict=True)]
        x = _logit(_mix(raw[:block][rows], units))
    return x


def mixture_then_affine(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """An affine map of the logit of a mixture's CDF."""
    assert isinstance(elementwise, Stacked)
    mixture, scaling = elementwise.maps
    assert isinstance(mixture, LogisticMixture)
    assert isinstance(scaling, Affine)
    size = 3 * mixture.components
    return affine(scaling, logistic_mixture(mixture, x, theta[:size]), theta[size:])


def backwards(oracle: Oracle) -> Oracle:
    """The point that `oracle` carries to x: bisection as far as a kink could matter, then secants."""

    def root(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
        assert isinstance(elementwise, Backwards)
        low, high = Decimal(-64), Decimal(64)
        for _ in range(45):
            middle = (low + high) / 2
            low, high = (low, middle) if oracle(elementwise.wrapped, middle, theta) > x else (middle, high)
        errors = [oracle(elementwise.wrapped, end, theta) - x for end in (low, high)]
        for _ in range(8):
            if errors[0] == errors[1]:
                break
            low, high = high, high - errors[1] * (high - low) / (errors[1] - errors[0])
            errors = [errors[1], oracle(elementwise.wrapped, high, theta) - x]
        return high

    return root


def monotone_net(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`logit F`, `F = (phi(x) - phi(a)) / (phi(b) - phi(a))`, with phi the positive network."""
    assert isinstance(elementwise, MonotoneNet)
    net = _Net(elementwise, theta)
    if elementwise.domain.bounded:
        low, high = net.phi(Decimal(elementwise.domain.lower)), net.phi(Decimal(elementwise.domain.upper))
    else:
        low, high = net.phi(None, at_end=0), net.phi(None, at_end=1)
    return _logit((net.phi(x) - low) / (high - low))


class _Net:
    def __init__(self, elementwise: MonotoneNet, theta: Tensor) -> None:
        self.bounded = elementwise.domain.bounded
        self.epsilon = Decimal(elementwise.epsilon)
        parts = {name: part.double() for name, part in elementwise.spec.split(theta).items()}
        depth = len(elementwise.widths) - 1
        self.weights = [
            [[(-_squash(a, 7, 7)).exp() for a in _decimals(row)] for row in parts[f"slope_{n + 1}"]]
            for n in range(depth)
        ]
        self.offsets = [_decimals(parts[f"offset_{n + 1}"]) for n in range(depth)]
        self.mixture = _decimals(parts["mixture"])

    def phi(self, x: Decimal | None, at_end: int = 0) -> Decimal:
        """The network at x, or at minus or plus infinity (`at_end` 0 or 1) when x is None."""
        if x is None:
            hidden = [Decimal(at_end)] * len(self.offsets[0])
            extra = Decimal(at_end)
        else:
            pairs = zip(self.weights[0], self.offsets[0], strict=True)
            hidden = [_sigmoid(row[0] * (x - b)) for row, b in pairs]
            extra = x if self.bounded else _sigmoid(x)
        for weight, offset in zip(self.weights[1:], self.offsets[1:], strict=True):
            hidden = [
                _sigmoid(_dot(row, hidden) - b * _sum(row) / len(row)) for row, b in zip(weight, offset, strict=True)
            ]
        return _mix(self.mixture, hidden) + self.epsilon * extra


def _decimals(values: Tensor) -> list[Decimal]:
    return [Decimal(value) for value in values.double().tolist()]


def _sum(values: Numbers) -> Decimal:
    return sum(values, Decimal(0))


def _dot(first: Numbers, second: Numbers) -> Decimal:
    return _sum([a * b for a, b in zip(first, second, strict=True)])


def _softmax(raw: Numbers) -> list[Decimal]:
    powers = [value.exp() for value in raw]
    return [power / _sum(powers) for power in powers]


def _mix(raw: Numbers, values: Numbers) -> Decimal:
    return _dot(_softmax(raw), values)


def _sigmoid(z: Decimal) -> Decimal:
    return 1 / (1 + (-z).exp())


def _logit(p: Decimal) -> Decimal:
    return p.ln() - (1 - p).ln()


def _tanh(z: Decimal) -> Decimal:
    return 1 - 2 / (1 + (2 * z).exp())


def _squash(raw: Decimal, below: float, above: float) -> Decimal:
    return _squash_to(raw, Decimal(-below), Decimal(above))


def _squash_to(raw: Decimal, lowest: Decimal, highest: Decimal) -> Decimal:
    bound = highest if raw >= 0 else -lowest
    return bound * _tanh(raw / bound)


def _knots(raw: Numbers, bound: Decimal) -> list[Decimal]:
    floor = Decimal("1e-3")
    knots = [-bound]
    for share in _softmax(raw):
        knots.append(knots[-1] + 2 * bound * (floor + (1 - floor * len(raw)) * share))
    return knots
