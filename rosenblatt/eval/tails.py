"""Which columns of a table have power-law tails, how heavy they are, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Table
from rosenblatt.eval.tail_index import Choice, distances, double_bootstrap

TESTED_SHARE = 0.1  # of the values: the largest tenth is held against the exponential law
FEWEST_TESTED = 10
LIGHTEST_INDEX = 10.0  # a tail with moments up to here is light for every practical purpose
TWO_SIDED = 1.959964  # standard normal quantile of 97.5 %


@dataclass(frozen=True)
class ColumnTail:
    """The tail of one column: `P(|x - median| > t)` falls like `t^-index` if heavy, faster than any power if light.

    `xi` is 1 / index: Hill's estimate for a heavy column, the moment estimate (of any sign) for a light one. Its
    standard error is that of sampling; the choice of k leaves a bias of about the same size. `k` is the number of
    largest values used. `p_value` is that of tails no heavier than exponential.
    """

    name: str
    rows: int
    heavy: bool
    xi: float
    standard_error: float
    k: int
    hill: Choice
    moments: Choice
    kernel: Choice
    p_value: float

    @property
    def index(self) -> float:
        """Tail index: moments of a lower order exist. Infinite for a light column."""
        return 1 / self.xi if self.heavy else math.inf

    @property
    def band(self) -> tuple[float, float]:
        """Interval of xi that covers its expectation with probability 95 %."""
        margin = TWO_SIDED * self.standard_error
        return self.xi - margin, self.xi + margin

    def __str__(self) -> str:
        if not self.heavy:
            reason = f"no sign of a power law (p {self.p_value:.2g})"
            if self.hill.xi < 1 / LIGHTEST_INDEX:
                reason = f"moments up to order {LIGHTEST_INDEX:g} exist"
            return f"{self.name}: light, {reason}; xi {self.xi:.2f} +- {self.standard_error:.2f}"
        low, high = self.band
        lowest, highest = 1 / high, 1 / low if low > 0 else math.inf
        ends = f"{lowest:.2f} to {highest:.2f}" if low > 0 else f"at least {lowest:.2f}"
        return (
            f"{self.name}: heavy, tail index {self.index:.2f} ({ends}) from the {self.k:,} largest of "
            f"{self.rows:,} distances to the median; {_meaning(self.index, lowest, highest)}"
        )


@dataclass(frozen=True)
class TailReport:
    """The tails of every column of a table, in their order."""

    columns: tuple[ColumnTail, ...]
    false_alarm: float

    @property
    def df(self) -> list[float | None]:
        """Tail index of each column, None for a light one: the option `df` of the model "mtaf"."""
        return [column.index if column.heavy else None for column in self.columns]

    @property
    def options(self) -> dict[str, Any]:
        """Options of the model "mtaf" for this table."""
        return {"df": self.df}

    def __str__(self) -> str:
        heavy = sum(column.heavy for column in self.columns)
        head = f"Tails: {heavy} of {len(self.columns)} columns are heavy (false alarm {self.false_alarm:g} a column)"
        return "\n".join([head, *(f"  {column}" for column in self.columns)])


def tail_report(data: object, *, false_alarm: float = 0.01, resamples: int = 500, seed: int = 0) -> TailReport:
    """Say for each column of a table whether its tails are heavy, and estimate the tail index 1 / xi.

    Both tails count, as distances to the median; the heavier one decides. Hill's, the moment and the kernel estimator
    each get their number of largest values by a double bootstrap of `resamples`. A column is heavy if its largest tenth
    scatters more than an exponential tail does with probability `false_alarm`, `exponential_p_value`, and the moment or
    the kernel estimate is positive, and Hill's index is at most 10. So a normal, uniform, exponential or any other
    tail with a rising hazard rate is called heavy with at most that probability. Row weights are not used.
    Raises `DataError` for a column with NaN, infinities or fewer than 100 values that differ from its median, and
    `OptionError` for a false alarm outside (0, 1) or resamples below 1.

    References: Hill 1975; Dekkers, Einmahl & de Haan 1989; Csorgo, Deheuvels & Mason 1985; Danielsson et al. 2001;
    Laszkiewicz, Lederer & Fischer 2022 for the use.

    >>> x = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    >>> report = tail_report({"even": x, "cauchy": torch.tan(math.pi * (x - 0.5))}, resamples=50)
    >>> [column.heavy for column in report.columns]
    [False, True]
    """
    if not 0 < false_alarm < 1:
        raise OptionError(f"false_alarm: {false_alarm} came, a probability in (0, 1) was expected.")
    if resamples < 1:
        raise OptionError(f"resamples: {resamples} came, an integer >= 1 was expected.")
    table = Table.from_any(data)
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for name, values in zip(table.columns, table.values.T, strict=True):
        try:
            away = distances(values)
        except DataError as error:
            raise DataError(f"column '{name}', {error}") from None
        chosen = double_bootstrap(away, resamples=resamples, generator=generator)
        columns.append(_column(name, len(values), away, false_alarm, chosen))
    return TailReport(tuple(columns), false_alarm)


def exponential_p_value(exceedances: Tensor) -> float:
    """Probability that exponential exceedances (k,) scatter as much as these, by their Gini coefficient.

    `G = sum_i (2 i - k - 1) e_(i) / ((k - 1) sum_i e_i)` of k exponential numbers has the law of the mean of k - 1
    uniform ones, whatever their scale (Gail & Gastwirth 1978); the normal law is used for it. A tail whose hazard rate
    rises has a smaller G, a generalised Pareto tail `1 / (2 - xi)`. Raises `DataError` for fewer than ten numbers, or
    numbers that are negative or all zero.

    >>> round(exponential_p_value(torch.linspace(0, 1, 100)), 4)  # uniform: G = 1 / 3
    1.0
    """
    ordered = exceedances.detach().double().flatten().sort().values
    k = len(ordered)
    if k < FEWEST_TESTED or not bool((ordered >= 0).all()) or not float(ordered[-1]) > 0:
        raise DataError(
            f"exceedances: {k} numbers came, at least {FEWEST_TESTED} that are >= 0 and not all 0 were expected."
        )
    rank = torch.arange(1, k + 1, dtype=torch.float64)
    # Divided by the largest first, so that sums of huge numbers do not overflow.
    ordered = ordered / ordered[-1]
    gini = float(((2 * rank - k - 1) * ordered).sum() / ((k - 1) * ordered.sum()))
    return float(stats.norm.sf((gini - 0.5) * math.sqrt(12 * (k - 1))))


def _column(name: str, rows: int, away: Tensor, false_alarm: float, chosen: dict[str, Choice]) -> ColumnTail:
    threshold = away[round(TESTED_SHARE * len(away))]
    # Without ties at the threshold: a pile of zeros among rounded values would look like scatter.
    excess = away[away > threshold] - threshold
    p_value = exponential_p_value(excess) if len(excess) >= FEWEST_TESTED else 1.0
    hill, moments, kernel = chosen["hill"], chosen["moments"], chosen["kernel"]
    positive = moments.xi > 0 or kernel.xi > 0
    heavy = p_value <= false_alarm and positive and hill.xi >= 1 / LIGHTEST_INDEX
    used = hill if heavy else moments
    variance = used.xi**2 if heavy else _moments_variance(used.xi)
    error = math.sqrt(variance / used.k)
    return ColumnTail(name, rows, heavy, used.xi, error, used.k, hill, moments, kernel, p_value)


def _moments_variance(xi: float) -> float:
    """Limit of k times the variance of the moment estimator (Dekkers, Einmahl & de Haan 1989)."""
    if not xi < 0:
        return 1 + xi * xi
    return (1 - xi) ** 2 * (1 - 2 * xi) * (1 - xi + 6 * xi * xi) / ((1 - 3 * xi) * (1 - 4 * xi))


def _meaning(index: float, lowest: float, highest: float) -> str:
    """What an index between `lowest` and `highest` says about moments."""
    if highest <= 1:
        return "not even the mean exists"
    if lowest <= 1:
        return "whether the mean exists is open"
    if highest <= 2:
        return "the mean exists, the variance does not"
    if lowest <= 2:
        return "the mean exists, whether the variance does is open"
    return f"mean and variance exist, moments from order {index:.1f} on do not"
