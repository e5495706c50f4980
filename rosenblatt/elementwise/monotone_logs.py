"""The monotone net by logarithms throughout: exact in every tail, and differentiable any number of times.

This is the reference. The plain sums of `monotone_kernel` stand in for it where they are as exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from rosenblatt.core.logspace import log_matvec, log_one_minus_exp, soft_bound
from rosenblatt.core.types import Support
from rosenblatt.elementwise.monotone_kernel import SLOPE_BOUND, Plan


class _Layer(NamedTuple):
    """One decoded hidden layer: positive weights, their logs, and pre-activations at both ends."""

    log_weight: Tensor  # (*b, out, in)
    weight: Tensor  # (*b, out, in)
    offset: Tensor  # (*b, out): at the first layer the locations b; later the pre-activation at the left end


class LogNet:
    """A monotone net with decoded weights: `logit F` where it is called."""

    def __init__(self, plan: Plan, layers: list[_Layer], log_mixture: Tensor) -> None:
        self.plan, self.layers, self.log_mixture = plan, layers, log_mixture

    @staticmethod
    def decode(plan: Plan, theta: Tensor) -> LogNet:
        """Positive weights of every layer and log-softmax mixture weights, from raw numbers `theta` (*b, size)."""
        layers: list[_Layer] = []
        at_left: Tensor | None = None  # hidden values at the left end of the support
        for number, shape in enumerate(plan.shapes, start=1):
            raw = theta[..., plan.places[f"slope_{number}"]].unflatten(-1, shape)
            log_weight = -soft_bound(raw, SLOPE_BOUND)
            weight = torch.exp(log_weight)
            offset = theta[..., plan.places[f"offset_{number}"]]
            if number > 1:
                offset = -offset * weight.mean(dim=-1)
                if at_left is not None:
                    offset = offset + (weight @ at_left.unsqueeze(-1)).squeeze(-1)
                at_left = torch.sigmoid(offset)
            elif plan.support.bounded:
                at_left = torch.sigmoid(weight.squeeze(-1) * (plan.support.lower - offset))
            layers.append(_Layer(log_weight, weight, offset))
        return LogNet(plan, layers, log_softmax(theta[..., plan.places["mixture"]], dim=-1))

    def __call__(self, x: Tensor) -> Tensor:
        """Logit F(x), without the tangent."""
        points = x.clamp(*computable(self.plan.support, x.dtype)).unsqueeze(-1)
        logs = self.differences(points, tangent=False)
        return logs[..., 0] - logs[..., 1]

    def select(self, rows: Tensor) -> LogNet:
        """Keep only `rows`."""
        layers = [_Layer(*(part[rows] for part in layer)) for layer in self.layers]
        return LogNet(self.plan, layers, self.log_mixture[rows])

    def differences(self, points: Tensor, *, tangent: bool) -> Tensor:
        """Logs of phi's differences over [a, x_1, ..., x_m, b], and of phi'(x_1) as a last column.

        `points` is (*b, m) and increasing; the result (*b, m + 1 (+ 1)). All terms are positive and none is
        found by subtraction.
        """
        columns, rates = self._first_layer(points, tangent)
        for layer in self.layers[1:]:
            pushed = log_matvec(layer.weight, columns)
            columns = _hidden_layer(layer, pushed, points.shape[-1], tangent)
        logs = torch.logsumexp(columns + self.log_mixture.unsqueeze(-1), dim=-2)
        if self.plan.epsilon == 0:
            return logs
        return torch.logaddexp(logs, rates + math.log(self.plan.epsilon))

    def _first_layer(self, points: Tensor, tangent: bool) -> tuple[Tensor, Tensor]:
        """Log-differences of the first hidden values (*b, width, columns) and of the epsilon term (*b, columns)."""
        log_weight, weight, offset = self.layers[0]  # (*b, width, 1) twice, (*b, width)
        location, support = offset.unsqueeze(-1), self.plan.support
        z = weight * (points.unsqueeze(-2) - location)
        up = logsigmoid(z)
        down = up - z
        gaps = points[..., 1:] - points[..., :-1]
        if support.whole_line:
            first, last = up[..., :1], down[..., -1:]
            g_up = logsigmoid(points)
            rates = [g_up[..., :1], (g_up - points)[..., -1:]]
            g_slope = (2 * g_up - points)[..., :1]
        else:
            lower, upper = support.lower, support.upper
            log_first, log_last = torch.log(points[..., :1] - lower), torch.log(upper - points[..., -1:])
            z_low, z_high = weight * (lower - location), weight * (upper - location)
            first = up[..., :1] + logsigmoid(-z_low) + _log_rise(log_weight, log_first)
            last = down[..., -1:] + logsigmoid(z_high) + _log_rise(log_weight, log_last)
            rates = [log_first, log_last]
            g_slope = torch.zeros_like(log_first)
        columns = [first, last]
        if gaps.shape[-1]:
            columns.insert(1, up[..., 1:] + down[..., :-1] + _log_rise(log_weight, torch.log(gaps)))
            rates.insert(1, _log_rate(support, points, gaps))
        if tangent:
            columns.append((up + down + log_weight)[..., :1])
            rates.append(g_slope)
        return torch.cat(columns, dim=-1), torch.cat(rates, dim=-1)


def computable(support: Support, dtype: torch.dtype) -> tuple[float, float]:
    """The range in which a point differs from the ends, so that every logarithm is finite."""
    if support.whole_line:
        reach = torch.finfo(dtype).max / 1e6  # times the steepest weight, still finite
        return -reach, reach
    low, high = torch.tensor(support.lower, dtype=dtype), torch.tensor(support.upper, dtype=dtype)
    return float(torch.nextafter(low, high)), float(torch.nextafter(high, low))


def _log_rate(support: Support, points: Tensor, gaps: Tensor) -> Tensor:
    """Log-difference of the epsilon term's G between neighbouring points."""
    log_gaps = torch.log(gaps)
    if support.bounded:
        return log_gaps
    up = logsigmoid(points)
    return up[..., 1:] + (up - points)[..., :-1] + log_one_minus_exp(log_gaps)


def _hidden_layer(layer: _Layer, pushed: Tensor, points: int, tangent: bool) -> Tensor:
    """Push log-differences of pre-activations (*b, width, columns) through the sigmoid."""
    steps = pushed[..., : points + 1]
    ends = layer.offset.unsqueeze(-1) + torch.cumsum(torch.exp(steps), dim=-1)
    z = torch.cat([layer.offset.unsqueeze(-1).expand_as(ends[..., :1]), ends], dim=-1)
    up = logsigmoid(z)
    down = up - z
    columns = up[..., 1:] + down[..., :-1] + log_one_minus_exp(steps)
    if not tangent:
        return columns
    slope = pushed[..., points + 1 :] + (up + down)[..., 1:2]
    return torch.cat([columns, slope], dim=-1)


def _log_rise(log_weight: Tensor, log_gap: Tensor) -> Tensor:
    """log(1 - exp(-A gap)) per unit, from logs: (*b, width, 1) and (*b, columns)."""
    return log_one_minus_exp(log_weight + log_gap.unsqueeze(-2))
