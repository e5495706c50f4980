"""Oracles, in 60-digit arithmetic, of the small closed maps and of the tail maps."""

from __future__ import annotations

from decimal import Decimal

from torch import Tensor

from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.normal_mixture import NormalMixture
from rosenblatt.elementwise.simple import TwoSlopes
from rosenblatt.testing.oracles import _decimals, _logit, _mix, _sigmoid, _squash

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def sinh_arcsinh(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`sinh(d asinh(x) - e)`."""
    log_tail, skew = _decimals(theta)
    return _sinh(_squash(log_tail, 1, 1).exp() * _asinh(x) - _squash(skew, 4, 4))


def two_slopes(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """Two half-lines, or `(a + b) / 2 x + (b - a) / 2 (sqrt(x^2 + 1) - 1)`."""
    assert isinstance(elementwise, TwoSlopes)
    left, right = (_squash(raw, 2, 2).exp() for raw in _decimals(theta))
    if elementwise.sharp:
        return x * (right if x >= 0 else left)
    return (left + right) / 2 * x + (right - left) / 2 * ((x * x + 1).sqrt() - 1)


def yeo_johnson(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """The two branches of the power transform."""
    power = 1 + _squash(_decimals(theta)[0], 0.9, 0.9)
    if x >= 0:
        return ((1 + x) ** power - 1) / power
    return -((1 - x) ** (2 - power) - 1) / (2 - power)


def arcsinh(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`asinh(b x) / b`."""
    bend = _between(_decimals(theta)[0], "0.001", "2", "0.05")
    return _asinh(bend * x) / bend


def kumaraswamy(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`logit(1 - (1 - s(x)^a)^b)`."""
    left, right = (_squash(raw, 2, 2).exp() for raw in _decimals(theta))
    return _logit(1 - (1 - _sigmoid(x) ** left) ** right)


def pareto_tails(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`sign(x) log(1 + xi |x|) / xi`."""
    xi = _xi(x, theta)
    return (1 + xi * abs(x)).ln() / xi * (1 if x >= 0 else -1)


def tail_transform(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """The z with `x = sign(z) (erfc(|z| / sqrt 2)^-xi - 1) / xi`, by bisection."""
    xi = _xi(x, theta)
    survival = (1 + xi * abs(x)) ** (-1 / xi)
    low, high = Decimal(0), Decimal(8)
    for _ in range(230):  # 8 / 2^230 is below 1e-68
        middle = (low + high) / 2
        above = 1 - _erf(middle / Decimal(2).sqrt()) > survival
        low, high = (middle, high) if above else (low, middle)
    return low if x >= 0 else -low


def normal_mixture(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`Phi^-1(sum_k w_k Phi(a_k (x - m_k)))`, by bisection."""
    assert isinstance(elementwise, NormalMixture)
    k, raw = elementwise.components, _decimals(theta)
    slopes = [_squash(value, 7, 7).exp() for value in raw[2 * k :]]
    depths = [a * (x - m) for a, m in zip(slopes, raw[k : 2 * k], strict=True)]
    above, below = (_mix(raw[:k], [_normal_tail(side * depth) for depth in depths]) for side in (1, -1))
    side = 1 if above < below else -1
    low, high = Decimal(0), Decimal(200)
    for _ in range(230):  # 200 / 2^230 is below 1e-66
        middle = (low + high) / 2
        low, high = (middle, high) if _normal_tail(middle) > min(above, below) else (low, middle)
    return side * low


def _normal_tail(z: Decimal) -> Decimal:
    """Phi(-z): by Taylor's series of erf, far out by the continued fraction of erfc."""
    x = z / Decimal(2).sqrt()
    if abs(x) < 4:
        return (1 - _erf(x)) / 2
    fraction = abs(x)
    for n in range(300, 0, -1):
        fraction = abs(x) + Decimal(n) / 2 / fraction
    tail = (-x * x).exp() / PI.sqrt() / fraction / 2
    return tail if x > 0 else 1 - tail


def _xi(x: Decimal, theta: Tensor) -> Decimal:
    left, right = _decimals(theta)
    return _between(right if x >= 0 else left, "0.01", "2", "0.05")


def _between(raw: Decimal, low: str, high: str, start: str) -> Decimal:
    bottom, span = Decimal(low), Decimal(high) - Decimal(low)
    return bottom + span * _sigmoid(raw + _logit((Decimal(start) - bottom) / span))


def _asinh(x: Decimal) -> Decimal:
    return (x + (x * x + 1).sqrt()).ln()


def _sinh(x: Decimal) -> Decimal:
    return (x.exp() - (-x).exp()) / 2


def _erf(x: Decimal) -> Decimal:
    """Taylor's series, for arguments below 6."""
    term = total = x
    for n in range(1, 400):
        term = -term * x * x / n
        total += term / (2 * n + 1)
        if abs(term) < Decimal("1e-70"):
            break
    return 2 * total / PI.sqrt()
