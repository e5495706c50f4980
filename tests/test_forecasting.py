"""Forecasts against laws known in closed form, loops without tricks, and tables that nobody should send."""

import math

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import stats

from rosenblatt import FlowDensity
from rosenblatt.core.errors import CheckpointError, DataError, OptionError
from rosenblatt.forecasting import Clock, Forecaster, Naive, read_series
from rosenblatt.forecasting.backtest import score
from rosenblatt.forecasting.frame import DECAY, MOST, PRIOR, RECENT, Frame
from rosenblatt.forecasting.step import histories
from rosenblatt.objectives.rules import energy_score

FALSE_ALARM = 1e-6
A = np.array([[0.7, 0.2], [0.0, 0.5]])
NOISE = np.array([[1.0, 0.5], [0.5, 2.0]])
SMALL = {"hidden": 8, "blocks": 1, "components": 2}


def walk(rows, seed=0):
    """A vector autoregression of order 1: y_t = A y_{t-1} + e, e ~ N(0, NOISE)."""
    rng = np.random.default_rng(seed)
    noise = rng.multivariate_normal([0, 0], NOISE, size=rows)
    y = np.zeros((rows, 2))
    for t in range(1, rows):
        y[t] = A @ y[t - 1] + noise[t]
    return y


def little(**options):
    """A learner of seconds."""
    usual = {"model_options": SMALL, "epochs": 1, "horizon": 3, "lags": 3, "random_state": 0}
    return Forecaster("made_mixture", **{**usual, **options})


def gaussian(**options):
    return Forecaster(
        "gaussian", **{"lags": 1, "difference": None, "validation_fraction": 0.0, "random_state": 0, **options}
    )


@pytest.fixture(scope="module")
def autoregression():
    return gaussian(horizon=4).fit(walk(5000))


def test_path_log_prob_is_that_of_the_joint_gaussian(autoregression):
    offset, matrix, noise = (np.asarray(part) for part in _learned(autoregression))
    path = walk(60, seed=1)[50:54]
    last = walk(5000)[-1]
    mean, covariance = joint_law(offset, matrix, noise, last, 4)
    expected = stats.multivariate_normal(mean, covariance).logpdf(path.ravel())
    assert autoregression.log_prob(path) == pytest.approx(expected, abs=1e-8)
    steps = autoregression.log_prob(path, steps=True)
    assert steps.shape == (4,)
    assert steps.sum() == pytest.approx(expected, abs=1e-8)
    both = autoregression.log_prob(np.stack([path, path + 1]))
    assert both[0] == pytest.approx(expected, abs=1e-8)


def _learned(forecaster):
    """Least squares on the training rows, which is the maximum-likelihood fit of the Gaussian autoregression."""
    y = forecaster.series_.values
    design = np.column_stack([np.ones(len(y) - 1), y[:-1]])
    beta, *_ = np.linalg.lstsq(design, y[1:], rcond=None)
    rest = y[1:] - design @ beta
    return beta[0], beta[1:].T, rest.T @ rest / len(rest)


def joint_law(offset, matrix, noise, last, steps):
    """Mean and covariance of (y_1, ..., y_steps) given the last value."""
    mean, covariance = [], np.zeros((2 * steps, 2 * steps))
    middle, spread = last, np.zeros((2, 2))
    for h in range(steps):
        middle, spread = offset + matrix @ middle, matrix @ spread @ matrix.T + noise
        mean.append(middle)
        block = spread
        for later in range(h, steps):
            covariance[2 * later : 2 * later + 2, 2 * h : 2 * h + 2] = block
            covariance[2 * h : 2 * h + 2, 2 * later : 2 * later + 2] = block.T
            block = matrix @ block
    return np.concatenate(mean), covariance


def test_samples_have_the_predictive_law(autoregression):
    draws = 4000
    paths = autoregression.sample(draws, random_state=3).reshape(draws, -1)
    mean, covariance = joint_law(*_learned(autoregression), walk(5000)[-1], 4)
    z = np.linalg.solve(np.linalg.cholesky(covariance), (paths - mean).T).T
    numbers = z.shape[1]
    # Whitened draws are standard normal: means, variances and correlations, each at its share of the false alarms.
    tests = numbers + numbers + numbers * (numbers - 1) // 2
    far = stats.norm.isf(FALSE_ALARM / tests / 2)
    assert np.abs(z.mean(axis=0)).max() < far / math.sqrt(draws)
    low, high = (
        stats.chi2(draws - 1).ppf(p) / (draws - 1) for p in (FALSE_ALARM / tests / 2, 1 - FALSE_ALARM / tests / 2)
    )
    assert low < z.var(axis=0, ddof=1).min()
    assert z.var(axis=0, ddof=1).max() < high
    correlation = np.corrcoef(z.T)[np.triu_indices(numbers, 1)]
    assert np.abs(np.arctanh(correlation)).max() < far / math.sqrt(draws - 3)
    # A sampler that forgot the order of the steps, or the covariance, would be seen.
    assert np.abs(np.corrcoef(paths.T)[np.triu_indices(numbers, 1)]).max() > 0.3


@pytest.mark.parametrize("difference", ["last", "season", None])
@pytest.mark.parametrize("scale", ["train", "recent"])
def test_densities_of_differences_and_scales_integrate_to_one(difference, scale):
    y = walk(300)[:, :1].cumsum(axis=0)
    forecaster = little(difference=difference, season=4, scale=scale, horizon=1).fit(y)
    middle, width = y[-1, 0], 60 * np.abs(np.diff(y[:, 0])).std()
    grid = np.linspace(middle - width, middle + width, 20_001)
    density = np.exp(forecaster.log_prob(grid[:, None, None]))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("gap", [0, 1, 4])
@pytest.mark.parametrize("recent", [False, True])
def test_contexts_are_those_of_a_plain_loop(gap, recent):
    y = walk(120)
    lags = (1, 3, 5)
    frame = Frame(2, 1, lags, gap=gap, recent=recent, linear=False)
    frame.learn_units(torch.from_numpy(y), ("a", "b"))
    known = np.arange(120.0)[:, None]
    past = [frame.look(history) for history in histories(y, frame.look_back)]
    context = frame.context(past[0], torch.from_numpy(known[frame.look_back :])).numpy()
    steps = {t: y[t] - y[t - gap] if gap else y[t] - y.mean(axis=0) for t in range(gap, 120)}
    spread = np.sqrt(np.mean(np.square(list(steps.values())), axis=0))
    for row, t in enumerate(range(frame.look_back, 120)):
        scale = spread
        if recent:
            weights = [DECAY**back for back in range(RECENT)]
            squares = [(steps[t - 1 - back] / spread) ** 2 for back in range(RECENT)]
            total = sum(w * square / (1 + square / MOST**2) for w, square in zip(weights, squares, strict=True))
            scale = spread * np.sqrt((total + PRIOR) / (sum(weights) + PRIOR))
        told = np.array([steps[t - lag] / scale for lag in (5, 3, 1)])
        expected = [*(told / np.sqrt(1 + (told / MOST) ** 2) if recent else told).ravel()]
        expected += [*np.log(scale / spread)] if recent else []
        np.testing.assert_allclose(context[row], [*expected, t], atol=1e-10)
        base = y[t - gap] if gap else y.mean(axis=0)
        np.testing.assert_allclose(past[0].base[row].numpy(), base, atol=1e-12)


def test_the_future_does_not_reach_the_present():
    y = walk(400)
    forecaster = little(scale="recent").fit(y[:300])
    changed = y.copy()
    changed[350:] += 1e3
    before, after = (forecaster.sample(5, 350, table=table, random_state=1) for table in (y, changed))
    np.testing.assert_array_equal(before, after)
    path = y[350:353]
    first = forecaster.log_prob(path, 350, table=y, steps=True)
    path = path.copy()
    path[2] += 5
    second = forecaster.log_prob(path, 350, table=changed, steps=True)
    np.testing.assert_array_equal(first[:2], second[:2])
    assert first[2] != second[2]
    # and the past does: a change of the last value moves the path.
    changed[349] += 1
    assert not np.array_equal(before, forecaster.sample(5, 350, table=changed, random_state=1))


def test_mirrored_law_is_symmetric_and_sampled_as_such():
    y = walk(400).cumsum(axis=0)
    forecaster = little(mirror=True, scale="recent", horizon=2).fit(y)
    path = y[-1] + np.array([[1.0, -0.5], [0.3, 0.8]])
    turned = 2 * y[-1] - path
    upside = 2 * y[-1] - y
    assert forecaster.log_prob(path) == pytest.approx(forecaster.log_prob(turned, table=upside), abs=1e-9)
    draws = 2000
    there = forecaster.sample(draws, random_state=1)[:, 0] - y[-1]
    back = y[-1] - forecaster.sample(draws, table=upside, random_state=2)[:, 0]
    for column in range(2):
        assert stats.ks_2samp(there[:, column], back[:, column]).pvalue > FALSE_ALARM / 2


@pytest.mark.parametrize(("mirror", "members"), [(False, 1), (True, 1), (False, 3)])
def test_draws_of_a_step_have_the_density_that_is_told(mirror, members):
    y = walk(300)[:, :1].cumsum(axis=0)
    forecaster = little(mirror=mirror, members=members, scale="recent", horizon=1).fit(y)
    width = 40 * np.abs(np.diff(y[:, 0])).std()
    grid = np.linspace(y[-1, 0] - width, y[-1, 0] + width, 20_001)
    density = np.exp(forecaster.log_prob(grid[:, None, None]))
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)]) * (grid[1] - grid[0])
    drawn = forecaster.sample(5000, random_state=1).ravel()
    uniform = np.interp(drawn, grid, mass / mass[-1])
    assert stats.kstest(uniform, "uniform").pvalue > FALSE_ALARM / 2


@pytest.mark.parametrize("encoder", ["window", "recurrent", "transformer"])
def test_saved_forecasters_come_back(encoder, tmp_path):
    table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=400, freq="h"), "load": walk(400)[:, 0]})
    table["holiday"] = (np.arange(400) // 24 % 5 == 0).astype(float)
    options = {} if encoder == "window" else {"hidden": 4}
    forecaster = little(
        time="date",
        covariates=["holiday"],
        encoder=encoder,
        encoder_options=options,
        lags=None,
        scale="recent",
        members=2 if encoder == "window" else 1,
    ).fit(table)
    forecaster.save(tmp_path / "run")
    back = Forecaster.load(tmp_path / "run")
    future = {"holiday": [0.0, 1.0, 0.0]}
    sampled = (f.sample(4, future=future, random_state=1) for f in (forecaster, back))
    np.testing.assert_array_equal(*sampled)
    path = np.array([[0.1], [0.2], [-0.3]])
    assert back.log_prob(path, future=future) == forecaster.log_prob(path, future=future)
    np.testing.assert_array_equal(back.times(), forecaster.times())
    assert back.report_.steps == forecaster.report_.steps
    assert not list((tmp_path / "run").rglob("*.pkl"))
    more = pd.DataFrame({"date": pd.date_range("2024-02-01", periods=300, freq="h"), "load": 0.0, "holiday": 0.0})
    more["load"] = walk(300, seed=2)[:, 0]
    tests = (f.backtest(more, 250, n=5) for f in (forecaster, back))
    np.testing.assert_array_equal(*(test.crps for test in tests))
    FlowDensity("gaussian").fit(walk(50)).save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="not the run of a forecaster"):
        Forecaster.load(tmp_path / "other")


def test_backtest_scores_are_those_of_a_plain_loop(autoregression):
    y = walk(5100, seed=0)
    found = autoregression.backtest(y, 5000, stride=10, n=50, levels=[0.1, 0.5])
    assert found.origins == tuple(range(5000, 5097, 10))
    scale = walk(5000).std(axis=0)
    draws = np.stack([found.median, found.median])
    assert draws.shape == (2, 10, 4, 2)
    np.testing.assert_allclose(found.scale, scale)
    row = found.origins.index(5030)
    truth = y[5030:5034]
    exact = autoregression.log_prob(truth, 5030, table=y)
    assert found.log_score[row] == pytest.approx(-exact, abs=1e-9)
    np.testing.assert_allclose(found.pinball[1], np.abs(found.median - y[np.add.outer(found.origins, range(4))]) / 2)
    means = found.summary()
    assert means["crps"].value == pytest.approx((found.crps / scale).mean())
    assert means["crps"].standard_error == pytest.approx(
        (found.crps / scale).mean(axis=(1, 2)).std(ddof=1) / math.sqrt(10)
    )
    none = found.difference(found)
    assert none["crps"].value == 0
    with pytest.raises(DataError, match="other"):
        found.difference(autoregression.backtest(y, 5004, stride=10, n=5))
    assert "coverage 80 %" in str(found)


def test_crps_of_draws_is_that_of_the_gaussian_law(autoregression):
    y = walk(5100, seed=0)
    draws = 400
    found = autoregression.backtest(y, 5000, stride=20, n=draws)
    offset, matrix, noise = _learned(autoregression)
    for row, origin in enumerate(found.origins):
        mean, covariance = joint_law(offset, matrix, noise, y[origin - 1], 4)
        spread = np.sqrt(np.diag(covariance)).reshape(4, 2)
        z = (y[origin : origin + 4] - mean.reshape(4, 2)) / spread
        exact = spread * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
        # Draws move the estimate by less than the mean of |x - y| does: its spread is at most that of one draw.
        error = stats.norm.isf(FALSE_ALARM / 2 / found.crps.size) * 2 * spread / math.sqrt(draws)
        assert (np.abs(found.crps[row] - exact) < error).all()


def test_naive_draws_errors_it_made():
    y = np.arange(60.0)[:, None] + np.tile([0.0, 10.0, 0.0, 5.0], 15)[:, None]
    series = read_series(y)
    last = Naive(3).fit(series)
    np.testing.assert_array_equal(last.errors_[0], y[1:4] - y[0])
    seasonal = Naive(6, season=4).fit(series)
    np.testing.assert_array_equal(np.unique(seasonal.errors_), [4.0, 8.0])
    paths = seasonal.sample(3, series, [60])
    np.testing.assert_array_equal(paths[0, 0, :, 0], y[[56, 57, 58, 59, 56, 57], 0] + [4, 4, 4, 4, 8, 8])
    result = seasonal.backtest(series, 40)
    assert result.origins == (40, 46, 52)
    assert result.crps.max() == 0
    with pytest.raises(DataError, match="3 rows came"):
        Naive(3).fit(read_series(y[:3]))


@pytest.mark.parametrize(
    ("start", "step", "count", "unit"),
    [("2024-01-15", "MS", 30, "M"), ("2024-02-27", "D", 40, "ns"), ("2024-02-28 22:30", "30min", 200, "ns")],
)
def test_clocks_follow_the_calendar(start, step, count, unit):
    times = pd.date_range(start, periods=count, freq=step)
    clock = Clock.of(times[: count // 2].to_numpy(), "date")
    assert clock.unit == unit
    np.testing.assert_array_equal(clock.at(np.arange(count)), times.to_numpy())
    assert clock.index_of(times[-1]) == count - 1
    assert clock.index_of(str(times[3])) == 3


def test_calendar_tells_hours_weekdays_and_years_apart():
    hours = Clock.of(pd.date_range("2024-01-01", periods=5, freq="h").to_numpy(), "date")
    assert hours.season() == 24
    assert hours.parts(True, 10_000) == ("hour", "weekday", "year")
    assert hours.parts(True, 8000) == ("hour", "weekday")
    told = hours.features(np.array([0, 24, 24 * 7, 12]), ("hour", "weekday"))
    np.testing.assert_allclose(told[0, :8], told[1, :8], atol=1e-12)
    np.testing.assert_array_equal(told[0], told[2])
    assert told[0, 8:].argmax() == 0  # 2024-01-01 was a Monday
    assert told[1, 8:].argmax() == 1
    assert told[3, 0] == pytest.approx(0, abs=1e-12)
    days = Clock.of(pd.date_range("2024-01-01", periods=5).to_numpy(), "date")
    assert (days.season(), days.parts(True, 100)) == (7, ("weekday",))
    months = Clock.of(pd.date_range("2024-01-01", periods=5, freq="MS").to_numpy(), "date")
    assert (months.season(), months.parts(True, 24)) == (12, ("year",))
    assert Clock().season() is None
    with pytest.raises(OptionError, match="no dates"):
        Clock().parts(["hour"], 10)
    with pytest.raises(OptionError, match="calendar"):
        days.parts(["minute"], 10)


def test_tables_of_every_kind_are_the_same_series(tmp_path):
    dates = pd.date_range("2024-03-01", periods=6, freq="h")
    frame = pd.DataFrame({"load": np.arange(6.0), "date": dates, "hot": [0, 1, 0, 1, 0, 1]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet", index=False)
    zoned = frame.assign(date=dates.tz_localize("UTC").tz_convert("Europe/Berlin"))
    text = {"load": np.arange(6.0), "date": [str(date) for date in dates], "hot": frame["hot"].to_numpy()}
    sources = [frame, pl.from_pandas(frame), zoned, text, tmp_path / "a.csv", str(tmp_path / "a.parquet")]
    for source in sources:
        series = read_series(source, time="date", covariates=["hot"])
        assert (series.names, series.known) == (("load",), ("hot",))
        np.testing.assert_array_equal(series.values[:, 0], np.arange(6.0))
        np.testing.assert_array_equal(series.clock.at(np.arange(6)), dates.to_numpy())
    cut = series.cut(2, 5)
    np.testing.assert_array_equal(cut.clock.at([0, 1]), dates.to_numpy()[2:4])
    np.testing.assert_array_equal(cut.values[:, 0], [2, 3, 4])


def dated(times):
    return {"date": times, "a": np.arange(float(len(times)))}


HOURS = pd.date_range("2024-01-01", periods=20, freq="h")
BAD_TABLES = [
    (dated(HOURS.delete([5, 11])), "2 of 17 steps differ from the usual one, the first after 2024-01-01T04"),
    (dated(HOURS.insert(3, HOURS[3])), "1 repeated times came"),
    (dated(HOURS[::-1]), "19 times that go back"),
    (dated(["2024-01-01", "soon"]), "write times as"),
    (dated([None, "2024-01-01"]), "time column 'date'"),
    (dated([1.0, np.nan, 3.0]), "1 times are missing"),
    (dated(HOURS[:1]), "at least 2 are needed"),
    ({"date": HOURS, "a": [np.nan, np.inf] + [0.0] * 18}, "2 values in 2 rows are missing or infinite"),
    ({"date": HOURS}, "no column is left"),
    ({"a": [1.0, 2.0]}, "there is no column 'date'"),
]


@pytest.mark.parametrize(("table", "message"), BAD_TABLES, ids=[message for _, message in BAD_TABLES])
def test_bad_tables_are_named(table, message):
    with pytest.raises(DataError, match=message):
        read_series(table, time="date")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (np.ones((50, 1)), {}, "column 'x0': it is constant"),
        (np.arange(50.0)[:, None], {}, "moves along a line"),
        (np.tile([0.0, 1.0, 3.0], 20)[:, None], {"difference": "season", "season": 3}, "repeats itself every 3 steps"),
        (np.ones((1, 1)), {}, "1 rows came, at least"),
        (walk(12), {"lags": 30}, "at least 41 are needed for lags up to 30"),
        (np.column_stack([walk(60)[:, 0]] * 2), {}, "no joint Gaussian autoregression"),
    ],
)
def test_tables_without_a_law_are_refused(rows, options, message):
    with pytest.raises(DataError, match=message):
        little(**options).fit(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon: 0 came"),
        ({"lags": 0}, "lags: 0 came"),
        ({"lags": [1, -2]}, "lags: -2 came"),
        ({"difference": "twice"}, "difference: 'twice' came"),
        ({"difference": "season"}, "season is not known"),
        ({"season": 1}, "season: 1 came"),
        ({"members": 0}, "members: 0 came"),
        ({"scale": "none"}, "scale: 'none' came"),
        ({"encoder": "lstm"}, "encoder: 'lstm' came"),
        ({"encoder_options": {"hidden": 3}}, "encoder_options"),
        ({"encoder": "transformer", "encoder_options": {"hidden": 3}}, "not divisible by heads"),
        ({"encoder": "recurrent", "encoder_options": {"width": 3}}, "does not suit 'recurrent'"),
        ({"calendar": ["hour"]}, "no dates"),
        ({"model": "nots"}, "nots"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    usual = {"model_options": SMALL, "horizon": 3, "lags": 3}
    with pytest.raises(OptionError, match=message):
        Forecaster(**{"model": "made_mixture", **usual, **options}).fit(walk(60))


def test_questions_that_have_no_answer_are_named(autoregression):
    for call, error, message in [
        (lambda: autoregression.sample(0), OptionError, "n: 0 came"),
        (lambda: autoregression.sample(3, 0), DataError, "looks 1 steps back"),
        (lambda: autoregression.sample(3, 6000), DataError, "start: step 6000"),
        (lambda: autoregression.sample(3, "noon"), DataError, "'noon' is no time"),
        (lambda: autoregression.sample(3, table=walk(50)[:, :1]), DataError, "no column 'x1'"),
        (lambda: autoregression.predict_quantiles([0.5, 1.0]), OptionError, "levels"),
        (lambda: autoregression.predict(statistic="mode"), OptionError, "statistic"),
        (autoregression.backtest, DataError, "leaves 0 of 5000 rows"),
        (lambda: autoregression.backtest(walk(5100), 5000, 0), OptionError, "stride"),
        (lambda: autoregression.log_prob(np.zeros((3, 5))), DataError, "path: shape"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_covariates_of_the_steps_to_come_are_needed():
    table = {"a": walk(200)[:, 0], "promo": (np.arange(200) % 7 == 0).astype(float)}
    forecaster = little(covariates=["promo"]).fit(table)
    with pytest.raises(DataError, match="pass a table with 3 rows"):
        forecaster.sample(2)
    with pytest.raises(DataError, match="2 rows came, 3 steps"):
        forecaster.sample(2, future={"promo": [0.0, 1.0]})
    with pytest.raises(DataError, match="1 values in 1 rows"):
        forecaster.sample(2, future={"promo": [0.0, 1.0, np.nan]})
    assert forecaster.sample(2, future={"promo": [0, 1, 0]}).shape == (2, 3, 1)
    assert forecaster.sample(2, 150).shape == (2, 3, 1)  # known within the table


def test_far_outliers_leave_numbers():
    y = walk(300)
    forecaster = little(scale="recent").fit(y)
    y = y.copy()
    y[-1] = 1e8
    found = forecaster.sample(20, table=y, random_state=0)
    assert np.isfinite(found).all()
    assert np.isfinite(forecaster.log_prob(np.zeros((3, 2)), table=y))
    quantiles = forecaster.predict_quantiles([0.1, 0.5, 0.9], table=y, n=50)
    assert (np.diff(quantiles, axis=0) >= 0).all()
    y[-2:] = [[1.7e308], [-1.7e308]]  # their difference is no number
    assert np.isfinite(forecaster.sample(3, table=y[:-1], random_state=0)).all()
    plain = little().fit(walk(300))
    with pytest.raises(DataError, match="left the finite numbers"):
        plain.sample(3, table=y)


def test_wild_draws_do_not_grow_without_end():
    rng = np.random.default_rng(0)
    y = (rng.standard_t(1.5, size=(500, 2)) * (rng.random((500, 2)) < 0.5)).cumsum(axis=0)
    forecaster = little(scale="recent", mirror=True, horizon=60, epochs=3).fit(y)
    spread = np.diff(y, axis=0).std(axis=0)
    paths = forecaster.sample(300, random_state=0)
    assert (np.abs(np.diff(paths, axis=1)) < 1e4 * spread).all()


def test_members_share_paths_not_steps():
    y = walk(300)
    forecaster = little(members=2, epochs=3).fit(y)
    assert [report.steps for report in forecaster.reports_] == [forecaster.report_.steps] * 2
    path = torch.from_numpy(y[100:103])[None]
    known, past = torch.empty(1, 3, 0), torch.from_numpy(y[100 - forecaster.model_.frame.look_back : 100])[None]
    each = [member.log_prob_of_path(path, past, known).sum() for member in forecaster.model_.members]
    assert each[0] != each[1]
    mixed = torch.logsumexp(torch.stack(each), dim=0) - math.log(2)
    assert forecaster.log_prob(y[100:103], 100) == pytest.approx(float(mixed), abs=1e-9)
    assert forecaster.log_prob(y[100:103], 100, steps=True).sum() == pytest.approx(float(mixed), abs=1e-9)


def test_energy_scores_are_those_of_the_rule():
    draws, truth = torch.randn(30, 4, 3, 2), torch.randn(4, 3, 2)
    rows = [part.double().numpy() for part in (draws, truth)]
    found = score(*rows, origins=range(4), names=("a", "b"), scale=np.array([2.0, 0.5]))
    scaled = [torch.from_numpy(row) / torch.tensor([2.0, 0.5]) for row in rows]
    np.testing.assert_allclose(found.energy_step, energy_score(*scaled))
    np.testing.assert_allclose(found.energy, energy_score(*(part.flatten(-2) for part in scaled)))


def test_read_only_arrays_are_taken():
    y = walk(100)
    y.flags.writeable = False
    forecaster = little().fit(y)
    forecaster.log_prob(y[50:53], 50)
    forecaster.backtest(y, 90, n=5)


def test_same_seed_same_forecast():
    y = walk(200)
    first, second = (little(scale="recent").fit(y) for _ in range(2))
    np.testing.assert_array_equal(first.sample(3, random_state=1), second.sample(3, random_state=1))
    assert not np.array_equal(first.sample(3, random_state=1), first.sample(3, random_state=2))
    state = torch.random.get_rng_state()
    little(encoder="recurrent", encoder_options={"hidden": 4}).fit(y).sample(2)
    assert torch.equal(state, torch.random.get_rng_state())
