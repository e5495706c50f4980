"""Maps of the circle once more, from the published formulas, in 60-digit decimal arithmetic."""

from __future__ import annotations

from decimal import Decimal

from torch import Tensor

from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.circular import CircularSpline, Moebius
from rosenblatt.testing.oracles import _decimals, _dot, _softmax, _sum
from rosenblatt.testing.oracles_splines import circular
from rosenblatt.testing.oracles_tails import PI


def turned_spline(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """The spline, continued around the circle, between `-pi - phase` and `x - phase`."""
    assert isinstance(elementwise, CircularSpline)
    phase = Decimal(float(theta[-1]))

    def continued(angle: Decimal) -> Decimal:
        turns = ((angle + PI) / (2 * PI)).to_integral_value(rounding="ROUND_FLOOR")
        return circular(elementwise, angle - 2 * PI * turns, theta[:-1]) + 2 * PI * turns

    return continued(x - phase) - continued(-PI - phase) - PI


def moebius(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """Weighted angles of `(1 - |w|^2) / |z - w|^2 (z - w) - w`, each counted from where it takes -1."""
    assert isinstance(elementwise, Moebius)
    k = elementwise.components
    raw = _decimals(theta)
    angles = []
    for u, v in zip(raw[k::2], raw[k + 1 :: 2], strict=True):
        size = Decimal("0.99") / (1 + u * u + v * v).sqrt()
        a, b = size * u, size * v
        since = _moved(_cos(x), _sin(x), a, b) - _moved(Decimal(-1), Decimal(0), a, b)
        angles.append(since % (2 * PI) + (2 * PI if since < 0 else 0))  # in Decimal a remainder has the sign of `since`
    return _dot(_softmax(raw[:k]), angles) - PI


def _moved(c: Decimal, s: Decimal, a: Decimal, b: Decimal) -> Decimal:
    scale = (1 - a * a - b * b) / ((c - a) ** 2 + (s - b) ** 2)
    return _angle(scale * (c - a) - a, scale * (s - b) - b)


def _angle(x: Decimal, y: Decimal) -> Decimal:
    """The angle of (x, y) in (-pi, pi], by `2 atan(y / (r + x))` and a series in a small number."""
    if y == 0 and x < 0:
        return PI
    ratio = y / ((x * x + y * y).sqrt() + x)
    doublings = 0
    while abs(ratio) > Decimal("0.1"):
        ratio = ratio / (1 + (1 + ratio * ratio).sqrt())
        doublings += 1
    terms = [(-1) ** n * ratio ** (2 * n + 1) / (2 * n + 1) for n in range(36)]
    return _sum(terms) * (2 << doublings)


def _sin(x: Decimal) -> Decimal:
    term, terms = x, []
    for n in range(1, 60):
        terms.append(term)
        term = -term * x * x / (2 * n * (2 * n + 1))
    return _sum(terms)


def _cos(x: Decimal) -> Decimal:
    return _sin(x + PI / 2)
