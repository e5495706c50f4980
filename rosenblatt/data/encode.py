"""Columns of numbers, text and truth values to numbers a network can be told, as learned from the rows of a fit.

A column of numbers stays one column. A column of text, categories or truth values becomes one column of 0 and 1 for
each category, in sorted order. A value that is missing is an error, or (`missing="indicate"`) the mean of the present
numbers, or none of the categories, beside a column that says so with a 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data.checks import shorten
from rosenblatt.data.io import not_numbers
from rosenblatt.data.sources import numbers

MOST_CATEGORIES = 100
MISSING = ("error", "indicate")
Column = npt.NDArray[np.float64] | list[str | None]  # numbers, NaN where one is missing, or names of categories
Columns = Mapping[str, Column]


@dataclass(frozen=True)
class ColumnCode:
    """How one column is encoded: `categories` are None for numbers; `filler` stands for a missing value, if one may."""

    name: str
    categories: tuple[str, ...] | None = None
    filler: float | None = None

    @property
    def names(self) -> list[str]:
        """Names of the columns that it becomes."""
        names = [self.name] if self.categories is None else [f"{self.name} = {text}" for text in self.categories]
        return names if self.filler is None else [*names, f"{self.name} is missing"]


class Encoder:
    """What the columns of a fit become; a closed recipe that JSON can hold.

    Raises `DataError` at columns of another name, order or kind than those of the fit, at categories it has not seen
    and at missing values that it has no place for.

    >>> rows = columns_of({"age": [20.0, 40.0], "kind": ["b", "a"]})
    >>> encoder = Encoder.learn(rows)
    >>> encoder.names, encoder.encode(rows).tolist()
    (['age', 'kind = a', 'kind = b'], [[20.0, 0.0, 1.0], [40.0, 1.0, 0.0]])
    """

    def __init__(self, codes: Sequence[ColumnCode]) -> None:
        self.codes = tuple(codes)

    @classmethod
    def learn(cls, columns: Columns, *, missing: str = "error", weight: Tensor | None = None) -> Encoder:
        """Take categories, and with `missing="indicate"` (weighted) means, from the rows of a fit.

        Raises `OptionError` for another `missing`, `DataError` for a column with too many categories or, with
        `missing="error"`, values that are missing.
        """
        if missing not in MISSING:
            raise OptionError(f'missing: {missing!r} came, one of "error" and "indicate" was expected.')
        return cls([_learn(name, column, missing, weight) for name, column in columns.items()])

    @property
    def names(self) -> list[str]:
        """Names of the encoded columns."""
        return [name for code in self.codes for name in code.names]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns before encoding."""
        return tuple(code.name for code in self.codes)

    def encode(self, columns: Columns, *, first_row: int = 0) -> Tensor:
        """Numbers (rows, `len(names)`) in float64; `first_row` is what the first row is called in messages."""
        if tuple(columns) != self.columns:
            raise DataError(
                f"X: columns {shorten(list(columns))} came, {shorten(self.columns)} were expected, in this order; "
                "select them."
            )
        parts = [_encode(code, columns[code.name], first_row) for code in self.codes]
        return torch.from_numpy(np.concatenate(parts, axis=1))

    def to_json(self) -> list[dict[str, Any]]:
        """JSON values that `from_json` reads."""
        return [
            {"name": code.name, "categories": None if code.categories is None else list(code.categories)}
            | ({} if code.filler is None else {"filler": code.filler})
            for code in self.codes
        ]

    @classmethod
    def from_json(cls, stored: Any, *, most: int = 100_000) -> Encoder:
        """Read what `to_json` wrote; raises `DataError` for anything else, also for more than `most` columns."""
        try:
            codes = [_read(entry) for entry in stored] if isinstance(stored, list) and len(stored) <= most else []
        except (KeyError, TypeError, ValueError, AttributeError):
            codes = []
        encoder = cls(codes)
        if not codes or len(set(encoder.columns)) < len(codes) or len(encoder.names) > most:
            raise DataError(f"given: not the encoding of 1 to {most} columns; restore it or fit again.")
        return encoder


def columns_of(source: Mapping[str, Any] | nw.DataFrame[Any]) -> dict[str, Column]:
    """Columns of a data frame or a mapping as numbers (NaN where missing) or names of categories (None where missing).

    Raises `DataError` for columns of other kinds, such as dates, and for columns of unequal length.
    """
    if isinstance(source, nw.DataFrame):
        read = {str(name): _from_series(source[:, i], str(name)) for i, name in enumerate(source.columns)}
    else:
        read = {str(name): _from_values(values, str(name)) for name, values in source.items()}
    lengths = {len(column) for column in read.values()}
    if len(lengths) > 1:
        raise DataError(f"X: columns of {sorted(lengths)} rows came; every column needs one value per row.")
    return read


def _from_series(series: nw.Series[Any], name: str) -> Column:
    kind = series.dtype
    if kind.is_numeric():
        return numbers(series.cast(nw.Float64).to_numpy(), f"column '{name}'").astype(np.float64)
    if kind in (nw.String, nw.Categorical, nw.Enum, nw.Boolean, nw.Object):
        return _texts(series.to_list(), name, str(kind))
    if kind == nw.Unknown and series.is_null().all():
        return np.full(len(series), np.nan)
    raise not_numbers(f"column '{name}'", series.drop_nulls().head(1).to_list(), str(kind))


def _from_values(values: Any, name: str) -> Column:
    series = nw.from_native(values, series_only=True, pass_through=True)
    if isinstance(series, nw.Series):
        return _from_series(series, name)
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"column '{name}': shape {array.shape} came, one value per row was expected.")
    if array.dtype.kind in "OUSb":
        return _texts(array.tolist(), name, str(array.dtype))
    return numbers(array, f"column '{name}'").astype(np.float64)


def _texts(values: list[Any], name: str, kind: str) -> Column:
    """Names of categories; a column of numbers in objects is numbers."""
    present = [value for value in values if not _is_missing(value)]
    if present and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return np.array([math.nan if _is_missing(value) else float(value) for value in values])
    strange = [value for value in present if not isinstance(value, str | bool | int | float | np.bool_)]
    if strange:
        raise not_numbers(f"column '{name}'", strange[:1], kind)
    return [None if _is_missing(value) else str(value) for value in values]


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float) and math.isnan(value))
    )


def _learn(name: str, column: Column, missing: str, weight: Tensor | None) -> ColumnCode:
    absent = _absent(column)
    if absent.any() and missing == "error":
        raise DataError(
            f"X: column '{name}' has {int(absent.sum())} missing values (NaN), the first in row "
            f'{int(absent.argmax())}; drop or fill them, or pass missing="indicate".'
        )
    if len(absent) and absent.all():
        raise DataError(f"X: column '{name}' has no value in any row; drop the column.")
    if isinstance(column, list):
        categories = tuple(sorted({text for text in column if text is not None}))
        if len(categories) > MOST_CATEGORIES:
            raise DataError(
                f"X: column '{name}' holds {len(categories)} different texts such as '{categories[0][:40]}', at most "
                f"{MOST_CATEGORIES} can be told apart; drop the column, or join rare ones."
            )
        return ColumnCode(name, categories, 0.0 if absent.any() else None)
    _refuse_infinite(name, column, 0)
    if not absent.any():
        return ColumnCode(name)
    weights = np.ones(len(column)) if weight is None else weight.double().cpu().numpy()
    share = weights[~absent] / weights[~absent].sum()
    return ColumnCode(name, None, float(share @ column[~absent]))


def _encode(code: ColumnCode, column: Column, first_row: int) -> npt.NDArray[np.float64]:
    """The numbers (rows, columns) of one column."""
    absent = _absent(column)
    if absent.any() and code.filler is None:
        raise DataError(
            f"X: column '{code.name}' has {int(absent.sum())} missing values (NaN), the first in row "
            f"{first_row + int(absent.argmax())}, and had none in the rows of the fit; drop or fill them, or fit with "
            'such rows and missing="indicate".'
        )
    if code.categories is None:
        if isinstance(column, list):
            if not absent.all():
                raise DataError(
                    f"X: column '{code.name}' holds text such as '{next(t for t in column if t is not None)[:40]}', it "
                    "held numbers where the model was fitted to; convert it."
                )
            column = np.full(len(column), math.nan)
        _refuse_infinite(code.name, column, first_row)
        coded = np.where(absent, 0.0 if code.filler is None else code.filler, column)[:, None]
    else:
        coded = _one_hot(code, column, first_row)
    return coded if code.filler is None else np.column_stack([coded, absent])


def _one_hot(code: ColumnCode, column: Column, first_row: int) -> npt.NDArray[np.float64]:
    assert code.categories is not None
    if not isinstance(column, list):
        if len(column) and not np.isnan(column).all():
            raise DataError(
                f"X: column '{code.name}' holds numbers, it held categories ({shorten(code.categories)}) where the "
                "model was fitted to; convert it to text."
            )
        column = [None] * len(column)
    place = {text: index for index, text in enumerate(code.categories)}
    coded = np.zeros((len(column), len(place)))
    for row, text in enumerate(column):
        if text is None:
            continue
        if text not in place:
            raise DataError(
                f"X: column '{code.name}' holds '{text[:40]}' in row {first_row + row}, the model knows "
                f"{shorten(code.categories)}; replace it by one of these, or fit again with such rows."
            )
        coded[row, place[text]] = 1.0
    return coded


def _absent(column: Column) -> npt.NDArray[np.bool_]:
    if isinstance(column, list):
        return np.array([text is None for text in column], dtype=bool)
    return np.isnan(column)


def _refuse_infinite(name: str, column: npt.NDArray[np.float64], first_row: int) -> None:
    infinite = np.isinf(column)
    if infinite.any():
        raise DataError(
            f"X: column '{name}' has {int(infinite.sum())} infinite values (inf), the first in row "
            f"{first_row + int(infinite.argmax())}; drop those rows or put finite numbers there."
        )


def _read(entry: Any) -> ColumnCode:
    name, categories, filler = entry["name"], entry["categories"], entry.get("filler")
    texts = None if categories is None else tuple(categories)
    known = texts is None or (
        len(texts) <= MOST_CATEGORIES and all(isinstance(t, str) for t in texts) and list(texts) == sorted(set(texts))
    )
    number = filler is None or (isinstance(filler, int | float) and math.isfinite(filler))
    if not (isinstance(name, str) and known and number and not isinstance(categories, str)):
        raise ValueError("no code")
    return ColumnCode(name, texts, None if filler is None else float(filler))
