"""Chunks of drawn rows: what `rosenblatt sample` does, in one process or in many."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rosenblatt.cli.runs import open_flow
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import CheckpointError
from rosenblatt.data.chunks import Chunk, row_chunks
from rosenblatt.preparation import SAMPLES
from rosenblatt.train import RunFolder
from rosenblatt.train.runtime import seeded_generator

CHUNK_ROWS = 10_000  # fixed, since the rows drawn for a seed depend on it


@dataclass(frozen=True)
class SampleJob:
    """Rows to draw from a run; `model` is the digest of its weights, see `RunFolder.digest`."""

    run: Path
    model: str
    seed: int

    def start(self) -> Sampler:
        """Load the model; raises `CheckpointError` if it is not the one that the job began with."""
        flow, _ = open_flow(self.run)
        if RunFolder.open(self.run).digest() != self.model:
            raise CheckpointError(f"{self.run}: the run changed while its model was in use; run the command again.")
        return Sampler(flow, self.seed)

    def facts(self) -> dict[str, Any]:
        """What the rows depend on."""
        return {"command": "sample", "model": self.model, "seed": self.seed, "chunk_rows": CHUNK_ROWS}


class Sampler:
    """Draws chunks, each from a random stream of its own, so that it does not matter who draws which."""

    def __init__(self, flow: Flow, seed: int) -> None:
        self.flow, self.seed = flow, seed

    def __call__(self, chunk: Chunk) -> npt.NDArray[np.floating[Any]]:
        """Rows (rows, columns) in the units of the columns."""
        generator = seeded_generator(self.seed, SAMPLES, chunk.number)
        with torch.no_grad():
            # The last chunk is drawn in full as well: more rows of one seed begin with the same rows.
            drawn = self.flow.sample(CHUNK_ROWS, generator=generator)
        rows: npt.NDArray[np.floating[Any]] = drawn[: chunk.rows].numpy()
        return rows


def sample_chunks(flow: Flow, rows: int, seed: int) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """Draw `rows` rows in chunks, so that any number fits in memory."""
    return map(Sampler(flow, seed), row_chunks(rows, CHUNK_ROWS))
