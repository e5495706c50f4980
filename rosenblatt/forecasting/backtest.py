"""Rolling-origin evaluation: forecasts from many origins, held against what came."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval import Estimate
from rosenblatt.forecasting.clock import Floats
from rosenblatt.objectives.rules import crps_from_samples, pinball

COVERAGE = (0.5, 0.8, 0.95)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Backtest:
    """Scores of forecasts from `origins`, each the first step forecast; lower is better, but for coverage.

    crps (origins, horizon, series): in the units of the series. energy (origins,): energy score of the whole path, a
    vector of horizon times series numbers; energy_step (origins, horizon): of each step; both in units of `scale`.
    inside: share of a central interval, for each nominal share (origins, horizon, series) of 0 and 1.
    pinball (levels, origins, horizon, series): quantile losses at `levels`. log_score (origins,): minus the exact
    log-density of the path that came, None for forecasts without one. median (origins, horizon, series).

    References: Gneiting & Raftery, JASA 2007 (scores); Tashman, International Journal of Forecasting 2000 (rolling
    origins).
    """

    origins: tuple[int, ...]
    names: tuple[str, ...]
    scale: Floats
    levels: tuple[float, ...]
    crps: Floats
    energy: Floats
    energy_step: Floats
    inside: Mapping[float, Floats]
    pinball: Floats
    median: Floats
    log_score: Floats | None = None

    def by_origin(self) -> dict[str, Floats]:
        """Each score, averaged over steps and (in units of `scale`) over series: (origins,)."""
        found = {"crps": (self.crps / self.scale).mean(axis=(1, 2)), "energy": self.energy}
        found["energy of a step"] = self.energy_step.mean(axis=1)
        for level, loss in zip(self.levels, self.pinball, strict=True):
            found[f"pinball {level:g}"] = (loss / self.scale).mean(axis=(1, 2))
        for share, hit in self.inside.items():
            found[f"coverage {100 * share:g} %"] = hit.mean(axis=(1, 2))
        if self.log_score is not None:
            found["log score"] = self.log_score
        return found

    def summary(self) -> dict[str, Estimate]:
        """Means over origins with standard errors, for which origins count as independent (stride >= horizon)."""
        return {name: _mean(rows) for name, rows in self.by_origin().items()}

    def series(self) -> dict[str, Estimate]:
        """CRPS of each series in its own units, mean over steps and origins."""
        return {name: _mean(self.crps[:, :, index].mean(axis=1)) for index, name in enumerate(self.names)}

    def difference(self, other: Backtest) -> dict[str, Estimate]:
        """Means of the paired differences `self - other` over origins: below 0 where self is better.

        Raises `DataError` unless both have the same origins, horizon and series.
        """
        if self.origins != other.origins or self.crps.shape != other.crps.shape:
            raise DataError("other: its origins, horizon or series differ; run both backtests with the same arguments.")
        theirs = other.by_origin()
        return {name: _mean(rows - theirs[name]) for name, rows in self.by_origin().items() if name in theirs}

    def __str__(self) -> str:
        lines = [f"{len(self.origins)} origins, {self.crps.shape[1]} steps, {len(self.names)} series"]
        lines += [f"{name:18} {mean.value:10.4f} +- {mean.standard_error:.4f}" for name, mean in self.summary().items()]
        return "\n".join(lines)


def score(
    draws: Floats,
    truth: Floats,
    *,
    origins: Sequence[int],
    names: Sequence[str],
    scale: Floats,
    levels: Sequence[float] = LEVELS,
    log_score: Floats | None = None,
) -> Backtest:
    """Score draws (n, origins, horizon, series) against what came, (origins, horizon, series).

    CRPS and energy score are the unbiased estimates from n >= 2 draws, quantiles those of the draws.
    Raises `OptionError` for levels outside (0, 1) and `DataError` for numbers that are not finite.
    """
    check_levels(levels)
    if not (np.isfinite(draws).all() and np.isfinite(truth).all()):
        raise DataError("draws: numbers that are not finite came; no forecast of such steps can be scored.")
    x, y, unit = (torch.from_numpy(np.ascontiguousarray(part)) for part in (draws, truth, scale))
    scaled, target = x / unit, y / unit
    path = _energy(scaled.flatten(-2), target.flatten(-2))
    ends = [edge for share in COVERAGE for edge in ((1 - share) / 2, (1 + share) / 2)]
    found = torch.from_numpy(np.quantile(draws, [*levels, *ends, 0.5], axis=0))
    edges = found[len(levels) : -1]
    inside = {
        share: ((edges[2 * i] <= y) & (y <= edges[2 * i + 1])).double().numpy() for i, share in enumerate(COVERAGE)
    }
    losses = [pinball(y - quantile, level).numpy() for level, quantile in zip(levels, found, strict=False)]
    return Backtest(
        tuple(map(int, origins)),
        tuple(names),
        scale,
        tuple(map(float, levels)),
        crps_from_samples(x, y).numpy(),
        path.numpy(),
        _energy(scaled, target).numpy(),
        inside,
        np.array(losses).reshape(len(levels), *truth.shape),
        found[-1].numpy(),
        log_score,
    )


def check_levels(levels: Sequence[float]) -> None:
    """Raise `OptionError` unless `levels` are probabilities in (0, 1)."""
    if not all(isinstance(level, int | float | np.floating) and 0 < level < 1 for level in levels):
        raise OptionError(f"levels: {list(levels)} came, probabilities between 0 and 1 were expected.")


def rolling_origins(first: int, rows: int, horizon: int, stride: int | None) -> npt.NDArray[np.int64]:
    """Origins `first, first + stride, ...` that leave `horizon` of `rows` rows to be held against.

    >>> rolling_origins(10, 20, 4, None)
    array([10, 14])
    """
    stride = horizon if stride is None else stride
    if isinstance(stride, bool) or not isinstance(stride, int | np.integer) or stride < 1:
        raise OptionError(f"stride: {stride!r} came, a whole number of at least 1 was expected.")
    if first + horizon > rows:
        raise DataError(
            f"start: step {first} leaves {max(rows - first, 0)} of {rows} rows, {horizon} are needed to hold a "
            "forecast against; start earlier or bring more rows."
        )
    return np.arange(first, rows - horizon + 1, stride)


def _energy(draws: Tensor, y: Tensor) -> Tensor:
    """The unbiased `energy_score` of draws (n, *batch, features), by distances that hold no differences in memory."""
    n = len(draws)
    points = draws.movedim(0, -2)
    pairs = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=(-2, -1))
    answer: Tensor = torch.linalg.vector_norm(draws - y, dim=-1).mean(dim=0) - pairs / (2 * n * (n - 1))
    return answer


def _mean(rows: Floats) -> Estimate:
    spread = float(rows.std(ddof=1)) / math.sqrt(len(rows)) if len(rows) > 1 else math.nan
    return Estimate(float(rows.mean()), spread)
