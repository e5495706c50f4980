"""Where the records of training go besides the run folder."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Logger(Protocol):
    """Receives one record per validation: step, epoch, train, validation, lr, seconds, skipped, rolled_back.

    `train` and `validation` are minus the mean losses, None where there is no finite one: with a likelihood objective
    mean log-likelihoods in nats per row.
    """

    def log(self, record: dict[str, Any]) -> None:
        """Take one record."""


class ProgressBar:
    """A line on the terminal with scores in `measure`, learning rate, rows per second and the time left."""

    def __init__(self, total: int, done: int, measure: str = "nats") -> None:
        self._validation = "-"
        self._drawn = self._mark = time.monotonic()
        self._rows = 0
        self._step = done
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("train {task.fields[train]}  validation {task.fields[validation]} {task.fields[measure]}"),
            TextColumn("lr {task.fields[lr]}  {task.fields[speed]} rows/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task(
            "fit", total=total, completed=done, train="-", validation="-", measure=measure, lr="-", speed="-"
        )
        self._bar.start()

    def advance(self, step: int, rows: int, loss: float, lr: float) -> None:
        """Note one step; the line is redrawn a few times a second."""
        self._rows += rows
        self._step = step
        now = time.monotonic()
        if now - self._drawn < 0.2:
            return
        self._drawn = now
        self._bar.update(
            self._task,
            completed=step,
            train=f"{-loss:.3f}",
            validation=self._validation,
            lr=f"{lr:.1e}",
            speed=f"{self._rows / (now - self._mark):,.0f}",
        )

    def log(self, record: dict[str, Any]) -> None:
        """Show the last validation."""
        if record["validation"] is not None:
            self._validation = f"{record['validation']:.3f}"

    def close(self) -> None:
        """Leave the line as it stands."""
        self._bar.update(self._task, completed=self._step, validation=self._validation)
        self._bar.stop()


def on_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()
