"""What training does to a batch of rows besides computing with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rosenblatt.core.types import Batch


class Dataset(Protocol):
    """Rows to learn from; a pass holds ceil(len / size) batches."""

    def __len__(self) -> int:
        """Count the rows."""

    def split(self, fractions: Sequence[float], generator: torch.Generator) -> tuple[Dataset, ...]:
        """Cut the rows at random into disjoint parts; `fractions` add up to one."""

    def batches(self, size: int, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Iterate one shuffled pass fixed by the generator's state, without its first `start` batches."""

    def ordered_batches(self, size: int) -> Iterator[Batch]:
        """Iterate one pass in a fixed order."""

    def rows(self, limit: int | None = None) -> Batch:
        """Return all rows, or a fixed choice of `limit` of them."""


def slices(batch: Batch, rows: int) -> Iterator[Batch]:
    """Cut a batch into parts of `rows` rows, the last one perhaps shorter; none of a batch without rows."""
    if 0 < len(batch.x) <= rows:
        yield batch
        return
    for first in range(0, len(batch.x), rows):
        yield Batch._make(None if part is None else part[first : first + rows] for part in batch)


def pinned(batch: Batch) -> Batch:
    """Copy a batch to page-locked memory, which a CUDA device fetches from while the processor goes on."""
    return Batch._make(None if part is None else part.pin_memory() for part in batch)


def weighted_mean(losses: Tensor, weight: Tensor | None, mean_weight: float) -> Tensor:
    """Mean of weight / mean weight of all rows times loss: dividing by the batch's own weight would bias the sum."""
    if weight is None:
        return losses.mean()
    # A row without weight does not count even where its loss is infinite.
    counted = torch.where(weight > 0, losses, 0.0)
    return (weight / mean_weight * counted).mean()


def poisoned(batch: Batch) -> int:
    """Count the rows that are not finite."""
    return int((~_finite_rows(batch)).sum())


def sound_rows(batch: Batch) -> Batch:
    """Leave out rows that are not finite: they would spoil starting values and scores for all the others."""
    finite = _finite_rows(batch)
    if bool(finite.all()):
        return batch
    return Batch._make(None if part is None else part[finite] for part in batch)


def _finite_rows(batch: Batch) -> Tensor:
    finite = torch.isfinite(batch.x).all(dim=-1)
    return finite if batch.context is None else finite & torch.isfinite(batch.context).all(dim=-1)
