"""Rows to a file, whole or not at all, or to standard output as CSV."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
from torch import Tensor

from rosenblatt.data import write_table


def write_rows(out: Path | None, columns: Sequence[str], chunks: Iterator[Tensor]) -> None:
    """Write chunks (rows, columns) to `out`, or to standard output; NaN is written as an empty field there.

    Nothing is written before the first chunk is there, so that an error in it leaves the output empty.
    """
    if out is not None:
        write_table(out, columns, chunks)
        return
    sys.stdout.flush()
    schema = pa.schema([(name, pa.float64()) for name in columns])
    writer = None
    for chunk in chunks:
        arrays = [pa.array(column, type=pa.float64(), from_pandas=True) for column in chunk.cpu().double().numpy().T]
        writer = writer or pa_csv.CSVWriter(sys.stdout.buffer, schema)
        writer.write_table(pa.table(arrays, schema=schema))
    (writer or pa_csv.CSVWriter(sys.stdout.buffer, schema)).close()
