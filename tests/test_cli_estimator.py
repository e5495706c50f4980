"""A run is a run, whether `FlowDensity` or `rosenblatt fit` made it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import COLUMNS, PLAIN, one_sentence, rows, write

from rosenblatt.cli import main
from rosenblatt.core.errors import CheckpointError
from rosenblatt.data import read_table
from rosenblatt.estimators import FlowDensity
from rosenblatt.eval import Estimate
from rosenblatt.summary import Comparison, Summary, read_summary, write_summary
from rosenblatt.train import RunFolder

SMALL = {"model_options": {"hidden": 8, "widths": [4, 1]}, "max_steps": 20, "batch_size": 32, "random_state": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, a run of the command line, a run of the estimator, and that one saved."""
    folder = tmp_path_factory.mktemp("runs")
    table = write(folder / "rows.csv")
    assert main(["fit", table, "--out", str(folder / "shell"), *PLAIN]) == 0
    FlowDensity(**SMALL, run=folder / "python").fit(table).save(folder / "saved")
    return folder


def test_estimator_loads_a_run_of_the_command_line(folder: Path, tmp_path: Path) -> None:
    density = FlowDensity.load(folder / "shell")
    stored = json.loads((folder / "shell" / "report.json").read_text())["nats_per_row"]
    assert density.report_.steps == 30
    assert density.report_.history == RunFolder.open(folder / "shell").read_metrics()
    assert density.validation_score_.value == pytest.approx(density.report_.best_validation, abs=1e-4)
    assert list(density.gaussian_score_) == stored["validation"]["gaussian"]
    assert list(density.test_scores_.difference) == stored["test"]["difference"]
    density.save(tmp_path / "again")
    again = FlowDensity.load(tmp_path / "again")
    for name in ("report_", "validation_score_", "gaussian_score_", "test_scores_"):
        assert getattr(again, name) == getattr(density, name)


def test_same_rows_are_held_out_for_validation(folder: Path, tmp_path: Path) -> None:
    words = ["--test-fraction", "0", "--max-steps", "20"]
    assert main(["fit", str(folder / "rows.csv"), "--out", str(tmp_path / "run"), *PLAIN, *words]) == 0
    shell, python = FlowDensity.load(tmp_path / "run"), FlowDensity.load(folder / "python")
    assert shell.gaussian_score_.value == pytest.approx(python.gaussian_score_.value, abs=1e-12)
    assert shell.report_.steps == python.report_.steps
    assert shell.test_scores_ is None


def test_each_names_the_way_to_resume_the_others_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = folder / "rows.csv"
    with pytest.raises(CheckpointError, match=r"rosenblatt fit --resume .*shell"):
        FlowDensity.resume(folder / "shell", table)
    capsys.readouterr()
    assert main(["fit", "--resume", str(folder / "python")]) == 2
    assert "FlowDensity.resume" in one_sentence(capsys.readouterr().err)


def test_saved_run_of_the_command_line_cannot_be_resumed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FlowDensity.load(folder / "shell").save(tmp_path / "saved")
    capsys.readouterr()
    assert main(["fit", "--resume", str(tmp_path / "saved")]) == 2
    assert "without training state" in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("made", ["python", "saved"])
def test_commands_work_on_runs_of_the_estimator(
    folder: Path, made: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, table, out = str(folder / made), str(folder / "rows.csv"), tmp_path / "out.csv"
    density = FlowDensity.load(run)
    assert main(["info", run]) == 0
    said = capsys.readouterr().out
    assert f"{density.validation_score_} nats per row" in said
    assert "20, " in said
    assert main(["score", run, table, "--out", str(out)]) == 0
    np.testing.assert_allclose(read_table(out)[1][:, 0], density.score_samples(table), rtol=1e-9)
    assert main(["sample", run, "-n", "5", "--out", str(out)]) == 0
    assert read_table(out)[0] == COLUMNS
    for command in ("plot", "audit"):
        capsys.readouterr()
        assert main([command, run]) == 2
        assert "--data" in one_sentence(capsys.readouterr().err)


def test_plot_and_audit_take_rows_for_a_run_of_the_estimator(folder: Path, tmp_path: Path) -> None:
    fresh = write(tmp_path / "fresh.csv", rows(50, seed=9))
    assert main(["plot", str(folder / "python"), "--data", fresh, "--out", str(tmp_path / "plots")]) == 0
    assert (tmp_path / "plots" / "pit.png").exists()
    assert main(["audit", str(folder / "python"), "--data", fresh, "--seconds", "1"]) == 0


def test_report_survives_numbers_that_json_lacks_and_refuses_what_is_no_report(folder: Path, tmp_path: Path) -> None:
    FlowDensity.load(folder / "python").save(tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    report = read_summary(run).report
    report.best_validation = -math.inf
    scores = Comparison(Estimate(-math.inf, 1.0), None, None)
    write_summary(run, Summary(report, None, scores))
    assert read_summary(run) == Summary(report, None, scores)
    for text in ("{}", '{"fit": {}, "nats_per_row": {}}', '{"fit": 3}', "[", '{"fit": null, "nats_per_row": null}'):
        (run.path / "report.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"report\.json"):
            FlowDensity.load(run.path)


def test_report_of_an_earlier_fit_is_not_taken_for_the_present_one(folder: Path, tmp_path: Path) -> None:
    density = FlowDensity(**SMALL, run=tmp_path / "run").fit(folder / "rows.csv")
    went_on = RunFolder.open(tmp_path / "run")
    checkpoint = went_on.load("latest")
    went_on.save(25, checkpoint.model, checkpoint.train, checkpoint.state, best=False)
    assert FlowDensity.load(tmp_path / "run").report_ is None
    assert main(["info", str(tmp_path / "run")]) == 0
    density.report_ = None
    density.save(tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "report.json").exists()
