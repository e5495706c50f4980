"""A table of numbers with column names: the data that a density is fitted to."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Batch, Support
from rosenblatt.data import checks
from rosenblatt.data.sources import as_array

FLOATS = (torch.float32, torch.float64)


class Table:
    """Named columns of numbers in memory, with optional row weights.

    `values` has shape (rows, features) in the units of the source, `weight` (rows,) or None.

    >>> table = Table(torch.tensor([[0.0, 5.0], [1.0, 7.0]]), ("length", "mass"))
    >>> table
    Table(2 rows; 'length', 'mass')
    >>> table.select(["mass"]).values.tolist()
    [[5.0], [7.0]]
    """

    def __init__(self, values: Tensor, columns: Sequence[str], weight: Tensor | None = None) -> None:
        if values.ndim != 2 or values.shape[1] != len(columns):
            raise DataError(
                f"values: shape {tuple(values.shape)} came for {len(columns)} column names, (rows, "
                f"{len(columns)}) was "
                "expected; give one name per column."
            )
        if values.dtype not in FLOATS:
            raise DataError(f"values: dtype {values.dtype} came, float32 or float64 was expected; use Table.from_any.")
        repeated = [name for name in columns if list(columns).count(name) > 1]
        if repeated:
            raise DataError(f"columns: the name '{repeated[0]}' stands more than once; rename one of them.")
        self.columns = tuple(columns)
        self.values = values
        self.weight = None if weight is None else _checked_weight(weight, values)

    @classmethod
    def from_any(
        cls,
        source: object,
        *,
        columns: Sequence[str] | None = None,
        weight: object = None,
        dtype: torch.dtype = torch.float64,
    ) -> Table:
        """Read a table from a file, a data frame or an array; the source is copied, never changed.

        Sources: a path (.csv, .tsv, .parquet, .npz, .npy), a pandas, polars or pyarrow table or series, a
        mapping of names to columns, a NumPy array, a tensor, nested lists, a `Table`. Arrays without names
        get x0, x1, ... `columns` chooses and orders named columns, or names the columns of an array. `weight`
        is the name of a column, which is then not a feature, or one number per row. Raises `DataError`
        where a column holds no numbers or the source cannot be read.

        >>> Table.from_any({"a": [1, 2], "w": [1.0, 3.0]}, weight="w")
        Table(2 rows; 'a'; weighted)
        """
        if dtype not in FLOATS:
            raise OptionError(f"dtype: {dtype} came, torch.float32 or torch.float64 was expected.")
        if isinstance(source, Table):
            return _from_table(source, columns, weight, dtype)
        wanted = columns
        if columns is not None and isinstance(weight, str) and weight not in columns:
            wanted = [*columns, weight]
        names, array = as_array(source, wanted)
        # torch.tensor always copies, so a later change of the user's array does not reach the table.
        table = cls(torch.tensor(np.ascontiguousarray(array), dtype=dtype), names)
        return _from_table(table, None, weight, dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        weighted = "" if self.weight is None else "; weighted"
        return f"Table({len(self)} rows; {checks.shorten(self.columns)}{weighted})"

    @property
    def features(self) -> int:
        """Number of columns."""
        return len(self.columns)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Table:
        """The same rows in another dtype (float32 or float64) or on another device."""
        values = self.values.to(device=device, dtype=dtype)
        weight = None if self.weight is None else self.weight.to(device=device, dtype=dtype)
        return Table(values, self.columns, weight)

    def near(self, device: torch.device) -> Table:
        """This table in the memory of a CUDA device, where it takes less than a quarter of what is free, else itself.

        Rows chosen on the device itself need not be sent there batch by batch.
        """
        if device.type != "cuda":
            return self
        size = sum(part.numel() * part.element_size() for part in (self.values, self.weight) if part is not None)
        free, _ = torch.cuda.mem_get_info(device)
        return self.to(device=device) if 4 * size < free else self

    def select(self, names: Sequence[str]) -> Table:
        """The named columns in the given order; raises `DataError` for an unknown name."""
        chosen = [checks.position(self.columns, name, "columns") for name in names]
        return Table(self.values[:, chosen], names, self.weight)

    def align(self, columns: Sequence[str]) -> Table:
        """Return this table if its columns are exactly `columns`, those of a model, in their order.

        Raises `DataError` that names missing, extra or reordered columns: a density scores positions, so
        columns in another order would give wrong numbers without any sign.
        """
        missing = [name for name in columns if name not in self.columns]
        extra = [name for name in self.columns if name not in columns]
        if missing:
            beside = f" and has {checks.shorten(extra)}, which it does not know" if extra else ""
            raise DataError(
                f"columns: the table lacks {checks.shorten(missing)} of the model's columns{beside}; "
                "rename or add "
                f"columns until they are {checks.shorten(columns)}."
            )
        if extra:
            raise DataError(
                f"columns: {checks.shorten(extra)} came besides the model's columns; select {checks.shorten(columns)}."
            )
        if self.columns != tuple(columns):
            raise DataError(
                f"columns: the order {checks.shorten(self.columns)} came, the model has "
                f"{checks.shorten(columns)}; "
                "select the columns in the model's order."
            )
        return self

    def split(self, fractions: Sequence[float], generator: torch.Generator) -> tuple[Table, ...]:
        """Cut the rows at random into disjoint tables that together hold every row.

        `fractions` are positive and add up to one. Raises `OptionError` where they do not, `DataError`
        where a part would be empty.
        """
        parts = checks.cuts(len(self), fractions, "table", "row")
        order = self._shuffled(generator)
        return tuple(self._take(order[start:stop]) for start, stop in parts)

    def batches(self, size: int, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """One pass over the rows in an order drawn from `generator`, `size` rows a batch, the last shorter.

        The order is drawn when this is called. `start` leaves out that many batches of the same order, so
        a pass is resumed exactly by the same generator state.
        """
        if size < 1 or start < 0:
            raise OptionError(f"size={size}, start={start}: size must be at least 1 and start at least 0.")
        order = self._shuffled(generator)
        return (self._batch(order[first : first + size]) for first in range(start * size, len(self), size))

    def ordered_batches(self, size: int) -> Iterator[Batch]:
        """One pass over the rows in their own order, without copying them."""
        if size < 1:
            raise OptionError(f"size={size}: a batch needs at least one row.")
        for first in range(0, len(self), size):
            rows = slice(first, first + size)
            yield Batch(self.values[rows], weight=None if self.weight is None else self.weight[rows])

    def rows(self, limit: int | None = None) -> Batch:
        """All rows, or `limit` rows spread evenly over the table, so that sorted tables are well met."""
        if limit is not None and limit < 1:
            raise OptionError(f"limit: {limit} came, at least 1 was expected.")
        if limit is None or limit >= len(self):
            return Batch(self.values, weight=self.weight)
        return self._batch(torch.arange(limit, device=self.values.device) * len(self) // limit)

    def location_scale(self) -> tuple[Tensor, Tensor]:
        """Weighted mean and standard deviation of each column, in float64, shapes (features,).

        Raises `DataError` for a column that is constant where the weight is positive.
        """
        checks.check_constant(self.columns, self.values if self.weight is None else self.values[self.weight > 0])
        return checks.location_scale(self.values, self.weight)

    def check(self, *, support: Mapping[str, Support] | None = None) -> list[str]:
        """Raise `DataError` for what no density can be fitted to; return warnings, one sentence each.

        Errors: no or one row, NaN or infinity, a constant column, copies and linear functions of other
        columns, values outside a declared `support`. Warnings: discrete or repeated values, extreme outliers.
        """
        return checks.check_rows(self.columns, self.values, self.weight, support)

    def dequantise(self, steps: Mapping[str, float], generator: torch.Generator) -> Table:
        """Spread rounded columns evenly over their cells: `x + step U` with `U` uniform on [0, 1).

        For whole-cell data the mean log-density of the result, plus the logarithm of the cell's volume,
        is a lower bound on the log-probability of the cell (Theis et al. 2016). `grid_step` finds a step.
        Raises `DataError` for an unknown column, `OptionError` for a step that is not positive.
        """
        values = self.values.clone()
        for name, step in steps.items():
            index = checks.position(self.columns, name, "dequantise")
            if not (math.isfinite(step) and step > 0):
                raise OptionError(f"dequantise: step {step} came for '{name}', a positive finite number was expected.")
            noise = torch.rand(len(self), generator=generator, dtype=values.dtype, device=generator.device)
            values[:, index] += step * noise.to(values.device)
        return Table(values, self.columns, self.weight)

    def grid_step(self, column: str) -> float | None:
        """The step of the grid that the values of `column` lie on, or None; see `checks.grid_step`."""
        return checks.grid_step(self.values[:, checks.position(self.columns, column, "column")])

    def digest(self) -> str:
        """SHA-256 of column names, shape, dtype, values and weights, to say which data a model has seen."""
        head = [list(self.columns), list(self.values.shape), str(self.values.dtype), self.weight is not None]
        digest = hashlib.sha256(json.dumps(head).encode())
        for part in (self.values, self.weight):
            if part is not None:
                digest.update(np.ascontiguousarray(part.cpu().numpy()).data)
        return digest.hexdigest()

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        return order.to(self.values.device)

    def _batch(self, index: Tensor) -> Batch:
        weight = None if self.weight is None else self.weight.index_select(0, index)
        return Batch(self.values.index_select(0, index), weight=weight)

    def _take(self, index: Tensor) -> Table:
        batch = self._batch(index)
        return Table(batch.x, self.columns, batch.weight)


def _checked_weight(weight: Tensor, values: Tensor) -> Tensor:
    if weight.shape != (len(values),):
        raise DataError(f"weight: shape {tuple(weight.shape)} came for {len(values)} rows; give one number per row.")
    wrong = ~(torch.isfinite(weight) & (weight >= 0))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"weight: {float(weight[row])} came in row {row}, a finite number of at least 0 was expected; "
            "correct or drop the row."
        )
    if len(weight) and not weight.any():
        raise DataError("weight: every weight is zero, so no row counts; give positive weights.")
    return weight.to(dtype=values.dtype, device=values.device)


def _from_table(table: Table, columns: Sequence[str] | None, weight: object, dtype: torch.dtype) -> Table:
    """Choose columns, take the weight from a column or an array, and convert."""
    weights = table.weight
    if isinstance(weight, str):
        weights = table.values[:, checks.position(table.columns, weight, "weight")]
        columns = [name for name in (columns or table.columns) if name != weight]
    elif weight is not None:
        weights = torch.tensor(np.ascontiguousarray(as_array(weight, None)[1]), dtype=torch.float64).squeeze(1)
    chosen = table if columns is None else table.select(columns)
    return Table(chosen.values, chosen.columns, weights).to(dtype)
