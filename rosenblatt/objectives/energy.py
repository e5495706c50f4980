"""Penalties on the paths of a continuous flow, beside its likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Batch
from rosenblatt.layers.continuous import recorded_energy


class EnergyPenalty:
    """Negative log-likelihood of a continuous flow, plus what its paths cost (Finlay et al., ICML 2020).

    `loss_i = -log p(x_i) + kinetic * integral |v|^2 dt + jacobian * integral |dv/dz|_F^2 dt` along the path of row i,
    shape (rows,). Short, straight paths are followed well by few steps, and their field varies slowly. In eval mode
    the penalties are left out, so validation is in nats. Raises `OptionError` for a weight below 0, and when the model
    has no continuous flow.

    >>> from rosenblatt.models.ffjord import ffjord
    >>> model = ffjord(2, hidden=8, steps=2)
    >>> EnergyPenalty(kinetic=0.01)(model, Batch(torch.zeros(3, 2)), torch.Generator()).shape
    torch.Size([3])
    """

    measure = "nats"

    def __init__(self, *, kinetic: float = 0.01, jacobian: float = 0.01) -> None:
        for name, value in {"kinetic": kinetic, "jacobian": jacobian}.items():
            if not 0 <= value < float("inf"):
                raise OptionError(f"{name}: {value} came, a finite number >= 0 was expected.")
        self.kinetic = kinetic
        self.jacobian = jacobian

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the losses; `generator` is not needed, for the signs of the trace are the flow's own."""
        if not model.training:
            scores: Tensor = -model(batch.x, batch.context)
            return scores
        with recorded_energy(model) as energy:
            log_prob: Tensor = model(batch.x, batch.context)
        paths = energy()
        return self.kinetic * paths.kinetic + self.jacobian * paths.jacobian - log_prob
