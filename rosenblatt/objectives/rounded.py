"""Likelihood of values that were rounded: counts, ordinal classes, measurements to a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Batch
from rosenblatt.layers.intervals import interval_log_prob


class RoundedNLL:
    """`loss_i = -log P(x_i - step / 2 < X <= x_i + step / 2 | context_i)`: minus the log-probability of what was seen.

    For integers `step=1`. Values at `lowest` and below it stand for everything below, those at `highest` for everything
    above: counts have `lowest=0`, K ordinal classes 0 to K - 1. The model learns probabilities of cells, in nats that
    compare with those of a discrete model, and can never gain by peaks at the values. `pmf` gives them for any rows.
    The model is a flow of one layer, as for `layers.intervals.interval_log_prob`, or has a method of that name.
    Raises `OptionError` unless step > 0 and lowest < highest.

    >>> from rosenblatt.models.made_mixture import made_mixture
    >>> RoundedNLL(lowest=0)(made_mixture(1, hidden=8), Batch(torch.zeros(2, 1)), torch.Generator()).shape
    torch.Size([2])
    """

    measure = "nats"

    def __init__(self, step: float = 1.0, *, lowest: float = -math.inf, highest: float = math.inf) -> None:
        if not 0 < step < math.inf:
            raise OptionError(f"step: {step} came, a positive number was expected.")
        if not lowest < highest:
            raise OptionError(f"lowest={lowest}, highest={highest} came, two numbers in order were expected.")
        self.step, self.lowest, self.highest = step, lowest, highest

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Minus the log-probability of each row; `generator` is not needed."""
        return -self.pmf(model, batch.x, batch.context)

    def pmf(self, model: Density, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-probability (*batch) of the cells around `x` (*batch, features), in nats."""
        x = x.double()
        lower = torch.where(x <= self.lowest, -torch.inf, x - 0.5 * self.step)
        upper = torch.where(x >= self.highest, torch.inf, x + 0.5 * self.step)
        own = getattr(model, "interval_log_prob", None)
        if own is not None:
            found: Tensor = own(lower, upper, context, at=x)
        else:
            found = interval_log_prob(model, lower, upper, context, at=x)
        return found.sum(dim=-1)
