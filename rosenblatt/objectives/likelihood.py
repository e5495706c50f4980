"""Maximum likelihood: the loss of a row is minus its log-density."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rosenblatt.core.density import Density
from rosenblatt.core.types import Batch


class Objective(Protocol):
    """A loss per row, shape (rows,); the fitter takes its weighted mean."""

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Compute the losses of `batch`; every random draw comes from `generator`."""


class NLL:
    """Negative log-likelihood in nats: `loss_i = -log p(x_i | context_i)`, shape (rows,).

    >>> from rosenblatt.bases import StandardNormal
    >>> NLL()(StandardNormal(1), Batch(torch.zeros(2, 1)), torch.Generator())
    tensor([0.9189, 0.9189])
    """

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return `-log_prob` of each row; `generator` is not needed."""
        # Called as a module, so that a compiled or data-parallel wrapper is what runs.
        losses: Tensor = -model(batch.x, batch.context)
        return losses
