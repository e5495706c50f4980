"""Shift and scale: the map of MAF, RealNVP and of every Gaussian layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rosenblatt.core.errors import OptionError
from rosenblatt.core.laws import Law
from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.fused import Fused

# Of a whole stack. On heavy-tailed standardised data, five layers free to contract by e^2 each came back from a float32
# round trip wrong by 0.4; within these bounds by 5e-5, at the same likelihood to 0.02 nats.
STACK_CONTRACT, STACK_STRETCH = 3.5, 10.0


class Affine(Fused):
    """Shift and scale `y = (x - shift) * scale` with a smoothly bounded scale.

    `scale = low + (high - low) * sigmoid(k raw + c)`, low = exp(-contract) and high = exp(stretch), with k and c such
    that raw = 0 gives scale 1 and slope `d log(scale) / d raw = 1`. `log_det = log(scale)`.
    Closed inverse `x = y / scale + shift` (Papamakarios et al. 2017).

    What a layer contracts in the density direction, the inverse stretches back together with its rounding error, so
    `contract` is what float32 samples and round trips pay for; `stretch` is paid by `forward(inverse(y))`.
    Raises `OptionError` unless both bounds are positive.

    >>> Affine()(torch.tensor([3.0]), torch.tensor([[1.0, 0.0]])).value
    tensor([2.0000])
    """

    spec = ParamSpec(shift=(), log_scale=())
    piece = 1 << 17

    def __init__(self, contract: float = 2.0, stretch: float = 5.0) -> None:
        super().__init__()
        if not (contract > 0 and stretch > 0):
            raise OptionError(f"contract={contract}, stretch={stretch}: two positive bounds were expected.")
        self.low, self.high = math.exp(-contract), math.exp(stretch)
        share = (1 - self.low) / (self.high - self.low)  # of the way from low to high at raw = 0
        # Numbers of a tensor's own kind are added without a conversion at every call.
        self.offset, self.lowest = torch.tensor([math.log(share / (1 - share)), self.low], dtype=torch.float64).unbind()
        self.steepness = 1 / ((self.high - self.low) * share * (1 - share))

    @classmethod
    def one_of(cls, layers: int, *, backwards: bool = False) -> Affine:
        """One of `layers` stacked maps that together contract by at most e^3.5 and stretch by at most e^10.

        With `backwards` these are the bounds of the inverses. Raises `OptionError` unless layers >= 1.
        """
        if layers < 1:
            raise OptionError(f"layers: {layers} came, an integer >= 1 was expected.")
        contract, stretch = STACK_CONTRACT / layers, STACK_STRETCH / layers
        return cls(stretch, contract) if backwards else cls(contract, stretch)

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Shift, then scale."""
        shift, share = self._decode(theta.to(x.dtype))
        scale = self._scale(share)
        value = (x - shift) * scale
        return Mapped(value, torch.log(scale).expand_as(value))

    def evaluate_keeping(self, x: Tensor, theta: Tensor) -> tuple[Mapped, tuple[Tensor, ...]]:
        """Shift, then scale; the value, the scale and its share are what the gradient needs."""
        shift, raw = theta.to(x.dtype).unbind(dim=-1)
        share = torch.add(self.offset, raw, alpha=self.steepness).sigmoid_()
        scale = torch.add(self.lowest, share, alpha=self.high - self.low)
        value = (x - shift).mul_(scale)
        return Mapped(value, torch.log(scale).expand_as(value)), (value, scale, share)

    def pull_back(
        self, x: Tensor, theta: Tensor, kept: tuple[Tensor, ...], grad_value: Tensor, grad_log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        """With `d scale / d raw = k (high - low) share (1 - share)` and `d y / d log(scale) = y`."""
        value, scale, share = kept
        grad_x = grad_value * scale
        grad_scale = torch.addcmul(grad_log_det, grad_value, value).div_(scale)
        rise = torch.addcmul(share, share, share, value=-1).mul_(self.steepness * (self.high - self.low))
        grad_theta = torch.empty_like(theta)
        shared = len(x) > 1
        torch.neg(grad_x.sum(dim=0) if shared else grad_x[0], out=grad_theta[:, 0])
        torch.mul(grad_scale.sum(dim=0) if shared else grad_scale[0], rise, out=grad_theta[:, 1])
        return grad_x, grad_theta

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Unscale, then unshift."""
        shift, share = self._decode(theta.to(y.dtype))
        scale = self._scale(share)
        value = torch.addcdiv(shift, y, scale)
        return Mapped(value, scale.log().neg_().expand_as(value))

    def closed_law(self, law: Law, theta: Tensor) -> Law | None:
        """Unscale, then unshift."""
        shift, share = self._decode(theta.double())
        return law.moved(shift, 1 / self._scale(share))

    def _decode(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The shift, and how far the scale lies between its bounds."""
        shift, raw = theta.unbind(dim=-1)
        return shift, torch.sigmoid(torch.add(self.offset, raw, alpha=self.steepness))

    def _scale(self, share: Tensor) -> Tensor:
        return torch.add(self.lowest, share, alpha=self.high - self.low)
