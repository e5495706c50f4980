"""Several processes train as one: the same steps, one decision to stop, one writer, no one left waiting."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import process_jobs
import pytest
import safetensors.torch
import torch
from cli_helpers import one_sentence
from test_train_resume import assert_same_run
from train_stubs import CONFIG, Fixed, table

from rosenblatt.cli import main
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Batch
from rosenblatt.data import digits
from rosenblatt.train import JoinedProcesses, LocalRuntime, Processes, RunFolder
from rosenblatt.train.runtime import Interrupt

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What two processes left of all jobs."""
    folder = tmp_path_factory.mktemp("processes")
    _, report = process_jobs.begin_alone(folder)
    assert (report.stopped, report.steps) == ("interrupted", 6)
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "process_jobs.py"), str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return folder


def left(out, name, rank):
    facts = json.loads((out / f"{name}-{rank}.json").read_text())
    return facts, safetensors.torch.load_file(out / f"{name}-{rank}.safetensors")


@pytest.mark.parametrize("name", ["table", "accumulated", "images", "resumed", "fixed"])
def test_two_processes_take_the_steps_of_one(out, name):
    if name == "images":
        model, report = process_jobs.fit_images(Processes())
    elif name == "fixed":
        model, report = process_jobs.fit(Processes(), model=Fixed(start=True), data=table(50))
        assert report.stopped == "closed form"
    else:
        model, report = process_jobs.fit(Processes(), **process_jobs.EXACT)
        assert (report.steps, report.skipped_steps) == (23, 2)
    for rank in range(2):
        facts, weights = left(out, name, rank)
        assert (facts["stopped"], facts["steps"], facts["skipped"]) == (
            report.stopped,
            report.steps,
            report.skipped_steps,
        )
        assert facts["best"] == pytest.approx(report.best_validation, abs=1e-10)
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(weights[key], tensor, rtol=0, atol=1e-10)
    assert all(torch.equal(tensor, left(out, name, 0)[1][key]) for key, tensor in weights.items())


@pytest.mark.parametrize(
    ("name", "stopped", "steps"), [("interrupted", "interrupted", 7), ("late", "time", 5), ("whole", "steps", 20)]
)
def test_what_stops_one_process_stops_both_at_one_step(out, name, stopped, steps):
    for rank in range(2):
        facts, _ = left(out, name, rank)
        assert (facts["stopped"], facts["steps"]) == (stopped, steps)
        assert facts.get("signal", signal.SIGINT) == signal.SIGINT


def test_the_first_process_alone_writes_and_logs(out):
    (first, weights), (second, others) = left(out, "whole", 0), left(out, "whole", 1)
    assert (first["logged"], second["logged"]) == (len(first["scores"]), 0)
    assert first["scores"] == second["scores"]
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    records = RunFolder.open(out / "whole").read_metrics()
    assert [record["step"] for record in records] == [
        *range(CONFIG["validate_every"], 20, CONFIG["validate_every"]),
        20,
    ]
    best = RunFolder.open(out / "whole").load("best").model
    assert all(torch.equal(weights[name], best[name]) for name in weights)


def test_a_run_of_two_processes_resumes_bit_for_bit_with_the_draws_of_each(out):
    assert [left(out, "broken", rank)[0]["resumed"] for rank in range(2)] == [7, 7]
    assert_same_run(out / "broken", out / "whole")
    streams = RunFolder.open(out / "whole").load("latest").train
    assert not torch.equal(streams["rng.cpu"], streams["rng.cpu.1"])
    assert not torch.equal(streams["rng.objective"], streams["rng.objective.1"])


def test_unlike_processes_are_refused_and_a_failing_one_is_not_waited_for(out):
    first, second = (json.loads((out / f"failing-{rank}.json").read_text()) for rank in range(2))
    assert first[0] == second[0]
    assert first[0].startswith("processes: their rows, options or models differ")
    assert second[1:] == ["ValueError", "the second process fails"]
    assert first[1] == "ProcessLost"
    assert "process 0 of 2 (from 0) lost the others" in first[2]


def joined(rank, count):
    processes = JoinedProcesses.__new__(JoinedProcesses)
    processes.rank, processes.count, processes.place = rank, count, rank
    return processes


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_row_falls_to_one_process(count):
    for rows in range(20):
        batch = Batch(torch.arange(rows)[:, None], None, torch.arange(rows))
        shares = [joined(rank, count).share(batch) for rank in range(count)]
        assert torch.equal(torch.cat([share.x for share in shares]), batch.x)
        assert torch.equal(torch.cat([share.weight for share in shares]), batch.weight)
        sizes = [len(share.x) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [joined(rank, 2).device("auto") for rank in range(2)] == ["cuda:0", "cuda:1"]
    assert joined(1, 2).device("cuda") == "cuda:1"
    assert joined(1, 2).device("cpu") == "cpu"
    assert Processes().device("cuda:1") == "cuda:1"
    with pytest.raises(OptionError, match="device: 'cuda:0' came for 2 processes"):
        LocalRuntime("cuda:0", processes=joined(1, 2))


def test_torchrun_fits_images_as_one_process_does(tmp_path):
    np.save(tmp_path / "digits.npy", digits().pixels[:60, 0].numpy())
    words = [str(tmp_path / "digits.npy"), "--model", "nits_conv", "--option", "levels=17", "--option", "filters=4"]
    words += ["--max-steps", "5", "--batch-size", "15", "--dtype", "float64", "--device", "cpu", "--samples", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "rosenblatt", "fit", *words, "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1
    assert main(["fit", *words, "--out", str(tmp_path / "one")]) == 0
    ours, theirs = (RunFolder.open(tmp_path / name).load("latest").model for name in ("two", "one"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-10)
    assert (tmp_path / "two" / "report.json").is_file()


def test_commands_for_one_process_are_refused_in_several(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert main(["score", "run"]) == 2
    assert "torchrun: starts several processes, 'score' is made for one" in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize("several", [True, False])
def test_among_several_processes_a_signal_may_be_repeated(several):
    before = signal.getsignal(signal.SIGINT)
    with Interrupt(several=several) as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        assert (signal.getsignal(signal.SIGINT) != before) is several  # a second one is noted, or acts as usual
    assert signal.getsignal(signal.SIGINT) == before
