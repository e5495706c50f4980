"""Nodes and weights to integrate smooth functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rosenblatt.core.errors import OptionError

NEWTON_STEPS = 10  # from a guess good to a few digits; each step doubles them


def gauss_legendre(order: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights (order,) on [0, 1] in float64, in increasing order.

    `sum_k weight_k f(node_k)` is the integral of f over [0, 1], exactly so for polynomials of degree 2 order - 1. The
    nodes are the roots of the Legendre polynomial, by Newton's method (Abramowitz & Stegun 1964, 25.4.30).
    Raises `OptionError` unless order >= 1.

    >>> nodes, weights = gauss_legendre(3)
    >>> round(float((weights * nodes**5).sum()), 12)  # 1/6
    0.166666666667
    """
    if order < 1:
        raise OptionError(f"order: {order} came, an integer >= 1 was expected.")
    nodes, weights = [], []
    for number in range(order):
        z = math.cos(math.pi * (number + 0.75) / (order + 0.5))
        for _ in range(NEWTON_STEPS):
            value, slope = _legendre(order, z)
            z -= value / slope
        _, slope = _legendre(order, z)
        nodes.append((1 - z) / 2)
        weights.append(1 / ((1 - z * z) * slope * slope))
    return torch.tensor(nodes, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


def _legendre(order: int, z: float) -> tuple[float, float]:
    """The Legendre polynomial and its derivative at z inside (-1, 1), by the recurrence of three terms."""
    before, value = 1.0, z
    for n in range(1, order):
        before, value = value, ((2 * n + 1) * z * value - n * before) / (n + 1)
    return value, order * (z * value - before) / (z * z - 1)
