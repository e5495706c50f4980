"""Keeps training finite: skips poisoned steps, asks for a roll back when the loss runs away."""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from statistics import median
from typing import Any

WINDOW = 11  # losses in the running median: one wild batch is no reason to go back
SKIPS_IN_A_ROW = 10
ROLL_BACKS = 5


class Verdict(Enum):
    """What to do with the step just computed."""

    GOOD = "good"
    SKIP = "skip"
    ROLL_BACK = "roll back"


class Guard:
    """Judges each step by its loss and gradient norm.

    A step whose loss or gradient is not finite is skipped. Ten of them in a row ask for a roll back, and so
    does a running median of the loss above `reference + max(10, |reference| / 2) + 10 spread`, where
    `reference` and `spread` are the lowest running median and the median absolute deviation of the losses
    there, in nats per row (or the unit of another objective).
    """

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.reference: float | None = None
        self.spread = 0.0
        self.skips_in_a_row = 0
        self.skipped = 0
        self.rolled_back = 0
        self.lr_scale = 1.0

    @property
    def limit(self) -> float:
        """Running median above which the loss counts as run away."""
        if self.reference is None:
            return math.inf
        return self.reference + max(10.0, abs(self.reference) / 2) + 10.0 * self.spread

    @property
    def calm(self) -> bool:
        """Whether the present weights are fit to be returned to."""
        return self.skips_in_a_row == 0 and (not self.recent or median(self.recent) <= self.limit)

    def judge(self, loss: float, gradient_norm: float) -> Verdict:
        """Say what to do with a step, and remember it."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self.skipped += 1
            self.skips_in_a_row += 1
            return Verdict.ROLL_BACK if self.skips_in_a_row >= SKIPS_IN_A_ROW else Verdict.SKIP
        self.skips_in_a_row = 0
        self.recent.append(loss)
        if self.reference is None:
            # The first loss comes before any update, so a rate that ruins the model at once still shows.
            # How much batches differ is not known yet, hence the wide guess.
            self.reference, self.spread = loss, max(10.0, abs(loss)) / 5
        if len(self.recent) < WINDOW:
            return Verdict.GOOD
        middle = median(self.recent)
        if middle > self.limit:
            return Verdict.ROLL_BACK
        if middle < self.reference:
            self.reference = middle
            # Eleven losses can lie together by chance, so the spread comes down slowly.
            self.spread = max(median(abs(value - middle) for value in self.recent), 0.9 * self.spread)
        return Verdict.GOOD

    def roll_back(self) -> bool:
        """Count a roll back and halve the learning rate; False when there were too many."""
        self.rolled_back += 1
        self.lr_scale /= 2
        self.skips_in_a_row = 0
        self.recent.clear()
        return self.rolled_back <= ROLL_BACKS

    def to_dict(self) -> dict[str, Any]:
        """Return the whole state as JSON values."""
        return {**vars(self), "recent": list(self.recent)}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Guard:
        """Restore what `to_dict` returned."""
        guard = cls()
        for name in vars(guard):
            setattr(guard, name, state[name])
        guard.recent = deque(state["recent"], maxlen=WINDOW)
        return guard
