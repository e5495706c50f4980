"""The training loop, readable from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from rosenblatt.core.density import Density, Objective
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.objectives.likelihood import NLL
from rosenblatt.train.batches import Dataset
from rosenblatt.train.checkpoint import RunFolder
from rosenblatt.train.config import FitConfig
from rosenblatt.train.loggers import Logger, ProgressBar, on_terminal
from rosenblatt.train.runtime import Interrupt, LocalRuntime, Runtime, isolated, mixed, seeded_generator
from rosenblatt.train.session import PROCESS, SPLIT, Session

__all__ = ["Dataset", "FitReport", "Fitter"]


@dataclass
class FitReport:
    """What happened in a fit.

    stopped: "patience", "steps", "epochs", "time", "interrupted" or "closed form".
    steps, epochs: batches consumed and passes over the rows, over all resumes.
    best_step: step whose weights the model was left with; None when stopped before the first validation.
    best_validation: minus the mean loss there, weighted; -inf when no validation was finite, None without validation
        rows.
    final_train: minus the mean training loss since the last validation but one.
    history: one record per validation, as in metrics.jsonl.
    skipped_steps, rolled_back: how often the guard stepped in; events: when and why (the first hundred).
    poisoned_rows: training rows that are not finite.
    seconds: time spent training, over all resumes.
    resumed_from: step at which this call took up an earlier run.
    signal: number of the signal that interrupted this call.
    measure: what `best_validation` and the history's validation scores are: "nats" is the mean log-likelihood in nats
        per row; with another objective it is that objective's name for minus its loss, and no log-likelihood.
    """

    stopped: str
    steps: int
    epochs: float
    best_step: int | None
    best_validation: float | None
    final_train: float | None
    history: list[dict[str, Any]] = field(repr=False)
    skipped_steps: int = 0
    rolled_back: int = 0
    events: list[dict[str, Any]] = field(default_factory=list, repr=False)
    poisoned_rows: int = 0
    seconds: float = 0.0
    resumed_from: int | None = None
    signal: int | None = None
    measure: str = "nats"


class Fitter:
    """Fits a density to rows by stochastic gradients, with validation, averaging, a guard and checkpoints.

    AdamW (Loshchilov and Hutter 2019) on `sum_i w_i loss_i / sum_i w_i`; the weights kept are those of least loss on
    the validation rows. One seed fixes the result; the global random state and thread count stay as they were.

    >>> from rosenblatt.train import FitConfig
    >>> fitter = Fitter(FitConfig(epochs=5, seed=1))
    """

    def __init__(
        self,
        config: FitConfig | None = None,
        *,
        runtime: Runtime | None = None,
        loggers: Sequence[Logger] = (),
        progress: bool | Literal["auto"] = "auto",
    ) -> None:
        self.config = FitConfig() if config is None else config
        self.runtime = runtime
        self.loggers = loggers
        self.progress = progress

    def fit(
        self,
        model: Density,
        data: Dataset,
        objective: Objective | None = None,
        *,
        validation: Dataset | None = None,
        run: RunFolder | None = None,
        resume: bool = False,
    ) -> FitReport:
        """Train `model` in place; it is left in eval mode with its best weights.

        The loss is `objective`, else the one the model names (`Density.objective`), else minus the log-likelihood.
        Without `validation` a part of `data` is held out. With `run`, checkpoints and metrics go there, and
        `resume` goes on from the latest one, bit for bit (from the start if there is none yet). SIGINT and
        SIGTERM finish the step, save and return. In several processes (`joined`) all call this alike; of the folder
        and the loggers those of the first count. Raises `FitDiverged` when roll backs do not help,
        `CheckpointError` when the run folder cannot be used, `OptionError` or `DataError` for the rest.
        """
        config = self.config
        runtime = self.runtime or LocalRuntime(config.device, amp=config.amp)
        if not runtime.processes.first:
            run, resume = None, False
        if resume and run is None:
            raise OptionError("resume: needs the run folder to go on from; pass run=RunFolder.open(path).")
        if run is not None and run.steps() and not resume:
            raise OptionError(f"run: {run.path} holds checkpoints already; pass resume=True or make a new folder.")
        processes = runtime.processes
        with (
            isolated(
                runtime.device,
                config.seed if processes.first else mixed(config.seed, PROCESS, processes.rank),
                config.threads,
            ),
            nullcontext() if run is None else run.writing(),
            Interrupt(several=processes.count > 1) as interrupt,
        ):
            session = Session(
                config,
                runtime=runtime,
                model=model,
                data=self._split(data, validation),
                objective=objective or model.objective or NLL(),
                run=run,
                loggers=self.loggers,
            )
            try:
                resumed_from = session.start()
                stopped = self._closed_form(session) if session.closed_form else self._loop(session, interrupt)
            finally:
                session.finish()
        return _report(session, stopped, resumed_from, interrupt.signal if stopped == "interrupted" else None)

    def _loop(self, session: Session, interrupt: Interrupt) -> str:
        progress = session.state.progress
        shown = on_terminal() if self.progress == "auto" else self.progress
        session.bar = (
            ProgressBar(session.total, progress.step, session.measure) if shown and session.processes.first else None
        )
        validated = progress.history[-1]["step"] if progress.history else None
        saved = progress.step
        session.model.train()
        try:
            stopped = session.stopped(interrupt)
            while stopped is None:
                for batch in session.epoch():
                    session.step(batch)
                    best = False
                    if progress.step % session.validate_every == 0:
                        best, validated = session.validate(), progress.step
                    if best or progress.step % session.checkpoint_every == 0:
                        session.checkpoint(best=best)
                        saved = progress.step
                    stopped = session.stopped(interrupt)
                    if stopped is not None:
                        break
            best = False
            if stopped != "interrupted" and validated != progress.step:
                best = session.validate()
            if best or saved != progress.step:
                session.save(best=best)
        finally:
            if session.bar is not None:
                session.bar.close()
        return stopped

    def _closed_form(self, session: Session) -> str:
        if not session.state.progress.history:
            session.save(best=session.validate())
        return "closed form"

    def _split(self, data: Dataset, validation: Dataset | None) -> tuple[Dataset, Dataset | None]:
        fraction = self.config.validation_fraction
        if len(data) == 0:
            raise DataError("data: no rows came, at least one was expected; check the table.")
        if validation is not None:
            return data, validation if len(validation) else None
        if fraction == 0:
            return data, None
        train, held_out = data.split((1 - fraction, fraction), seeded_generator(self.config.seed, SPLIT))
        return train, held_out


def _report(session: Session, stopped: str, resumed_from: int | None, signal: int | None) -> FitReport:
    progress, guard = session.state.progress, session.state.guard
    best = progress.best_validation
    if best is None and session.validation is not None and progress.best_step is not None:
        best = -math.inf
    return FitReport(
        stopped=stopped,
        steps=progress.step,
        epochs=progress.step / session.steps_per_epoch,
        best_step=progress.best_step,
        best_validation=best,
        final_train=progress.history[-1]["train"] if progress.history else None,
        history=progress.history,
        skipped_steps=guard.skipped,
        rolled_back=guard.rolled_back,
        events=progress.events,
        poisoned_rows=session.poisoned_rows,
        seconds=session.seconds(),
        resumed_from=resumed_from,
        signal=signal,
        measure=session.measure,
    )
