"""Files with columns of text beside those of numbers, as pyarrow tables, whole or chunk by chunk at constant memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from rosenblatt.core.errors import OptionError
from rosenblatt.data.io import PARQUET_BUFFER, ROWS_PER_CHUNK, csv_header, file_errors, read_table, select_index

KINDS = {"number": pa.float64(), "text": pa.string(), "truth": pa.bool_()}


def read_frame(path: str | Path, *, columns: Sequence[str] | None = None) -> Any:
    """Read a whole file as a pyarrow table; fields that are empty or NA are null.

    Raises `DataError` as `read_table` does, but not for text.
    """
    return pa.concat_tables(list(iter_frames(path, columns=columns)))


def iter_frames(
    path: str | Path,
    rows: int = ROWS_PER_CHUNK,
    *,
    columns: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> Iterator[Any]:
    """Read a file as pyarrow tables of at most `rows` rows, in order; one without rows if there are none.

    `kinds` says what columns of a CSV hold, "number", "text" or "truth"; others are guessed from its beginning.
    """
    path = Path(path)
    if rows < 1:
        raise OptionError(f"rows: {rows} came, at least 1 was expected.")
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet") or not path.is_file():
        names, values = read_table(path, columns=columns)  # which says what is wrong with the path
        whole = pa.table([pa.array(column) for column in values.T], names=list(names))
        yield from _cut(iter(whole.to_batches()), whole.schema, rows)
        return
    with file_errors(path):
        batches, schema = _parquet(path, columns) if suffix == ".parquet" else _csv(path, columns, kinds or {})
        yield from _cut(batches, schema, rows)


def _csv(path: Path, columns: Sequence[str] | None, kinds: Mapping[str, str]) -> tuple[Iterator[Any], Any]:
    names, headed, delimiter = csv_header(path)
    chosen = [names[index] for index in select_index(names, columns)]
    read = pa_csv.ReadOptions(column_names=names, skip_rows=1 if headed else 0)
    parse = pa_csv.ParseOptions(delimiter=delimiter)
    types = {name: KINDS[kind] for name, kind in kinds.items() if name in chosen}
    convert = pa_csv.ConvertOptions(include_columns=chosen, column_types=types, strings_can_be_null=True)
    try:
        with pa_csv.open_csv(path, read, parse, convert) as first:
            schema = pa.schema([(field.name, _plain(field.type)) for field in first.schema])
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):
            raise
        return iter(()), pa.schema([(name, types.get(name, pa.float64())) for name in chosen])
    # Types are fixed from here on: those guessed from the first block would refuse 1.5 after a thousand whole numbers.
    types = {field.name: field.type for field in schema}
    convert = pa_csv.ConvertOptions(include_columns=chosen, column_types=types, strings_can_be_null=True)
    return iter(pa_csv.open_csv(path, read, parse, convert)), schema


def _plain(kind: Any) -> Any:
    """Whole numbers and columns without any value are numbers."""
    return pa.float64() if pa.types.is_integer(kind) or pa.types.is_null(kind) else kind


def _parquet(path: Path, columns: Sequence[str] | None) -> tuple[Iterator[Any], Any]:
    file = pa_parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False)
    # pandas stores a row index as a column of this name; it is no feature.
    names = [name for name in file.schema_arrow.names if not re.fullmatch(r"__index_level_\d+__", name)]
    chosen = [names[index] for index in select_index(names, columns)]
    schema = pa.schema([file.schema_arrow.field(name) for name in chosen])
    return (batch.select(chosen) for batch in file.iter_batches(columns=chosen)), schema


def _cut(batches: Iterator[Any], schema: Any, rows: int) -> Iterator[Any]:
    """Regroup batches into tables of `rows` rows, the last one shorter."""
    waiting: list[Any] = []
    count, any_rows = 0, False
    for batch in batches:
        waiting.append(batch)
        count += batch.num_rows
        if count >= rows:
            joined = pa.Table.from_batches(waiting)
            whole = count - count % rows
            for first in range(0, whole, rows):
                any_rows = True
                yield joined.slice(first, rows)
            waiting, count = joined.slice(whole).to_batches(), count - whole
    if count or not any_rows:
        yield pa.Table.from_batches(waiting, schema) if waiting else schema.empty_table()
