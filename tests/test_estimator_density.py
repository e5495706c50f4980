"""What FlowDensity promises about its numbers, its tables and its files."""

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

from rosenblatt.assembly import assemble, restore
from rosenblatt.core.errors import CheckpointError, DataError
from rosenblatt.core.types import Support
from rosenblatt.data import Table, write_table
from rosenblatt.estimators import DataWarning, FlowDensity
from rosenblatt.preparation import parse_supports
from rosenblatt.train import RunFolder

SMALL = {"model_options": {"hidden": 8, "blocks": 1, "widths": [4, 1]}, "epochs": 4, "batch_size": 64}


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 2))
    return np.column_stack([x[:, 0], 0.8 * x[:, 0] + 0.6 * x[:, 1], generator.exponential(size=300)])


@pytest.fixture(scope="module")
def frame(rows):
    return pd.DataFrame(rows, columns=["u", "v", "w"])


@pytest.fixture(scope="module")
def fitted(frame):
    return FlowDensity(**SMALL, support={"w": [0, None]}, random_state=0).fit(frame)


def test_gaussian_is_the_closed_form(rows):
    density = FlowDensity("gaussian", validation_fraction=0, dtype="float64").fit(rows * [1.0, 1e5, 1e-3])
    mean, covariance = rows.mean(axis=0), np.cov(rows.T, bias=True)
    expected = stats.multivariate_normal(mean, covariance).logpdf(rows) - math.log(1e5 * 1e-3)
    assert np.allclose(density.score_samples(rows * [1.0, 1e5, 1e-3]), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("scale", "offset"), [(1e5, 1e3), (1e-5, 0.0), (1.0, 1.6e9)])
def test_units_shift_the_log_density_exactly(rows, scale, offset):
    plain = FlowDensity(**SMALL, random_state=1).fit(rows)
    moved = FlowDensity(**SMALL, random_state=1).fit(rows * scale + offset)
    difference = moved.score_samples(rows * scale + offset) - plain.score_samples(rows)
    assert np.allclose(difference, -3 * math.log(scale), rtol=0, atol=1e-3)
    draws = moved.sample(50, random_state=0), plain.sample(50, random_state=0)
    assert np.allclose((draws[0] - offset) / scale, draws[1], rtol=0, atol=1e-3)


def test_density_over_a_half_line_integrates_to_one(rows):
    density = FlowDensity(**SMALL, support=[[0, None]], random_state=0).fit(rows[:, 2:])
    x = np.concatenate([np.geomspace(1e-9, 1e-3, 2000), np.linspace(1e-3, 60, 40_000)[1:]])
    assert np.trapezoid(np.exp(density.score_samples(x[:, None])), x) == pytest.approx(1, abs=2e-3)


def test_outside_the_support_the_density_is_zero(fitted):
    outside = pd.DataFrame([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]], columns=["u", "v", "w"])
    scores, u = fitted.score_samples(outside), fitted.cdf(outside)
    assert scores[0] == -np.inf
    assert np.isfinite(scores[1])
    assert u[0, 2] == 0
    assert np.isnan(u[0, :2]).all()
    assert ((u[1] > 0) & (u[1] < 1)).all()


def test_one_pass_gives_density_and_both_tails(fitted, rows):
    flow = assemble("gaussian", Table.from_any(rows), supports={"x2": Support(0.0)}).double()
    flow.initialise(torch.tensor(rows))
    strange = [[0, 0, -1.0], [0, 0, np.nan], [np.inf, 0, 1.0], [30.0, -30.0, 1e9]]
    x = torch.tensor(np.concatenate([rows, strange]))
    for model in (flow, fitted.model_):
        log_prob, u, complement = model.log_prob_and_uniform(x)
        torch.testing.assert_close(log_prob, model.log_prob(x), rtol=1e-12, atol=0, equal_nan=True)
        torch.testing.assert_close(u, model.to_uniform(x), rtol=1e-12, atol=1e-15, equal_nan=True)
        torch.testing.assert_close(complement, 1 - u, rtol=0, atol=1e-15, equal_nan=True)
    log_prob, u, complement = flow.log_prob_and_uniform(x[-1:])
    expected = (30 - rows[:, 0].mean()) / rows[:, 0].std()
    assert u[0, 0] == 1
    assert math.log(complement[0, 0]) == pytest.approx(stats.norm.logsf(expected), rel=1e-4)


def test_rosenblatt_is_the_cdf_in_one_dimension(rows):
    density = FlowDensity(**SMALL, random_state=0).fit(rows[:, :1])
    x = np.linspace(-2, 2, 9)[:, None]
    step = 1e-5
    slope = (density.cdf(x + step) - density.cdf(x - step))[:, 0] / (2 * step)
    assert np.allclose(slope, np.exp(density.score_samples(x)), rtol=1e-6)


def test_rosenblatt_round_trip(fitted, frame):
    u = fitted.rosenblatt(frame)
    assert ((u >= 0) & (u <= 1)).all()
    assert np.allclose(fitted.inverse_rosenblatt(u), frame.to_numpy(), rtol=0, atol=1e-9)
    with pytest.raises(DataError, match=r"U: .*\[0, 1\]"):
        fitted.inverse_rosenblatt(u + 1)


def test_score_is_the_mean_and_does_not_depend_on_the_batch(fitted, frame):
    scores = fitted.score_samples(frame)
    assert fitted.score(frame) == scores.mean()
    assert fitted.score_samples(frame.iloc[7:8])[0] == pytest.approx(scores[7], abs=1e-11)


def test_samples_have_the_density(rows):
    density = FlowDensity(**SMALL, support=[None, None, [0, None]], random_state=0).fit(rows)
    u = density.rosenblatt(density.sample(4000, random_state=2))
    band = math.sqrt(math.log(2 / 1e-6) / 8000)
    for column in u.T:
        assert stats.kstest(column, "uniform").statistic < band


def test_every_kind_of_table_gives_the_same_bits(frame, fitted):
    expected = fitted.score_samples(frame)
    kinds = {
        "polars": pl.from_pandas(frame),
        "pyarrow": pa.Table.from_pandas(frame),
        "mapping": {name: frame[name].to_numpy() for name in frame},
        "table": Table.from_any(frame),
    }
    for kind, table in kinds.items():
        again = FlowDensity(**SMALL, support={"w": [0, None]}, random_state=0).fit(table)
        assert np.array_equal(again.score_samples(table), expected), kind
        drawn = again.sample(4, random_state=5)
        assert type(drawn) is (type(table) if kind in ("polars", "pyarrow") else np.ndarray)
        assert np.array_equal(np.asarray(drawn), fitted.sample(4, random_state=5).to_numpy())
    array = FlowDensity(**SMALL, support=[None, None, [0, None]], random_state=0).fit(frame.to_numpy())
    assert np.array_equal(array.score_samples(frame.to_numpy()), expected)
    assert fitted.sample(2).columns.tolist() == ["u", "v", "w"]


def test_wrong_columns_raise(fitted, frame, rows):
    for wrong in (frame[["v", "u", "w"]], frame.rename(columns={"w": "z"}), frame[["u", "v"]]):
        with pytest.raises(ValueError, match="feature names"):
            fitted.score_samples(wrong)
        with pytest.raises(DataError, match="columns: "):
            fitted.score_samples(Table.from_any(wrong))
    with pytest.raises(ValueError, match="4 features"):
        FlowDensity(**SMALL).fit(rows).score_samples(np.ones((5, 4)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_raise(fitted, frame, bad):
    spoilt = frame.copy()
    spoilt.loc[3, "v"] = bad
    with pytest.raises(DataError, match="row 3, column 'v'"):
        fitted.score_samples(spoilt)
    with pytest.raises(DataError, match="row 3, column 'v'"):
        FlowDensity(**SMALL).fit(spoilt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "magic"}, "model: 'magic' is unknown"),
        ({"model_options": {"depth": 3}}, "'depth' is not an option"),
        ({"support": {"q": [0, 1]}}, "no column 'q'"),
        ({"support": {"w": [1, 0]}}, "must be below"),
        ({"support": {"w": 3}}, "a pair"),
        ({"support": {"u": [0, None]}}, "outside the declared support"),
        ({"support": [[0, 1]]}, "one \\[lower, upper\\] or None per column"),
        ({"dequantise": "yes"}, "dequantise: 'yes'"),
        ({"dequantise": {"q": 1.0}}, "no column 'q'"),
        ({"epochs": 0}, "epochs: 0"),
        ({"fit_options": {"epochs": 3}}, "fit_options: 'epochs'"),
        ({"fit_options": {"speed": 3}}, "'speed' is unknown"),
        ({"random_state": -1}, "random_state: -1"),
    ],
)
def test_wrong_options_raise(frame, options, message):
    with pytest.raises(ValueError, match=message):
        FlowDensity(**{**SMALL, **options}).fit(frame)


def test_one_row_and_no_rows_raise(frame):
    for few in (frame.iloc[:1], frame.iloc[:0]):
        with pytest.raises(DataError, match="at least two rows"):
            FlowDensity(**SMALL).fit(few)


def test_dequantise_spreads_grid_columns():
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"x": generator.normal(size=500), "minute": generator.integers(0, 60, 500)})
    with pytest.warns(DataWarning, match="'minute'"):
        FlowDensity(**SMALL, random_state=0).fit(table)
    density = FlowDensity(**SMALL, dequantise="auto", support={"minute": [0, 60]}, random_state=0).fit(table)
    assert density.dequantise_ == {"minute": 1.0}
    spread = density.spread(table)
    assert np.array_equal(np.floor(spread[:, 1]), table["minute"])
    assert np.array_equal(spread, density.spread(table))
    assert density.score(table) == pytest.approx(
        density.score_samples(pd.DataFrame(spread, columns=table.columns)).mean()
    )


def test_weights_count_like_copies(rows):
    weight = np.arange(300) % 3
    weighted = FlowDensity("gaussian", validation_fraction=0, dtype="float64").fit(rows, sample_weight=weight)
    with pytest.warns(DataWarning, match="distinct values"):
        copied = FlowDensity("gaussian", validation_fraction=0, dtype="float64").fit(np.repeat(rows, weight, axis=0))
    assert np.allclose(weighted.score_samples(rows), copied.score_samples(rows), rtol=0, atol=1e-9)


def test_scores_of_held_out_rows_beside_the_gaussian(fitted, frame):
    assert fitted.validation_score_.value == pytest.approx(fitted.report_.best_validation, abs=1e-4)
    assert 0 < fitted.validation_score_.standard_error < 1
    assert fitted.gaussian_score_.value == pytest.approx(-3.6, abs=0.8)
    assert FlowDensity(**SMALL, validation_fraction=0).fit(frame).validation_score_ is None


def test_leaves_global_random_state_alone(frame):
    np.random.seed(1)  # noqa: NPY002 - the state that must not change
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    FlowDensity(**SMALL).fit(frame).sample(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_pickle_in_memory(fitted, frame):
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301 - our own bytes
    assert np.array_equal(again.score_samples(frame), fitted.score_samples(frame))


def test_save_and_load(fitted, frame, tmp_path):
    fitted.save(tmp_path / "model")
    again = FlowDensity.load(tmp_path / "model")
    assert np.array_equal(again.score_samples(frame), fitted.score_samples(frame))
    assert isinstance(again.sample(2), pd.DataFrame)
    assert again.validation_score_ == fitted.validation_score_
    assert again.report_ == fitted.report_
    assert again.get_params()["support"] == {"w": [0.0, None]}
    with pytest.raises(ValueError, match="feature names"):
        again.score_samples(frame[["v", "u", "w"]])
    with pytest.raises(CheckpointError, match="holds a run already"):
        fitted.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="without training state"):
        FlowDensity.resume(tmp_path / "model", frame)


def test_run_folder_holds_the_fitted_model(frame, tmp_path):
    density = FlowDensity(**SMALL, random_state=0, run=tmp_path / "run", provenance={"command": "fit"}).fit(frame)
    again = FlowDensity.load(tmp_path / "run")
    assert np.array_equal(again.score_samples(frame), density.score_samples(frame))
    assert again.run_.config["provenance"] == {"command": "fit"}
    assert again.run_.config["data"]["digest"] == Table.from_any(frame).digest()


@pytest.mark.parametrize("stop", [1, 7])
def test_resume_is_bit_for_bit(frame, tmp_path, stop):
    path = tmp_path / "rows.csv"
    write_table(path, list(frame), frame.to_numpy())
    whole = FlowDensity(**SMALL, random_state=0, run=tmp_path / "whole").fit(path)
    # The same schedule, cut by a limit that does not bend it: the folder as it was after `stop` steps.
    part = FlowDensity(
        **SMALL, random_state=0, run=tmp_path / "part", fit_options={"checkpoint_every": 1, "keep_last": 99}
    )
    part.fit(path)
    for folder in (tmp_path / "part").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > stop:
            shutil.rmtree(folder)
    resumed = FlowDensity.resume(tmp_path / "part")
    assert resumed.report_.resumed_from == stop
    for name, tensor in whole.model_.state_dict().items():
        assert torch.equal(tensor, resumed.model_.state_dict()[name]), name
    assert np.array_equal(FlowDensity.load(tmp_path / "part").score_samples(frame), whole.score_samples(frame))


def test_resume_wants_the_same_rows(frame, tmp_path):
    FlowDensity(**SMALL, random_state=0, run=tmp_path / "run").fit(frame)
    with pytest.raises(DataError, match="in memory"):
        FlowDensity.resume(tmp_path / "run")
    with pytest.raises(DataError, match="SHA-256"):
        FlowDensity.resume(tmp_path / "run", frame.iloc[::-1])


def _with_config(fitted, path, **changes):
    """A consistent run folder whose config says something else."""
    stored = {name: t.float() if "units" not in name else t for name, t in fitted.model_.state_dict().items()}
    run = RunFolder.create(path, {**fitted._config, **changes})
    run.save(0, stored, {}, {}, best=True)
    return run


@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"hidden": 10**12}},
        {"options": {"hidden": 60_000}},
        {"options": {"transforms": 10**9}},
        {"options": {"widths": [10**9, 1]}},
        {"options": {"hidden": 16}},
        {"options": {"hidden": "8"}},
        {"options": None},
        {"model": "os.system"},
        {"model": "../../evil"},
        {"columns": []},
        {"columns": ["u", "v", 3]},
        {"columns": ["u"] * 200_000},
        {"supports": [[0, 1]]},
        {"supports": [[1, 0]] * 3},
        {"supports": "all"},
        {"dtype": "float8"},
        {"dtype": "float64"},
    ],
)
def test_hostile_config_is_refused(fitted, tmp_path, changes):
    with pytest.raises(CheckpointError):
        restore(_with_config(fitted, tmp_path / "run", **changes))


def test_hostile_scale_is_refused(fitted, tmp_path):
    run = RunFolder.create(tmp_path / "run", fitted._config)
    stored = {name: t.float() for name, t in fitted.model_.state_dict().items()}
    scale = next(name for name in stored if name.endswith("scale"))
    for name in stored:
        if ".map." in name:
            stored[name] = fitted.model_.state_dict()[name]
    stored[scale] = -stored[scale]
    run.save(0, stored, {}, {}, best=True)
    with pytest.raises(CheckpointError, match="scale"):
        restore(run)


def test_parse_supports_takes_both_forms():
    expected = {"b": Support(0.0, math.inf)}
    assert parse_supports({"b": [0, None]}, ["a", "b"]) == expected
    assert parse_supports([None, (0, None)], ["a", "b"]) == expected
    assert parse_supports([[None, None], None], ["a", "b"]) == {}
