"""Tables in files: CSV, Parquet and NumPy, whole or chunk by chunk at constant memory.

A CSV whose first line holds numbers only has no header: its columns are named x0, x1, ... (the line
0,1,2,... is a header of numbers, as pandas writes for frames without names). Missing values become NaN.
"""

from __future__ import annotations

import contextlib
import csv
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import torch

from rosenblatt.core.errors import DataError, OptionError

if TYPE_CHECKING:
    from rosenblatt.data.table import Table

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Chunks = Iterator[npt.NDArray[np.float64]]
ROWS_PER_CHUNK = 65_536
PARQUET_BUFFER = 1 << 20  # bytes of a column read at once: a row group may be as large as the file
WRITABLE = (".csv", ".tsv", ".parquet")
BROKEN_FILE = (  # what the readers raise for a file that is damaged or not what its suffix says
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    pa.ArrowException,
)


def read_table(
    path: str | Path, *, columns: Sequence[str] | None = None
) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """Read a whole file: column names and a float64 array (rows, features).

    Raises `DataError` for a missing, broken or ragged file, an unknown suffix and a column that holds no
    numbers.
    """
    names, chunks = _open(Path(path), columns, ROWS_PER_CHUNK)
    with file_errors(Path(path)):
        parts = list(chunks)
    return names, np.concatenate(parts) if parts else np.empty((0, len(names)))


def iter_table(
    path: str | Path,
    rows_per_chunk: int = ROWS_PER_CHUNK,
    *,
    columns: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Iterator[Table]:
    """Read a file as tables of at most `rows_per_chunk` rows, in order; CSV and Parquet stream.

    A file without rows gives one table without rows. Errors as in `read_table`; those of later rows come
    when the chunk is read.
    """
    from rosenblatt.data.table import Table  # Table itself reads files by this module

    if rows_per_chunk < 1:
        raise OptionError(f"rows_per_chunk: {rows_per_chunk} came, at least 1 was expected.")
    names, chunks = _open(Path(path), columns, rows_per_chunk)
    empty = True
    with file_errors(Path(path)):
        for chunk in chunks:
            empty = False
            yield Table(torch.tensor(chunk, dtype=dtype), names)
    if empty:
        yield Table(torch.empty(0, len(names), dtype=dtype), names)


def write_table(
    path: str | Path,
    columns: Sequence[str],
    rows: Floats | torch.Tensor | Iterator[Floats | torch.Tensor],
    *,
    unfinished: Path | None = None,
) -> None:
    """Write an array, or chunks of one, as CSV or Parquet by suffix; the file appears whole or not at all.

    Until then it stands in `unfinished`, by default beside `path`; both must be on one disk. Numbers are written so
    that they are read back exactly. Raises `DataError` for an unknown suffix, a chunk of the wrong width, or a place
    that cannot be written.
    """
    path = Path(path)
    check_writable(path)
    chunks = iter([rows]) if isinstance(rows, np.ndarray | torch.Tensor) else rows
    part = unfinished or path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write(part, path.suffix.lower(), columns, chunks)
        os.replace(part, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: cannot be written ({_reason(error)}); check folder, rights and free space."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise `DataError` unless tables are written in the format of this suffix."""
    if path.suffix.lower() not in WRITABLE:
        raise DataError(f"{path}: tables are written as {', '.join(WRITABLE)}; choose one of these suffixes.")


def _write(part: Path, suffix: str, columns: Sequence[str], chunks: Iterator[Floats | torch.Tensor]) -> None:
    writer: Any = None
    with part.open("wb") as file:
        try:
            for chunk in chunks:
                array = np.asarray(chunk)
                if array.ndim != 2 or array.shape[1] != len(columns):
                    raise DataError(
                        f"rows: an array of shape {array.shape} came for {len(columns)} columns; give one column per "
                        "name."
                    )
                batch = pa.table([pa.array(np.ascontiguousarray(column)) for column in array.T], names=list(columns))
                writer = writer or _writer(file, suffix, batch.schema)
                writer.write_table(batch)
        except BaseException:
            if writer is not None:
                with contextlib.suppress(Exception):  # closed later, it would miss the file and say so
                    writer.close()
            raise
        writer = writer or _writer(file, suffix, pa.schema([(name, pa.float64()) for name in columns]))
        writer.close()
        file.flush()
        os.fsync(file.fileno())


def _writer(file: Any, suffix: str, schema: Any) -> Any:
    if suffix == ".parquet":
        return pa_parquet.ParquetWriter(file, schema, compression="zstd")
    options = pa_csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ",")
    return pa_csv.CSVWriter(file, schema, write_options=options)


def _open(path: Path, columns: Sequence[str] | None, rows: int) -> tuple[tuple[str, ...], Chunks]:
    readers: dict[str, Callable[[Path, Sequence[str] | None, int], tuple[tuple[str, ...], Chunks]]] = {
        ".csv": _open_csv,
        ".tsv": _open_csv,
        ".parquet": _open_parquet,
        ".npz": _open_numpy,
        ".npy": _open_numpy,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise DataError(f"{path}: the suffix '{suffix}' is unknown; tables are read from {', '.join(readers)}.")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; check the path.")
    with file_errors(path):
        return readers[suffix](path, columns, rows)


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn what a damaged file makes its reader raise into one sentence."""
    try:
        yield
    except DataError as error:
        raise error if str(path) in str(error) else DataError(f"{path}: {error}") from None
    except BROKEN_FILE as error:
        text = "it holds Python objects" if "pickle" in str(error) else _reason(error)
        if bad := re.search(r"column #(\d+).*invalid value '(.*)'", text):
            raise DataError(
                f"{path}: column {int(bad[1]) + 1} holds '{bad[2]}', numbers were expected; encode the "
                "column as numbers "
                "or leave it out with `columns`."
            ) from error
        if ragged := re.search(r"Expected (\d+) columns, got (\d+)", text):
            raise DataError(
                f"{path}: a row of {ragged[2]} fields stands among rows of {ragged[1]}; every row needs "
                "the same number."
            ) from error
        raise DataError(f"{path}: cannot be read as {path.suffix} ({text}); the file is damaged or foreign.") from error


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200].rstrip(". ") or type(error).__name__


def _open_csv(path: Path, columns: Sequence[str] | None, rows: int) -> tuple[tuple[str, ...], Chunks]:
    names, headed, delimiter = csv_header(path)
    chosen = [names[index] for index in select_index(names, columns)]
    read = pa_csv.ReadOptions(column_names=names, skip_rows=1 if headed else 0)
    parse = pa_csv.ParseOptions(delimiter=delimiter)
    convert = pa_csv.ConvertOptions(include_columns=chosen)
    try:
        with pa_csv.open_csv(path, read, parse, convert) as first:
            types = {field.name: _csv_type(field, first) for field in first.schema}
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):
            raise
        return tuple(chosen), iter(())
    # Types are fixed from here on: those guessed from the first block would refuse 1.5 after a thousand
    # whole numbers.
    convert = pa_csv.ConvertOptions(include_columns=chosen, column_types=types)
    stream = pa_csv.open_csv(path, read, parse, convert)
    return tuple(chosen), _cut((to_numpy(batch) for batch in stream), rows)


def csv_header(path: Path) -> tuple[list[str], bool, str]:
    """Column names, whether they stand in the file, and the delimiter."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline(1 << 20)
    if not line.strip():
        raise DataError(f"{path}: the first line is empty, a header or numbers were expected; check the file.")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else next((mark for mark in ",;\t" if mark in line), ",")
    fields = [field.strip() for field in next(csv.reader([line], delimiter=delimiter))]
    numbered = fields == [str(index) for index in range(len(fields))] and len(fields) > 1
    if all(_is_number(field) for field in fields) and not numbered:
        return [f"x{index}" for index in range(len(fields))], False, delimiter
    return fields, True, delimiter


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _csv_type(field: Any, first: Any) -> Any:
    if pa.types.is_boolean(field.type):
        return field.type
    if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_null(field.type)):
        raise _not_numbers(field, first.read_next_batch().column(field.name))
    return pa.float64()


def _open_parquet(path: Path, columns: Sequence[str] | None, rows: int) -> tuple[tuple[str, ...], Chunks]:
    file, chosen = open_parquet(path, columns)
    batches = file.iter_batches(batch_size=rows, columns=list(chosen))
    return chosen, _cut((to_numpy(batch.select(list(chosen))) for batch in batches), rows)


def open_parquet(path: Path, columns: Sequence[str] | None) -> tuple[Any, tuple[str, ...]]:
    """A Parquet file, read page by page, and the names of its columns of numbers among `columns`."""
    file = pa_parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False)
    schema = file.schema_arrow
    # pandas stores a row index as a column of this name; it is no feature.
    names = [name for name in schema.names if not re.fullmatch(r"__index_level_\d+__", name)]
    chosen = tuple(names[index] for index in select_index(names, columns))
    for name in chosen:
        kind = schema.field(name).type
        if not (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_decimal(kind)
            or pa.types.is_null(kind)
        ):
            head = next(file.iter_batches(batch_size=100, columns=[name]), None)
            raise _not_numbers(schema.field(name), None if head is None else head.column(0))
    return file, chosen


def _not_numbers(field: Any, values: Any) -> DataError:
    present = [] if values is None else values.drop_null()[:1].to_pylist()
    return not_numbers(f"column '{field.name}'", present, str(field.type))


def not_numbers(label: str, values: Any, kind: str | None = None) -> DataError:
    """The error for values that are text, dates or objects; it shows the first of them."""
    if isinstance(values, np.ndarray):
        kind, values = str(values.dtype), values.ravel()[:1].tolist()
    shown = f" such as {str(values[0])[:40]!r}" if values else ""
    return DataError(
        f"{label}: {kind} values{shown} came, numbers were expected; encode them as numbers or leave the "
        "column out "
        "with `columns`."
    )


def to_numpy(batch: Any) -> npt.NDArray[np.float64]:
    """The columns of a pyarrow batch as an array (rows, columns), missing values as NaN."""
    out = np.empty((batch.num_rows, batch.num_columns))
    for index, column in enumerate(batch.columns):
        number = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
        out[:, index] = number.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return out


def _cut(parts: Iterator[npt.NDArray[np.float64]], rows: int) -> Chunks:
    """Regroup arrays into chunks of `rows` rows, the last one shorter."""
    waiting: list[npt.NDArray[np.float64]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= rows:
            joined = np.concatenate(waiting)
            whole = count - count % rows
            for first in range(0, whole, rows):
                yield joined[first : first + rows]
            waiting, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


def _open_numpy(path: Path, columns: Sequence[str] | None, rows: int) -> tuple[tuple[str, ...], Chunks]:
    if path.suffix.lower() == ".npy":
        parts: dict[str, npt.NDArray[Any]] = {"x": np.lib.format.open_memmap(path, mode="r")}
    else:
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: this is not a NumPy .npz archive; the file is damaged or foreign.")
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
    for name, part in parts.items():
        if part.dtype.kind not in "biuf":
            raise not_numbers(f"column '{name}'", part)
    if len(parts) == 1 and next(iter(parts.values())).ndim == 2:
        whole = next(iter(parts.values()))
        names = [f"x{index}" for index in range(whole.shape[1])]
    elif parts and all(part.ndim == 1 for part in parts.values()) and len({len(part) for part in parts.values()}) == 1:
        names = list(parts)
        whole = np.column_stack(list(parts.values()))
    else:
        shapes = ", ".join(f"'{name}' {part.shape}" for name, part in list(parts.items())[:12]) or "no array"
        raise DataError(
            f"{path}: {shapes} came; one array (rows, columns) or several (rows,) of equal length were expected."
        )
    chosen = select_index(names, columns)
    chunks = (
        np.asarray(whole[first : first + rows], dtype=np.float64)[:, chosen] for first in range(0, len(whole), rows)
    )
    return tuple(names[index] for index in chosen), chunks


def select_index(names: Sequence[str], columns: Sequence[str] | None) -> list[int]:
    """Positions of `columns` (all by default) among `names`; `DataError` for unclear or unknown names."""
    repeated = [name for name in names if list(names).count(name) > 1]
    if repeated:
        raise DataError(f"columns: the name '{repeated[0]}' stands more than once; rename one of them.")
    if columns is None:
        if "" in names:
            raise DataError(
                f"columns: column {list(names).index('') + 1} has no name, as a saved row index has none; "
                "name it, or "
                "choose the others with `columns`."
            )
        return list(range(len(names)))
    for name in columns:
        if name not in names:
            shown = ", ".join(f"'{known}'" for known in names[:12])
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            raise DataError(f"columns: there is no column '{name}'; the columns are {shown}{more}.")
    return [list(names).index(name) for name in columns]
