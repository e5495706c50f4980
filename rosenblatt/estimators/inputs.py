"""What a caller passes for X and y, read into columns, targets and images; names are checked as scikit-learn does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import narwhals as nw
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Support
from rosenblatt.data import Images, Table
from rosenblatt.data.encode import Column, columns_of
from rosenblatt.data.frames import read_frame
from rosenblatt.estimators.common import count_of
from rosenblatt.preparation import parse_supports, plain


class Targets(NamedTuple):
    """Targets, and whether they came as one number per row, without an axis of their own."""

    table: Table
    single: bool


def read_given(estimator: BaseEstimator, X: object, *, reset: bool) -> dict[str, Column]:
    """Columns of `X` by name; those of an array are x0, x1, ... or what the fit called them.

    Sets `n_features_in_` and `feature_names_in_` of the estimator when `reset`, and raises ValueErrors for columns that
    differ from these otherwise.
    """
    if isinstance(X, str | Path):
        X = read_frame(X)
    # A sparse matrix may be a mapping of positions, which is not a mapping of names.
    if isinstance(X, Table):
        X = dict(zip(X.columns, X.values.double().numpy().T, strict=True))
    if isinstance(X, Mapping) and not issparse(X):
        columns = columns_of(X)
        names = pa.table({name: pa.array([], pa.float64()) for name in columns})
        validate_data(estimator, names, reset=reset, skip_check_array=True)
    elif nw.dependencies.is_into_dataframe(X):
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        try:
            columns = columns_of(nw.from_native(cast(Any, X), eager_only=True))
        except nw.exceptions.NarwhalsError as error:
            raise DataError(f"X: {' '.join(str(error).split())}; rename or drop columns.") from error
    else:
        least = 2 if reset else 1
        array = validate_data(
            estimator, X, reset=reset, dtype=np.float64, ensure_min_samples=least, ensure_all_finite=False
        )
        known = None if reset else getattr(estimator, "feature_names_in_", None)
        names_of_array = [f"x{i}" for i in range(array.shape[1])] if known is None else list(known)
        columns = dict(zip(names_of_array, array.T, strict=True))
    if not columns or not len(next(iter(columns.values()))):
        raise DataError("X: no rows or no columns came, at least one of each was expected; check the source.")
    return columns


def read_targets(y: object, before: Targets | None) -> Targets:
    """Targets of `y`: a series, frame, mapping, `Table` or file with names, or an array (rows,) or (rows, targets).

    Targets without names are y, or y0, y1, ... With `before`, those of the fit, raises `DataError` unless they are the
    same number, and of the same names where several have names.
    """
    if y is None:
        raise DataError("y: a regressor requires y to be passed, but the target y is None; pass the targets.")
    series = isinstance(y, pa.ChunkedArray) or nw.dependencies.is_into_series(y)
    if isinstance(y, str | Path | Mapping | Table) or nw.dependencies.is_into_dataframe(y):
        read = Targets(Table.from_any(y), False)
    elif series:
        name = getattr(nw.from_native(cast(Any, y), series_only=True), "name", None)
        read = Targets(Table(Table.from_any(y).values, [str(name or "y")]), True)
    else:
        array = check_array(
            y, dtype=np.float64, ensure_2d=False, ensure_all_finite=False, ensure_min_samples=0, input_name="y"
        )
        width = array.shape[1] if array.ndim == 2 else 1
        names = ["y"] if array.ndim == 1 else [f"y{i}" for i in range(width)]
        read = Targets(Table(torch.tensor(array.reshape(len(array), width)), names), array.ndim == 1)
    if before is None:
        return read
    known = before.table.columns
    if read.table.features != len(known):
        raise DataError(f"y: {read.table.features} targets came, {len(known)} were expected ({', '.join(known)}).")
    named = [f"y{i}" for i in range(len(known))] not in (list(known), list(read.table.columns))
    if named and len(known) > 1:
        read.table.align(known)
    return Targets(Table(read.table.values, known), before.single)


def rows_of(columns: Mapping[str, Column], chosen: npt.NDArray[np.bool_]) -> dict[str, Column]:
    """The rows where `chosen` is true; `DataError` for columns of another length."""
    for column in columns.values():
        if len(column) != len(chosen):
            raise DataError(f"y: {len(chosen)} rows came for {len(column)} rows of X; give one of each.")
    kept = np.flatnonzero(chosen)
    return {
        name: [column[row] for row in kept] if isinstance(column, list) else column[kept]
        for name, column in columns.items()
    }


def target_supports(support: Any, targets: Sequence[str]) -> dict[str, Support]:
    """As `parse_supports`; the pair of a single target may come alone."""
    alone = len(targets) == 1 and isinstance(support, Sequence) and len(support) == 2 and not isinstance(support, str)
    if alone and all(end is None or isinstance(end, int | float) for end in support):
        support = [support]
    return parse_supports(support, targets)


def numbers_between(name: str, levels: Any) -> Tensor:
    """Probabilities strictly between 0 and 1, (levels,); `OptionError` for anything else."""
    try:
        chosen = torch.as_tensor(np.asarray(levels, dtype=np.float64))
    except (TypeError, ValueError):
        chosen = torch.empty(0)
    if chosen.ndim != 1 or not len(chosen) or not bool(((chosen > 0) & (chosen < 1)).all()):
        raise OptionError(f"{name}: {levels!r} came, numbers above 0 and below 1 were expected, as in [0.05, 0.95].")
    return chosen


def images_to_fit(X: object, *, levels: int | None, shape: Sequence[int] | None, flip: bool) -> Images:
    """Images to train on; `levels` None means 256, or those that `Images` bring."""
    if not isinstance(plain(flip), bool):
        raise OptionError(f"flip: {flip!r} came, true or false was expected.")
    count = None if levels is None else count_of("levels", levels)
    if isinstance(X, Images):
        return Images(X.pixels, levels=X.levels if count is None else count, flip=bool(flip) or X.flip)
    return Images.from_any(X, shape=shape, levels=256 if count is None else count, flip=bool(flip))


def images_like(X: object, shape: tuple[int, ...], levels: int, *, read_as: Sequence[int] | None) -> Images:
    """Images of the `shape` and with no more `levels` than those of a fit, read as `read_as` says; else `DataError`."""
    images = X if isinstance(X, Images) else Images.from_any(X, shape=read_as)
    if images.shape != shape:
        raise DataError(
            f"X: images of shape {images.shape} came, {shape} (channels, height, width) was expected, as in the fit."
        )
    if not len(images):
        raise DataError("X: no images came, at least one was expected; check the source.")
    found = X.levels if isinstance(X, Images) else int(images.pixels.max()) + 1
    if found > levels:
        came = f"images of {found} levels" if isinstance(X, Images) else f"a pixel of {found - 1}"
        raise DataError(f"X: {came} came, the fit had {levels} levels, from 0 to {levels - 1}; bring such images.")
    return Images(images.pixels, levels=levels)
