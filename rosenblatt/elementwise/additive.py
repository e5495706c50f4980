"""Shift alone: the volume-preserving map of NICE."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.base import Elementwise


class Additive(Elementwise):
    """Shift `y = x - shift` with `log_det = 0`; theta = 0 is the identity, the inverse is closed (Dinh et al. 2015).

    >>> Additive()(torch.tensor([3.0]), torch.tensor([[1.0]])).value
    tensor([2.])
    """

    spec = ParamSpec(shift=())

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Subtract."""
        value = x - theta.to(x.dtype).squeeze(-1)
        return Mapped(value, torch.zeros_like(value))

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Add."""
        value = y + theta.to(y.dtype).squeeze(-1)
        return Mapped(value, torch.zeros_like(value))
