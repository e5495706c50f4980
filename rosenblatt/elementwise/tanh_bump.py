"""The identity with one smooth bend: a planar flow in one dimension, and the unit that Sylvester flows are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.base import Elementwise

LEAST_SLOPE = math.exp(-2.0)  # what a bend contracts, its inverse stretches back together with its rounding error
LOG_STEEPNESS_BOUND = 3.0
UNIT_SLOPE = math.log(math.e - 1)  # softplus is 1 here


class TanhBump(Elementwise):
    """`y = x + (s - 1) / k tanh(k x + offset)`: slope s > 0 in the middle of the bend, 1 far from it.

    `s = low + (1 - low) softplus(raw + log(e - 1))`, low = e^-2, and `log k` smoothly bounded to [-3, 3], so that
    the map is increasing for every theta and theta = 0 is the identity. The inverse is a root search, and
    `log_det = log(1 + (s - 1) sech^2(k x + offset))` (after Rezende & Mohamed 2015).

    >>> TanhBump()(torch.tensor([2.0]), torch.zeros(1, 3)).value
    tensor([2.])
    """

    spec = ParamSpec(slope=(), steepness=(), offset=())

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Add the bend."""
        slope, steepness, offset = theta.to(x.dtype).unbind(dim=-1)
        rise, k = rise_of(slope), steepness_of(steepness)
        z = k * x + offset
        value = x + rise / k * torch.tanh(z)
        return Mapped(value, torch.log1p(rise * squared_sech(z)))


def rise_of(raw: Tensor) -> Tensor:
    """`s - 1` for the slope s in the middle of a bend: 0 at raw = 0, above e^-2 - 1, linear for large raw."""
    return (1 - LEAST_SLOPE) * (-logsigmoid(-(raw + UNIT_SLOPE)) - 1)


def steepness_of(raw: Tensor) -> Tensor:
    """Inverse width of a bend: 1 at raw = 0, between e^-3 and e^3."""
    return torch.exp(soft_bound(raw, LOG_STEEPNESS_BOUND))


def squared_sech(z: Tensor) -> Tensor:
    """Derivative of tanh, with full relative precision in the tails."""
    return 4 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z)
