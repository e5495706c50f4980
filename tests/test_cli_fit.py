"""`rosenblatt fit`: what it leaves behind, interruption and resumption."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import COLUMNS, PLAIN, QUICK, one_sentence, rows, write

from rosenblatt.assembly import restore
from rosenblatt.cli import main
from rosenblatt.cli.fit import Lines
from rosenblatt.cli.rows import prepare
from rosenblatt.data import read_table
from rosenblatt.train import RunFolder, storage


@pytest.fixture
def table(tmp_path: Path) -> str:
    return write(tmp_path / "rows.csv")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return RunFolder.open(run).load("latest").model


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_fit_leaves_model_samples_plots_and_report(
    tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["fit", table, "--out", str(run), *QUICK, "--samples", "50"]) == 0
    said = capsys.readouterr().out
    assert "held-out log-likelihood, nats per row +- standard error, 30 test rows" in said
    assert f"rosenblatt sample {run} -n 1000" in said
    flow, config = restore(RunFolder.open(run))
    assert config["columns"] == list(COLUMNS)
    names, samples = read_table(run / "samples.csv")
    assert (names, samples.shape) == (COLUMNS, (50, 3))
    for name in ("corner", "marginals", "pit", "training"):
        assert (run / f"{name}.png").stat().st_size > 1000
    report = json.loads((run / "report.json").read_text())
    assert (report["fit"]["steps"], report["fit"]["signal"]) == (30, None)
    assert flow.features == 3


def test_reported_score_is_that_of_rows_never_trained_on(tmp_path: Path, table: str) -> None:
    run = tmp_path / "run"
    assert main(["fit", table, "--out", str(run), *PLAIN]) == 0
    from rosenblatt.cli.fit import stored_options

    store = RunFolder.open(run)
    parts = prepare(stored_options(store, ""), 0)
    fitted = {tuple(row) for row in parts.fit.values.tolist()}
    tested = {tuple(row) for row in parts.test.values.tolist()}
    assert not fitted & tested
    assert fitted | tested == {tuple(row) for row in read_table(table)[1].tolist()}
    flow, _ = restore(store)
    with torch.no_grad():
        log_prob = flow.double().log_prob(parts.test.values)
    report = json.loads((run / "report.json").read_text())["nats_per_row"]["test"]
    assert report["model"][0] == pytest.approx(log_prob.mean().item(), abs=1e-9)
    assert report["model"][1] == pytest.approx(log_prob.std().item() / np.sqrt(30), rel=1e-6)
    fit = torch.distributions.MultivariateNormal(parts.fit.values.mean(0), torch.cov(parts.fit.values.T, correction=0))
    assert report["gaussian"][0] == pytest.approx(fit.log_prob(parts.test.values).mean().item(), abs=1e-6)
    assert report["difference"][0] == pytest.approx(report["model"][0] - report["gaussian"][0], abs=1e-9)


def test_closed_form_model_equals_the_baseline(tmp_path: Path, table: str) -> None:
    run = tmp_path / "run"
    words = ["--validation-fraction", "0", "--no-plots", "--samples", "0"]
    assert main(["fit", table, "--model", "gaussian", "--out", str(run), *words]) == 0
    difference = json.loads((run / "report.json").read_text())["nats_per_row"]["test"]["difference"]
    assert difference[0] == pytest.approx(0.0, abs=1e-4)


def test_test_file_replaces_the_random_part(tmp_path: Path, table: str) -> None:
    other = write(tmp_path / "test.csv", rows(40, seed=1))
    run = tmp_path / "run"
    assert main(["fit", table, "--test", other, "--out", str(run), *PLAIN]) == 0
    data = RunFolder.open(run).config["data"]
    assert (data["rows"], data["test_rows"]) == (300, 40)


def test_toml_and_flags_are_one_definition(tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fit.toml"
    file.write_text(
        f'table = "{table}"\nsamples = 7\nplots = false\n[model_options]\nhidden = 8\nwidths = [4, 1]\n'
        "[support]\nprice = [0.0, inf]\n[fit]\nmax_steps = 3\npatience = 'None'\nbatch_size = 32\n"
    )
    words = ["--config", str(file), "--samples", "9", "--option", "hidden=16", "--max-steps", "5"]
    assert main(["fit", *words, "--print-config"]) == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    run = tmp_path / "run"
    assert main(["fit", "--config", str(printed), "--out", str(run)]) == 0
    config = RunFolder.open(run).config
    assert config["options"] == {"hidden": 16, "widths": [4, 1]}
    assert (config["fit"]["max_steps"], config["fit"]["patience"]) == (5, None)
    assert config["supports"] == [[None, None], [None, None], [0.0, None]]
    assert len(read_table(run / "samples.csv")[1]) == 9


def test_printed_command_repeats_the_run(tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    run = tmp_path / "run"
    assert main(["fit", table, "--out", str(run), *PLAIN, "--seed", "3"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(last.removeprefix("the same run again: "))
    assert words[:2] == ["rosenblatt", "fit"]
    again = tmp_path / "again"
    assert main([str(again) if w == str(run) else w.replace(f"={run}", f"={again}") for w in words[1:]]) == 0
    assert_same_weights(run, again)
    assert (run / "samples.csv").read_bytes() == (again / "samples.csv").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_keeps_a_checkpoint_and_resume_is_exact(
    tmp_path: Path,
    table: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*PLAIN, "--validate-every", "10"]
    assert main(["fit", table, "--out", str(tmp_path / "whole"), *words]) == 0
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Lines, "log", lambda _self, _record: os.kill(os.getpid(), number))
        capsys.readouterr()
        assert main(["fit", table, "--out", str(stopped), *words]) == 128 + number
    assert f"rosenblatt fit --resume {stopped}" in one_sentence(capsys.readouterr().err)
    assert RunFolder.open(stopped).load("latest").step == 10
    assert main(["fit", "--resume", str(stopped)]) == 0
    assert_same_weights(tmp_path / "whole", stopped)
    assert (tmp_path / "whole" / "samples.csv").read_bytes() == (stopped / "samples.csv").read_bytes()


def test_resume_refuses_another_table_and_other_options(
    tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["fit", table, "--out", str(run), *PLAIN]) == 0
    capsys.readouterr()
    assert main(["fit", "--resume", str(run), "--option", "hidden=16"]) == 2
    assert "model_options" in one_sentence(capsys.readouterr().err)
    assert main(["fit", "--resume", str(run), "--learning-rate", "0.5"]) == 2
    assert "learning_rate" in one_sentence(capsys.readouterr().err)
    write(Path(table), rows(300, seed=5))
    assert main(["fit", "--resume", str(run)]) == 2
    assert "table changed" in one_sentence(capsys.readouterr().err)


def test_existing_run_is_kept_unless_overwrite(tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["fit", table, "--out", str(run), *PLAIN]) == 0
    before = weights(run)
    capsys.readouterr()
    assert main(["fit", table, "--out", str(run), *PLAIN, "--seed", "1"]) == 2
    assert "overwrite" in one_sentence(capsys.readouterr().err)
    bad = write(tmp_path / "bad.csv", np.full((300, 3), np.nan))
    assert main(["fit", bad, "--out", str(run), *PLAIN, "--overwrite"]) == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(run).items())
    assert main(["fit", table, "--out", str(run), *PLAIN, "--seed", "1", "--overwrite"]) == 0
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(run).items())


def test_disk_full_keeps_the_last_checkpoint(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    write_bytes = storage.write_bytes

    def full(path: Path, data: bytes, *, sync: bool = True) -> None:
        if "step-00000020" in str(path.parent):
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_bytes(path, data, sync=sync)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full)
        assert main(["fit", table, "--out", str(run), *PLAIN, "--validate-every", "10"]) == 2
    said = one_sentence(capsys.readouterr().err)
    assert "No space left" in said
    assert "step 10" in said
    store = RunFolder.open(run)
    assert store.load("latest").step == 10
    assert not list(run.glob("*.tmp*"))
    restore(store)
    assert main(["fit", "--resume", str(run)]) == 0


def test_failure_before_the_first_checkpoint_leaves_no_folder(
    tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "write_folder", full)
    assert main(["fit", table, "--out", str(run), *PLAIN]) == 2
    assert "No space left" in one_sentence(capsys.readouterr().err)
    assert not run.exists()


def test_bundled_set_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["--option", "hidden=6", "--option", "widths=[2,1]", "--max-steps", "2", "--no-plots", "--samples", "0"]
    assert main(["fit", "--out", str(run), *words]) == 0
    captured = capsys.readouterr()
    assert "README" in captured.out
    assert captured.err == ""
    config = RunFolder.open(run).config
    assert config["options"]["order"] == [5, 4, 3, 2, 1, 0]
    assert config["dequantise"]["minute_of_day"] == 1.0
    assert config["supports"][5] == [0.0, 1440.0]
    assert (config["data"]["rows"], config["data"]["test_rows"]) == (54_000, 6_000)


def test_columns_of_the_bundled_set_can_be_chosen(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--columns", "voltage_v,active_power_kw", "--max-steps", "2", "--no-plots", "--samples", "0"]
    assert main(["fit", "--out", str(run), "--option", "hidden=6", *words]) == 0
    config = RunFolder.open(run).config
    assert config["columns"] == ["voltage_v", "active_power_kw"]
    assert "order" not in config["options"]


def test_discrete_column_is_warned_about_and_can_be_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = rows()
    values[:, 1] = np.round(values[:, 1])
    table = write(tmp_path / "rows.csv", values)
    assert main(["fit", table, "--out", str(tmp_path / "a"), *PLAIN]) == 0
    assert "rosenblatt: warning: column 'mass'" in capsys.readouterr().err
    assert main(["fit", table, "--out", str(tmp_path / "b"), *PLAIN, "--dequantise-auto"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "mass 1.0" in captured.out
    assert RunFolder.open(tmp_path / "b").config["dequantise"] == {"mass": 1.0}
