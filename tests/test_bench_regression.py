"""The regression benchmark on a table made for it: scores against closed forms, resumption, tables."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from benchmarks import regression, regression_report
from rosenblatt.conditional import conditional_density
from rosenblatt.data import Table
from rosenblatt.ensemble import Ensemble

ROWS, SLOPE, DEVIATION = 300, 3.0, 2.0
CONFIG = {
    "splits": 1,
    "seed": 0,
    "noise": 0.0,
    "given_noise": 0.05,
    "fit": {"epochs": 10, "max_steps": 5, "device": "cpu"},
    "sizes": [
        {"rows": 0, "members": 3, "batch_size": 16, "max_steps": 5},
        {"rows": 1000, "members": 1, "batch_size": 64, "max_steps": 50},
    ],
    "models": {"maf": {"options": {"hidden": 8}}, "gaussian": {"closed_form": True}},
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with one set of data, whole-number targets, and room for results."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=ROWS)
    y = np.round(SLOPE * x + DEVIATION * rng.normal(size=ROWS))
    np.savez(
        tmp_path / "uci_regression9.npz",
        yacht=np.stack([x, y], axis=1).astype(np.float32),
        yacht_test_idx=np.stack([rng.permutation(ROWS)[:60] for _ in range(2)]).astype(np.int32),
    )
    monkeypatch.setenv("ROSENBLATT_DATA", str(tmp_path))
    monkeypatch.setattr(regression, "RESULTS", tmp_path / "regression.json")
    return tmp_path


def exact_law(x, y):
    density = conditional_density("gaussian", Table(y, ["y"]), x).double()
    density.initialise(y, x)
    return Ensemble([density.eval().requires_grad_(False)])


def test_scores_are_those_of_the_law(workplace):
    data = regression.load("yacht", 0)
    assert data.step == 1.0
    assert (len(data.y), len(data.test_y)) == (240, 60)
    law = exact_law(data.x, data.y)
    found = regression.score(law, data)
    slope, offset = np.polyfit(data.x[:, 0].numpy(), data.y[:, 0].numpy(), 1)
    rest = data.y[:, 0].numpy() - slope * data.x[:, 0].numpy() - offset
    normal = scipy.stats.norm(slope * data.test_x[:, 0].numpy() + offset, rest.std())
    y = data.test_y[:, 0].numpy()
    cells = np.log(normal.cdf(y + 0.5) - normal.cdf(y - 0.5))
    assert found["log_likelihood"] == pytest.approx(cells.mean(), rel=1e-9)
    assert found["worst_row"] == pytest.approx(cells.min(), rel=1e-9)
    assert found["log_density"] == pytest.approx(normal.logpdf(y).mean(), rel=1e-9)
    z = (y - normal.mean()) / rest.std()
    crps = rest.std() * (z * (2 * scipy.stats.norm.cdf(z) - 1) + 2 * scipy.stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    assert found["crps"] == pytest.approx(crps.mean(), rel=2e-3)
    place = torch.rand(60, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[:, 0].numpy()
    pit = normal.cdf(y - 0.5) + place * (normal.cdf(y + 0.5) - normal.cdf(y - 0.5))
    shares = [(np.abs(pit - 0.5) <= share / 2).mean() for share in regression.COVERED]
    assert found["covered"] == pytest.approx(shares)
    error = normal.mean() - y
    assert found["rmse"] == pytest.approx(math.sqrt((error**2).mean()), rel=1e-6)
    assert found["r2"] == pytest.approx(1 - (error**2).sum() / ((y - y.mean()) ** 2).sum(), rel=1e-6)


def test_a_cell_far_in_a_tail_keeps_its_digits(workplace):
    data = regression.load("yacht", 0)
    law = exact_law(data.x, data.y)
    far = torch.tensor([[60.0], [-60.0], [400.0]]).double()
    x = torch.zeros(3, 1).double()
    found = regression.cell_score(law, x, far, 1.0, law.log_prob(far, x))
    normal = scipy.stats.norm(*(float(law.from_uniform(torch.tensor([[u]]).double(), x[:1])) for u in (0.5,)))
    deviation = float(law.from_uniform(torch.tensor([[scipy.stats.norm.cdf(1.0)]]).double(), x[:1])) - normal.mean()
    sd = abs(deviation)
    edges = scipy.stats.norm.logsf((np.array([59.5, 60.5]) - normal.mean()) / sd)
    assert float(found[0]) == pytest.approx(edges[0] + math.log1p(-math.exp(edges[1] - edges[0])), rel=1e-6)
    edges = scipy.stats.norm.logcdf((np.array([-59.5, -60.5]) - normal.mean()) / sd)
    assert float(found[1]) == pytest.approx(edges[0] + math.log1p(-math.exp(edges[1] - edges[0])), rel=1e-6)
    assert float(found[2]) == float(law.log_prob(far, x)[2])  # its cell is too small for float64


def test_runs_go_on_where_they_stopped(workplace, capsys):
    regression.run(["yacht"], ["gaussian"], 1, CONFIG)
    regression.run(["yacht"], ["maf", "gaussian"], 1, CONFIG)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed] == ["gaussian", "maf"]
    kept = json.loads((workplace / "regression.json").read_text())
    assert list(kept["fits"]["yacht"]) == ["maf", "gaussian"]
    assert len(kept["fits"]["yacht"]["maf"]["0"]["validation"]) == 3
    regression.run(["yacht"], ["maf"], 1, {**CONFIG, "given_noise": 0.1})  # another plan is another fit
    assert "maf" in capsys.readouterr().out
    assert sorted(path.name for path in workplace.iterdir()) == ["regression.json", "uci_regression9.npz"]


def test_the_recipe_depends_on_rows_alone():
    assert regression.plan(CONFIG, "maf", 999)["members"] == 3
    large = regression.plan(CONFIG, "maf", 1000)
    assert (large["members"], large["fit"]["batch_size"], large["fit"]["max_steps"]) == (1, 64, 50)


def test_tables_and_verdict():
    def fit(likelihood, crps):
        return {
            "log_likelihood": likelihood,
            "log_density": likelihood,
            "crps": crps,
            "rmse": 1.0,
            "r2": 0.5,
            "covered": [0.5, 0.8, 0.95],
            "training_cpu_seconds": 60.0,
            "scoring_cpu_seconds": 0.0,
        }

    fits = {
        "yacht": {
            "nits": {"0": fit(-1.0, 0.5), "1": fit(-2.0, 0.7)},
            "quantile_flow": {"0": fit(-3.0, 0.6), "1": fit(-3.0, 0.6)},
            "gaussian": {"0": fit(-3.6, 0.1), "1": fit(-3.6, 0.1)},
        }
    }
    summary = regression_report.summarise(fits)
    yacht = summary["sets"]["yacht"]["nits"]["log_likelihood"]
    assert yacht == {"mean": -1.5, "standard_error": pytest.approx(0.5)}
    assert summary["verdict"]["best_by_likelihood"] == {"yacht": "nits"}
    assert summary["verdict"]["beats_gaussian_rows"] == {"yacht": True}
    assert summary["verdict"]["quantile_flow_crps_no_worse"] == {"yacht": True}
    lead = summary["crps_lead"]["yacht"]
    assert (lead["rival"], lead["mean"]) == ("nits", pytest.approx(0.0, abs=1e-12))
    assert lead["standard_error"] == pytest.approx(0.1)
    text = regression_report.tables(fits)
    assert "| yacht | **-1.50 ± 0.50** | -3.00 ± 0.00 | -3.60 ± 0.00 |" in text
    assert "6.0 CPU minutes" in text
