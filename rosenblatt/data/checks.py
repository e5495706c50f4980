"""What a table must be before a density is fitted to it, and what its owner should be told."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import REAL, Support

ROWS_PER_CHUNK = 65_536  # keeps the float64 working copy of one chunk within a few megabytes
ROWS_FOR_DISTINCT = 200_000  # sorting more rows would not change what is said about a column
PERFECT = 1e-12  # 1 - |correlation| below this is a line as far as float64 sums can tell
MOST_CELLS = 10_000_000  # a grid finer than this many cells over the range is not told from the real line
OUTLIER_SIGMAS = 1e6


def check_rows(
    columns: Sequence[str], values: Tensor, weight: Tensor | None, support: Mapping[str, Support] | None
) -> list[str]:
    """Raise `DataError` for what no density can be fitted to, and return warnings for the rest.

    Errors: no or one row, no column, NaN or infinity, a constant column, columns that are linear
    functions of others, values outside a declared `support`. Warnings: values on a grid or repeated,
    on a bound of their support, extreme outliers. Rows of weight zero count for NaN, infinity and `support` only.
    """
    _check_size(columns, values)
    _check_finite(columns, values)
    _check_support(columns, values, support or {})
    used = values if weight is None else values[weight > 0]
    check_constant(columns, used)
    _check_dependent(columns, used)
    warnings = []
    for index, name in enumerate(columns):
        column = used[:, index].double()
        warnings += _discrete_warning(name, column)
        warnings += _bound_warning(name, column, (support or {}).get(name, REAL))
        warnings += _outlier_warning(name, column)
    return warnings


def _check_size(columns: Sequence[str], values: Tensor) -> None:
    rows, features = values.shape
    if features == 0:
        raise DataError("table: no numeric column came, at least one was expected; check the file or `columns`.")
    if rows < 2:
        came = "no rows" if rows == 0 else "one row"
        raise DataError(
            f"table: {came} came for {features} columns ({shorten(columns)}), at least two rows were expected; "
            "check the source and its filters."
        )


def _check_finite(columns: Sequence[str], values: Tensor) -> None:
    bad = ~torch.isfinite(values)
    count = int(bad.sum())
    if count:
        row = int(bad.any(dim=1).nonzero()[0])
        column = int(bad[row].nonzero()[0])
        what = "NaN (missing)" if torch.isnan(values[row, column]) else "infinite"
        raise DataError(
            f"table: {count} values are missing or not finite, the first in row {row}, column "
            f"'{columns[column]}' ({what}); drop or fill those rows."
        )


def _check_support(columns: Sequence[str], values: Tensor, support: Mapping[str, Support]) -> None:
    for name, interval in support.items():
        column = values[:, position(columns, name, "support")]
        outside = (column < interval.lower) | (column > interval.upper)
        if outside.any():
            row = int(outside.nonzero()[0])
            raise DataError(
                f"column '{name}': {int(outside.sum())} values lie outside the declared support "
                f"[{interval.lower:g}, {interval.upper:g}], the first is {column[row]:.6g} in row {row}; "
                "widen the support or drop those rows."
            )


def _bound_warning(name: str, column: Tensor, interval: Support) -> list[str]:
    count = int(((column == interval.lower) | (column == interval.upper)).sum())
    if count == 0:
        return []
    return [
        f"column '{name}': {count} values lie exactly on a bound of the declared support "
        f"[{interval.lower:g}, {interval.upper:g}], where log-densities mean little; widen the support a little, or "
        "model those rows apart if the bound is a value of its own."
    ]


def check_constant(columns: Sequence[str], values: Tensor) -> None:
    """Raise `DataError` that names the first column with one value only."""
    if len(values) == 0:
        raise DataError("weight: all weights are zero, some must be positive; check the weight column.")
    for index, name in enumerate(columns):
        column = values[:, index]
        if column.min() == column.max():
            raise DataError(
                f"column '{name}': every value is {column[0]:.6g}, and a constant has no density; drop the column."
            )


def _check_dependent(columns: Sequence[str], values: Tensor) -> None:
    rows, features = values.shape
    for left in range(features):
        for right in range(left + 1, features):
            alike = torch.equal(values[:100, left], values[:100, right])  # spares most columns the long comparison
            if alike and torch.equal(values[:, left], values[:, right]):
                raise DataError(
                    f"columns '{columns[left]}' and '{columns[right]}' are copies of each other, so their "
                    "joint "
                    "density is degenerate; drop one of them."
                )
    if rows <= features + 1:
        return  # so few rows lie on a plane whatever they are
    correlation = _correlation(values)
    off = correlation.abs().fill_diagonal_(0.0)
    if off.max() > 1 - PERFECT:
        left, right = divmod(int(off.argmax()), features)
        raise DataError(
            f"columns '{columns[left]}' and '{columns[right]}' are perfectly correlated "
            f"(r = {float(correlation[left, right]):.13g}), so their joint density is degenerate; drop one "
            "of them."
        )
    eigenvalues, eigenvectors = torch.linalg.eigh(correlation)
    if eigenvalues[0] < PERFECT:
        direction = eigenvectors[:, 0].abs()
        involved = [name for name, part in zip(columns, direction, strict=True) if part > 1e-4 * direction.max()]
        raise DataError(
            f"columns {shorten(involved)} add up to a constant when suitably weighted, so their joint density is "
            "degenerate; drop one of them."
        )


def _correlation(values: Tensor) -> Tensor:
    """Correlation matrix in float64, chunk by chunk, safe for columns of any magnitude."""
    mean, scale = location_scale(values, None)
    total = torch.zeros(values.shape[1], values.shape[1], dtype=torch.float64, device=values.device)
    for chunk in torch.split(values, ROWS_PER_CHUNK):
        z = (chunk.double() - mean) / scale
        total += z.T @ z
    deviation = total.diagonal().sqrt()
    return total / torch.outer(deviation, deviation)


def location_scale(values: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted mean and population standard deviation of each column, in float64, chunk by chunk."""
    weights = torch.ones(len(values), device=values.device) if weight is None else weight
    share = weights.double() / weights.double().sum()
    # Sums are taken of numbers divided by their largest, so that neither 1e300 nor 1e-300 leaves float64.
    size = _largest(values, torch.zeros(values.shape[1], dtype=torch.float64, device=values.device))
    mean = torch.zeros_like(size)
    for x, w in zip(torch.split(values, ROWS_PER_CHUNK), torch.split(share, ROWS_PER_CHUNK), strict=True):
        mean += w @ (x.double() / size)
    mean *= size
    spread = _largest(values, mean)
    variance = torch.zeros_like(size)
    for x, w in zip(torch.split(values, ROWS_PER_CHUNK), torch.split(share, ROWS_PER_CHUNK), strict=True):
        variance += w @ ((x.double() - mean) / spread).square()
    return mean, variance.sqrt() * spread


def _largest(values: Tensor, origin: Tensor) -> Tensor:
    """Largest distance of each column from `origin`, 1 where it is zero."""
    largest = torch.stack([(x.double() - origin).abs().amax(dim=0) for x in torch.split(values, ROWS_PER_CHUNK)]).amax(
        dim=0
    )
    return torch.where(largest > 0, largest, 1.0)


def _discrete_warning(name: str, column: Tensor) -> list[str]:
    rows = len(column)
    if rows > ROWS_FOR_DISTINCT:
        column = column[torch.arange(ROWS_FOR_DISTINCT, device=column.device) * rows // ROWS_FOR_DISTINCT]
    distinct, counts = torch.unique(column, return_counts=True)
    step = grid_step(distinct)
    repeated = len(distinct) < 0.9 * len(column)
    # A grid shows as a comb in a density only where its cells are not many more than the rows.
    coarse = step is not None and len(column) >= 20 and float(distinct[-1] - distinct[0]) / step <= 2 * len(column)
    if repeated or coarse:
        grid = f" on a grid of step {step:.6g}" if step is not None else ""
        value = f"{step:.6g}" if step is not None else "<width of one value>"
        return [
            f"column '{name}': {len(distinct)} distinct values in {len(column)} rows{grid}, so a density can grow "
            f"without bound at them and log-likelihoods mean little; spread them with "
            f"dequantise={{'{name}': {value}}}."
        ]
    top = int(counts.max())
    if top >= max(10, 0.01 * len(column)):
        atom = float(distinct[counts.argmax()])
        return [
            f"column '{name}': the single value {atom:.6g} fills {top / len(column):.1%} of the rows, and "
            "a density can "
            f"grow without bound there; model those rows apart, or spread them with dequantise={{'{name}': "
            "<width>}}."
        ]
    return []


def _outlier_warning(name: str, column: Tensor) -> list[str]:
    deviation = (column - column.median()).abs()
    # Half the rows may share the median, so the robust scale is that of the rows that differ from it.
    sigma = 1.4826 * deviation[deviation > 0].median()
    worst = int(deviation.argmax())
    sigmas = float(deviation[worst] / sigma)
    if sigmas <= OUTLIER_SIGMAS:
        return []
    return [
        f"column '{name}': row {worst} holds {float(column[worst]):.6g}, {sigmas:.1e} robust standard "
        "deviations from "
        "the median; check it, since one such value sets the scale of the whole column."
    ]


def grid_step(column: Tensor) -> float | None:
    """Largest step `s` such that all values are `lowest + k s` with whole `k`, or None without a grid.

    Rounding noise of float64, or of float32 where every value is a float32, is allowed for. Grids of more
    than ten million cells over the range are not told from the real line.

    >>> grid_step(torch.tensor([0.25, 1.5, 1.75], dtype=torch.float64))
    0.25
    """
    values = torch.unique(column.detach().double())
    if len(values) < 2 or not torch.isfinite(values).all():
        return None
    is_float32 = torch.equal(values, values.float().double())
    noise = 4 * torch.finfo(torch.float32 if is_float32 else torch.float64).eps * float(values.abs().max())
    gaps = values.diff()
    extent = float(values[-1] - values[0])
    step = float(gaps.min())
    # Euclid's algorithm on all gaps at once: the smallest remainder that is not noise is the next candidate.
    while step > 4 * noise and extent / step <= MOST_CELLS:
        step = _refine(gaps, step)
        rest = (gaps - (gaps / step).round() * step).abs()
        tolerance = max(noise, 1e-4 * step)
        if bool((rest <= tolerance).all()):
            return _short(values, step, tolerance)
        step = float(rest[rest > tolerance].min())
    return None


def _refine(gaps: Tensor, step: float) -> float:
    """Average a step over the gaps of few steps, then over wider ones, so that noise does not add up."""
    for widest in (1.5, 30.0, 1000.0):
        near = gaps[gaps < widest * step]
        if len(near) == 0:
            continue
        multiples = (near / step).round()
        if bool(((near - multiples * step).abs() > 0.05 * step).any()):
            break  # not a grid of this step: leave it to the next candidate
        step = float(near.sum() / multiples.sum())
    return step


def _short(values: Tensor, step: float, tolerance: float) -> float:
    """The step in three digits where that fits the values as well: 0.01 rather than 0.010000000000019."""
    short = float(f"{step:.3g}")
    offset = values - values[0]
    fits = (offset - (offset / short).round() * short).abs() <= tolerance
    return short if bool(fits.all()) else step


def position(columns: Sequence[str], name: str, argument: str) -> int:
    """Index of column `name`; raises `DataError` that lists the columns there are."""
    if name not in columns:
        raise DataError(f"{argument}: there is no column '{name}'; the columns are {shorten(columns)}.")
    return list(columns).index(name)


def shorten(names: Sequence[str], most: int = 12) -> str:
    """Column names for a message, the first `most` of them."""
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def cuts(count: int, fractions: Sequence[float], what: str, unit: str) -> list[tuple[int, int]]:
    """Ends of the parts that `count` shuffled rows are cut into; `what` and `unit` say in a message what they are.

    Raises `OptionError` unless the fractions are positive and add up to one, `DataError` where a part would be empty.

    >>> cuts(10, [0.8, 0.2], "table", "row")
    [(0, 8), (8, 10)]
    """
    if not fractions or min(fractions) <= 0 or not math.isclose(math.fsum(fractions), 1.0, abs_tol=1e-9):
        raise OptionError(f"fractions: {list(fractions)} came; give positive numbers that add up to 1.")
    ends = [round(part * count) for part in itertools.accumulate(fractions, initial=0.0)]
    parts = list(itertools.pairwise(ends))
    if any(start == stop for start, stop in parts):
        raise DataError(
            f"{what}: {count} {unit}s are too few to split by {list(fractions)} with one in each part; "
            f"bring more {unit}s or change the fractions."
        )
    return parts
