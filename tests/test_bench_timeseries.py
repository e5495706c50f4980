"""The benchmark of forecasts on a small set: what it reports is what it measured."""

import numpy as np
import pytest

from benchmarks import timeseries
from rosenblatt.forecasting import Forecaster

CONFIG = {
    "horizon": 4,
    "held_out": 40,
    "season": 6,
    "shared": {"lags": 2, "difference": "none"},
    "forecaster": {"model": "made_mixture", "model_options": {"hidden": 8, "components": 2}, "epochs": 1},
}


@pytest.fixture
def small(monkeypatch):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=300)
    walk = np.zeros(300)
    for t in range(1, 300):
        walk[t] = 0.5 * walk[t - 1] + noise[t]
    rows = {"a": walk, "b": 2 * walk + rng.normal(size=300)}
    monkeypatch.setattr(timeseries, "SETS", {"small": lambda: (rows, {})})
    return rows


def test_differences_are_those_of_the_scores(small):
    result = timeseries.measure("small", CONFIG, 20, 0)
    assert (result["rows"], result["origins"]) == (300, 10)
    ours = result["scores"]["rosenblatt"]
    for method in (timeseries.LAST, timeseries.SEASONAL, timeseries.LINEAR):
        for key in timeseries.TESTED:
            gap = ours[key]["value"] - result["scores"][method][key]["value"]
            assert result["ours_minus"][method][key]["value"] == pytest.approx(gap, abs=1e-12)
    assert "log score" in result["scores"][timeseries.LINEAR]
    assert "log score" not in result["scores"][timeseries.LAST]
    assert timeseries.LINEAR in timeseries.shown(result)


def test_nothing_learns_from_the_rows_held_out(small, monkeypatch):
    seen = []
    fit = Forecaster.fit

    def noting(self, table, y=None):
        seen.append(len(table))
        return fit(self, table, y)

    monkeypatch.setattr(Forecaster, "fit", noting)
    before = timeseries.measure("small", CONFIG, 20, 0)
    assert seen == [260, 260]
    for column in small.values():
        column[-4:] += 100.0
    after = timeseries.measure("small", CONFIG, 20, 0)
    scores = [result["crps_of_series"]["rosenblatt"]["a"]["value"] for result in (before, after)]
    assert scores[1] > scores[0]  # the last window alone is missed
    assert before["epochs"] == after["epochs"]
