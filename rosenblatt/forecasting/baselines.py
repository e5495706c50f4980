"""Honest baselines: last value and seasonal naive with their own past errors as the law of a path."""

from __future__ import annotations

import numpy as np

from rosenblatt.core.errors import DataError
from rosenblatt.forecasting.backtest import LEVELS, Backtest, rolling_origins, score
from rosenblatt.forecasting.clock import Floats
from rosenblatt.forecasting.series import Series


class Naive:
    """The value one season ago (the last value for season 1), plus a whole path of errors it made in training.

    `y_{t+h} = x_{t+h} + e_h`, x_{t+h} the last known value a whole number of seasons before. The paths e_1..e_H are
    those of all training origins, each taken with equal probability for all steps and series at once: its quantiles at
    each horizon are those of the errors at that horizon, and steps and series depend as they did.

    >>> from rosenblatt.forecasting import read_series
    >>> walk = read_series(np.random.default_rng(0).normal(size=(300, 2)).cumsum(axis=0))
    >>> Naive(horizon=5).fit(walk).sample(100, walk, [250]).shape
    (100, 1, 5, 2)
    """

    def __init__(self, horizon: int, season: int = 1) -> None:
        self.horizon = horizon
        self.season = season

    def fit(self, series: Series) -> Naive:
        """Keep the errors of every training origin; raises `DataError` for fewer rows than horizon and season."""
        origins = np.arange(self.season, len(series) - self.horizon + 1)
        if not len(origins):
            raise DataError(
                f"table: {len(series)} rows came, the naive forecast needs "
                f"{self.season + self.horizon}; bring more rows."
            )
        ahead = origins[:, None] + np.arange(self.horizon)
        self.errors_ = series.values[ahead] - self._point(series.values, origins)
        self.scale_ = series.values.std(axis=0)
        return self

    def sample(self, n: int, series: Series, origins: object, seed: int = 0) -> Floats:
        """Draw n paths from each origin, (n, origins, horizon, series)."""
        starts = np.asarray(origins, dtype=np.int64)
        chosen = np.random.default_rng(seed).integers(len(self.errors_), size=(n, len(starts)))
        drawn: Floats = self._point(series.values, starts) + self.errors_[chosen]
        return drawn

    def backtest(
        self,
        series: Series,
        start: int,
        stride: int | None = None,
        *,
        n: int = 200,
        levels: tuple[float, ...] = LEVELS,
        scale: Floats | None = None,
        seed: int = 0,
    ) -> Backtest:
        """Roll through `series` as `Forecaster.backtest` does."""
        origins = rolling_origins(start, len(series), self.horizon, stride)
        truth = series.values[origins[:, None] + np.arange(self.horizon)]
        unit = self.scale_ if scale is None else scale
        draws = self.sample(n, series, origins, seed)
        return score(draws, truth, origins=list(origins), names=series.names, scale=unit, levels=levels)

    def _point(self, values: Floats, origins: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Floats:
        behind = np.arange(self.horizon) % self.season - self.season
        point: Floats = values[origins[:, None] + behind]
        return point
