"""What `score`, `sample` and `quantiles` do with a conditional density: chunks of rows, encoded as the fit did."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import narwhals as nw
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rosenblatt.cli.stream import Written, stream
from rosenblatt.conditional import GivenDensity
from rosenblatt.core.errors import CheckpointError, DataError
from rosenblatt.data import Encoder, Table
from rosenblatt.data.chunks import Chunk
from rosenblatt.data.encode import columns_of
from rosenblatt.data.frames import iter_frames
from rosenblatt.ensemble import restore_conditional
from rosenblatt.predictive import Predictive
from rosenblatt.preparation import SAMPLES, SPREAD
from rosenblatt.train import RunFolder
from rosenblatt.train.runtime import seeded_generator

CHUNK_ROWS = 8192  # fixed, since what is drawn for a seed depends on it
Floats = npt.NDArray[np.float64]


class Task(Protocol):
    """What to compute of a chunk; a frozen dataclass of plain values, sent to every worker."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def columns(self, density: GivenDensity, targets: Sequence[str]) -> list[str]:
        """Names of the columns of the answer."""

    def answer(self, density: GivenDensity, chunk: Chunk) -> Tensor:
        """Answer (rows, columns) of a chunk, whose values are the targets, where they are read, and encoded columns."""


@dataclass(frozen=True)
class ScoreTask:
    """Log-density and PIT of each row; `steps` are the cell widths of targets to spread first."""

    targets: tuple[str, ...]
    steps: tuple[tuple[str, float], ...]
    dtype: str
    keep_bad_rows: bool
    seed: int

    def columns(self, density: GivenDensity, targets: Sequence[str]) -> list[str]:
        """`log_density` and, where the base has a CDF, a PIT for each target."""
        has_cdf = density.has_cdf
        return ["log_density", *(f"pit_{name}" for name in targets if has_cdf)]

    def answer(self, density: GivenDensity, chunk: Chunk) -> Tensor:
        """Scores (rows, 1 or 1 + targets); NaN for a row without targets, where such rows are to be kept."""
        y, given = _apart(chunk, len(self.targets))
        bad = ~torch.isfinite(y).all(dim=1)
        if bool(bad.any()) and not self.keep_bad_rows:
            raise DataError(
                f"row {chunk.first + int(bad.nonzero()[0])} (counted from 0) has a missing or infinite target; drop or "
                "fill it, or add --keep-bad-rows for empty scores."
            )
        y = torch.where(bad.unsqueeze(1), y[~bad][:1] if bool((~bad).any()) else torch.ones_like(y), y)
        if self.steps:
            noise = seeded_generator(self.seed, SPREAD, chunk.number)
            y = Table(y, self.targets).dequantise(dict(self.steps), noise).values
        density = density.float() if self.dtype == "float32" else density.double()
        scores = density.by_rows(density.log_prob, y, given).unsqueeze(1)
        if density.has_cdf:
            scores = torch.cat([scores, Predictive(density).cdf(y, given)], dim=1)
        return torch.where(bad.unsqueeze(1), torch.nan, scores)


@dataclass(frozen=True)
class SampleTask:
    """`draws` draws of the targets for every row, together after one another."""

    draws: int
    seed: int

    def columns(self, density: GivenDensity, targets: Sequence[str]) -> list[str]:
        """The row that was given, counted from 0, and the targets."""
        return ["row", *targets]

    def answer(self, density: GivenDensity, chunk: Chunk) -> Tensor:
        """Rows (rows * draws, 1 + targets)."""
        _, given = _apart(chunk, 0)
        drawn = Predictive(density).sample(given, self.draws, seeded_generator(self.seed, SAMPLES, chunk.number))
        rows = torch.arange(chunk.first, chunk.first + len(given), dtype=torch.float64)
        together = drawn.transpose(0, 1).reshape(-1, drawn.shape[2])
        return torch.cat([rows.repeat_interleave(self.draws).unsqueeze(1), together], dim=1)


@dataclass(frozen=True)
class QuantileTask:
    """Quantiles of each target at `levels`; `seed` is that of the run's fit."""

    levels: tuple[float, ...]
    seed: int

    def columns(self, density: GivenDensity, targets: Sequence[str]) -> list[str]:
        """`TARGET_LEVEL`, target by target."""
        return [f"{name}_{level:g}" for name in targets for level in self.levels]

    def answer(self, density: GivenDensity, chunk: Chunk) -> Tensor:
        """Quantiles (rows, targets * levels)."""
        _, given = _apart(chunk, 0)
        levels = torch.tensor(self.levels, dtype=torch.float64)
        return Predictive(density, seed=self.seed).quantiles(given, levels).flatten(1)


@dataclass(frozen=True)
class GivenJob:
    """A task on the rows of `table`; `model` is the digest of the run's weights, see `RunFolder.digest`."""

    run: Path
    model: str
    table: Path
    task: Task

    def start(self) -> Answer:
        """Load the model; raises `CheckpointError` if it is not the one that the job began with."""
        density, _, _ = open_conditional(self.run)
        if RunFolder.open(self.run).digest() != self.model:
            raise CheckpointError(f"{self.run}: the run changed while its model was in use; run the command again.")
        return Answer(self.task, density)

    def facts(self) -> dict[str, Any]:
        """What the answers depend on."""
        with self.table.open("rb") as file:
            table = hashlib.file_digest(file, "sha256").hexdigest()
        told = {"command": type(self.task).__name__, "model": self.model, "table": table, "chunk_rows": CHUNK_ROWS}
        return {**told, **asdict(self.task)}


class Answer:
    """The function of a chunk."""

    def __init__(self, task: Task, density: GivenDensity) -> None:
        self.task, self.density = task, density

    def __call__(self, chunk: Chunk) -> Floats:
        """Compute the answer, in float64 on the CPU."""
        answer: Floats = self.task.answer(self.density, chunk).double().numpy()
        return answer


def open_conditional(path: Path) -> tuple[GivenDensity, Encoder, dict[str, Any]]:
    """Load the best weights of a run of a conditional density, in float64."""
    density, encoder, config = restore_conditional(RunFolder.open(path))
    return density.double().eval(), encoder, config


def answer_rows(
    run: Path,
    table: Path,
    task: Task,
    *,
    out: Path | None,
    processes: int | None,
    read_targets: bool = False,
    times: int = 1,
) -> Written:
    """Stream the rows of `table` through `task`, which makes `times` rows of each, to `out` or to standard output."""
    density, encoder, config = open_conditional(run)
    targets = tuple(config["columns"])
    job = GivenJob(run, RunFolder.open(run).digest(), table, task)
    return stream(
        job,
        Answer(task, density),
        given_chunks(table, encoder, targets if read_targets else (), times=times),
        out=out,
        columns=task.columns(density, targets),
        processes=processes,
        facts=job.facts,
    )


def given_chunks(path: Path, encoder: Encoder, targets: Sequence[str], *, times: int = 1) -> Iterator[Chunk]:
    """Rows of a file, chunk by chunk: `targets`, then what the encoder makes of its columns; others are left out.

    A chunk says how many rows its answer has, `times` those of its values.
    """
    kinds = {code.name: _kind(code.categories) for code in encoder.codes} | dict.fromkeys(targets, "number")
    wanted = [*targets, *encoder.columns]
    first = 0
    for number, frame in enumerate(iter_frames(path, CHUNK_ROWS, columns=wanted, kinds=kinds)):
        values = encoded_rows(path, frame, encoder, targets, first)
        yield Chunk(number, first, times * len(values), values)
        first += len(values)


def encoded_rows(path: Path, frame: Any, encoder: Encoder, targets: Sequence[str], first: int = 0) -> Floats:
    """Targets and encoded columns of a pyarrow table, side by side."""
    try:
        columns = columns_of(nw.from_native(frame, eager_only=True))
        y = [_numbers(columns[name], name) for name in targets]
        given = encoder.encode({name: columns[name] for name in encoder.columns}, first_row=first).numpy()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return np.column_stack([*y, given])


def _numbers(column: Any, name: str) -> Floats:
    if isinstance(column, list):
        if any(text is not None for text in column):
            raise DataError(f"column '{name}': text came, numbers were expected of a target.")
        return np.full(len(column), np.nan)
    numbers: Floats = column
    return numbers


def _kind(categories: tuple[str, ...] | None) -> str:
    if categories is None:
        return "number"
    return "truth" if set(categories) <= {"False", "True"} else "text"


def _apart(chunk: Chunk, targets: int) -> tuple[Tensor, Tensor]:
    assert chunk.values is not None
    values = torch.from_numpy(np.ascontiguousarray(chunk.values))
    return values[:, :targets], values[:, targets:]
