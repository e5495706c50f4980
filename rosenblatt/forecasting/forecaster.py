"""`Forecaster`: joint predictive paths of one or several series, learned from a table with a time column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Table
from rosenblatt.forecasting.backtest import LEVELS, Backtest, check_levels, rolling_origins, score
from rosenblatt.forecasting.clock import Floats
from rosenblatt.forecasting.counts import chosen_lags, count, default_lags
from rosenblatt.forecasting.frame import Frame
from rosenblatt.forecasting.series import Series, read_known, read_series
from rosenblatt.forecasting.step import ROWS_AT_ONCE, training_rows
from rosenblatt.forecasting.training import Design, Lesson, fit_members
from rosenblatt.preparation import plain, seed_of
from rosenblatt.train import FitConfig, FitReport
from rosenblatt.train.runtime import seeded_generator

FEWEST_ROWS = 10  # steps with a whole past that are needed to learn from
FIT_ARGUMENTS = ("epochs", "batch_size", "learning_rate", "validation_fraction", "patience", "ema_decay", "device")
DIFFERENCES = ("last", "season", None)
SCALES = ("train", "recent")


class Forecaster(BaseEstimator):  # type: ignore[misc]
    """Joint law of the next `horizon` steps of all series of a table, exact at every step.

    `p(y_1..y_H | past) = prod_h p(y_h | past, y_<h)`: a conditional density of all series at one step, given what an
    encoder makes of the lags, the calendar and the covariates, is drawn step after step. It starts at the Gaussian
    autoregression that fits best, in closed form, and learns what that leaves.

    model, model_options: any registered model that takes a context, by default "nits".
    horizon: steps that `sample` draws. time: column of dates, ISO text or numbers, regular; None counts rows.
    targets: series to forecast, by default all columns but `time` and `covariates`.
    covariates: columns that are known ahead, such as holidays; forecasts need them for the steps to come.
    lags: steps back that are told, a number (1 to so many) or a list; by default 1 to 8 and, where the season m is
        known, m - 1, m, m + 1, and for times within a day also the week.
    difference: "last" models the increments, "season" those from a season before, None the values.
    season: steps of a season; by default that of the dates (a day of hours, a week of days, a year of months).
    scale: "train" one scale for each series, "recent" that of the latest steps, for changing volatility.
    calendar: True, False or a list from "hour", "weekday", "year" (UTC where times have a zone).
    encoder: "window" (the flow's own network reads the lags), "recurrent" (GRU) or "transformer", `encoder_options`.
    linear: whether to start from the Gaussian autoregression.
    mirror: whether a path turned upside down is as likely given a past turned upside down, as for exchange rates, whose
        inverses are no less rates: there is then no drift but what the past implies.
    members: models that are fitted, from seeds of their own and with stretches of time of their own held out; each
        makes its share of the paths, so that these tell of what the training rows leave open.
    epochs ... device: see `FitConfig`, whose other options `fit_options` takes. The held-out rows that choose the
        weights are the last ones (of the first member).

    After `fit`: `series_`, `model_` (a `PathMixture` in float64), `lags_`, `season_`, `calendar_`, `scale_` (standard
    deviations of the series), `report_` (of the first member), `reports_`, `seed_`. Values far from all others move the
    forecast in proportion, since the autoregression is linear; with scale="recent" a lag counts as at most 10 scales.
    Errors are `DataError` and `OptionError`, both ValueErrors.
    Reference: Rasul et al., Multivariate probabilistic time series forecasting via conditioned normalizing flows, 2021.

    >>> rng = np.random.default_rng(0)
    >>> table = {"day": np.arange("2024-01-01", "2024-07-19", dtype="M8[D]"), "load": rng.normal(size=200).cumsum()}
    >>> forecaster = Forecaster("gaussian", horizon=3, time="day", lags=2, random_state=0).fit(table)
    >>> forecaster.sample(100, random_state=1).shape, str(forecaster.times()[0])
    ((100, 3, 1), '2024-07-19T00:00:00.000000000')
    """

    report_: FitReport | None

    def __init__(
        self,
        model: str = "nits",
        *,
        horizon: int = 24,
        time: str | None = None,
        targets: Sequence[str] | None = None,
        covariates: Sequence[str] = (),
        lags: int | Sequence[int] | None = None,
        difference: str | None = "last",
        season: int | None = None,
        scale: str = "train",
        calendar: bool | Sequence[str] = True,
        encoder: str = "window",
        encoder_options: Mapping[str, Any] | None = None,
        linear: bool = True,
        mirror: bool = False,
        members: int = 1,
        model_options: Mapping[str, Any] | None = None,
        epochs: int = 50,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.1,
        patience: int | None = 5,
        ema_decay: float | None = 0.99,
        device: str = "auto",
        fit_options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.model = model
        self.horizon = horizon
        self.time = time
        self.targets = targets
        self.covariates = covariates
        self.lags = lags
        self.difference = difference
        self.season = season
        self.scale = scale
        self.calendar = calendar
        self.encoder = encoder
        self.encoder_options = encoder_options
        self.linear = linear
        self.mirror = mirror
        self.members = members
        self.model_options = model_options
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.ema_decay = ema_decay
        self.device = device
        self.fit_options = fit_options
        self.random_state = random_state

    def fit(self, table: object, y: object = None) -> Self:
        """Learn from the rows of `table` (what `read_series` takes, or a `Series`); `y` is ignored.

        Raises `DataError` for missing values, irregular times, a series that never moves and too few rows.
        """
        self._check_options()
        self.seed_ = seed_of(self.random_state)
        series = self._read(table)
        self._settle(series)
        frame, rows = self._frame(series), len(series)
        if rows < frame.look_back + FEWEST_ROWS:
            raise DataError(
                f"table: {rows} rows came, at least {frame.look_back + FEWEST_ROWS} are needed for lags up to "
                f"{max(self.lags_)}" + (f" and steps of {frame.gap}" if frame.gap > 1 else "") + "; bring more rows or "
                "shorten the lags."
            )
        frame.learn_units(torch.tensor(series.values), series.names)
        self.scale_ = series.values.std(axis=0)
        noise, context = training_rows(frame, series, self._known(series, 0, rows))
        lesson = Lesson(frame, Table(noise, series.names), context)
        self.model_, self.reports_ = fit_members(lesson, self._design(), self._fit_config(), self.members)
        self.report_ = self.reports_[0]
        self.series_ = series
        return self

    def sample(
        self,
        n: int = 1000,
        start: object = None,
        *,
        table: object = None,
        future: object = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> Floats:
        """Draw joint paths (n, horizon, series) of the steps from `start` on.

        `start` is the first step forecast, a row number or a time; by default the one after the last row. `table`
        takes the place of the rows that were learned from, `future` holds the covariates of steps beyond the table.
        """
        series, first = self._from(table, start)
        known = self._known_ahead(series, first, future)
        return self._paths(count("n", n), series, np.array([first]), known[None], seed_of(random_state))[:, 0]

    def predict(self, start: object = None, *, statistic: str = "median", n: int = 1000, **where: Any) -> Floats:
        """Median (or "mean") of each step, (horizon, series), from `n` paths; arguments as those of `sample`."""
        if statistic not in ("median", "mean"):
            raise OptionError(f"statistic: {statistic!r} came, 'median' or 'mean' was expected.")
        paths = self.sample(n, start, **{"random_state": 0, **where})
        middle: Floats = np.median(paths, axis=0) if statistic == "median" else paths.mean(axis=0)
        return middle

    def predict_quantiles(
        self, levels: Sequence[float], start: object = None, *, n: int = 1000, **where: Any
    ) -> Floats:
        """Quantiles of each step, (levels, horizon, series), from `n` paths; arguments as those of `sample`."""
        check_levels(levels)
        quantiles: Floats = np.quantile(self.sample(n, start, **{"random_state": 0, **where}), list(levels), axis=0)
        return quantiles

    def log_prob(
        self, path: object, start: object = None, *, table: object = None, future: object = None, steps: bool = False
    ) -> Any:
        """Exact log-density in nats of a path (H, series) or paths (n, H, series) from `start` on; any H.

        By the chain rule over steps, `sum_h log p(y_h | past, y_<h)`; with `steps` each term, (H,) or (n, H).
        """
        series, first = self._from(table, start)
        rows = np.asarray(path, dtype=np.float64)
        one = rows.ndim < 3
        rows = rows.reshape(1, len(rows), -1) if one else rows
        if rows.shape[2] != len(series.names) or rows.shape[1] == 0:
            raise DataError(f"path: shape {rows.shape[one:]} came, (steps, {len(series.names)}) was expected.")
        known = torch.from_numpy(self._known_ahead(series, first, future, rows.shape[1])).expand(len(rows), -1, -1)
        past = torch.from_numpy(self._pasts(series, np.array([first]))).expand(len(rows), -1, -1)
        with torch.no_grad():
            found = self.model_.log_prob_of_path(torch.tensor(rows), past, known)
        answer = (found if steps else found.sum(dim=1)).numpy()
        return answer[0] if one else answer

    def backtest(
        self,
        table: object = None,
        start: object = None,
        stride: int | None = None,
        *,
        n: int = 200,
        levels: Sequence[float] = LEVELS,
        random_state: int | np.random.RandomState | None = 0,
    ) -> Backtest:
        """Forecast from every `stride`-th step on (by default every horizon), and score each by what came.

        `table` holds the rows before and after; `start` is the first origin, by default the step after the rows that
        were learned from (which `table` must then begin with). The model is not fitted anew on the way.
        """
        check_levels(levels)
        series, first = self._from(table, len(self.series_) if start is None else start)
        origins = rolling_origins(first, len(series), self.horizon, stride)
        ahead = origins[:, None] + np.arange(self.horizon)
        known = self._known(series, 0, len(series))[ahead]
        truth = series.values[ahead]
        draws = self._paths(count("n", n, least=2), series, origins, known, seed_of(random_state))
        with torch.no_grad():
            steps = self.model_.log_prob_of_path(
                torch.from_numpy(truth), torch.from_numpy(self._pasts(series, origins)), torch.from_numpy(known)
            )
        return score(
            draws,
            truth,
            origins=[int(origin) for origin in origins],
            names=series.names,
            scale=self.scale_,
            levels=levels,
            log_score=-steps.sum(dim=1).numpy(),
        )

    def times(self, start: object = None, *, table: object = None) -> npt.NDArray[Any]:
        """Times of the `horizon` steps from `start` on."""
        series, first = self._from(table, start)
        return series.clock.at(np.arange(first, first + self.horizon))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the forecaster and the rows it looks back at into a run folder: JSON and safetensors, no pickle."""
        from rosenblatt.forecasting.saving import save

        check_is_fitted(self)
        save(self, path, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a forecaster from a run folder; it forecasts from the end of the rows it was fitted to.

        Raises `CheckpointError` for a folder that is missing, damaged or not a forecaster's.
        """
        from rosenblatt.forecasting.saving import load

        return load(cls, path)

    def _design(self) -> Design:
        options = plain(dict(self.model_options or {}))
        return Design(self.model, options, self.encoder, plain(self.encoder_options))

    def _paths(self, n: int, series: Series, origins: npt.NDArray[np.int64], known: Floats, seed: int) -> Floats:
        """Paths (n, origins, horizon, series), some rows at a time."""
        generator = seeded_generator(seed)
        past, told = torch.from_numpy(self._pasts(series, origins)), torch.from_numpy(known)
        rows = torch.arange(len(origins)).repeat(n)
        drawn = [self.model_.sample(past[chosen], told[chosen], generator) for chosen in rows.split(ROWS_AT_ONCE)]
        answer: Floats = torch.cat(drawn).reshape(n, len(origins), *drawn[0].shape[1:]).numpy()
        return answer

    def _pasts(self, series: Series, origins: npt.NDArray[np.int64]) -> Floats:
        seen = self.model_.frame.look_back
        if origins.min() < seen or origins.max() > len(series):
            raise DataError(
                f"start: step {origins.min()} of a table of {len(series)} rows came; the model looks {seen} steps "
                f"back, so {seen} to {len(series)} were expected; bring more rows."
            )
        past: Floats = series.values[origins[:, None] + np.arange(-seen, 0)]
        return past

    def _known(self, series: Series, start: int, stop: int) -> Floats:
        """Calendar and covariates of the rows [start, stop)."""
        calendar = series.clock.features(np.arange(start, stop), self.calendar_)
        return np.concatenate([calendar, series.covariates[start:stop]], axis=1)

    def _known_ahead(self, series: Series, first: int, future: object, steps: int | None = None) -> Floats:
        """Calendar and covariates of the steps from `first` on, those beyond the table from `future`."""
        steps = self.horizon if steps is None else steps
        inside = series.covariates[first : first + steps]
        beyond = read_known(future, series.known, steps - len(inside)) if len(inside) < steps else inside[:0]
        calendar = series.clock.features(np.arange(first, first + steps), self.calendar_)
        return np.concatenate([calendar, np.concatenate([inside, beyond])], axis=1)

    def _from(self, table: object, start: object) -> tuple[Series, int]:
        """The rows to forecast from, and the first step to forecast."""
        check_is_fitted(self)
        series = self.series_ if table is None else self._read(table)
        own = self.series_
        if table is not None and (series.names, series.known) != (own.names, own.known):
            raise DataError(
                f"table: series {', '.join(series.names)} and covariates {', '.join(series.known) or 'none'} came, "
                f"those learned from were {', '.join(own.names)} and {', '.join(own.known) or 'none'}; select these."
            )
        if (series.clock.unit, series.clock.step) != (own.clock.unit, own.clock.step):
            raise DataError("table: its time step differs from that of the rows learned from; resample it.")
        first = len(series) if start is None else series.clock.index_of(start)
        self._pasts(series, np.array([first]))
        return series, first

    def _read(self, table: object) -> Series:
        if isinstance(table, Series):
            return table
        targets = self.series_.names if self.targets is None and hasattr(self, "series_") else self.targets
        return read_series(table, time=self.time, targets=targets, covariates=self.covariates)

    def _check_options(self) -> None:
        if hasattr(self, "series_"):
            del self.series_
        count("horizon", self.horizon)
        count("members", self.members)
        if self.season is not None:
            count("season", self.season, least=2)
        for name, known in (("difference", DIFFERENCES), ("scale", SCALES)):
            if getattr(self, name) not in known:
                raise OptionError(
                    f"{name}: {getattr(self, name)!r} came, one of {', '.join(map(str, known))} was expected."
                )

    def _settle(self, series: Series) -> None:
        """Choose season, lags and calendar where they were left open."""
        self.season_ = self.season or series.clock.season()
        if self.difference == "season" and self.season_ is None:
            raise OptionError(
                'difference: "season" came, but the season is not known; give its number of steps as season=.'
            )
        self.calendar_ = series.clock.parts(self.calendar, len(series))
        self.lags_ = default_lags(series.clock, self.season_) if self.lags is None else chosen_lags(self.lags)

    def _frame(self, series: Series) -> Frame:
        gap = {"last": 1, "season": self.season_, None: 0}[self.difference]
        assert gap is not None
        known = self._known(series, 0, 1).shape[1]
        recent = self.scale == "recent"
        return Frame(
            len(series.names), known, self.lags_, gap=gap, recent=recent, linear=self.linear, mirror=self.mirror
        )

    def _fit_config(self) -> FitConfig:
        options = {name: plain(getattr(self, name)) for name in FIT_ARGUMENTS}
        return FitConfig.from_dict({**options, "seed": self.seed_, **plain(dict(self.fit_options or {}))})
