"""Maximum likelihood: the loss of a row is minus its log-density."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.core.density import Density, Objective
from rosenblatt.core.types import Batch, Likelihood

__all__ = ["NLL", "Objective"]


class NLL:
    """Negative log-likelihood in nats: `loss_i = -log p(x_i | context_i)`, shape (rows,).

    >>> from rosenblatt.bases import StandardNormal
    >>> NLL()(StandardNormal(1), Batch(torch.zeros(2, 1)), torch.Generator())
    tensor([0.9189, 0.9189])
    """

    measure = "nats"

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return `-log_prob` of each row; `generator` is not needed."""
        # Called as a module, so that a compiled or data-parallel wrapper is what runs.
        losses: Tensor = -model(batch.x, batch.context)
        return losses


def measure_of(model: Density, objective: Objective | None = None) -> str:
    """What the validation scores of a model trained with `objective`, or its own, are (`FitReport.measure`).

    Nats of a model whose `log_prob` is no exact log-density say what they are, as "nats (lower bound)".

    >>> from rosenblatt.bases import StandardNormal
    >>> measure_of(StandardNormal(1))
    'nats'
    """
    measure = getattr(objective or model.objective or NLL(), "measure", "minus loss")
    training = model.training
    claim = model.eval().likelihood
    model.train(training)
    return measure if measure != "nats" or claim is Likelihood.EXACT else f"nats ({claim.value})"
