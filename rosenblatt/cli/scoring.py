"""The scores of a chunk of rows: what `rosenblatt score` does, in one process or in many."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rosenblatt.assembly import TableFlow
from rosenblatt.cli.runs import open_flow
from rosenblatt.core.density import FactorisedDensity
from rosenblatt.core.errors import CheckpointError, DataError
from rosenblatt.data import Table
from rosenblatt.data.chunks import Chunk, ParquetRows
from rosenblatt.preparation import SPREAD
from rosenblatt.train import RunFolder
from rosenblatt.train.runtime import seeded_generator

CHUNK_ROWS = 32_768  # fixed, since the noise of spread rows depends on it
NUMBERS_AT_ONCE = 6144  # rows times columns computed together: larger intermediates leave the cache


@dataclass(frozen=True)
class ScoreJob:
    """Which rows to score, by which model and how.

    model: digest of the weights, see `RunFolder.digest`; columns: those of the model; names: those of the table's
    chunks, the same ones; steps: cell widths of the columns to spread.
    """

    run: Path
    model: str
    table: Path
    columns: tuple[str, ...]
    steps: dict[str, float]
    dtype: str
    keep_bad_rows: bool
    seed: int

    def start(self) -> Scorer:
        """Load the model; raises `CheckpointError` if it is not the one that the job began with."""
        flow, _ = open_flow(self.run)
        if RunFolder.open(self.run).digest() != self.model:
            raise CheckpointError(f"{self.run}: the run changed while its model was in use; run the command again.")
        return Scorer(self, flow)

    def facts(self) -> dict[str, Any]:
        """What the scores depend on."""
        with self.table.open("rb") as file:
            table = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "command": "score",
            "model": self.model,
            "table": table,
            "columns": list(self.columns),
            "steps": self.steps,
            "dtype": self.dtype,
            "seed": self.seed,
            "chunk_rows": CHUNK_ROWS,
        }


class Scorer:
    """Scores chunks: log-density, and where the base has a CDF a p-value per column."""

    def __init__(self, job: ScoreJob, flow: TableFlow) -> None:
        self.job = job
        self.flow = flow.float() if job.dtype == "float32" else flow.double()
        self.has_cdf = isinstance(flow.base, FactorisedDensity)
        self._rows: ParquetRows | None = None

    def __call__(self, chunk: Chunk) -> npt.NDArray[np.float64]:
        """Scores (rows, 1 or 1 + columns); NaN for a row that is not finite, where such rows are to be kept."""
        values = torch.from_numpy(self._values(chunk))
        self._refuse_bad_rows(values, chunk.first)
        if self.job.steps:
            noise = seeded_generator(self.job.seed, SPREAD, chunk.number)
            values = Table(values, self.job.columns).dequantise(self.job.steps, noise).values
        at_once = max(256, NUMBERS_AT_ONCE // self.flow.features)
        with torch.no_grad():
            scores: npt.NDArray[np.float64] = torch.cat([self._scores(x) for x in values.split(at_once)]).numpy()
        return scores

    def _values(self, chunk: Chunk) -> npt.NDArray[np.float64]:
        if chunk.values is not None:
            return chunk.values
        if self._rows is None:
            self._rows = ParquetRows(self.job.table, columns=self.job.columns)
        return self._rows.read(chunk.first, chunk.rows)

    def _refuse_bad_rows(self, values: Tensor, first: int) -> None:
        bad = ~torch.isfinite(values)
        if self.job.keep_bad_rows or not bad.any():
            return
        row, column = bad.nonzero()[0].tolist()
        raise DataError(
            f"{self.job.table}: row {first + row} (counted from 0) has a missing or infinite value in column "
            f"'{self.job.columns[column]}'; drop or fill it, or add --keep-bad-rows for empty scores."
        )

    def _scores(self, x: Tensor) -> Tensor:
        if self.has_cdf:
            log_prob, below, above = self.flow.log_prob_and_uniform(x)
            scores = torch.cat([log_prob.unsqueeze(1), 2 * torch.minimum(below, above)], dim=1)
        else:
            scores = self.flow.log_prob(x).unsqueeze(1)
        return torch.where(torch.isfinite(x).all(dim=1, keepdim=True), scores, torch.nan)
