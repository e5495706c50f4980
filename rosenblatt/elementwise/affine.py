"""Shift and scale: the map of MAF, RealNVP and of every Gaussian layer."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.base import Elementwise


class Affine(Elementwise):
    """Shift and scale `y = (x - shift) * exp(s)` with a smoothly bounded log-scale.

    `s = b * tanh(raw / b)`, b = `contract` for raw < 0 and `stretch` for raw > 0: continuously differentiable,
    slope 1 at 0, always in [-contract, stretch]. `log_det = s`.
    Closed inverse `x = y * exp(-s) + shift` (Papamakarios et al. 2017).

    What a layer contracts in the density direction, the inverse stretches back together with its rounding error, so
    `contract` is what float32 samples and round trips pay for; `stretch` is paid by `forward(inverse(y))`.
    Raises `OptionError` unless both bounds are positive.

    >>> Affine()(torch.tensor([3.0]), torch.tensor([[1.0, 0.0]]))
    Mapped(value=tensor([2.]), log_det=tensor([0.]))
    """

    spec = ParamSpec(shift=(), log_scale=())

    def __init__(self, contract: float = 2.0, stretch: float = 5.0) -> None:
        super().__init__()
        if not (contract > 0 and stretch > 0):
            raise OptionError(f"contract={contract}, stretch={stretch}: two positive bounds were expected.")
        self.contract = contract
        self.stretch = stretch

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Shift, then scale."""
        shift, log_scale = self._decode(theta.to(x.dtype))
        value = (x - shift) * torch.exp(log_scale)
        return Mapped(value, log_scale.expand_as(value))

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Unscale, then unshift."""
        shift, log_scale = self._decode(theta.to(y.dtype))
        value = y * torch.exp(-log_scale) + shift
        return Mapped(value, -log_scale.expand_as(value))

    def _decode(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = theta.unbind(dim=-1)
        bound = torch.where(raw < 0, raw.new_tensor(self.contract), raw.new_tensor(self.stretch))
        return shift, bound * torch.tanh(raw / bound)
