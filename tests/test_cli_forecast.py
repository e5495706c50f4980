"""`rosenblatt forecast`: a run from a table, forecasts from the run, and one sentence for what cannot be."""

import csv
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pa_parquet
import pytest
from cli_helpers import one_sentence

from rosenblatt.cli import main
from rosenblatt.forecasting import Forecaster

QUICK = ("--model", "made_mixture", "--option", "hidden=8", "--option", "components=2", "--epochs", "1", "-n", "20")


def table(path, rows=300, **more):
    rng = np.random.default_rng(0)
    hours = pd.date_range("2024-01-01", periods=rows, freq="h")
    load = 10 + np.sin(np.arange(rows) * np.pi / 12) + 0.2 * rng.normal(size=rows)
    pd.DataFrame({"date": hours, "load": load, "wind": rng.normal(size=rows).cumsum(), **more}).to_csv(
        path, index=False
    )
    return str(path)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecast")
    words = [table(folder / "t.csv"), "--time", "date", "--target", "load,wind", "--horizon", "6", *QUICK]
    assert main(["forecast", *words, "--out", str(folder / "run")]) == 0
    return folder


def test_a_run_has_forecast_paths_scores_and_pictures(fitted):
    rows = list(csv.DictReader((fitted / "run" / "forecast.csv").read_text().splitlines()))
    assert len(rows) == 12
    assert rows[0]["time"] == "2024-01-13T12:00"
    levels = [name for name in rows[0] if name.startswith("q")]
    for row in rows:
        assert np.all(np.diff([float(row[level]) for level in levels]) >= 0)
    paths = pd.read_csv(fitted / "run" / "samples.csv")
    assert list(paths) == ["path", "time", "load", "wind"]
    middle = paths[paths.time == "2024-01-13T14:00"]["wind"].median()
    assert middle == pytest.approx(float(next(r for r in rows[4:] if r["series"] == "wind")["q0.5"]))
    scores = json.loads((fitted / "run" / "backtest.json").read_text())
    assert list(scores) == ["last value", "seasonal naive", "autoregression", "made_mixture"]
    assert all(np.isfinite(pair).all() for means in scores.values() for pair in means.values())
    assert (fitted / "run" / "fan-1.png").stat().st_size > 5000


def test_a_run_forecasts_from_the_end_of_its_table_and_of_another(fitted, capsys, tmp_path):
    capsys.readouterr()
    assert main(["forecast", str(fitted / "run"), "-n", "20"]) == 0
    assert capsys.readouterr().out == (fitted / "run" / "forecast.csv").read_text()
    other = table(tmp_path / "longer.csv", 310)
    assert main(["forecast", str(fitted / "run"), other, "-n", "20", "--out", str(tmp_path / "q.parquet")]) == 0
    found = pa_parquet.read_table(tmp_path / "q.parquet").to_pandas()
    assert str(found["time"][0]) == "2024-01-13 22:00:00"
    expected = Forecaster.load(fitted / "run").sample(20, table=other, random_state=0)
    np.testing.assert_array_equal(found["mean"], expected.mean(axis=0).ravel())


def test_covariates_and_parquet(tmp_path, capsys):
    words = [table(tmp_path / "t.csv", holiday=0.0), "--time", "date", "--covariates", "holiday", "--lags", "1,2,24"]
    words += [*QUICK, "--horizon", "4", "--no-plots", "--test-rows", "0"]
    assert main(["forecast", *words, "--out", str(tmp_path / "a")]) == 0
    assert "it needs the covariates" in capsys.readouterr().out
    assert not (tmp_path / "a" / "forecast.csv").exists()
    pd.DataFrame({"holiday": [0.0, 0.0, 1.0, 1.0]}).to_csv(tmp_path / "f.csv", index=False)
    future = ["--future", str(tmp_path / "f.csv")]
    assert main(["forecast", *words, *future, "--parquet", "--out", str(tmp_path / "b")]) == 0
    assert pa_parquet.read_table(tmp_path / "b" / "samples.parquet").num_rows == 80
    capsys.readouterr()
    assert main(["forecast", str(tmp_path / "b"), *future, "-n", "5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9


BAD_WORDS = [
    (["TABLE"], "--out: the folder"),
    (["TABLE", "--out", "NEW"], "column 'date'"),
    (["TABLE", "--out", "NEW", "--time", "day"], "no column 'day'"),
    (["TABLE", "--out", "NEW", "--time", "date", "--horizon", "0"], "--horizon: 0 came"),
    (["TABLE", "--out", "NEW", "--time", "date", "--lags", "few"], "--lags: 'few' came"),
    (["TABLE", "--out", "NEW", "--time", "date", "--lags", "0"], "lags: 0 came"),
    (["TABLE", "--out", "NEW", "--time", "date", "--test-rows", "3"], "--test-rows: 3 came"),
    (["TABLE", "--out", "NEW", "--time", "date", "--model", "nots"], "nots"),
    (["TABLE", "--out", "NEW", "--time", "date", "-n", "1"], "--samples: 1 came"),
    (["TABLE", "TABLE", "--out", "NEW"], "is no run folder"),
    (["nowhere.csv", "--out", "NEW"], "cannot be read"),
    (["RUN", "TABLE", "--horizon", "3"], "--horizon: belongs to learning"),
    (["RUN", "TABLE", "--option", "hidden=3"], "--option: belongs to learning"),
    (["RUN", "TABLE", "--out", "q.txt"], "ends in .csv or .parquet"),
    (["RUN", "GAPS"], "1 of 298 steps differ"),
    (["RUN", "SHORT"], "looks 169 steps back"),
    (["FOLDER", "TABLE"], "has no config.json"),
]


@pytest.mark.parametrize(("words", "message"), BAD_WORDS, ids=[message for _, message in BAD_WORDS])
def test_what_cannot_be_is_one_sentence(fitted, tmp_path, capsys, words, message):
    places = {"TABLE": table(tmp_path / "t.csv"), "RUN": str(fitted / "run"), "NEW": str(tmp_path / "new")}
    places |= {"FOLDER": str(tmp_path), "SHORT": table(tmp_path / "short.csv", 50)}
    frame = pd.read_csv(places["TABLE"])
    frame.drop(index=100).to_csv(tmp_path / "gaps.csv", index=False)
    places["GAPS"] = str(tmp_path / "gaps.csv")
    capsys.readouterr()
    assert main(["forecast", *(places.get(word, word) for word in words)]) == 2
    assert message in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "q.txt").exists()
