"""A table with a time column, read and checked: one or several series, covariates and their clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from rosenblatt.core.errors import DataError
from rosenblatt.data import Table
from rosenblatt.forecasting.clock import Clock, Floats


@dataclass(frozen=True)
class Series:
    """Regular rows in time: `values` (rows, series), `covariates` (rows, known), and the clock of the rows.

    names, known: the columns of both. The values are finite.
    """

    values: Floats
    covariates: Floats
    names: tuple[str, ...]
    known: tuple[str, ...]
    clock: Clock

    def __len__(self) -> int:
        return len(self.values)

    def cut(self, start: int, stop: int) -> Series:
        """The rows [start, stop), on the same clock; its first row is step `start` no more but 0."""
        times = self.clock.at([start])
        first = {"M": lambda: times.astype("M8[M]").astype(np.int64)[0], "ns": lambda: times.astype(np.int64)[0]}
        begin = first.get(self.clock.unit, lambda: times[0])()
        clock = Clock(self.clock.unit, begin.item(), self.clock.step, self.clock.offset)
        rows = slice(start, stop)
        return Series(self.values[rows], self.covariates[rows], self.names, self.known, clock)


def read_series(
    source: object,
    *,
    time: str | None = None,
    targets: Sequence[str] | None = None,
    covariates: Sequence[str] = (),
) -> Series:
    """Read `source`, whose rows are one step apart, in the order of time.

    `source` is what `Table.from_any` takes; the column `time` may hold dates, ISO text or numbers, None counts rows.
    `targets` are by default all columns but `time` and `covariates`. Raises `DataError` for columns that are not
    there, irregular times and numbers that are not finite.

    >>> read_series({"day": ["2024-01-01", "2024-01-02"], "load": [1.0, 2.0]}, time="day").clock.at([2])
    array(['2024-01-03T00:00:00.000000000'], dtype='datetime64[ns]')
    """
    columns = _columns(source)
    for name in filter(None, (time, *(targets or ()), *covariates)):
        if name not in columns:
            raise DataError(f"table: there is no column '{name}'; the columns are {', '.join(columns)}.")
    known = tuple(covariates)
    names = tuple(name for name in columns if name not in (time, *known)) if targets is None else tuple(targets)
    both = [name for name in names if name in known or name == time]
    if both:
        raise DataError(f"table: column '{both[0]}' cannot be two things at once; list it once.")
    if not names:
        raise DataError("table: no column is left to forecast; name the series as targets.")
    rows = Table.from_any({name: columns[name] for name in (*names, *known)}).values.numpy()
    _require_finite(rows, (*names, *known))
    clock = Clock() if time is None else Clock.of(_times(columns[time], time), time)
    return Series(rows[:, : len(names)], rows[:, len(names) :], names, known, clock)


def read_known(source: object, names: Sequence[str], rows: int) -> Floats:
    """Values of covariates for the `rows` steps to come, (rows, names); raises `DataError` unless all are there."""
    if not names:
        return np.empty((rows, 0))
    if source is None:
        raise DataError(
            f"future: the model was told of {', '.join(names)}; pass a table with {rows} rows of these, "
            "the steps to come."
        )
    columns = _columns(source)
    for name in names:
        if name not in columns:
            raise DataError(f"future: there is no column '{name}'; the columns are {', '.join(columns)}.")
    found = Table.from_any({name: columns[name] for name in names}).values.numpy()
    if len(found) < rows:
        raise DataError(
            f"future: {len(found)} rows came, {rows} steps are to be forecast; bring one row for each step."
        )
    _require_finite(found[:rows], names, "future")
    return found[:rows]


def _require_finite(rows: Floats, names: Sequence[str], what: str = "table") -> None:
    bad = ~np.isfinite(rows)
    if bad.any():
        row, column = (int(part[0]) for part in bad.nonzero())
        raise DataError(
            f"{what}: {int(bad.sum())} values in {int(bad.any(axis=1).sum())} rows are missing or infinite, the first "
            f"in row {row}, column '{names[column]}'; fill them (interpolate) or keep the rows after the last one."
        )


def _columns(source: object) -> dict[str, Any]:
    """Column names and columns of any table, dates as they come."""
    if isinstance(source, str | Path):
        source = _read_file(Path(source))
    if isinstance(source, Mapping):
        return {str(name): source[name] for name in source}
    frame = nw.from_native(source, pass_through=True, allow_series=True)
    if isinstance(frame, nw.Series):
        frame = frame.alias(str(frame.name or "x0")).to_frame()
    if isinstance(frame, nw.DataFrame):
        return {str(name): frame[name] for name in frame.columns}
    table = Table.from_any(source)
    return dict(zip(table.columns, table.values.numpy().T, strict=True))


def _read_file(path: Path) -> object:
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".parquet"):
        return Table.from_any(path)
    try:
        if kind == ".parquet":
            return pa_parquet.read_table(path)
        with path.open(encoding="utf-8-sig") as file:
            head = file.readline()
        delimiter = "\t" if kind == ".tsv" else next((mark for mark in ",;\t" if mark in head), ",")
        return pa_csv.read_csv(path, parse_options=pa_csv.ParseOptions(delimiter=delimiter))
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read ({reason}); check the file.") from None


def _times(column: Any, name: str) -> npt.NDArray[Any]:
    """A column as datetime64 (in UTC, where it has a zone) or numbers."""
    series = (
        nw.from_native(column, allow_series=True, pass_through=True) if not isinstance(column, nw.Series) else column
    )
    if isinstance(series, nw.Series):
        kind = series.dtype
        if isinstance(kind, nw.Datetime) and kind.time_zone is not None:
            series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        if series.null_count():
            raise DataError(f"time column '{name}': {series.null_count()} times are missing; fill or drop those rows.")
        column = series.to_list() if kind in (nw.String, nw.Object, nw.Date) else series.to_numpy()
    times: npt.NDArray[Any] = np.asarray(column)
    if times.dtype.kind in "OUST":
        try:
            times = np.array([np.datetime64(str(value).strip().replace("Z", "")) for value in times], dtype="M8[ns]")
        except ValueError as error:
            raise DataError(f"time column '{name}': {error}; write times as 2024-01-31 or 2024-01-31T18:30.") from None
    if times.dtype.kind not in "Miuf":
        raise DataError(f"time column '{name}': {times.dtype} values came; dates, ISO text or numbers were expected.")
    return times
