"""Probability integral transforms `u = F(y | x)`: of discrete values and of draws, and the test of their histogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.calibration import pit_bands

LEAST_EXPECTED = 10  # rows a bar must expect for the chi-square law to hold far out


def doubles(values: Any) -> Tensor:
    """Numbers of a tensor, array or list as a float64 tensor on the CPU, without gradients.

    >>> doubles([1, 2])
    tensor([1., 2.], dtype=torch.float64)
    """
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float64)
    return torch.from_numpy(np.array(values, dtype=np.float64))  # a copy: arrays of data frames may be read-only


def checked_pit(pit: Any) -> Tensor:
    """`pit` (rows,) or (rows, targets), tensor or array, as float64 (rows, targets).

    Raises `DataError` for another shape, no rows, NaN, or numbers outside [0, 1].

    >>> checked_pit([0.2, 0.7]).shape
    torch.Size([2, 1])
    """
    u = doubles(pit)
    if u.ndim not in (1, 2) or u.numel() == 0:
        raise DataError(f"pit: shape {tuple(u.shape)} came, (rows,) or (rows, targets) with rows was expected.")
    if bool(torch.isnan(u).any()):
        rows = int(torch.isnan(u.reshape(len(u), -1)).any(dim=1).sum())
        raise DataError(f"pit: NaN came in {rows} of {len(u)} rows; drop the rows with a missing value first.")
    if bool(((u < 0) | (u > 1)).any()):
        raise DataError("pit: numbers outside [0, 1] came; pass F(y | x), such as the output of `to_uniform`.")
    return u.reshape(len(u), -1)


def randomised_pit(below: Any, at: Any, *, generator: torch.Generator | None = None) -> Tensor:
    """PIT of values with ties (counts, categories in order, rounded numbers): `u = F(y-) + v P(y)`, v uniform.

    `below` is P(Y < y) and `at` is P(Y = y), of one shape. If the model is right, u is exactly uniform, whatever the
    steps of F (Brockwell 2007; Czado, Gneiting & Held 2009); without the random part it is not. Another generator gives
    other numbers: report the seed. Raises `DataError` for shapes that differ, or for probabilities that are negative,
    NaN, or add up to more than 1.

    >>> u = randomised_pit([0.0, 0.25], [0.25, 0.5], generator=torch.Generator().manual_seed(0))
    >>> bool(0 <= u[0] <= 0.25 <= u[1] <= 0.75)
    True
    """
    low, step = (doubles(part) for part in (below, at))
    if low.shape != step.shape:
        raise DataError(f"at: shape {tuple(step.shape)} came, {tuple(low.shape)} was expected, as `below` has it.")
    # Rounding may leave P(Y < y) + P(Y = y) a little above 1.
    if not bool(((low >= 0) & (step >= 0) & (low + step <= 1 + 1e-6)).all()):
        raise DataError("below, at: P(Y < y) and P(Y = y) must be >= 0 and add up to at most 1; NaN or others came.")
    v = torch.rand(low.shape, dtype=torch.float64, generator=generator)
    return (low + v * step).clamp(max=1.0)


def sample_pit(y: Any, samples: Any, *, generator: torch.Generator | None = None) -> Tensor:
    """PIT of `y` (rows,) or (rows, targets) among `samples` (draws, *shape of y), for models that can only draw.

    `u = (b + v (t + 1)) / (draws + 1)` with b draws below y, t draws equal to it, and v uniform: the randomised rank.
    It is exactly uniform if y is exchangeable with the draws, for any number of them and with any ties. Raises
    `DataError` for shapes that do not fit or for NaN.

    >>> u = sample_pit([0.5], [[0.0], [1.0]], generator=torch.Generator().manual_seed(0))
    >>> bool(1 / 3 <= u[0] <= 2 / 3)
    True
    """
    truth, draws = (doubles(part) for part in (y, samples))
    if draws.ndim != truth.ndim + 1 or draws.shape[1:] != truth.shape or len(draws) < 1:
        raise DataError(
            f"samples: shape {tuple(draws.shape)} came, (draws, {', '.join(map(str, truth.shape))}) was expected."
        )
    if bool(torch.isnan(truth).any()) or bool(torch.isnan(draws).any()):
        raise DataError("y, samples: NaN came; drop the rows with a missing value first.")
    below, ties = (draws < truth).sum(dim=0), (draws == truth).sum(dim=0)
    v = torch.rand(truth.shape, dtype=torch.float64, generator=generator)
    return (below + v * (ties + 1)) / (len(draws) + 1)


@dataclass(frozen=True)
class PitHistogram:
    """Bars of a PIT histogram and the chi-square test of their equality, per target.

    counts: (bins, targets); chi_square, p_value: (targets,); low, high: what every bar of a target stays within with
    probability `1 - false_alarm` if the model is right.
    """

    counts: Tensor
    chi_square: Tensor
    p_value: Tensor
    low: int
    high: int
    false_alarm: float

    @property
    def calibrated(self) -> bool:
        """Whether no target's p-value is below its share of the false alarm."""
        return bool((self.p_value >= self.false_alarm / len(self.p_value)).all())


def pit_histogram(pit: Any, *, bins: int | None = None, false_alarm: float = 1e-3) -> PitHistogram:
    """Count `pit` (rows,) or (rows, targets) in equal bins and test for equal bars: `sum (c - n / bins)^2 bins / n`.

    The statistic has the chi-square law of `bins - 1` degrees of freedom (Pearson 1900) where a bar expects 10 rows;
    `bins` is by default as many as that allows, at most 20. Raises `OptionError` for fewer than 2 bins or fewer than 10
    rows a bin (`uniformity` and `reliability` hold for any number of rows), `DataError` as `checked_pit`.

    >>> pit_histogram(torch.linspace(0.005, 0.995, 100)).counts.flatten().tolist()
    [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    """
    u = checked_pit(pit)
    rows, targets = u.shape
    bins = min(20, rows // LEAST_EXPECTED) if bins is None else bins
    if bins < 2 or rows < LEAST_EXPECTED * bins:
        raise OptionError(
            f"bins: {bins} bins came for {rows} rows, at least 2 bins of {LEAST_EXPECTED} rows each were expected; "
            "for few rows use `uniformity` or `reliability`."
        )
    cells = (u * bins).long().clamp(max=bins - 1)
    counts = torch.stack([torch.bincount(column, minlength=bins) for column in cells.T], dim=1)
    chi_square = (counts.double() - rows / bins).square().sum(dim=0) * bins / rows
    p_value = torch.from_numpy(stats.chi2.sf(chi_square.numpy(), bins - 1)).reshape(targets)
    low, high = pit_bands(rows, bins, false_alarm=false_alarm)
    return PitHistogram(counts, chi_square, p_value, low, high, false_alarm)
