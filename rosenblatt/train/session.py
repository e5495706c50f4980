"""The parts of the training loop: one step, one validation, one checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rosenblatt.core.density import Density, Objective
from rosenblatt.core.errors import CheckpointError, DataError, FitDiverged, InverseError, OptionError
from rosenblatt.core.types import Batch
from rosenblatt.data.images import Images
from rosenblatt.data.table import Table
from rosenblatt.objectives.likelihood import measure_of
from rosenblatt.train.agreement import check_alike, check_same_run
from rosenblatt.train.batches import Dataset, pinned, poisoned, slices, sound_rows, weighted_mean
from rosenblatt.train.checkpoint import RunFolder
from rosenblatt.train.config import FitConfig
from rosenblatt.train.guard import ROLL_BACKS, Guard, Verdict
from rosenblatt.train.loggers import Logger, ProgressBar
from rosenblatt.train.runtime import Interrupt, Runtime, seeded_generator
from rosenblatt.train.state import Progress, Standing, TrainState, random_streams, set_random_streams

INITIAL_ROWS = 100_000  # rows that data-dependent starting values are taken from
VALIDATION_ROWS = 4096  # rows per batch at validation, or `batch_size` where that is more
EVENTS_KEPT = 100
# Streams that are never shared: the epochs of the shuffle use (seed, 0, epoch).
SHUFFLE, SPLIT, OBJECTIVE, VALIDATION, PROCESS = range(5)


class Session:
    """One run of training on one model, at any step of it."""

    def __init__(
        self,
        config: FitConfig,
        *,
        runtime: Runtime,
        model: Density,
        data: tuple[Dataset, Dataset | None],
        objective: Objective,
        run: RunFolder | None,
        loggers: Sequence[Logger],
    ) -> None:
        self.config, self.runtime, self.processes = config, runtime, runtime.processes
        self.run = run if self.processes.first else None
        self.model, self.objective = model, objective
        self.measure = measure_of(model, objective)
        self.train, self.validation = (_near(rows, runtime.device) for rows in data)
        self.loggers = list(loggers) if self.processes.first else []
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        runtime.place(model, self.dtype)
        self.closed_form = model.closed_form or not any(p.requires_grad for p in model.parameters())
        # Compiled for one number of rows: every other one would be compiled anew.
        self.compiled: Any = torch.compile(model, dynamic=False) if config.compile and not self.closed_form else None
        self.part_rows = -(-config.batch_size // (config.accumulate * self.processes.count))
        self.steps_per_epoch = -(-len(self.train) // config.batch_size)
        total = config.epochs * self.steps_per_epoch
        self.total = total if config.max_steps is None else min(total, config.max_steps)
        self.validate_every = config.validate_every or self.steps_per_epoch
        self.checkpoint_every = config.checkpoint_every or self.validate_every
        self.generator = self._own_generator(OBJECTIVE)
        self.poisoned_rows, total_weight = 0, 0.0
        for batch in map(self._on_device, self.train.ordered_batches(INITIAL_ROWS)):
            self.poisoned_rows += poisoned(batch)
            total_weight += len(batch.x) if batch.weight is None else float(batch.weight.double().sum())
        self.mean_weight = total_weight / len(self.train)
        self.state = self._fresh_state()
        self.best_weights: dict[str, Tensor] | None = None
        self.bar: ProgressBar | None = None
        self._started = time.monotonic()

    def _on_device(self, batch: Batch) -> Batch:
        if self.runtime.device.type == "cuda" and batch.x.device.type == "cpu":
            batch = pinned(batch)
        return self.runtime.to(batch, self.dtype)

    def start(self) -> int | None:
        """Begin, or go on with the run, bit for bit and in every process alike; returns the step gone on from."""
        if self.processes.count > 1:
            check_alike(self.processes, self.config, self.model, self.train, self.validation)
        if self.processes.first:
            standing = self._begun() if self.run is None or not self.run.steps() else self._stored(self.run)
        if self.processes.count > 1:
            standing = Standing.decode(self.processes.of_first(standing.encode() if self.processes.first else b""))
        self.state.restore(*standing.snapshot)
        self.snapshot = self.state.snapshot()
        self.state.restore(*standing.now)
        self.state.progress, self.state.guard, self.best_weights = standing.progress, standing.guard, standing.best
        set_random_streams(standing.streams, self.runtime.device, self.generator, self.processes.rank)
        if standing.resumed_from is None and not self.closed_form:
            self.save(best=False)
        return standing.resumed_from

    def _begun(self) -> Standing:
        """Start from the data: initial values, optimiser, average."""
        rows = self.train.rows(None if self.closed_form else INITIAL_ROWS)
        batch = sound_rows(self._on_device(rows))
        if len(batch.x) == 0:
            raise DataError("data: no row is finite, at least one was expected; check the table.")
        with torch.no_grad():
            self.model.initialise(batch.x, batch.context, batch.weight)
        self.state = self._fresh_state()
        now = self.state.snapshot()
        return Standing(now, now, None, {}, self.state.guard, self.state.progress, None)

    def _stored(self, run: RunFolder) -> Standing:
        """Where the run's latest checkpoint stands."""
        checkpoint = run.load("latest")
        if not checkpoint.train:
            raise CheckpointError(f"{run.path}: a saved model without training state; resume the run it came from.")
        if not self.closed_form and "optimizer.mean" not in checkpoint.train:
            raise CheckpointError(f"{run.path}: began with an earlier version of the library; start a new run.")
        check_same_run(self.config, len(self.train), checkpoint.state)
        run.rewind(checkpoint.step)
        self.state.progress = progress = Progress(**checkpoint.state["progress"])
        try:
            older = run.load(progress.snapshot_step)
        except CheckpointError:
            older = checkpoint
        best = None
        if progress.best_step is not None:
            try:
                best = run.load(progress.best_step).model
            except CheckpointError:
                progress.best_step = progress.best_validation = None
                self._note("resume", "the best checkpoint is gone; the next validation counts as the best")
        return Standing(
            now=(checkpoint.model, checkpoint.train, checkpoint.state["ema_updates"]),
            snapshot=(older.model, older.train, older.state["ema_updates"]),
            best=best,
            streams={name: state for name, state in checkpoint.train.items() if name.startswith("rng.")},
            guard=Guard.from_dict(checkpoint.state["guard"]),
            progress=progress,
            resumed_from=checkpoint.step,
        )

    def epoch(self) -> Iterator[Batch]:
        """Iterate what is left of the present pass over the training rows."""
        epoch, done = divmod(self.state.progress.step, self.steps_per_epoch)
        shuffle = seeded_generator(self.config.seed, SHUFFLE, epoch)
        before = self.state.progress.step
        yield from self.train.batches(self.config.batch_size, shuffle, start=done)
        if self.state.progress.step != before + self.steps_per_epoch - done:
            raise DataError(
                f"data: a pass over {len(self.train)} rows must hold {self.steps_per_epoch} batches of "
                f"{self.config.batch_size}; keep the short last batch and no others."
            )

    def step(self, batch: Batch) -> None:
        """Take one optimiser step, unless the guard says otherwise."""
        progress, optimizer = self.state.progress, self.state.optimizer
        assert optimizer is not None
        rate = self._learning_rate(progress.step)
        loss = self._backward(self._on_device(self.processes.share(batch)), len(batch.x))
        gradient = self.processes.add_up(optimizer.weights.gradient())
        norm = torch.linalg.vector_norm(gradient) * self.processes.first  # one opinion: devices may round differently
        # The only wait for the device in a step: both numbers at once.
        loss_value, norm_value = self.processes.add_up(torch.stack((loss, norm.to(loss.dtype)))).tolist()
        verdict = self.state.guard.judge(loss_value, norm_value)
        if verdict is Verdict.GOOD:
            clip = self.config.clip_norm
            if clip is not None and norm_value > clip:
                gradient.mul_(clip / norm_value)
            optimizer.step(gradient, rate)
            if self.state.ema is not None:
                self.state.ema.update()
            progress.loss_sum += loss_value
            progress.loss_count += 1
        else:
            self._answer(verdict, loss_value, norm_value, poisoned(self._on_device(batch)))
        progress.step += 1
        if self.bar is not None:
            self.bar.advance(progress.step, len(batch.x), loss_value, rate)

    def _backward(self, batch: Batch, rows: int) -> Tensor:
        """Gather, slice by slice, the gradient of what `batch` adds to the mean loss of `rows`, and return that."""
        losses_of_parts = [torch.zeros((), dtype=self.dtype, device=self.runtime.device)] if len(batch.x) == 0 else []
        for part in slices(batch, self.part_rows):
            with self.runtime.autocast():
                losses = self._losses(part)
            loss = weighted_mean(losses.to(self.dtype), part.weight, self.mean_weight)
            if len(part.x) < rows:
                loss = loss * (len(part.x) / rows)
            self.runtime.backward(loss)
            losses_of_parts.append(loss.detach())
        return losses_of_parts[0] if len(losses_of_parts) == 1 else torch.stack(losses_of_parts).sum()

    def _losses(self, part: Batch) -> Tensor:
        if self.compiled is None or len(part.x) != self.part_rows:
            return self.objective(self.model, part, self.generator)
        try:
            return self.objective(self.compiled, part, self.generator)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).split())[:200]
            raise OptionError(
                f"compile: torch.compile cannot compile this model here ({reason}); install a C++ compiler or "
                "switch compile off."
            ) from error

    def validate(self) -> bool:
        """Score the weights for use, write the record down, and say whether they are the best so far."""
        progress = self.state.progress
        with self._in_use():
            self._refresh()
            score = None if self.validation is None else self._validation_score(self.validation)
        if score is not None and math.isnan(score):
            self._roll_back("the validation score is not a number")
        finite = score if score is not None and math.isfinite(score) else None
        if score is not None and finite is None:
            self._note("validation", "not finite")
        mean = -progress.loss_sum / progress.loss_count if progress.loss_count else None
        progress.loss_sum, progress.loss_count = 0.0, 0
        record = {
            "step": progress.step,
            "epoch": progress.step / self.steps_per_epoch,
            "train": mean,
            "validation": finite,
            "lr": self._learning_rate(max(progress.step - 1, 0)),
            "seconds": self.seconds(),
            "skipped": self.state.guard.skipped,
            "rolled_back": self.state.guard.rolled_back,
        }
        progress.history.append(record)
        if self.run is not None:
            self.run.append_metrics(record)
        for logger in self.loggers if self.bar is None else (self.bar, *self.loggers):
            logger.log(record)
        improved = progress.judge(finite, self.config.min_gain)
        if improved:
            self.best_weights = self.state.weights()
        return improved

    def checkpoint(self, *, best: bool) -> None:
        """Put everything away: in memory to return to, if the loss is calm, and in the run folder."""
        if self.state.guard.calm:
            self.snapshot = self.state.snapshot()
            self.state.progress.snapshot_step = self.state.progress.step
        self.save(best=best)

    def save(self, *, best: bool) -> None:
        """Write a checkpoint into the run folder, if there is one: the first process, with what all must add."""
        streams = random_streams(self.runtime.device, self.generator, self.processes)
        if self.run is None:
            return
        state = {
            "fit": self.config.to_dict(),
            "rows": len(self.train),
            "progress": {**self.state.progress.to_dict(), "seconds": self.seconds()},
            "guard": self.state.guard.to_dict(),
            "ema_updates": self.state.ema_updates,
            "measure": self.measure,
        }
        self.run.save(
            self.state.progress.step,
            self.state.weights(),
            {**self.state.working(), **streams},
            state,
            best=best,
            keep_last=self.config.keep_last,
            keep=[self.state.progress.snapshot_step],  # a resumed run must be able to roll back to it
        )

    def stopped(self, interrupt: Interrupt) -> str | None:
        """Say why training is over, or None: the same in every process."""
        progress, config = self.state.progress, self.config
        if config.patience is not None and progress.waits >= config.patience:
            return "patience"
        if progress.step >= self.total:
            return "steps" if progress.step == config.max_steps else "epochs"
        over = config.time_limit is not None and self.seconds() >= config.time_limit
        late, signal = self.processes.largest([over, interrupt.signal or 0])
        interrupt.signal = int(signal) or None
        return "time" if late else "interrupted" if signal else None

    def seconds(self) -> float:
        """Seconds of training so far, over all resumes."""
        return self.state.progress.seconds + time.monotonic() - self._started

    def finish(self) -> None:
        """Leave the model with its best weights, in eval mode, without gradients."""
        self.model.load_state_dict(self.state.weights() if self.best_weights is None else self.best_weights)
        self.model.zero_grad(set_to_none=True)
        self.state.release()
        self.model.eval()
        if self.best_weights is None and self.state.progress.step:
            self._refresh()  # stopped before the first validation

    def _fresh_state(self) -> TrainState:
        if self.closed_form:
            return TrainState(self.model, None, None)
        config = self.config
        return TrainState.fresh(self.model, weight_decay=config.weight_decay, ema_decay=config.ema_decay)

    def _learning_rate(self, step: int) -> float:
        config = self.config
        rate = config.learning_rate * self.state.guard.lr_scale
        if config.warmup_steps:
            rate *= min(1.0, (step + 1) / config.warmup_steps)
        if config.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * min(step / self.total, 1.0))) / 2
        return rate

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Let the model stand as it will be used: averaged weights, eval mode, no gradients."""
        averaged = nullcontext() if self.state.ema is None else self.state.ema.applied()
        self.model.eval()
        with torch.no_grad(), averaged:
            yield
        self.model.train()

    def _refresh(self) -> None:
        """Let the model recompute what it keeps of the training rows, for the weights it carries."""
        with torch.no_grad(), self.runtime.autocast():
            self.model.refresh(self._sound_batches(self.train))

    def _sound_batches(self, data: Dataset, *, shared: bool = False) -> Iterator[Batch]:
        for rows in data.ordered_batches(max(self.config.batch_size, VALIDATION_ROWS)):
            batch = sound_rows(self._on_device(self.processes.share(rows) if shared else rows))
            if len(batch.x):
                yield batch

    def _validation_score(self, data: Dataset) -> float:
        """Minus the mean loss; every process scores its share of the rows, and all get the same number."""
        generator = self._own_generator(VALIDATION)
        sums = torch.zeros(3, dtype=torch.float64, device=self.runtime.device)  # of scores, weights and failures
        for batch in self._sound_batches(data, shared=True):
            try:
                with self.runtime.autocast():
                    losses = self.objective(self.model, batch, generator).double()
            except InverseError as error:
                # The weights make no density that can be vouched for. Training may lead out of it, as it led in.
                self._note("validation", str(error))
                sums[2] = 1
                break
            weight = torch.ones_like(losses) if batch.weight is None else batch.weight.double()
            sums[0] -= (weight * torch.where(weight > 0, losses, 0.0)).sum()
            sums[1] += weight.sum()
        total, mass, failed = self.processes.add_up(sums).tolist()
        if failed:
            return -math.inf
        if mass == 0:
            raise DataError("validation: no finite row with a weight above 0 came; check the table and its split.")
        return float(total / mass)

    def _own_generator(self, stream: int) -> torch.Generator:
        own = () if self.processes.first else (self.processes.rank,)
        return seeded_generator(self.config.seed, stream, *own, device=self.runtime.device)

    def _answer(self, verdict: Verdict, loss: float, norm: float, poisoned: int) -> None:
        what = "loss" if not math.isfinite(loss) else "gradient" if not math.isfinite(norm) else ""
        reason = f"{what} not finite" if what else f"loss ran away to {loss:.3g} a row"
        if verdict is Verdict.SKIP:
            self._note("skip", reason, poisoned_rows=poisoned)
        else:
            self._roll_back(reason)

    def _roll_back(self, reason: str) -> None:
        self._note("roll back", reason)
        self.state.restore(*self.snapshot)
        if not self.state.guard.roll_back():
            rate, progress = self.config.learning_rate, self.state.progress
            raise FitDiverged(
                f"training diverged at step {progress.step} after {ROLL_BACKS} roll backs ({reason}); "
                f"lower learning_rate ({rate:g} came), look for rows that are far off or not finite "
                f"({self.poisoned_rows} of {len(self.train)} are not finite), lower clip_norm "
                f'or use dtype="float64".'
            )

    def _note(self, kind: str, reason: str, **details: int) -> None:
        events = self.state.progress.events
        if len(events) < EVENTS_KEPT:
            events.append({"step": self.state.progress.step, "kind": kind, "reason": reason, **details})


def _near(data: Dataset | None, device: torch.device) -> Any:
    return data.near(device) if isinstance(data, Images | Table) else data
