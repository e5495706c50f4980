"""How narrow stated intervals are, beside how true they are: a forecast should be sharp, subject to calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.bits import Estimate
from rosenblatt.eval.pits import doubles


@dataclass(frozen=True)
class Sharpness:
    """Widths and coverage of central intervals, all (levels,), by increasing level.

    level: what the intervals claim; width, width_error: mean width in units of y and its standard error; share: rows
    found inside; noise: mean of `|share - level|` that a right model would have on so many rows.
    """

    level: Tensor
    width: Tensor
    width_error: Tensor
    share: Tensor
    noise: Tensor
    rows: int

    @property
    def deviation(self) -> Tensor:
        """`share - level`: below 0 the intervals are too narrow, above it too wide."""
        return self.share - self.level

    @property
    def error(self) -> float:
        """Mean over the levels of `|share - level|`."""
        return float(self.deviation.abs().mean())

    @property
    def mean_width(self) -> Estimate:
        """Mean width over the levels, in units of y; the standard error is the mean of theirs, an upper bound."""
        return Estimate(float(self.width.mean()), float(self.width_error.mean()))

    def __str__(self) -> str:
        lines = [f"Central intervals of {self.rows} rows: mean |share - level| {self.error:.4f}"]
        for level, width, error, share in zip(self.level, self.width, self.width_error, self.share, strict=True):
            lines.append(
                f"  {float(level):.4g}: width {float(width):.4g} +- {float(error):.2g}, holds {float(share):.4f}"
            )
        return "\n".join(lines)


def sharpness(y: Any, quantiles: Any, levels: Any) -> Sharpness:
    """Mean width `mean_i (q_i(1 - a) - q_i(a))` of each central interval in units of y, beside the share it holds.

    `y` is (rows,), one target; `quantiles` (rows, levels) of p(y | x) at increasing `levels` in (0, 1) that pair up as
    a and 1 - a; a level of 0.5 is left aside. Sharpness is to be judged only between models that are calibrated
    (Gneiting, Balabdaoui & Raftery 2007): any interval can be made narrow. Raises `DataError` for shapes that do not
    fit, fewer than two rows, numbers that are not finite or quantiles that cross; `OptionError` for other levels.

    >>> y = torch.linspace(0.005, 0.995, 100)
    >>> found = sharpness(y, torch.tensor([0.1, 0.5, 0.9]).expand(100, 3), [0.1, 0.5, 0.9])
    >>> round(float(found.width), 4), round(float(found.share), 4)
    (0.8, 0.8)
    """
    truth, stated = (doubles(part) for part in (y, quantiles))
    at = doubles(levels)
    half = len(at) // 2 if at.ndim == 1 else 0
    if half < 1 or not bool(((at > 0) & (at < 1)).all()) or not bool((at.diff() > 0).all()):
        raise OptionError("levels: increasing probabilities in (0, 1), at least two of them, were expected.")
    if not torch.allclose(at + at.flip(0), torch.ones_like(at), rtol=0, atol=1e-6):
        raise OptionError("levels: each level a needs its 1 - a for a central interval; give both.")
    if truth.ndim != 1 or len(truth) < 2 or stated.shape != (len(truth), len(at)):
        raise DataError(
            f"y, quantiles: shapes {tuple(truth.shape)} and {tuple(stated.shape)} came, (rows,) and (rows, {len(at)}) "
            "with at least two rows were expected."
        )
    if not bool(torch.isfinite(truth).all()) or not bool(torch.isfinite(stated).all()):
        raise DataError("y, quantiles: NaN or infinities came; drop these rows first.")
    crossed = (stated.diff(dim=1) < 0).any(dim=1)
    if bool(crossed.any()):
        raise DataError(f"quantiles: they decrease with the level in {int(crossed.sum())} rows; sort them first.")
    low, high = stated[:, :half].flip(1), stated[:, -half:]
    level = at[-half:] - at[:half].flip(0)
    widths, inside = high - low, (truth.unsqueeze(1) >= low) & (truth.unsqueeze(1) <= high)
    rows = len(truth)
    return Sharpness(
        level,
        widths.mean(dim=0),
        widths.std(dim=0) / rows**0.5,
        inside.double().mean(dim=0),
        _mean_deviation(rows, level),
        rows,
    )


def _mean_deviation(rows: int, level: Tensor) -> Tensor:
    """`E|K / n - p|` of a binomial K, by De Moivre: `2 (1 - p) m P(K = m) / n` with m the next integer above n p."""
    m = (rows * level).floor() + 1
    mass = torch.from_numpy(stats.binom.pmf(m.numpy(), rows, level.numpy()))
    return 2 * (1 - level) * m * mass / rows
