"""What ConditionalFlow promises about its numbers, its inputs and its files."""

import math
import pickle
import shutil

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy import stats

from rosenblatt import ConditionalFlow, FlowDensity
from rosenblatt.assembly import TableFlow
from rosenblatt.bases import StandardNormal
from rosenblatt.conditional import ConditionalDensity
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import CheckpointError, DataError, OptionError
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped
from rosenblatt.data import write_table
from rosenblatt.ensemble import restore_conditional
from rosenblatt.estimators import DataWarning
from rosenblatt.layers.units import Units
from rosenblatt.predictive import Predictive
from rosenblatt.train import RunFolder

NITS = {"model_options": {"hidden": 8, "widths": [4, 1]}, "max_steps": 60, "batch_size": 64, "learning_rate": 0.01}
LINEAR = {"model": "gaussian", "validation_fraction": 0.0, "dtype": "float64", "random_state": 0}


def made(rows=300, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 2))
    y = 100 + 30 * x[:, 0] + 10 * np.exp(0.5 * x[:, 1]) * generator.normal(size=rows)
    return x, y


@pytest.fixture(scope="module")
def data():
    return made()


@pytest.fixture(scope="module")
def frame(data):
    x, _ = data
    kind = np.where(x[:, 0] > 0.3, "high", np.where(x[:, 0] < -0.3, "low", "middle"))
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "kind": kind, "odd": np.arange(len(x)) % 2 == 1})


@pytest.fixture(scope="module")
def fitted(data):
    return ConditionalFlow(**NITS, random_state=0).fit(*data)


@pytest.fixture(scope="module")
def pair(data):
    """Two dependent targets."""
    x, y = data
    other = 0.01 * y + 0.5 * np.random.default_rng(5).normal(size=len(y))
    return ConditionalFlow("maf", max_steps=60, batch_size=64, random_state=0).fit(x, np.column_stack([y, other]))


def least_squares(x, y):
    design = np.column_stack([np.ones(len(x)), x])
    mean = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return mean, np.sqrt(((y - mean) ** 2).mean(axis=0))


def test_linear_gaussian_is_the_closed_form(data):
    x, y = data
    flow = ConditionalFlow(**LINEAR).fit(x * [1e4, 1e-3], y)
    mean, deviation = least_squares(x, y)
    law = stats.norm(mean, deviation)
    x = x * [1e4, 1e-3]
    assert np.allclose(flow.log_prob(x, y), law.logpdf(y), rtol=0, atol=1e-9)
    assert flow.log_score(x, y) == pytest.approx(law.logpdf(y).mean(), abs=1e-9)
    for kind in ("mean", "median"):
        assert np.allclose(flow.predict(x, kind=kind), mean, rtol=0, atol=1e-6)
    assert np.allclose(flow.predict_interval(x, 0.8), np.column_stack(law.interval(0.8)), rtol=0, atol=1e-8)
    assert np.allclose(flow.cdf(x, y), law.cdf(y), rtol=0, atol=1e-12)
    assert flow.score(x, y) == pytest.approx(1 - ((y - mean) ** 2).sum() / ((y - y.mean()) ** 2).sum(), abs=1e-7)


def test_several_targets_of_the_linear_gaussian(data):
    x, y = data
    both = np.column_stack([y, 5 * x[:, 1] + 0.05 * y + np.random.default_rng(1).normal(size=len(y))])
    flow = ConditionalFlow(**LINEAR).fit(x, both)
    mean, deviation = least_squares(x, both)
    covariance = np.cov((both - mean).T, bias=True)
    expected = stats.multivariate_normal(cov=covariance).logpdf(both - mean)
    assert np.allclose(flow.log_prob(x, both), expected, rtol=0, atol=1e-9)
    # 1,024 points of a scrambled net: plain draws would miss by 0.03 standard deviations and more.
    assert np.abs((flow.predict(x) - mean) / deviation).max() < 0.005
    levels = np.array([0.1, 0.5, 0.9])
    quantiles = flow.predict_quantiles(x, levels)
    assert quantiles.shape == (300, 2, 3)
    exact = mean[:, :, None] + deviation[:, None] * stats.norm.ppf(levels)
    assert np.abs((quantiles - exact) / deviation[:, None]).max() < 0.04
    u = flow.pit(x, both)
    residual = (both - mean)[:, 0] / deviation[0]
    assert np.allclose(u[:, 0], stats.norm.cdf(residual), rtol=0, atol=1e-9)


def test_mean_median_and_quantiles_are_those_of_the_density(fitted, data):
    x = data[0][:4]
    grid = np.linspace(-400, 600, 40_001)
    for row in range(4):
        given = np.repeat(x[row : row + 1], len(grid), axis=0)
        density = np.exp(fitted.log_prob(given, grid))
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
        # The grid leaves tails out, of the size that the mass lacks times the distance.
        assert fitted.predict(given[:1])[0] == pytest.approx(np.trapezoid(grid * density, grid), abs=0.5)
    quantiles = fitted.predict_quantiles(x, [0.01, 0.5, 0.99])
    assert (np.diff(quantiles, axis=1) > 0).all()
    assert np.allclose(quantiles[:, 1], fitted.predict(x, kind="median"), rtol=1e-12, atol=0)
    for column, level in enumerate((0.01, 0.5, 0.99)):
        assert np.allclose(fitted.cdf(x, quantiles[:, column]), level, rtol=0, atol=1e-9)
    step = 1e-4
    slope = (fitted.cdf(x, data[1][:4] + step) - fitted.cdf(x, data[1][:4] - step)) / (2 * step)
    assert np.allclose(slope, np.exp(fitted.log_prob(x, data[1][:4])), rtol=1e-5)


def test_quadrature_of_the_mean_is_sharp():
    """A lognormal given its support: mean exp(1/2), from quantiles that grow without bound."""
    generator = np.random.default_rng(0)
    y = np.exp(generator.normal(size=400))
    flow = ConditionalFlow(**LINEAR, support=[0, None]).fit(generator.normal(size=(400, 1)), y)
    given = np.zeros((1, 1))
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    quantile = flow.predict_quantiles(given, u[::200][1:-1])[0]
    assert (quantile > 0).all()
    inside = np.trapezoid(quantile, u[::200][1:-1])
    assert flow.predict(given)[0] == pytest.approx(inside, rel=0.01)


def test_samples_have_the_density(fitted, pair, data):
    band = math.sqrt(math.log(2 / 1e-6) / 8000)
    for flow in (fitted, pair):
        drawn = flow.sample(data[0][:1], 4000, random_state=0)
        assert drawn.shape == (4000, 1, len(flow.columns_))
        u = flow.cdf(np.repeat(data[0][:1], 4000, axis=0), drawn[:, 0].squeeze())
        for column in u.reshape(4000, -1).T:
            assert stats.kstest(column, "uniform").statistic < band


def test_predictions_of_a_row_do_not_depend_on_the_others(fitted, pair, data):
    for flow in (fitted, pair):
        whole = flow.predict(data[0][:20])
        assert np.allclose(flow.predict(data[0][7:8])[0], whole[7], rtol=1e-10, atol=0)


class Mirror(Transform):
    """`z = c - x`, which falls."""

    def forward(self, x, context=None):
        return Mapped(context - x, torch.zeros(x.shape[:-1], dtype=x.dtype))

    def inverse(self, y, context=None):
        return self.forward(y, context)


def test_a_falling_map_has_rising_quantiles_and_cdf():
    units = Units([(None, None)], [1.0], torch.zeros(1), torch.ones(1))
    flow = TableFlow(units, Flow(Mirror(), StandardNormal(1), context=1))
    predictive = Predictive(ConditionalDensity(flow, units, 1).double())
    given = torch.zeros(2, 1, dtype=torch.float64)
    low, high = predictive.quantiles(given, torch.tensor([0.2, 0.8]))[0, 0]
    assert low < high
    values = torch.stack([low, high]).unsqueeze(1)
    torch.testing.assert_close(predictive.cdf(values, given).squeeze(), torch.tensor([0.2, 0.8]).double())


@pytest.mark.parametrize(("scale", "offset"), [(1e5, 1e3), (1e-5, 0.0), (1.0, 1.6e9)])
def test_units_of_y_shift_the_log_density(data, scale, offset):
    x, y = data
    short = {**NITS, "max_steps": 10}
    plain = ConditionalFlow(**short, random_state=1).fit(x, y)
    moved = ConditionalFlow(**short, random_state=1).fit(x, y * scale + offset)
    difference = moved.log_prob(x, y * scale + offset) - plain.log_prob(x, y)
    assert np.allclose(difference, -math.log(scale), rtol=0, atol=1e-3)
    assert np.allclose((moved.predict(x) - offset) / scale, plain.predict(x), rtol=1e-4)


def test_support_holds_exactly(data):
    x, y = data
    flow = ConditionalFlow(**NITS, support=[0, None], random_state=0).fit(x, np.exp(y / 50))
    assert (flow.predict_quantiles(x, [1e-6, 0.5]) > 0).all()
    assert flow.log_prob(x[:1], [-1.0])[0] == -np.inf
    assert flow.cdf(x[:1], [-1.0])[0] == 0
    assert flow.get_params()["support"] == [0, None]


def test_dequantised_target(data):
    x, _ = data
    counts = np.random.default_rng(2).poisson(np.exp(1 + 0.3 * x[:, 0]))
    with pytest.warns(DataWarning, match="column 'y'.*dequantise"):
        ConditionalFlow(**NITS, random_state=0).fit(x, counts)
    flow = ConditionalFlow(**NITS, dequantise="auto", support=[0, None], random_state=0).fit(x, counts)
    assert flow.dequantise_ == {"y": 1.0}
    assert np.array_equal(flow.pit(x, counts), flow.pit(x, counts))
    assert not np.allclose(flow.pit(x, counts), flow.cdf(x, counts))


def test_every_kind_of_table_gives_the_same_bits(frame, data, tmp_path):
    _, y = data
    short = {**NITS, "max_steps": 5, "random_state": 0}
    expected = ConditionalFlow(**short).fit(frame, y).log_prob(frame, y)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    kinds = {
        "polars": pl.from_pandas(frame),
        "pyarrow": pa.Table.from_pandas(frame),
        "categories": frame.assign(kind=frame["kind"].astype("category")),
        "polars categories": pl.from_pandas(frame).with_columns(pl.col("kind").cast(pl.Categorical)),
        "mapping": {name: frame[name].to_numpy() for name in frame},
        "csv": tmp_path / "rows.csv",
        "parquet": tmp_path / "rows.parquet",
    }
    for kind, table in kinds.items():
        again = ConditionalFlow(**short).fit(table, y)
        assert np.array_equal(again.log_prob(table, y), expected), kind
        assert again.feature_names_in_.tolist() == ["a", "b", "kind", "odd"]
    numbers = frame[["a", "b"]]
    targets = {"pandas": pd.Series(y, name="t"), "polars": pl.Series("t", y), "array": y, "list": y.tolist()}
    expected = ConditionalFlow(**short).fit(numbers, y).predict(numbers)
    for kind, values in targets.items():
        assert np.array_equal(ConditionalFlow(**short).fit(numbers, values).predict(numbers), expected), kind
    array = ConditionalFlow(**short).fit(numbers.to_numpy(), y)
    assert np.array_equal(array.predict(numbers.to_numpy()), expected)


def test_named_targets_are_checked(data):
    x, y = data
    both = pd.DataFrame({"s": y, "t": np.random.default_rng(0).normal(size=len(y))})
    flow = ConditionalFlow(**LINEAR).fit(x, both)
    assert flow.columns_ == ("s", "t")
    assert flow.predict(x).shape == (300, 2)
    with pytest.raises(DataError, match="the order 't', 's' came"):
        flow.log_prob(x, both[["t", "s"]])
    with pytest.raises(DataError, match="1 targets came, 2 were expected"):
        flow.log_prob(x, y)


def test_categories_are_one_hot_and_told_apart(frame, data):
    _, y = data
    flow = ConditionalFlow(**LINEAR).fit(frame[["kind"]], y)
    means = {kind: y[frame["kind"] == kind].mean() for kind in ("high", "low", "middle")}
    expected = frame["kind"].map(means).to_numpy()
    assert np.allclose(flow.predict(frame[["kind"]]), expected, rtol=0, atol=1e-6)
    assert flow.encoder_.names == ["kind = high", "kind = low", "kind = middle"]
    with pytest.raises(DataError, match="'kind' holds 'tall' in row 2, the model knows 'high', 'low', 'middle'"):
        flow.predict(pd.DataFrame({"kind": ["low", "high", "tall"]}))


def test_missing_values_are_refused_or_indicated(frame, data):
    _, y = data
    holes = frame.copy()
    holes.loc[[2, 5], "a"] = np.nan
    holes.loc[7, "kind"] = None
    with pytest.raises(DataError, match=r"'a' has 2 missing values \(NaN\), the first in row 2.*missing=\"indicate\""):
        ConditionalFlow(**LINEAR).fit(holes, y)
    flow = ConditionalFlow(**LINEAR, missing="indicate").fit(holes, y)
    names = ["a", "a is missing", "b", "kind = high", "kind = low", "kind = middle", "kind is missing"]
    assert flow.encoder_.names == [*names, "odd = False", "odd = True"]
    assert flow.encoder_.codes[0].filler == pytest.approx(holes["a"].mean())
    assert np.isfinite(flow.predict(holes)).all()
    holes.loc[3, "b"] = np.nan
    with pytest.raises(DataError, match=r"'b' has 1 missing values .* in row 3, and had none in the rows of the fit"):
        flow.predict(holes)
    with pytest.raises(OptionError, match="missing: 'drop'"):
        ConditionalFlow(**LINEAR, missing="drop").fit(frame, y)


def test_weight_zero_is_absent(data):
    x, y = (part.copy() for part in data)
    weight = (np.arange(300) % 3 > 0).astype(float)
    kept = ConditionalFlow(**NITS, random_state=0).fit(x[weight > 0], y[weight > 0])
    x[0], y[3] = np.nan, np.inf
    zeroed = ConditionalFlow(**NITS, random_state=0).fit(x, y, sample_weight=weight)
    assert np.array_equal(kept.predict(data[0]), zeroed.predict(data[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, np.full(len(y), 3.0)), "column 'y': every value is 3, and a constant has no density"),
        (lambda x, y: (pd.DataFrame(x[:1]), y[:1]), "one row came"),
        (lambda x, y: (pd.DataFrame(x[:0]), y[:0]), "no rows"),
        (lambda x, y: (x, np.where(y == y[4], np.nan, y)), "y: 1 values are NaN or infinite, the first in row 4"),
        (lambda x, y: (x, np.where(y == y[4], np.inf, y)), "y: 1 values are NaN or infinite, the first in row 4"),
        (
            lambda x, y: (np.where(x == x[4, 1], np.inf, x), y),
            r"'x1' has 1 infinite values \(inf\).* row 4",
        ),
        (lambda x, y: (np.where(x == x[4, 1], np.nan, x), y), r"'x1' has 1 missing values \(NaN\), the first in row 4"),
        (lambda x, y: (x, np.column_stack([y, y])), "copies of each other"),
        (lambda x, y: (x, y[:-1]), "299 rows came for 300 rows of X"),
        (lambda x, y: (x, None), "y: .*the target y is None"),
        (lambda x, y: ({"id": [f"n{i}" for i in range(300)]}, y), "300 different texts such as 'n0', at most 100"),
        (lambda x, y: (pd.DataFrame({"day": pd.date_range("2020", periods=300)}), y), "column 'day'.*numbers were"),
        (lambda x, y: ({"a": [None] * 300}, y), "'a' has 300 missing values"),
    ],
)
def test_rows_that_cannot_be_fitted(data, change, message):
    with pytest.raises(DataError, match=message):
        ConditionalFlow(**LINEAR).fit(*change(*data))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "magic"}, "model: 'magic' is unknown"),
        ({"model": "ffjord", "model_options": {"trace": "hutchinson"}}, "no exact log-density"),
        ({"model": "rbig", "model_options": {}}, "context: 2 came"),
        ({"model_options": {"depth": 3}}, "'depth' is not an option"),
        ({"support": {"q": [0, 1]}}, "no column 'q'"),
        ({"support": [200, None]}, "outside the declared support"),
        ({"dequantise": {"q": 1.0}}, "no column 'q'"),
        ({"fit_options": {"epochs": 3}}, "fit_options: 'epochs'"),
    ],
)
def test_wrong_options_raise(data, options, message):
    chosen = {**NITS, **options} if "model" not in options else {"max_steps": 1, **options}
    with pytest.raises(ValueError, match=message):
        ConditionalFlow(**chosen).fit(*data)


def test_wrong_requests_raise(fitted, data):
    x, _ = data
    for levels in ([0.0], [1.0], [], ["a"], [[0.5]], [np.nan]):
        with pytest.raises(OptionError, match=r"levels: .*above 0 and below 1"):
            fitted.predict_quantiles(x, levels)
    with pytest.raises(OptionError, match="kind: 'mode'"):
        fitted.predict(x, kind="mode")
    with pytest.raises(OptionError, match="n_samples: 0"):
        fitted.sample(x, 0)


@pytest.mark.parametrize("model", ["nits", "nsf", "maf", "gaussian", "mdn", "kmn", "quantile_flow"])
@pytest.mark.filterwarnings("ignore::rosenblatt.preparation.DataWarning")
def test_outliers_and_extrapolation_stay_finite(data, model):
    x, y = (part.copy() for part in data)
    x[0, 0], y[1] = 1e9, -1e12
    flow = ConditionalFlow(model, max_steps=20, batch_size=64, random_state=0).fit(x, y)
    far = np.concatenate([x[:3], [[1e12, -1e12], [-1e15, 0.0], [1e20, -1e20]]])
    assert np.isfinite(flow.log_prob(far, np.append(y[:3], [0.0, 1e6, -1e13]))).all()
    quantiles = flow.predict_quantiles(far, [0.001, 0.05, 0.5, 0.95, 0.999])
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=1) >= 0).all()  # equal where float64 has no digits between them
    assert np.isfinite(flow.predict(far)).all()


def test_far_outside_the_rows_of_the_fit(fitted, pair):
    far = np.array([[50.0, -50.0], [1e3, 1e3], [-1e6, 0.0]])
    quantiles = fitted.predict_quantiles(far, [0.01, 0.5, 0.99])
    assert (np.diff(quantiles, axis=1) > 0).all()
    assert np.isfinite(fitted.log_prob(far, [0.0, 1e4, -1e4])).all()
    assert np.isfinite(pair.log_prob(far, [[0.0, 0.0]] * 3)).all()
    assert np.isfinite(pair.predict(far)).all()


def test_leaves_global_random_state_alone(data):
    np.random.seed(1)  # noqa: NPY002 - the state that must not change
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    flow = ConditionalFlow("maf", max_steps=2).fit(data[0], np.column_stack([data[1], data[0][:, 0] ** 2]))
    flow.predict(data[0][:3])
    flow.sample(data[0][:3], 2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_baseline_is_the_linear_regression(data):
    x, y = data
    flow = ConditionalFlow("gaussian", random_state=0).fit(x, y)
    assert flow.gaussian_score_.value == pytest.approx(flow.validation_score_.value, abs=1e-4)
    assert flow._comparison.difference.value == pytest.approx(0, abs=1e-4)


def test_save_load_and_pickle_in_memory(frame, data, tmp_path):
    _, y = data
    holes = frame.assign(a=frame["a"].where(frame["a"] > -1))
    flow = ConditionalFlow(**NITS, missing="indicate", support=[-1000, None], random_state=0).fit(holes, y)
    flow.save(tmp_path / "model")
    for again in (ConditionalFlow.load(tmp_path / "model"), pickle.loads(pickle.dumps(flow))):  # noqa: S301
        assert np.array_equal(again.log_prob(holes, y), flow.log_prob(holes, y))
        assert np.array_equal(again.predict(holes), flow.predict(holes))
        assert again.report_ == flow.report_
        assert again.validation_score_ == flow.validation_score_
        assert again.predict(holes).shape == (300,)
        with pytest.raises(ValueError, match="feature names"):
            again.predict(holes[["b", "a", "kind", "odd"]])
    assert ConditionalFlow.load(tmp_path / "model").get_params()["missing"] == "indicate"
    with pytest.raises(CheckpointError, match=r"ConditionalFlow\.load"):
        FlowDensity.load(tmp_path / "model")
    FlowDensity("gaussian").fit(data[0]).save(tmp_path / "table")
    with pytest.raises(CheckpointError, match=r"FlowDensity\.load"):
        ConditionalFlow.load(tmp_path / "table")


def test_resume_is_bit_for_bit(frame, data, tmp_path):
    path, y = tmp_path / "rows.csv", data[1]
    write_table(path, ["a", "b"], data[0])
    options = {**NITS, "max_steps": 12, "random_state": 0}
    whole = ConditionalFlow(**options).fit(path, y)
    part = ConditionalFlow(**options, run=tmp_path / "run", fit_options={"checkpoint_every": 1, "keep_last": 99})
    part.fit(path, y)
    for folder in (tmp_path / "run").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > 7:
            shutil.rmtree(folder)
    resumed = ConditionalFlow.resume(tmp_path / "run", path, y)
    assert resumed.report_.resumed_from == 7
    assert np.array_equal(resumed.log_prob(path, y), whole.log_prob(path, y))
    with pytest.raises(DataError, match="SHA-256"):
        ConditionalFlow.resume(tmp_path / "run", path, y + 1)
    with pytest.raises(CheckpointError, match=r"ConditionalFlow\.resume"):
        FlowDensity.resume(tmp_path / "run", path)


ONE = {"name": "x0", "categories": None}


def weights_of(flow):
    return {name: t if ".map." in name else t.float() for name, t in flow.model_.state_dict().items()}


def test_a_sound_folder_loads(fitted, data, tmp_path):
    run = RunFolder.create(tmp_path / "run", fitted._config)
    run.save(0, weights_of(fitted), {}, {}, best=True)
    assert np.array_equal(ConditionalFlow.load(tmp_path / "run").predict(data[0]), fitted.predict(data[0]))


@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"hidden": 10**9}},
        {"options": {"hidden": 10**12}},
        {"options": {"hidden": 16}},
        {"model": "os.system"},
        {"model": "ffjord", "options": {"trace": "hutchinson"}},
        {"columns": []},
        {"columns": ["y", "z"]},
        {"supports": [[1, 0]]},
        {"dtype": "float8"},
        {"given": "x0"},
        {"given": []},
        {"given": [ONE]},
        {"given": [ONE, ONE]},
        {"given": [ONE, {"name": "x1"}]},
        {"given": [ONE, {"name": 3, "categories": None}]},
        {"given": [ONE, {"name": "x1", "categories": "ab"}]},
        {"given": [ONE, {"name": "x1", "categories": ["b", "a"]}]},
        {"given": [ONE, {"name": "x1", "categories": [str(n) for n in range(10**4)]}]},
        {"given": [ONE, {"name": "x1", "categories": None, "filler": "1"}]},
        {"given": [{"name": f"x{i}", "categories": None} for i in range(200_000)]},
    ],
)
def test_hostile_config_is_refused(fitted, tmp_path, changes):
    run = RunFolder.create(tmp_path / "run", {**fitted._config, **changes})
    run.save(0, weights_of(fitted), {}, {}, best=True)
    with pytest.raises(CheckpointError):
        ConditionalFlow.load(tmp_path / "run")


def test_hostile_units_are_refused(fitted, tmp_path):
    for part in ("given_units", "flow.transform"):
        stored = weights_of(fitted)
        scale = next(name for name in stored if name.startswith(part) and name.endswith("scale"))
        stored[scale] = -stored[scale]
        run = RunFolder.create(tmp_path / part, fitted._config)
        run.save(0, stored, {}, {}, best=True)
        with pytest.raises(CheckpointError, match="scale"):
            restore_conditional(run)
