"""The command line on regressions: `fit --target`, and `score`, `sample --given` and `quantiles` on what it leaves."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_helpers import one_sentence
from scipy import stats

from rosenblatt import ConditionalFlow
from rosenblatt.cli import given, main
from rosenblatt.data import read_table

QUICK = ("--option", "hidden=8", "--option", "widths=[4,1]", "--max-steps", "10", "--batch-size", "64", "--no-plots")


def frame(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    a, wet = generator.normal(size=rows), generator.random(rows) < 0.5
    kind = np.where(a > 0, "high", "low")
    y = 10 + 3 * a + np.where(wet, 0.5, 2.0) * generator.normal(size=rows)
    return pd.DataFrame({"a": a, "kind": kind, "wet": wet, "y": y, "z": 0.3 * y + generator.normal(size=rows)})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and runs with one target and with two."""
    folder = tmp_path_factory.mktemp("conditional")
    frame().to_csv(folder / "rows.csv", index=False)
    frame().to_parquet(folder / "rows.parquet")
    common = ["fit", str(folder / "rows.csv")]
    assert main([*common, "--target", "y", "--columns", "a,kind,wet", "--out", str(folder / "one"), *QUICK]) == 0
    assert main([*common, "--target", "y,z", "--out", str(folder / "two"), "--model", "gaussian", "--no-plots"]) == 0
    return folder


def test_fit_says_the_test_score_beside_the_linear_gaussian(
    tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(place / "rows.csv")
    table.iloc[:150].to_csv(tmp_path / "fit.csv", index=False)
    table.iloc[150:].to_csv(tmp_path / "test.csv", index=False)
    words = [
        "--target",
        "y",
        "--columns",
        "a,wet",
        "--test",
        str(tmp_path / "test.csv"),
        "--model",
        "gaussian",
        "--no-plots",
    ]
    run = tmp_path / "run"
    assert main(["fit", str(tmp_path / "fit.csv"), *words, "--validation-fraction", "0", "--out", str(run)]) == 0
    said = capsys.readouterr().out
    report = json.loads((run / "report.json").read_text())["nats_per_row"]["test"]
    design = np.column_stack([np.ones(200), table["a"], table["wet"]]).astype(float)
    fit, y = design[:150], table["y"].to_numpy()
    mean = design @ np.linalg.lstsq(fit, y[:150], rcond=None)[0]
    scores = stats.norm(mean[150:], np.sqrt(((y - mean)[:150] ** 2).mean())).logpdf(y[150:])
    expected = [scores.mean(), scores.std(ddof=1) / np.sqrt(50)]
    assert report["gaussian"] == pytest.approx(expected, rel=1e-6)
    assert report["model"] == pytest.approx(expected, rel=1e-4)  # whose weights are stored in float32
    assert re.search(rf"linear gaussian +{expected[0]:.4f} \+- {expected[1]:.4f}\n", said)
    assert "y: CRPS " in said
    assert f"rosenblatt quantiles {run} " in said


def test_score_is_that_of_the_estimator(place: Path) -> None:
    table = frame()
    for run, targets in (("one", ["y"]), ("two", ["y", "z"])):
        outs = []
        for source in ("rows.csv", "rows.parquet"):
            out = place / f"{run}.{source}"
            assert main(["score", str(place / run), str(place / source), "--out", str(out)]) == 0
            outs.append(read_table(out))
        flow = ConditionalFlow.load(place / run)
        X = table[["a", "kind", "wet"]]
        assert outs[0][0] == ("log_density", *(f"pit_{name}" for name in targets))
        assert np.allclose(outs[0][1][:, 0], flow.log_prob(X, table[targets]), rtol=1e-9, atol=0)
        assert np.allclose(outs[0][1][:, 1:], flow.pit(X, table[targets]), rtol=0, atol=1e-9)
        assert np.array_equal(outs[0][1], outs[1][1])


def test_quantiles_are_those_of_the_estimator(place: Path) -> None:
    for run, names in (("one", ["y_0.1", "y_0.5"]), ("two", ["y_0.1", "y_0.5", "z_0.1", "z_0.5"])):
        out = place / "quantiles.parquet"
        words = ["quantiles", str(place / run), str(place / "rows.csv"), "--levels", "0.1,0.5", "--out", str(out)]
        assert main(words) == 0
        found = read_table(out)
        assert list(found[0]) == names
        expected = ConditionalFlow.load(place / run).predict_quantiles(frame()[["a", "kind", "wet"]], [0.1, 0.5])
        assert np.allclose(found[1], expected.reshape(200, -1), rtol=1e-9, atol=1e-12)


def test_samples_given_rows_do_not_depend_on_processes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(given, "CHUNK_ROWS", 64)  # four chunks
    words = ["sample", str(place / "two"), "-n", "3", "--given", str(place / "rows.csv"), "--seed", "1"]
    drawn = []
    for processes in ("1", "2"):
        out = tmp_path / f"{processes}.csv"
        assert main([*words, "--processes", processes, "--out", str(out)]) == 0
        drawn.append(out.read_bytes())
        assert "drew 600 rows" in capsys.readouterr().err
    assert drawn[0] == drawn[1]
    names, rows = read_table(tmp_path / "1.csv")
    assert names == ("row", "y", "z")
    assert np.array_equal(rows[:, 0], np.repeat(np.arange(200), 3))
    flow = ConditionalFlow.load(place / "two")
    X = frame()[["a", "kind", "wet"]].iloc[rows[:, 0].astype(int)]
    u = flow.pit(X, rows[:, 1:])
    assert stats.kstest(u[:, 0], "uniform").pvalue > 1e-6
    assert main(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 601


def test_resume_goes_on_bit_for_bit(place: Path, tmp_path: Path) -> None:
    words = ["fit", str(place / "rows.csv"), "--target", "y", *QUICK, "--checkpoint-every", "1", "--keep-last", "99"]
    runs = [tmp_path / "whole", tmp_path / "part"]
    for run in runs:
        assert main([*words, "--out", str(run)]) == 0
    for step in runs[1].glob("step-*"):
        if int(step.name.removeprefix("step-")) > 4:
            shutil.rmtree(step)
    assert main(["fit", "--resume", str(runs[1])]) == 0
    X, y = frame()[["a", "kind", "wet", "z"]], frame()[["y"]]
    scores = [ConditionalFlow.load(run).log_prob(X, y) for run in runs]
    assert np.array_equal(*scores)


def test_missing_values_and_weights(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = frame()
    table.loc[[3, 5], "a"] = np.nan
    table["w"] = 1.0
    path = tmp_path / "holes.csv"
    table.to_csv(path, index=False)
    words = ["fit", str(path), "--target", "y", "--weight", "w", "--model", "gaussian", "--no-plots", "--out"]
    assert main([*words, str(tmp_path / "a")]) == 2
    assert "'a' has" in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "a").exists()
    assert main([*words, str(tmp_path / "b"), "--missing", "indicate"]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "b")]) == 0
    assert "given                   a, kind, wet, z\n" in capsys.readouterr().out
    table.loc[7, "y"] = np.nan
    table.to_csv(path, index=False)
    assert main(["score", str(tmp_path / "b"), str(path)]) == 2
    assert "row 7 (counted from 0) has a missing or infinite target" in one_sentence(capsys.readouterr().err)
    assert main(["score", str(tmp_path / "b"), str(path), "--keep-bad-rows", "--out", str(tmp_path / "s.csv")]) == 0
    scores = read_table(tmp_path / "s.csv")[1]
    assert np.flatnonzero(np.isnan(scores).any(axis=1)).tolist() == [7]


def test_plots_of_a_fit_and_of_a_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, table = tmp_path / "run", str(place / "rows.csv")
    words = ["--target", "y", "--columns", "a", "--test-fraction", "0.5", "--model", "gaussian"]
    assert main(["fit", table, *words, "--out", str(run)]) == 0
    expected = ["reliability.png", "intervals.png", "groups.png", "curves.png", "training.png"]
    assert f"({', '.join(['report.json', *expected])})" in capsys.readouterr().out
    for more in ([], ["--data", table]):
        assert main(["plot", str(run), *more, "--out", str(tmp_path / "plots")]) == 0
        drawn = [Path(line) for line in capsys.readouterr().out.splitlines()]
        assert [path.name for path in drawn] == expected
        assert all(path.stat().st_size > 1000 for path in drawn)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "TABLE", "--target", "q", "--out", "new"], "--target: there is no column 'q'"),
        (["fit", "TABLE", "--target", "kind", "--out", "new"], "numbers were expected"),
        (["fit", "TABLE", "--target", "y", "--columns", "y", "--out", "new"], "no column is left"),
        (["fit", "TABLE", "--target", "y", "--model", "rbig", "--out", "new"], "context: 6 came"),
        (["fit", "TABLE", "--target", "y", "--support", "y=[50,null]", "--out", "new"], "outside the declared support"),
        (["fit", "TABLE", "--target", "y", "--test-fraction", "2", "--out", "new"], "--test-fraction: 2.0 came"),
        (["fit", "--target", "y", "--out", "new"], "--target: the bundled set has none"),
        (["fit", "TABLE", "--columns", "a,y", "--missing", "indicate", "--out", "new"], "--missing: is for"),
        (["audit", "RUN"], "holds a density of targets given other columns"),
        (["sample", "RUN"], "add --given TABLE"),
        (["sample", "RUN", "-n", "0", "--given", "TABLE"], "--rows: 0 came"),
        (["quantiles", "RUN", "TABLE", "--levels", "0.5,1"], "--levels: '0.5,1' came"),
        (["quantiles", "RUN", "ODD"], "column 'kind' holds 'tall' in row 1"),
        (["score", "RUN", "SHORT"], "there is no column 'wet'"),
    ],
)
def test_errors_are_one_sentence(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    odd = frame().iloc[:4].copy()
    odd.loc[1, "kind"] = "tall"
    odd.to_csv(tmp_path / "odd.csv", index=False)
    odd[["a", "kind", "y"]].to_csv(tmp_path / "short.csv", index=False)
    names = {
        "TABLE": str(place / "rows.csv"),
        "RUN": str(place / "one"),
        "ODD": str(tmp_path / "odd.csv"),
        "SHORT": str(tmp_path / "short.csv"),
        "new": str(tmp_path / "new"),
    }
    assert main([names.get(word, word) for word in words]) == 2
    assert message in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()
