"""Averages of the weights over the course of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rosenblatt.train.weights import FlatWeights


class EMA:
    """Bias-corrected exponential average of weights (Polyak and Juditsky 1992; Kingma and Ba 2015).

    At update t, `average += gain (w_t - average)` with `gain = max((1 - d) / (1 - d^t), 10 / (9 + t))`. The first
    term gives the bias-corrected average `sum_s d^(t-s) w_s / sum_s d^(t-s)`; the second forgets all but about the
    last tenth of a run too short for the decay. What is stored is what is used.
    """

    def __init__(self, weights: FlatWeights, decay: float) -> None:
        self.weights = weights
        self.decay = decay
        self.updates = 0
        self.average = weights.vector.clone()

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        self.updates += 1
        gain = max((1 - self.decay) / (1 - self.decay**self.updates), 10 / (9 + self.updates))
        self.average.lerp_(self.weights.vector, gain)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model carry the averaged weights for a while."""
        raw = self.weights.vector.clone()
        self._write(self.average)
        try:
            yield
        finally:
            self._write(raw)

    def _write(self, values: torch.Tensor) -> None:
        self.weights.vector.copy_(values)
        self.weights.changed()
