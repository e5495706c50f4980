"""From whatever holds a table to column names and one NumPy array of floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import numpy.typing as npt
import torch

from rosenblatt.core.errors import DataError
from rosenblatt.data.io import Floats, not_numbers, read_table, select_index

Columns = tuple[str, ...]


def as_array(source: object, columns: Sequence[str] | None) -> tuple[Columns, Floats]:
    """Column names and a (rows, features) array, float32 where the whole source is, else float64.

    `columns` chooses and orders the columns of a source with names, and names those of one without.
    """
    if isinstance(source, str | Path):
        return read_table(source, columns=columns)
    if isinstance(source, Mapping):
        return _stack({str(name): source[name] for name in source}, columns)
    try:
        frame = nw.from_native(source, pass_through=True, allow_series=True)
    except nw.exceptions.NarwhalsError as error:
        raise DataError(f"table: {' '.join(str(error).split())}; rename or drop columns.") from error
    if isinstance(frame, nw.LazyFrame):
        raise DataError("table: a lazy frame came; call .collect() on it first.")
    if isinstance(frame, nw.Series):
        frame = frame.alias(str(frame.name or "x0")).to_frame()
    if isinstance(frame, nw.DataFrame):
        return _from_frame(frame, columns)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.dtype == torch.bfloat16 else source).numpy()
    if isinstance(source, np.ndarray) and source.dtype.names:
        return _stack({name: source[name] for name in source.dtype.names}, columns)
    return _from_array(source, columns)


def _from_array(source: object, columns: Sequence[str] | None) -> tuple[Columns, Floats]:
    array = numbers(source, "table")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise DataError(f"table: an array of shape {array.shape} came, (rows, columns) was expected; reshape it.")
    names = tuple(columns) if columns is not None else tuple(f"x{i}" for i in range(array.shape[1]))
    if len(names) != array.shape[1]:
        raise DataError(f"columns: {len(names)} names came for {array.shape[1]} columns; give one name per column.")
    return names, array


def _from_frame(frame: nw.DataFrame[Any], columns: Sequence[str] | None) -> tuple[Columns, Floats]:
    names = [str(name) for name in frame.columns]
    chosen = select_index(names, columns)
    parts = [_frame_column(frame[:, index], names[index]) for index in chosen]
    return _join(tuple(names[index] for index in chosen), parts)


def _frame_column(series: nw.Series[Any], name: str) -> Floats:
    kind = series.dtype
    if not (kind.is_numeric() or kind == nw.Boolean):
        raise not_numbers(f"column '{name}'", series.drop_nulls().head(1).to_list(), str(kind))
    if kind not in (nw.Float32, nw.Float64):
        series = series.cast(nw.Float64)
    return numbers(series.to_numpy(), f"column '{name}'")


def _stack(parts: Mapping[str, object], columns: Sequence[str] | None) -> tuple[Columns, Floats]:
    names = list(parts)
    chosen = tuple(names[index] for index in select_index(names, columns))
    return _join(chosen, [numbers(parts[name], f"column '{name}'") for name in chosen])


def _join(names: Columns, parts: Sequence[Floats]) -> tuple[Columns, Floats]:
    for name, part in zip(names, parts, strict=True):
        if part.shape != (len(parts[0]),):
            raise DataError(
                f"column '{name}': shape {part.shape} came, ({len(parts[0])},) was expected; every column "
                "needs one "
                "number per row."
            )
    joined: npt.NDArray[Any] = np.column_stack(parts) if parts else np.empty((0, 0))
    return names, joined


def numbers(source: object, label: str) -> Floats:
    """`source` as an array of floats; raises `DataError` that shows a value which is no number."""
    try:
        array: npt.NDArray[Any] = (
            np.ma.filled(source.astype(np.float64), np.nan)
            if isinstance(source, np.ma.MaskedArray)
            else np.asarray(source)
        )
    except ValueError:
        raise DataError(f"{label}: rows of unequal length came; every row needs one number per column.") from None
    if array.dtype.kind not in "biuf":
        raise not_numbers(label, array)
    keep = array.dtype in (np.float32, np.float64) and array.dtype.isnative
    return array if keep else array.astype(np.float64)
