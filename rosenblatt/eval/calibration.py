"""Calibration by the Rosenblatt transform: if the model is right, `u = to_uniform(x)` is uniform on the cube."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, OptionError

ROWS_AT_ONCE = 4096


class Uniformity(NamedTuple):
    """Kolmogorov-Smirnov statistic and p-value of each column, both (columns,)."""

    statistic: Tensor
    p_value: Tensor


def dkw_band(rows: int, *, false_alarm: float = 1e-6) -> float:
    """Half-width within which an empirical CDF stays of the true one: `sqrt(log(2 / false_alarm) / (2 rows))`.

    Holds for any law and any `rows` (Dvoretzky, Kiefer & Wolfowitz 1956 with the constant of Massart 1990).
    Raises `OptionError` for rows below 1 or a false alarm outside (0, 1).

    >>> round(dkw_band(20_000), 4)
    0.019
    """
    _check(rows, false_alarm)
    return math.sqrt(math.log(2 / false_alarm) / (2 * rows))


def pit_bands(rows: int, bins: int, *, false_alarm: float = 1e-3) -> tuple[int, int]:
    """Lowest and highest count that a histogram bar of `rows` uniform numbers in `bins` equal bins may have.

    Exact binomial quantiles, simultaneous over the bins (Bonferroni): all bars are within with probability at least
    `1 - false_alarm`. Raises `OptionError` for sizes below 1 or a false alarm outside (0, 1).

    >>> pit_bands(1000, 10)
    (65, 139)
    """
    _check(rows, false_alarm)
    if bins < 1:
        raise OptionError(f"bins: {bins} came, an integer >= 1 was expected.")
    law = stats.binom(rows, 1 / bins)
    tail = false_alarm / (2 * bins)
    return int(law.ppf(tail)), int(law.isf(tail))


def uniformity(u: Tensor) -> Uniformity:
    """Test each column of `u` (rows, columns) for the uniform law on [0, 1].

    Two-sided Kolmogorov-Smirnov with the exact finite-sample law. A column with NaN answers NaN. Raises `DataError`
    for no rows or numbers outside [0, 1].

    >>> uniformity(torch.linspace(0.05, 0.95, 10).unsqueeze(-1)).statistic.round(decimals=4)
    tensor([0.0500], dtype=torch.float64)
    """
    u = u.detach().double().cpu()
    if u.ndim != 2 or u.shape[0] < 1:
        raise DataError(f"u: shape {tuple(u.shape)} came, (rows, columns) with at least one row was expected.")
    if bool(((u < 0) | (u > 1)).any()):
        raise DataError("u: numbers outside [0, 1] came; pass the output of `to_uniform`.")
    rows = u.shape[0]
    ordered = u.sort(dim=0).values
    steps = torch.arange(rows + 1, dtype=torch.float64).unsqueeze(-1) / rows
    statistic = torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).amax(dim=0)
    p_value = torch.as_tensor(stats.kstwo.sf(statistic.numpy(), rows)).reshape(statistic.shape)
    return Uniformity(statistic, p_value)


@dataclass(frozen=True)
class RosenblattReport:
    """How uniform a model's Rosenblatt transform of some rows is, column by column."""

    u: Tensor  # (rows, columns)
    uniformity: Uniformity
    band: float  # DKW half-width at false alarm 1e-6

    @property
    def calibrated(self) -> bool:
        """Whether every column's statistic stays within the band."""
        return bool((self.uniformity.statistic <= self.band).all())

    def __str__(self) -> str:
        lines = [f"Rosenblatt transform of {len(self.u)} rows, band {self.band:.4f} (false alarm 1e-6)"]
        for column, (statistic, p_value) in enumerate(zip(*self.uniformity, strict=True)):
            verdict = "ok" if statistic <= self.band else "off"
            lines.append(f"  column {column}: distance {statistic:.4f}, p {p_value:.3g}, {verdict}")
        return "\n".join(lines)


def rosenblatt_report(model: Flow, x: Tensor, context: Tensor | None = None) -> RosenblattReport:
    """Transform rows `x` (rows, features) to the cube and test each column for uniformity (Rosenblatt 1952).

    Raises `DataError` for rows with NaN or infinities and `OptionError` when the base has no coordinate-wise CDF.
    """
    if not bool(torch.isfinite(x).all()):
        raise DataError("x: rows with NaN or infinities came; drop them first.")
    parts = []
    with torch.no_grad():
        for start in range(0, len(x), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            parts.append(model.to_uniform(x[rows], None if context is None else context[rows]))
    u = torch.cat(parts) if parts else x.new_zeros(0, model.features)
    return RosenblattReport(u, uniformity(u), dkw_band(len(u)))


def _check(rows: int, false_alarm: float) -> None:
    if rows < 1:
        raise OptionError(f"rows: {rows} came, an integer >= 1 was expected.")
    if not 0 < false_alarm < 1:
        raise OptionError(f"false_alarm: {false_alarm} came, a probability in (0, 1) was expected.")
