"""`rosenblatt forecast`: from a table with a time column to forecasts that are distributions."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional, UseAppendAction, arg

from rosenblatt.cli.options import pairs, parse
from rosenblatt.core.errors import DataError, OptionError

if TYPE_CHECKING:
    from rosenblatt.forecasting import Backtest, Forecaster, Series

PROG = "rosenblatt forecast"
LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
MOST_ORIGINS, TEST_SHARE = 20, 5  # the last part that is held out: so many horizons, and at most a fifth of the rows
MOST_FANS = 12
FORECAST, SAMPLES, BACKTEST = "forecast.csv", "samples", "backtest.json"
# What a call with a run may still say.
OF_A_FORECAST = ("source", "table", "out", "future", "samples", "parquet", "seed")


@dataclass(frozen=True)
class ForecastOptions:
    """Learn the joint law of the steps to come from TABLE, or forecast from the end of a TABLE with an earlier RUN.

    With a table, `--out RUN` gets the forecaster, forecast.csv (quantiles of each step), samples.csv (joint paths),
    backtest.json and fan charts. The last rows are held out and forecast from rolling origins, beside the last value,
    the seasonal naive forecast and a Gaussian autoregression. With a run, `--out FILE` (CSV or Parquet, standard output
    by default) gets the quantiles.
    """

    source: Annotated[Positional[Path], arg(metavar="TABLE|RUN")]
    """Table to learn from (CSV, Parquet, NPZ), or folder of an earlier `rosenblatt forecast`."""
    table: Annotated[Positional[Path | None], arg(metavar="TABLE")] = None
    """With RUN: the table to forecast from the end of; the rows of the run by default."""
    out: Annotated[Path | None, arg(metavar="RUN|FILE")] = None
    """Folder of the new run, or with RUN the file of quantiles."""
    time: str | None = None
    """Column of times, regular; without it the rows are the steps."""
    target: str | None = None
    """Series to forecast, as a,b; all columns but time and covariates by default."""
    covariates: str | None = None
    """Columns known ahead, as a,b; forecasts beyond the table need them in --future."""
    future: Annotated[Path | None, arg(metavar="FILE")] = None
    """Table with the covariates of the steps to come."""
    horizon: int = 24
    """Steps to forecast."""
    lags: str | None = None
    """Steps back that are told: a number for 1 to so many, or a list as 1,2,24."""
    season: int | None = None
    """Steps of a season; by default that of the dates."""
    difference: Literal["last", "season", "none"] = "last"
    """Model increments, seasonal ones, or the values themselves."""
    scale: Literal["train", "recent"] = "train"
    """One scale for each series, or that of its latest steps."""
    members: int = 1
    """Models that share the paths; several make the bands wider where the table leaves more open."""
    mirror: bool = False
    """A path upside down is as likely, as for exchange rates: no drift."""
    calendar: bool = True
    """Tell the hour, weekday and time of the year."""
    encoder: Literal["window", "recurrent", "transformer"] = "window"
    """Network that reads the lags."""
    model: str = "nits"
    """Model of a step, see `rosenblatt models`."""
    model_options: Annotated[UseAppendAction[tuple[str, ...]], arg(name="option", metavar="NAME=JSON")] = ()
    """Model option such as hidden=64."""
    epochs: int = 50
    """Passes over the rows at most."""
    batch_size: int = 128
    """Rows of a step of training."""
    learning_rate: float = 1e-3
    """Peak step size."""
    test_rows: int | None = None
    """Last rows to hold out for the comparison; by default 20 horizons or a fifth of the rows, 0 for none."""
    samples: Annotated[int, arg(aliases=["-n"])] = 1000
    """Paths to draw."""
    parquet: bool = False
    """Write samples.parquet in place of samples.csv."""
    plots: bool = True
    """Draw fan charts."""
    overwrite: bool = False
    """Replace an earlier run in the same folder."""
    seed: int = 0
    """Of training and of the paths."""


def run(_command: str, words: Sequence[str]) -> int:
    """Run the command."""
    options = parse(ForecastOptions, words, PROG)
    if options.samples < 2:
        raise OptionError(f"--samples: {options.samples} came, at least 2 were expected.")
    return _again(options) if options.source.is_dir() else _learn(options)


def _learn(options: ForecastOptions) -> int:
    from rosenblatt.forecasting import read_series

    if options.table is not None:
        raise OptionError(f"{options.source}: is no run folder, so the second table has no use; leave it out.")
    if options.out is None:
        raise OptionError("--out: the folder of the new run is missing; add --out RUN.")
    forecaster = _forecaster(options)
    whole = read_series(
        options.source, time=options.time, targets=_names(options.target), covariates=forecaster.covariates
    )
    held = _held_out(options, len(whole))
    print(f"table: {options.source}, {len(whole):,} rows, series {', '.join(whole.names)}", flush=True)
    forecaster.fit(whole.cut(0, len(whole) - held))
    report = forecaster.report_
    assert report is not None
    print(
        f"fitted: {options.model}, lags {', '.join(map(str, forecaster.lags_))}, {report.epochs:.0f} epochs in "
        f"{report.seconds:.0f} s, stopped by {report.stopped}",
        flush=True,
    )
    tests = _compare(forecaster, whole, held, options.seed) if held else {}
    if tests:
        print(_table(tests), flush=True)
    else:
        print("no rows were held out, so nothing is said of the quality of the forecast")
    forecaster.series_ = whole
    forecaster.save(options.out, overwrite=options.overwrite)
    written = _write_run(forecaster, options, options.out, tests)
    print(f"run folder: {options.out} ({', '.join(written)})")
    print(f"next: rosenblatt forecast {options.out} TABLE  forecasts from the end of another table")
    return 0


def _again(options: ForecastOptions) -> int:
    from rosenblatt.forecasting import Forecaster

    for field in dataclasses.fields(options):
        if field.name not in OF_A_FORECAST and getattr(options, field.name) != field.default:
            flag = "option" if field.name == "model_options" else field.name.replace("_", "-")
            raise OptionError(f"--{flag}: belongs to learning, and {options.source} has learned; leave it out.")
    forecaster = Forecaster.load(options.source)
    paths = forecaster.sample(options.samples, table=options.table, future=options.future, random_state=options.seed)
    columns = _quantiles(forecaster.series_.names, paths, forecaster.times(table=options.table))
    if options.out is None:
        sys.stdout.write(_csv(columns).decode())
        return 0
    _write(options.out, columns)
    print(f"wrote {options.out}", file=sys.stderr)
    return 0


def _forecaster(options: ForecastOptions) -> Forecaster:
    from rosenblatt.forecasting import Forecaster

    return Forecaster(
        options.model,
        horizon=options.horizon,
        time=options.time,
        targets=_names(options.target),
        covariates=_names(options.covariates) or [],
        lags=_lags(options.lags),
        difference=None if options.difference == "none" else options.difference,
        season=options.season,
        scale=options.scale,
        mirror=options.mirror,
        members=options.members,
        calendar=options.calendar,
        encoder=options.encoder,
        model_options=pairs(options.model_options, "option"),
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        random_state=options.seed,
    )


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _lags(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"--lags: '{text}' came, a number or a list such as 1,2,24 was expected.") from None
    return numbers[0] if "," not in text else numbers


def _held_out(options: ForecastOptions, rows: int) -> int:
    if options.test_rows is None:
        if options.horizon < 1:
            raise OptionError(f"--horizon: {options.horizon} came, a whole number of at least 1 was expected.")
        return min(MOST_ORIGINS, rows // TEST_SHARE // options.horizon) * options.horizon
    if options.test_rows and not options.horizon <= options.test_rows < rows:
        raise OptionError(
            f"--test-rows: {options.test_rows} came; 0, or {options.horizon} (a horizon) to fewer than the {rows} rows "
            "of the table were expected."
        )
    return options.test_rows


def _compare(forecaster: Forecaster, whole: Series, held: int, seed: int) -> dict[str, Backtest]:
    """Backtests of the forecaster and the baselines over the held-out rows."""
    from rosenblatt.forecasting import Naive

    cut = len(whole) - held
    train = whole.cut(0, cut)
    seasons = {"last value": 1}
    if forecaster.season_ is not None:
        seasons["seasonal naive"] = forecaster.season_
    tests = {
        name: Naive(forecaster.horizon, season).fit(train).backtest(whole, cut, seed=seed)
        for name, season in seasons.items()
    }
    linear = {"model": "gaussian", "model_options": {}, "scale": "train", "mirror": False, "members": 1}
    linear |= {"encoder": "window", "encoder_options": None}
    autoregression = type(forecaster)(**{**forecaster.get_params(deep=False), **linear, "validation_fraction": 0.0})
    tests["autoregression"] = autoregression.fit(train).backtest(whole, cut)
    tests[forecaster.model] = forecaster.backtest(whole, cut)
    return tests


def _table(tests: Mapping[str, Backtest]) -> str:
    *_, (name, ours) = tests.items()
    steps, origins = ours.crps.shape[1], len(ours.origins)
    lines = [
        f"held out: {origins} origins of {steps} steps; CRPS and energy score in standard deviations of the series:",
        f"  {'':16} {'CRPS':>17} {'energy score':>17} {'50 %':>6} {'80 %':>6} {'95 %':>6} {'CRPS to ours':>18}",
    ]
    for other, test in tests.items():
        means = test.summary()
        cells = [f"{means[key].value:8.4f} +- {means[key].standard_error:.4f}" for key in ("crps", "energy")]
        shares = [f"{100 * means[f'coverage {share} %'].value:6.1f}" for share in (50, 80, 95)]
        gap = test.difference(ours)["crps"]
        beside = "" if other == name else f" {gap.value:+8.4f} +- {gap.standard_error:.4f}"
        lines.append(f"  {other:16} {' '.join(cells)} {' '.join(shares)}{beside}")
    return "\n".join(lines)


def _write_run(
    forecaster: Forecaster, options: ForecastOptions, folder: Path, tests: Mapping[str, Backtest]
) -> list[str]:
    """Quantiles, paths, scores and fan charts of a new run; returns the names of the files."""
    written = []
    if tests:
        # JSON has no NaN: the standard error of a single origin is left out.
        told = {name: {key: _known(mean) for key, mean in test.summary().items()} for name, test in tests.items()}
        _write_bytes(folder / BACKTEST, (json.dumps(told, indent=1) + "\n").encode())
        written.append(BACKTEST)
    if forecaster.series_.known and options.future is None:
        print("no forecast was written: it needs the covariates of the steps to come, in --future")
        return written
    paths = forecaster.sample(options.samples, future=options.future, random_state=options.seed)
    times = forecaster.times()
    names = forecaster.series_.names
    _write(folder / FORECAST, _quantiles(names, paths, times))
    samples = f"{SAMPLES}.{'parquet' if options.parquet else 'csv'}"
    n, steps, _ = paths.shape
    rows: dict[str, Any] = {"path": np.repeat(np.arange(n), steps), "time": np.tile(times, n)}
    _write(folder / samples, {**rows, **{_beside(name, rows): paths[:, :, i].ravel() for i, name in enumerate(names)}})
    written += [FORECAST, samples]
    return written + (_fans(forecaster, paths, times, folder) if options.plots else [])


def _known(mean: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(number) else number for number in mean]


def _fans(forecaster: Forecaster, paths: Any, times: Any, folder: Path) -> list[str]:
    from rosenblatt.plot import fan_chart

    series = forecaster.series_
    every = np.concatenate([series.clock.at(np.arange(len(series))), times])
    written = []
    for index, name in enumerate(series.names[:MOST_FANS]):
        label = forecaster.time or "row"
        figure = fan_chart(every, series.values[:, index], samples=paths[:, :, index], name=name, time_name=label)
        written.append(f"fan-{index}.png")
        figure.savefig(folder / written[-1], dpi=110)
    return written


def _quantiles(names: Sequence[str], paths: Any, times: Any) -> dict[str, Any]:
    """One row a step and series: time, series, mean and quantiles."""
    found = np.quantile(paths, LEVELS, axis=0)
    steps = len(times)
    columns: dict[str, Any] = {
        "time": np.repeat(times, len(names)),
        "series": np.tile(np.array(names, dtype=object), steps),
        "mean": paths.mean(axis=0).ravel(),
    }
    return columns | {f"q{level:g}": found[number].ravel() for number, level in enumerate(LEVELS)}


def _beside(name: str, taken: Mapping[str, Any]) -> str:
    return f"{name} (series)" if name in taken else name


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise OptionError(f"--out: {path} came, a name that ends in .csv or .parquet was expected.")
    if path.suffix.lower() == ".csv":
        _write_bytes(path, _csv(columns))
        return
    import pyarrow as pa
    import pyarrow.parquet as pa_parquet

    data = io.BytesIO()
    pa_parquet.write_table(pa.table(dict(columns)), data)
    _write_bytes(path, data.getvalue())


def _csv(columns: Mapping[str, Any]) -> bytes:
    """The columns as CSV, times in ISO form to the second where that is all they are."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    shown = {name: _iso(column) if column.dtype.kind == "M" else column for name, column in columns.items()}
    data = io.BytesIO()
    pa_csv.write_csv(pa.table(shown), data, pa_csv.WriteOptions(quoting_style="needed"))
    return data.getvalue()


def _iso(times: Any) -> Any:
    for unit in ("D", "m", "s"):
        if (times == times.astype(f"M8[{unit}]")).all():
            return np.datetime_as_string(times, unit=unit)
    return np.datetime_as_string(times)


def _write_bytes(path: Path, data: bytes) -> None:
    from rosenblatt.train import storage

    try:
        storage.replace_bytes(path, data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); check folder, rights and free space.") from None
