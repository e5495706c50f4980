"""Chunks of rows to a file, whole or not at all, or to standard output as CSV; any number of rows fits in memory."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import torch

from rosenblatt._version import __version__
from rosenblatt.cli.parts import Floats, Parts, parts_for
from rosenblatt.cli.workers import Compute, Job, in_order
from rosenblatt.core.errors import OptionError
from rosenblatt.data import write_table
from rosenblatt.data.chunks import Chunk
from rosenblatt.data.io import check_writable


@dataclass
class Written:
    """What was written: rows, how many of them begin with NaN, how many were done by an earlier call, and seconds."""

    rows: int = 0
    empty: int = 0
    earlier: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        """Rows, time and speed, as in `10 rows in 2.0 s (5 rows/s)`."""
        seconds = max(self.seconds, 1e-9)
        speed = f"{self.rows:,} rows in {seconds:.1f} s ({(self.rows - self.earlier) / seconds:,.0f} rows/s)"
        return speed + (f", {self.earlier:,} of them by an earlier call" if self.earlier else "")

    def counting(self, results: Iterator[Floats]) -> Iterator[Floats]:
        """Count results as they pass."""
        for array in results:
            self.rows += len(array)
            self.empty += int(np.isnan(array[:, 0]).sum())
            yield array


def stream(
    job: Job,
    compute: Compute,
    chunks: Iterator[Chunk],
    *,
    out: Path | None,
    columns: Sequence[str],
    processes: int | None,
    facts: Callable[[], Mapping[str, Any]],
) -> Written:
    """Do `chunks` in several processes and write the results in order, to `out` or to standard output.

    `processes` is the most to use, by default one for every core, and no more than one for two chunks. `facts` say what
    the results depend on: the parts of a call that was killed are used again by the next one with the same facts.
    """
    if out is not None:
        check_writable(out)
    processes = _usable_cores() if processes is None else processes
    if processes < 1:
        raise OptionError(f"--processes: {processes} came, 1 or more was expected.")
    started, written = time.monotonic(), Written()
    ahead = list(itertools.islice(chunks, 2 * processes))
    processes = max(1, min(processes, len(ahead) // 2))
    kept: AbstractContextManager[Parts | None] = nullcontext()
    if len(ahead) > 1 and (out is not None or processes > 1):
        kept = parts_for(out, lambda: {**facts(), "rosenblatt": __version__, "torch": str(torch.__version__)})
    everything = itertools.chain(ahead, chunks)
    with kept as parts, closing(in_order(job, compute, everything, parts=parts, processes=processes)) as results:
        write_rows(out, columns, written.counting(results), unfinished=None if parts is None else parts.unfinished)
        written.earlier = 0 if parts is None else parts.earlier_rows
    written.seconds = time.monotonic() - started
    return written


def write_rows(
    out: Path | None, columns: Sequence[str], chunks: Iterator[Floats], *, unfinished: Path | None = None
) -> None:
    """Write chunks (rows, columns) to `out`, or to standard output; NaN is written as an empty field there.

    Nothing is written before the first chunk is there, so that an error in it leaves the output empty.
    """
    if out is not None:
        write_table(out, columns, chunks, unfinished=unfinished)
        return
    sys.stdout.flush()
    schema = pa.schema([(name, pa.float64()) for name in columns])
    writer = None
    for chunk in chunks:
        arrays = [pa.array(np.ascontiguousarray(column), type=pa.float64(), from_pandas=True) for column in chunk.T]
        writer = writer or pa_csv.CSVWriter(sys.stdout.buffer, schema)
        writer.write_table(pa.table(arrays, schema=schema))
    (writer or pa_csv.CSVWriter(sys.stdout.buffer, schema)).close()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
