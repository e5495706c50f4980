"""Exact-Lipschitz maps, integrals and dense sigmoidal nets once more, in 60-digit decimal arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise

from numpy.polynomial.legendre import leggauss
from torch import Tensor

from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.dense_sigmoid import DenseSigmoid
from rosenblatt.elementwise.elf import ExactLipschitz
from rosenblatt.elementwise.integral import IntegratedNet, SumOfSquares
from rosenblatt.testing.oracles import (
    Numbers,
    _decimals,
    _dot,
    _logit,
    _mix,
    _sigmoid,
    _squash,
    _sum,
    _tanh,
)


def exact_lipschitz(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`x + shift + sum_k a_k act(w_k x + b_k)`, a shrunk by the largest slope, which is looked for in every piece."""
    assert isinstance(elementwise, ExactLipschitz)
    k = elementwise.units
    shift, *raw = _decimals(theta)
    outer, inner = ([_squash(value, 10, 10) for value in part] for part in (raw[:k], raw[k : 2 * k]))
    offset = raw[2 * k :]
    if elementwise.unit == "relu":
        ends = sorted(-b / w for w, b in zip(inner, offset, strict=True) if w != 0)
        inside = [(low + high) / 2 for low, high in pairwise(ends)]
        places = [*inside, *([ends[0] - 1, ends[-1] + 1] if ends else [])]
        slopes = [
            _sum([a * w for a, w, b in zip(outer, inner, offset, strict=True) if w * place + b > 0]) for place in places
        ]
        constant = max([abs(slope) for slope in slopes], default=Decimal(0))
    else:
        constant = _bound_of(inner, outer)
    shrink = (1 + (constant / Decimal(elementwise.lipschitz)) ** 2).sqrt()
    act: Callable[[Decimal], Decimal] = {
        "relu": lambda z: max(z, Decimal(0)),
        "tanh": _tanh,
        "softplus": lambda z: (1 + z.exp()).ln(),
    }[elementwise.unit]
    return x + shift + _dot(outer, [act(w * x + b) for w, b in zip(inner, offset, strict=True)]) / shrink


def sum_of_squares(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """Product by product: the integral of `t^i t^j` is `x^(i+j+1) / (i+j+1)`; a straight line beyond the bound."""
    assert isinstance(elementwise, SumOfSquares)
    bound, size = Decimal(elementwise.bound), elementwise.degree + 1
    shift, *raw = _decimals(theta)
    floor = Decimal("1e-3")
    inside = max(-bound, min(bound, x))
    integral, slope = Decimal(0), Decimal(0)
    for start in range(0, len(raw), size):
        scaled = [_squash(raw[start + i], 10, 10) / Decimal(math.factorial(i)).sqrt() for i in range(size)]
        scaled[0] += 1 / Decimal(elementwise.squares).sqrt()
        for i, first in enumerate(scaled):
            for j, second in enumerate(scaled):
                integral += first * second * inside ** (i + j + 1) / (i + j + 1)
                slope += first * second * (inside ** (i + j) if i + j else 1)
    integral, slope = floor * inside + (1 - floor) * integral, floor + (1 - floor) * slope
    return shift + integral + slope * (x - inside)


def integrated_net(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """Sums over the whole cells between 0 and x and over the part of the last one; a straight line beyond the bound."""
    assert isinstance(elementwise, IntegratedNet)
    k, bound = elementwise.units, Decimal(elementwise.bound)
    width = 2 * bound / elementwise.cells
    roots, shares = leggauss(len(elementwise.places))
    nodes, weights = [(1 + Decimal(t)) / 2 for t in roots.tolist()], [Decimal(w) / 2 for w in shares.tolist()]
    shift, raw_slope, *raw = _decimals(theta)
    outer = [_squash(value, 10, 10) for value in raw[:k]]
    limit = 2 / width
    sharpness, location = [limit * _tanh(value / limit) for value in raw[k : 2 * k]], raw[2 * k :]
    shrink = (1 + (_bound_of(sharpness, outer) * width / Decimal("1.5")) ** 2).sqrt()
    outer = [value / shrink for value in outer]

    def network(t: Decimal) -> tuple[Decimal, Decimal]:
        """g and the slope of its logarithm."""
        hidden = [_tanh(a * (t - m)) for a, m in zip(sharpness, location, strict=True)]
        middle = [_tanh(-a * m) for a, m in zip(sharpness, location, strict=True)]
        rise = _sum([v * a * (1 - h * h) for v, a, h in zip(outer, sharpness, hidden, strict=True)])
        return (_squash(raw_slope, 3, 3) + _dot(outer, hidden) - _dot(outer, middle)).exp(), rise

    def cell(begin: Decimal, reach: Decimal) -> Decimal:
        return reach * _dot(weights, [network(begin + reach * t)[0] for t in nodes])

    inside = max(-bound, min(bound, x))
    number = min(math.floor(inside / width), elementwise.cells // 2 - 1)
    whole = _sum([cell(n * width, width) for n in range(number)]) - _sum(
        [cell(n * width, width) for n in range(number, 0)]
    )
    begin, reach = number * width, inside - number * width
    value = shift + whole + cell(begin, reach)
    if x == inside:
        return value
    ends = [network(begin + reach * t) for t in nodes]
    return value + (x - inside) * _dot(
        weights, [g * (1 + reach * t * rise) for (g, rise), t in zip(ends, nodes, strict=True)]
    )


def dense_sigmoid(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """Layers of `logit(W s(a (U h) + b))`."""
    assert isinstance(elementwise, DenseSigmoid)
    parts = {name: part.double() for name, part in elementwise.spec.split(theta).items()}
    values = [x]
    for number in range(1, elementwise.layers + 1):
        slopes = [_squash(a, 7, 7).exp() for a in _decimals(parts[f"log_slope_{number}"])]
        if number == 1:
            mixed = values * elementwise.units
        else:
            mixed = [_mix(_decimals(row), values) for row in parts[f"inward_{number}"]]
        shifts = _decimals(parts[f"shift_{number}"])
        units = [_sigmoid(a * h + b) for a, h, b in zip(slopes, mixed, shifts, strict=True)]
        values = [_logit(_mix(_decimals(row), units)) for row in parts[f"outward_{number}"]]
    return values[0]


def _bound_of(inner: Numbers, outer: Numbers) -> Decimal:
    """The larger of the sums of positive and of negative products."""
    products = [v * w for v, w in zip(outer, inner, strict=True)]
    return max(_sum([p for p in products if p > 0]), -_sum([p for p in products if p < 0]))
