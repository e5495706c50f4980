"""Are stated quantiles true? The share of rows below each, with a band that holds at all levels at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import signal, special, stats
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.pits import checked_pit, doubles

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
HALVINGS = 14  # of the logarithm of the local level, which is then known to 0.1 %


@dataclass(frozen=True)
class Reliability:
    """Share of rows at or below each stated quantile, and the band of a right model.

    levels: (levels,); share: (levels, targets); low, high: (levels,), the band; rows: how many were counted;
    false_alarm: probability that a right model leaves the band anywhere, over all levels and targets.
    """

    levels: Tensor
    share: Tensor
    low: Tensor
    high: Tensor
    rows: int
    false_alarm: float

    @property
    def outside(self) -> Tensor:
        """Where the share leaves the band, (levels, targets)."""
        # Half a row of tolerance, so that k / rows on the edge of the band is inside in any rounding.
        half = 0.5 / self.rows
        return (self.share < self.low.unsqueeze(-1) - half) | (self.share > self.high.unsqueeze(-1) + half)

    @property
    def calibrated(self) -> bool:
        """Whether no share of any target leaves the band."""
        return not bool(self.outside.any())

    @property
    def error(self) -> Tensor:
        """Mean over the levels of `|share - level|`, per target; a right model has some too, less with more rows."""
        return (self.share - self.levels.unsqueeze(-1)).abs().mean(dim=0)

    def __str__(self) -> str:
        lines = [f"Reliability of {len(self.levels)} levels on {self.rows} rows, false alarm {self.false_alarm:g}"]
        away = self.share - self.levels.unsqueeze(-1)
        for target, column in enumerate(away.T):
            worst = int(column.abs().argmax())
            off = int(self.outside[:, target].sum())
            verdict = f"off at {off} levels" if off else "ok"
            lines.append(
                f"  target {target}: mean distance {float(self.error[target]):.4f}, "
                f"largest {float(column[worst]):+.4f} at level {float(self.levels[worst]):.3g}, {verdict}"
            )
        return "\n".join(lines)


def reliability(pit: Any, *, levels: int | Sequence[float] = 99, false_alarm: float = 1e-3) -> Reliability:
    """Compare the share of rows with `pit <= level` with the level: `mean_i 1[F(y_i | x_i) <= level]`.

    `pit` is (rows,) or (rows, targets), from any model; values with ties need `randomised_pit`. `levels` are increasing
    probabilities, or how many equally spaced ones. The band is `reliability_band`; several targets share the false
    alarm equally. Raises `DataError` as `checked_pit`, `OptionError` for levels or a false alarm outside (0, 1).

    >>> found = reliability(torch.linspace(0.005, 0.995, 100), levels=[0.25, 0.5])
    >>> found.share.flatten().tolist(), found.calibrated
    ([0.25, 0.5], True)
    """
    u = checked_pit(pit)
    rows, targets = u.shape
    at = _checked_levels(
        torch.arange(1.0, levels + 1, dtype=torch.float64) / (levels + 1) if isinstance(levels, int) else levels
    )
    low, high = reliability_band(rows, at, false_alarm=false_alarm / targets)
    ordered = u.sort(dim=0).values.T.contiguous()
    below = torch.searchsorted(ordered, at.expand(targets, -1).contiguous(), right=True)
    return Reliability(at, below.T.double() / rows, low.double() / rows, high.double() / rows, rows, false_alarm)


def reliability_band(rows: int, levels: Any, *, false_alarm: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Lowest and highest number of `rows` uniform numbers at or below each of `levels`, all of them at once.

    Each level gets the binomial quantiles of one local level a, `P(N < low) <= a / 2 >= P(N > high)`, and a is the
    largest with which the counts leave the band somewhere with probability at most `false_alarm`. That probability is
    computed, not simulated: uniform counts are a Poisson process given its total, so it is a chain of convolutions
    (Moscovich & Nadler 2017). Such bands are narrow near 0 and 1, where tails show (Aldor-Noiman et al. 2013;
    Sailynoja, Burkner & Vehtari 2022); the band of Dvoretzky, Kiefer & Wolfowitz (`dkw_band`) is equally wide
    everywhere and holds between the levels too. Raises `OptionError` for sizes below 1 or numbers outside (0, 1).

    >>> low, high = reliability_band(100, [0.05, 0.5, 0.95], false_alarm=0.05)
    >>> low.tolist(), high.tolist()
    ([1, 39, 89], [11, 61, 99])
    """
    at = _checked_levels(levels).numpy()
    if rows < 1:
        raise OptionError(f"rows: {rows} came, an integer >= 1 was expected.")
    if not 0 < false_alarm < 1:
        raise OptionError(f"false_alarm: {false_alarm} came, a probability in (0, 1) was expected.")
    factorials = special.gammaln(np.arange(rows + 2))
    # With a share of the false alarm per level (Bonferroni) the band surely holds; with all of it, never less tight.
    least, most = np.log(false_alarm / len(at)), np.log(false_alarm)
    low, high = _local(rows, at, float(np.exp(least)))
    for _ in range(HALVINGS if len(at) > 1 else 0):
        middle = (least + most) / 2
        narrower = _local(rows, at, float(np.exp(middle)))
        if 1 - _probability_within(rows, at, *narrower, factorials) <= false_alarm:
            least, (low, high) = middle, narrower
        else:
            most = middle
    return torch.from_numpy(low), torch.from_numpy(high)


def _local(rows: int, levels: Floats, alpha: float) -> tuple[Counts, Counts]:
    law = stats.binom(rows, levels)
    return law.ppf(alpha / 2).astype(np.int64), law.isf(alpha / 2).astype(np.int64)


def _probability_within(rows: int, levels: Floats, low: Counts, high: Counts, factorials: Floats) -> float:
    """Probability that the counts of `rows` uniform numbers are within [low, high] at all levels."""

    def poisson(counts: Counts, rate: float) -> Floats:
        mass: Floats = np.exp(counts * np.log(rate) - rate - factorials[counts + 1])
        return mass

    mass, first, before = np.ones(1), 0, 0.0
    for level, lowest, highest in zip(levels, low, high, strict=True):
        jumps = poisson(np.arange(highest - first + 1), rows * (level - before))
        mass = signal.fftconvolve(mass, jumps)[lowest - first : highest - first + 1]
        first, before = int(lowest), float(level)
    rest = poisson(rows - first - np.arange(len(mass)), rows * (1 - before))
    return float((mass * rest).sum() / poisson(np.array([rows]), float(rows))[0])


def _checked_levels(levels: Any) -> Tensor:
    at = doubles(levels)
    if at.ndim != 1 or len(at) < 1:
        raise DataError(f"levels: shape {tuple(at.shape)} came, (levels,) with at least one level was expected.")
    if not bool(((at > 0) & (at < 1)).all()) or not bool((at.diff() > 0).all()):
        raise OptionError("levels: increasing probabilities in (0, 1) were expected; sort them and leave out 0 and 1.")
    return at
