"""Averages of the weights over the course of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Bias-corrected exponential average of weights (Polyak and Juditsky 1992; Kingma and Ba 2015).

    At update t, `average += gain (w_t - average)` with `gain = max((1 - d) / (1 - d^t), 10 / (9 + t))`. The first
    term gives the bias-corrected average `sum_s d^(t-s) w_s / sum_s d^(t-s)`; the second forgets all but about the
    last tenth of a run too short for the decay. What is stored is what is used.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.decay = decay
        self.updates = 0
        self.average: list[Tensor] = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        self.updates += 1
        gain = max((1 - self.decay) / (1 - self.decay**self.updates), 10 / (9 + self.updates))
        torch._foreach_lerp_(self.average, self.parameters, gain)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model carry the averaged weights for a while."""
        raw = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, raw)
