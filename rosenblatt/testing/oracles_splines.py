"""Polynomials and their splines once more, from the published formulas, in 60-digit decimal arithmetic."""

from __future__ import annotations

import math
from decimal import Decimal
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.bernstein import BernsteinPolynomial
from rosenblatt.elementwise.circular import CircularSpline
from rosenblatt.elementwise.polynomial_spline import PolynomialSpline
from rosenblatt.testing.oracles import Numbers, _decimals, _dot, _knots, _softmax, _squash_to, _sum, spline

FLOOR = Decimal("1e-3")


def bernstein(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """`sum_k c_k C(n, k) t^k (1 - t)^(n - k)` with coefficients added up from below, and straight tails."""
    assert isinstance(elementwise, BernsteinPolynomial)
    n, bound = elementwise.degree, Decimal(elementwise.bound)
    raw = _decimals(theta)
    if elementwise.tails == "none":
        rises = [2 * bound * (FLOOR / n + (1 - FLOOR) * share) for share in _softmax(raw)]
        first = -bound
    else:
        rises = [2 * bound / n * _squash_to(value, FLOOR.ln(), Decimal(30).ln()).exp() for value in raw[:n]]
        first = raw[n] - _sum(rises) / 2
    coefficients = list(accumulate(rises, initial=first))
    if x <= -bound:
        return coefficients[0] + rises[0] * n / (2 * bound) * (x + bound)
    if x >= bound:
        return coefficients[n] + rises[-1] * n / (2 * bound) * (x - bound)
    t = (x + bound) / (2 * bound)
    return _dot(coefficients, [math.comb(n, k) * t**k * (1 - t) ** (n - k) for k in range(n + 1)])


def polynomial_spline(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """Powers of `x - x_k` in the bin, in the published notation of each degree; the identity outside."""
    assert isinstance(elementwise, PolynomialSpline)
    k, bound = elementwise.bins, Decimal(elementwise.bound)
    if abs(x) >= bound:
        return x
    raw = _decimals(theta)
    xs = _knots([Decimal(0)] * k if elementwise.degree == 1 else raw[:k], bound)
    n = max(i for i in range(k) if xs[i] <= x)
    widths = [right - left for left, right in pairwise(xs)]
    if elementwise.degree == 2:
        return _quadratic(x - xs[n], n, widths, raw[k:], bound)
    ys = _knots(raw[-k:], bound)
    secants = [(high - low) / width for (low, high), width in zip(pairwise(ys), widths, strict=True)]
    if elementwise.degree == 1:
        return ys[n] + secants[n] * (x - xs[n])
    d = [_steffen_slope(i, widths, secants) for i in (n, n + 1)]
    a = (d[0] + d[1] - 2 * secants[n]) / widths[n] ** 2
    b = (3 * secants[n] - 2 * d[0] - d[1]) / widths[n]
    left = x - xs[n]
    return a * left**3 + b * left**2 + d[0] * left + ys[n]


def circular(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """The rational-quadratic oracle on [-pi, pi] with the first slope once more at the end."""
    assert isinstance(elementwise, CircularSpline)
    first = 2 * elementwise.spline.bins
    return spline(elementwise.spline, x, torch.cat([theta, theta[first : first + 1]]))


def _quadratic(left: Decimal, n: int, widths: Numbers, raw: Numbers, bound: Decimal) -> Decimal:
    """The integral up to `left` in bin `n` of the straight lines between the slopes at the knots."""
    spans = [(a + b) / 2 for a, b in pairwise(widths)]
    shares = _softmax(raw)
    scale = _sum(spans) / _dot(shares, spans)
    slopes = [Decimal(1), *(FLOOR + (1 - FLOOR) * scale * share for share in shares), Decimal(1)]
    below = _sum([widths[i] * (slopes[i] + slopes[i + 1]) / 2 for i in range(n)])
    return below - bound + slopes[n] * left + (slopes[n + 1] - slopes[n]) * left**2 / (2 * widths[n])


def _steffen_slope(i: int, widths: Numbers, secants: Numbers) -> Decimal:
    if i in (0, len(widths)):
        return min(Decimal(1), 3 * secants[0 if i == 0 else -1])
    before, after = secants[i - 1], secants[i]
    parabola = (before * widths[i] + after * widths[i - 1]) / (widths[i - 1] + widths[i])
    return 2 * min(before, after, parabola / 2)
