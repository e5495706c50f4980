"""ConditionalFlow with several members: the mean of their densities in every answer, in files and from the shell."""

import json
import math
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from cli_helpers import one_sentence

from rosenblatt import ConditionalFlow
from rosenblatt.cli import main
from rosenblatt.core.allocation_limit import AllocationLimit
from rosenblatt.core.errors import CheckpointError, DataError, OptionError
from rosenblatt.data import Table, read_table
from rosenblatt.ensemble import Ensemble, fit_ensemble
from rosenblatt.predictive import Predictive
from rosenblatt.train import FitConfig, RunFolder
from rosenblatt.train.session import Session

QUICK = {"model_options": {"hidden": 8, "widths": [4, 1]}, "max_steps": 40, "batch_size": 64, "learning_rate": 0.01}
TWO = {**QUICK, "members": 2, "given_noise": 0.1, "validation_fraction": 0.3, "random_state": 3}


def made(rows=160, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 2))
    return x, 100 + 30 * x[:, 0] + 10 * np.exp(0.5 * x[:, 1]) * generator.normal(size=rows)


@pytest.fixture(scope="module")
def data():
    return made()


@pytest.fixture(scope="module")
def fitted(data):
    return ConditionalFlow(**TWO).fit(*data)


@pytest.fixture(scope="module")
def pair(data):
    """Two dependent targets, and a support of one of them, so that the members have units of their own."""
    x, y = data
    size = np.exp(0.01 * y + 0.3 * np.random.default_rng(5).normal(size=len(y)))
    options = {"support": [None, [0, None]], "members": 3, "max_steps": 40, "batch_size": 64, "random_state": 0}
    return ConditionalFlow("maf", **options).fit(x, np.column_stack([y, size]))


def tensors(flow, *rows):
    return [torch.as_tensor(np.asarray(part, dtype=np.float64).reshape(len(part), -1)) for part in rows]


def test_density_and_mean_are_those_of_the_members(fitted, data):
    x, y = data
    values, given = tensors(fitted, y, x)
    with torch.no_grad():
        each = torch.stack([member.log_prob(values, given) for member in fitted.model_.members])
    assert isinstance(fitted.model_, Ensemble)
    assert np.allclose(fitted.log_prob(x, y), torch.logsumexp(each, dim=0) - math.log(2), rtol=0, atol=1e-12)
    assert float((each[0] - each[1]).abs().max()) > 0.01
    means = [Predictive(member).mean(given)[:, 0] for member in fitted.model_.members]
    assert np.allclose(fitted.predict(x), torch.stack(means).mean(dim=0), rtol=1e-12)


def test_it_is_the_ensemble_of_fit_ensemble(fitted, data):
    values, given = tensors(fitted, data[1], data[0])
    fit = FitConfig(epochs=100, max_steps=40, batch_size=64, learning_rate=0.01, validation_fraction=0.3, seed=3)
    law = fit_ensemble(
        "nits",
        Table(values, ["y"]),
        given,
        members=2,
        given_noise=0.1,
        options=QUICK["model_options"],
        config=FitConfig.from_dict(
            {**fit.to_dict(), **{n: getattr(fitted, n) for n in ("patience", "ema_decay", "clip_norm")}}
        ),
    )
    with torch.no_grad():
        assert np.array_equal(fitted.log_prob(*data), law.log_prob(values, given))


def test_quantiles_invert_the_cdf_and_draws_follow_it(fitted, data):
    x = data[0][:40]
    for level in (1e-6, 0.1, 0.5, 0.975):
        quantile = fitted.predict_quantiles(x, [level])[:, 0]
        assert fitted.cdf(x, quantile) == pytest.approx(np.full(40, level), rel=1e-8)
    low_high = fitted.predict_interval(x, 0.8)
    assert np.allclose(low_high, fitted.predict_quantiles(x, [0.1, 0.9]))
    assert np.array_equal(fitted.predict(x, kind="median"), fitted.predict_quantiles(x, [0.5])[:, 0])
    alone = np.concatenate([fitted.predict_quantiles(x[row : row + 1], [0.3]) for row in range(4)])
    assert np.allclose(alone, fitted.predict_quantiles(x, [0.3])[:4], rtol=1e-10)
    draws = fitted.sample(x[:4], 5000, random_state=1)
    assert draws.shape == (5000, 4, 1)
    u = np.sort(fitted.cdf(np.repeat(x[:4], 5000, axis=0), draws[..., 0].T.reshape(-1)))
    n = len(u)
    gap = np.abs(u - (np.arange(n) + 0.5) / n).max()
    assert gap < math.sqrt(math.log(2 / 1e-6) / (2 * n)) + 0.5 / n  # Dvoretzky-Kiefer-Wolfowitz at 1e-6


def test_held_out_rows_are_judged_by_the_member_that_held_them_out(fitted, data):
    x, y = data
    values, given = tensors(fitted, y, x)
    with torch.no_grad():
        each = torch.stack([member.log_prob(values, given) for member in fitted.model_.members])
    size = round(0.3 * len(y))
    best = [report.best_validation for report in fitted.model_.reports]
    assert fitted.validation_score_.value == pytest.approx(sum(best) / 2, abs=1e-4)
    assert fitted.report_.best_validation == pytest.approx(sum(best) / 2)
    assert fitted.report_.steps == 80
    spread = float(each.std())
    assert 0 < fitted.validation_score_.standard_error < 3 * spread / math.sqrt(2 * size)
    assert fitted.gaussian_score_ is not None
    assert fitted.log_score(x, y) >= float(each.mean())


def test_weights_count(data):
    x, y = data
    weight = np.random.default_rng(1).integers(0, 3, size=len(y)).astype(float)
    known = weight > 0
    one = ConditionalFlow(**TWO).fit(x, y, weight)
    other = ConditionalFlow(**TWO).fit(x[known], y[known], weight[known])
    assert np.array_equal(one.log_prob(x, y), other.log_prob(x, y))
    plain = ConditionalFlow(**TWO).fit(x[known], y[known])
    assert not np.allclose(one.log_prob(x, y), plain.log_prob(x, y), atol=1e-3)


def test_rounded_targets_are_spread_over_their_cells(data):
    x, y = data
    counts = np.floor(y / 10)
    flow = ConditionalFlow(**{**TWO, "max_steps": 150}, dequantise={"y": 1.0}).fit(x, counts)
    grid = np.linspace(-30, 60, 3001)
    density = np.exp(flow.log_prob(np.repeat(x[:1], len(grid), axis=0), grid))
    assert density.sum() * 0.03 == pytest.approx(1, abs=1e-3)
    # The cell of a count begins at it, so the fit lies half a cell above the counts.
    assert float((flow.predict(x) - counts).mean()) == pytest.approx(0.5, abs=0.4)
    single = ConditionalFlow(**{**TWO, "members": 1, "max_steps": 150}, dequantise={"y": 1.0}).fit(x, counts)
    assert flow.log_score(x, counts) == pytest.approx(single.log_score(x, counts), abs=0.2)


def test_noise_of_a_single_fit(data):
    x, y = data
    one = {**TWO, "members": 1}
    quiet, noisy = (ConditionalFlow(**{**one, "given_noise": 0.0, "noise": size}).fit(x, y) for size in (0.0, 3.0))
    widths = [float(np.diff(flow.predict_interval(x, 0.5)).mean()) for flow in (quiet, noisy)]
    assert widths[1] > 1.5 * widths[0]


def test_several_targets_are_predicted_by_draws(pair, data):
    x = data[0][:6]
    drawn = pair.sample(x, 20_000, random_state=0)
    mean, quantiles = pair.predict(x), pair.predict_quantiles(x, [0.25, 0.75])
    assert mean.shape == (6, 2)
    assert quantiles.shape == (6, 2, 2)
    deviation = drawn.std(axis=0)
    assert np.abs(mean - drawn.mean(axis=0)).max() < 0.1 * deviation.max()
    found = (drawn < quantiles[..., :1].transpose(2, 0, 1)).mean(axis=0)
    assert np.allclose(found, 0.25, atol=0.03)
    assert np.allclose(pair.predict(x[2:3]), mean[2:3], rtol=1e-10)
    assert np.array_equal(pair.predict(x), mean)
    for ask in (pair.cdf, pair.pit):
        with pytest.raises(OptionError, match="2 values have no CDF"):
            ask(x, mean)


def test_save_and_load_keep_every_bit(fitted, pair, data, tmp_path):
    x, y = data
    for name, flow, targets in (("one", fitted, y), ("two", pair, pair.predict(x))):
        flow.save(tmp_path / name)
        again = ConditionalFlow.load(tmp_path / name)
        assert np.array_equal(again.log_prob(x, targets), flow.log_prob(x, targets))
        assert np.array_equal(again.predict_quantiles(x[:5], [0.1, 0.9]), flow.predict_quantiles(x[:5], [0.1, 0.9]))
        for argument in ("members", "noise", "given_noise", "random_state", "support"):
            assert bool(getattr(again, argument)) == bool(getattr(flow, argument))
        assert again.get_params()["members"] == flow.members
        assert again.validation_score_ == flow.validation_score_
        assert again.report_.history == flow.report_.history
        assert not list((tmp_path / name).glob("member-*"))
        again.save(tmp_path / f"{name} again")
        digests = [RunFolder.open(tmp_path / folder).load().model for folder in (name, f"{name} again")]
        assert all(torch.equal(digests[0][key], digests[1][key]) for key in digests[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"members": 10**9},
        {"members": 1000, "member_scales": [[1.0, 1.0]] * 1000},
        {"members": 2, "member_scales": [[1.0, 1.0]] * 2},
        {"members": 4},
        {"members": 1},
        {"members": 0},
        {"members": -4},
        {"members": True},
        {"members": 3.0},
        {"members": "3"},
        {"members": None},
        {"member_scales": None},
        {"member_scales": [[1.0, 1.0]] * 2},
        {"member_scales": [[1.0, 1.0], [1.0, 1.0], ["a", 1.0]]},
        {"member_scales": [[1.0]] * 3},
        {"member_scales": [[1.0, 0.0]] * 3},
        {"member_scales": 3},
        {"options": {"hidden": 10**9}},
    ],
)
def test_hostile_config_is_refused(pair, tmp_path, changes):
    weights = {name: t if ".map." in name else t.float() for name, t in pair.model_.state_dict().items()}
    run = RunFolder.create(tmp_path / "run", {**pair._config, **changes})
    run.save(0, weights, {}, {}, best=True)
    with pytest.raises(CheckpointError):
        ConditionalFlow.load(tmp_path / "run")


def test_counts_of_a_repetition_are_held_against_the_file():
    counts = torch.tensor([10**12, 1])
    with AllocationLimit(100, 10), pytest.raises(OptionError, match="far more weights"):
        torch.arange(2).repeat_interleave(counts)
    with AllocationLimit(100, 10):
        assert torch.arange(2).repeat_interleave(torch.tensor([2, 1])).tolist() == [0, 0, 1]


def test_a_run_keeps_its_members_and_resumes_bit_for_bit(data, tmp_path):
    x, y = data
    options = {**TWO, "max_steps": 12, "fit_options": {"checkpoint_every": 1, "keep_last": 99, "validate_every": 4}}
    whole = ConditionalFlow(**options, run=tmp_path / "whole").fit(x, y)
    assert np.array_equal(ConditionalFlow.load(tmp_path / "whole").log_prob(x, y), whole.log_prob(x, y))
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    for folder in [*part.glob("step-*"), *part.glob("member-1/step-*")]:
        if folder.parent == part or int(folder.name.removeprefix("step-")) > 5:
            shutil.rmtree(folder)
    kept = (part / "member-0" / "step-00000012" / "MANIFEST.json").stat().st_mtime_ns
    with pytest.raises(CheckpointError, match="not all trained yet"):
        ConditionalFlow.load(part)
    resumed = ConditionalFlow.resume(part, x, y)
    assert [report.resumed_from for report in resumed.model_.reports] == [12, 5]
    assert (part / "member-0" / "step-00000012" / "MANIFEST.json").stat().st_mtime_ns == kept
    assert np.array_equal(resumed.log_prob(x, y), whole.log_prob(x, y))
    assert np.array_equal(ConditionalFlow.load(part).log_prob(x, y), whole.log_prob(x, y))
    alone = ConditionalFlow.load(part / "member-1")
    values, given = tensors(alone, y, x)
    with torch.no_grad():
        assert np.array_equal(alone.log_prob(x, y), whole.model_.members[1].log_prob(values, given))
    again = ConditionalFlow(**{**options, "members": 1}, run=part, overwrite=True).fit(x, y)
    assert not list(part.glob("member-*"))
    assert np.array_equal(ConditionalFlow.load(part).log_prob(x, y), again.log_prob(x, y))


def test_an_interrupted_run_goes_on(data, tmp_path, monkeypatch):
    x, y = data
    options = {**TWO, "members": 3, "max_steps": 8}
    whole = ConditionalFlow(**options).fit(x, y)
    steps, original = [], Session.step

    def step(session, batch):
        steps.append(1)
        if len(steps) == 11:
            signal.raise_signal(signal.SIGTERM)
        return original(session, batch)

    monkeypatch.setattr(Session, "step", step)
    part = ConditionalFlow(**options, run=tmp_path / "run").fit(x, y)
    assert part.report_.stopped == "interrupted"
    assert part.report_.signal == signal.SIGTERM
    assert len(part.model_.members) == 2
    part.save(tmp_path / "so far")
    assert np.array_equal(ConditionalFlow.load(tmp_path / "so far").log_prob(x, y), part.log_prob(x, y))
    resumed = ConditionalFlow.resume(tmp_path / "run", x, y)
    assert np.array_equal(resumed.log_prob(x, y), whole.log_prob(x, y))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"members": 0}, OptionError, "members: 0 came"),
        ({"members": 2.0}, OptionError, "members: 2.0 came"),
        ({"members": 1001}, OptionError, "members: 1001 came"),
        ({"members": 90}, DataError, "160 rows came for 90 members"),
        ({"given_noise": -0.1}, OptionError, "given_noise: -0.1 came"),
        ({"noise": math.nan}, OptionError, "noise: nan came"),
        ({"noise": "much"}, OptionError, "noise: 'much' came"),
        ({"noise": 0.1, "support": [0, None]}, OptionError, "noise: 0.1 came with a support"),
    ],
)
def test_wrong_options_raise(data, options, error, message):
    with pytest.raises(error, match=message):
        ConditionalFlow(**{**TWO, **options}).fit(data[0], np.abs(data[1]) + 1)


def test_command_line(tmp_path, capsys):
    x, y = made(rows=200)
    table = tmp_path / "rows.csv"
    frame = pd.DataFrame({"a": x[:, 0], "y": y, "z": 0.01 * y + np.random.default_rng(1).normal(size=200)})
    frame.to_csv(table, index=False)
    quick = ["--option", "hidden=8", "--max-steps", "10", "--batch-size", "64", "--members", "2"]
    run, given = (
        tmp_path / "run",
        ["--target", "y", "--columns", "a", "--given-noise", "0.1", "--option", "widths=[4,1]"],
    )
    assert main(["fit", str(table), *given, *quick, "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "--members=2" in said
    assert {"reliability.png", "curves.png", "training.png"} <= {path.name for path in run.iterdir()}
    assert json.loads((run / "config.json").read_text())["config"]["members"] == 2
    flow = ConditionalFlow.load(run)
    assert flow.test_scores_ is not None
    rows = frame[["a"]]
    assert main(["score", str(run), str(table), "--out", str(tmp_path / "s.csv")]) == 0
    names, scores = read_table(tmp_path / "s.csv")
    assert names == ("log_density", "pit_y")
    assert np.allclose(scores[:, 0], flow.log_prob(rows, frame["y"]), rtol=1e-9)
    assert np.allclose(scores[:, 1:], flow.pit(rows, frame["y"]), atol=1e-9)
    words = ["quantiles", str(run), str(table), "--levels", "0.1,0.5", "--out", str(tmp_path / "q.csv")]
    assert main(words) == 0
    expected = flow.predict_quantiles(rows, [0.1, 0.5])[:, 0]
    assert np.allclose(read_table(tmp_path / "q.csv")[1], expected, rtol=1e-9)
    assert main(["sample", str(run), "-n", "2", "--given", str(table), "--out", str(tmp_path / "d.csv")]) == 0
    assert read_table(tmp_path / "d.csv")[1].shape == (400, 2)
    assert main(["plot", str(run), "--out", str(tmp_path / "plots")]) == 0
    capsys.readouterr()
    assert main(["info", str(run)]) == 0
    assert "2 fits, averaged" in capsys.readouterr().out
    shutil.rmtree(next(run.glob("step-*")))
    shutil.rmtree(run / "member-1")
    assert main(["fit", "--resume", str(run)]) == 0
    assert np.array_equal(ConditionalFlow.load(run).log_prob(rows, frame["y"]), flow.log_prob(rows, frame["y"]))
    capsys.readouterr()
    two = tmp_path / "two"
    assert main(["fit", str(table), "--target", "y,z", "--model", "maf", *quick, "--out", str(two)]) == 0
    assert "intervals_2.png" in capsys.readouterr().out
    assert main(["score", str(two), str(table), "--out", str(tmp_path / "t.csv")]) == 0
    assert read_table(tmp_path / "t.csv")[0] == ("log_density",)
    capsys.readouterr()
    for words in (["--columns", "a,y", "--members", "2"], ["--target", "y", "--members", "0"]):
        assert main(["fit", str(table), *words, "--out", str(tmp_path / "none")]) == 2
        assert "members" in one_sentence(capsys.readouterr().err)
        assert not (tmp_path / "none").exists()
