"""A file of rows in chunks of a fixed size, shared out among processes.

Of a Parquet file every process reads the rows of its own chunks; other formats can only be read from the beginning, so
one process reads them and hands the values on.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rosenblatt.data.io import file_errors, iter_table, open_parquet, to_numpy

BATCH = 16_384  # rows decoded at once


class Chunk(NamedTuple):
    """Rows `first` to `first + rows`, with their `values` (rows, columns) where they cannot be fetched by number."""

    number: int
    first: int
    rows: int
    values: npt.NDArray[np.float64] | None = None


def row_chunks(total: int, rows: int) -> Iterator[Chunk]:
    """Cut `total` rows into chunks of `rows`, the last one shorter.

    >>> [(chunk.first, chunk.rows) for chunk in row_chunks(5, 2)]
    [(0, 2), (2, 2), (4, 1)]
    """
    for number, first in enumerate(range(0, total, rows)):
        yield Chunk(number, first, min(rows, total - first))


def file_chunks(
    path: Path, rows: int, *, columns: Sequence[str] | None = None
) -> tuple[tuple[str, ...], Iterator[Chunk]]:
    """Column names of a file and its rows in chunks of `rows`, those of a Parquet file without their values.

    Errors as in `read_table`; those of later rows of other formats come when the chunk is read.
    """
    if path.suffix.lower() == ".parquet" and path.is_file():
        with ParquetRows(path, columns=columns) as source:
            return source.columns, row_chunks(source.rows, rows)
    tables = iter_table(path, rows, columns=columns)
    head = next(tables)
    return head.columns, _numbered(itertools.chain([head], tables))


def _numbered(tables: Iterator[Any]) -> Iterator[Chunk]:
    first = 0
    for number, table in enumerate(tables):
        yield Chunk(number, first, len(table), table.values.numpy())
        first += len(table)


class ParquetRows:
    """Any rows of a Parquet file at constant memory, cheapest where the calls ascend.

    Raises `DataError` as `read_table` does, and for rows that are not there.
    """

    def __init__(self, path: Path, *, columns: Sequence[str] | None = None) -> None:
        self.path = path
        with file_errors(path):
            self._file, self.columns = open_parquet(path, columns)
            counts = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts: list[int] = [0, *itertools.accumulate(counts)]
        self._group: int | None = None
        self._at = 0
        self._batches: Iterator[npt.NDArray[np.float64]] = iter(())
        self._rest = np.empty((0, len(self.columns)))

    def __enter__(self) -> ParquetRows:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    @property
    def rows(self) -> int:
        """Number of rows in the file."""
        return self._starts[-1]

    def read(self, first: int, rows: int) -> npt.NDArray[np.float64]:
        """Rows `first` to `first + rows`, shape (rows, columns), in float64."""
        parts = []
        with file_errors(self.path):
            if not 0 <= first <= first + rows <= self.rows:
                raise ValueError(f"rows {first} to {first + rows} were asked for, the file has {self.rows}")
            while rows:
                group = bisect.bisect_right(self._starts, first) - 1
                part = self._from_group(group, first, min(rows, self._starts[group + 1] - first))
                parts.append(part)
                first, rows = first + len(part), rows - len(part)
        return np.concatenate(parts) if parts else np.empty((0, len(self.columns)))

    def _from_group(self, group: int, first: int, rows: int) -> npt.NDArray[np.float64]:
        """Rows that lie in one row group, which is decoded from where the last call stopped."""
        if group != self._group or first < self._at:
            batches = self._file.iter_batches(BATCH, row_groups=[group], columns=list(self.columns), use_threads=False)
            self._batches = (to_numpy(batch.select(list(self.columns))) for batch in batches)
            self._group, self._at, self._rest = group, self._starts[group], self._rest[:0]
        parts = []
        while rows:
            skipped = min(first - self._at, len(self._rest))
            part = self._rest[skipped : skipped + rows]
            self._at, self._rest = self._at + skipped + len(part), self._rest[skipped + len(part) :]
            first, rows = first + len(part), rows - len(part)
            parts.append(part)
            if rows:
                self._rest = self._next_batch()
        return np.concatenate(parts)

    def _next_batch(self) -> npt.NDArray[np.float64]:
        for batch in self._batches:
            return batch
        raise EOFError(f"row group {self._group} ends before the rows it should have")
