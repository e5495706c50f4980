"""Dense deep sigmoidal map: layers of sigmoid mixtures with several numbers between them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.sigmoid_mixture import (
    LOG_SLOPE_BOUND,
    _bounded,
    _logit_mixture,
    _require_units,
    _spread,
)

START_FOCUS = 2.0  # how much the numbers between layers prefer different units at the start


class DenseSigmoid(Elementwise):
    """Dense deep sigmoidal flow: `h' = logit(W s(a * (U h) + b))`, from h = x through vectors of `units` numbers to y.

    The rows of W and U are positive and sum to one (softmax), a > 0 with `log a` smoothly bounded to [-7, 7], so every
    number between the layers is an increasing map of the line onto itself, and so is y. `log_det` carries the
    logarithms of all their slopes along. With one layer it is `DeepSigmoid(layers=1)`; between more layers that one
    passes a single number, this one `units` of them. theta = 0 is the identity. The inverse is a root search.
    Raises `OptionError` unless units and layers are >= 1.
    Reference: Huang, Krueger, Lacoste & Courville, Neural Autoregressive Flows, ICML 2018.

    >>> flow = DenseSigmoid(units=4, layers=2)
    >>> flow(torch.tensor([2.0]), torch.zeros(1, flow.spec.size)).value
    tensor([2.])
    """

    def __init__(self, units: int = 8, layers: int = 2) -> None:
        super().__init__()
        _require_units("units", units)
        _require_units("layers", layers)
        self.units = units
        self.layers = layers
        shapes: dict[str, tuple[int, ...]] = {}
        for number in range(1, layers + 1):
            if number > 1:
                shapes[f"inward_{number}"] = (units, units)
            shapes[f"shift_{number}"] = (units,)
            shapes[f"log_slope_{number}"] = (units,)
            shapes[f"outward_{number}"] = (units if number < layers else 1, units)
        self.spec = ParamSpec(**shapes)

    def start(self) -> Tensor:
        """Near the identity: units spread as in `DeepSigmoid`, the numbers between layers near different units."""
        locations, raw = _spread(self.units)
        level = (torch.arange(self.units) + 0.5) / self.units
        parts = {name: torch.zeros(shape) for name, shape in self.spec.shapes.items()}
        for number in range(1, self.layers + 1):
            parts[f"shift_{number}"] = -locations * torch.exp(soft_bound(raw, LOG_SLOPE_BOUND))
            parts[f"log_slope_{number}"] = raw
            if number < self.layers:
                parts[f"outward_{number}"] = -START_FOCUS * (level.unsqueeze(-1) - level).square()
        return self.spec.join(**parts)

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Run the layers, values and logarithms of slopes side by side."""
        value = x.unsqueeze(-1)
        log_det = torch.zeros_like(value)
        for layer in self._decode(theta.to(x.dtype)):
            value = _bounded(value)
            if layer.log_inward is not None:
                value = (torch.exp(layer.log_inward) * value.unsqueeze(-2)).sum(dim=-1)
                log_det = torch.logsumexp(layer.log_inward + log_det.unsqueeze(-2), dim=-1)
            z = torch.exp(layer.log_slope) * value + layer.shift
            rise = layer.log_slope + log_det
            value, log_det = _logit_mixture(z.unsqueeze(-2), layer.log_outward, rise.unsqueeze(-2))
        return Mapped(value.squeeze(-1), log_det.squeeze(-1))

    def _decode(self, theta: Tensor) -> list[_Layer]:
        parts = self.spec.split(theta)
        return [
            _Layer(
                torch.log_softmax(parts[f"inward_{number}"], dim=-1) if number > 1 else None,
                parts[f"shift_{number}"],
                soft_bound(parts[f"log_slope_{number}"], LOG_SLOPE_BOUND),
                torch.log_softmax(parts[f"outward_{number}"], dim=-1),
            )
            for number in range(1, self.layers + 1)
        ]


class _Layer(NamedTuple):
    """Logs of U (*batch, units, units) and W (*batch, out, units); b and log a (*batch, units)."""

    log_inward: Tensor | None
    shift: Tensor
    log_slope: Tensor
    log_outward: Tensor
