"""Histograms in 60-digit decimal arithmetic; see `oracles`."""

from __future__ import annotations

from decimal import Decimal

from torch import Tensor

from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.histogram import Histogram


def histogram(elementwise: Elementwise, x: Decimal, theta: Tensor) -> Decimal:
    """logit of the piecewise linear CDF, by adding up whole bins and a part of one."""
    assert isinstance(elementwise, Histogram)
    bound = Decimal(elementwise.bound)
    if elementwise.tails and abs(x) >= bound:
        return x
    tail = 1 / (1 + bound.exp()) if elementwise.tails else Decimal(0)
    masses = []
    for number in theta.double().tolist():
        grown = (2 * Decimal(number) / 15).exp()
        masses.append((15 * (grown - 1) / (grown + 1)).exp())
    position = (x + bound) / (2 * bound) * len(masses)
    whole = min(int(position), len(masses) - 1)
    part = sum(masses[:whole], Decimal(0)) + (position - whole) * masses[whole]
    below = tail + (1 - 2 * tail) * part / sum(masses)
    return (below / (1 - below)).ln()
