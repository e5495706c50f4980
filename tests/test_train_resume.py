"""A run that is stopped anywhere, by any means, goes on to the same weights bit for bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train_guard import Poison
from train_stubs import CONFIG, Gaussian, Rows, fit, table

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.objectives import NLL
from rosenblatt.train import Fitter, RunFolder

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 72  # steps of the stub's run: 6 epochs of 12 batches


class Crash(Exception):
    """Stands for anything that ends the program."""


class At(NLL):
    """Runs the ordinary objective and does something at one training call; draws from the generator too."""

    def __init__(self, call=None, action=None, jitter=True):
        self.call, self.action, self.count, self.jitter = call, action, 0, jitter

    def __call__(self, model, batch, generator):
        if model.training:
            self.count += 1
            if self.count == self.call:
                self.action()
        if not self.jitter:
            return super().__call__(model, batch, generator)
        jitter = torch.rand(len(batch.x), generator=generator)
        return super().__call__(model, batch, generator) * (1 + 0.1 * jitter)


class StopAt(NLL):
    """The plain objective, interrupted at one training call."""

    def __init__(self, call):
        self.call, self.count = call, 0

    def __call__(self, model, batch, generator):
        self.count += model.training
        if model.training and self.count == self.call:
            interrupt()
        return super().__call__(model, batch, generator)


def crash():
    raise Crash


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def untimed(records):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def assert_same_run(path, expected):
    """Compare everything but the clock with the unbroken run's folder."""
    ours, theirs = RunFolder.open(path), RunFolder.open(expected)
    for which in ("latest", "best"):
        a, b = ours.load(which), theirs.load(which)
        assert a.step == b.step
        for x, y in ((a.model, b.model), (a.train, b.train)):
            assert x.keys() == y.keys()
            assert all(torch.equal(x[name], y[name]) for name in x)
    assert untimed(ours.read_metrics()) == untimed(theirs.read_metrics())
    a, b = ours.load("latest").state, theirs.load("latest").state
    assert untimed(a["progress"].pop("history")) == untimed(b["progress"].pop("history"))
    assert {**a["progress"], "seconds": 0} == {**b["progress"], "seconds": 0}
    assert a["guard"] == b["guard"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("unbroken") / "run"
    fit(path, objective=At())
    return path


@pytest.mark.parametrize("action", [crash, interrupt])
@pytest.mark.parametrize("call", [1, 2, 5, 6, 12, 13, 31, 36, 71])
def test_stopped_anywhere_and_resumed(tmp_path, unbroken, action, call):
    path = tmp_path / "run"
    try:
        _, report, _ = fit(path, objective=At(call, action))
        assert (report.stopped, report.steps) == ("interrupted", call)
    except Crash:
        assert action is crash
    model, report, run = fit(path, objective=At(), resume=True)
    assert report.steps == TOTAL
    assert report.resumed_from == (call if action is interrupt else max(s for s in (0, *_saves()) if s < call))
    assert_same_run(path, unbroken)
    best = run.load("best").model
    assert all(torch.equal(t, best[name]) for name, t in model.state_dict().items())


def _saves():
    return range(0, TOTAL, CONFIG["checkpoint_every"])


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_interrupted_after_every_step(tmp_path, ema_decay):
    changes = {"epochs": 2, "ema_decay": ema_decay, "learning_rate": 0.2}
    fit(tmp_path / "a", objective=At(), **changes)
    fit(tmp_path / "b", objective=At(1, interrupt), **changes)
    for _ in range(23):
        fit(tmp_path / "b", objective=At(1, interrupt), resume=True, **changes)
    a, b = RunFolder.open(tmp_path / "a"), RunFolder.open(tmp_path / "b")
    for which in ("latest", "best"):
        ours, theirs = b.load(which), a.load(which)
        assert ours.step == theirs.step
        assert all(torch.equal(t, theirs.train[name]) for name, t in ours.train.items())
    assert untimed(b.read_metrics()) == untimed(a.read_metrics())


def test_a_roll_back_after_a_resume_is_the_same(tmp_path):
    bad = set(range(33, 43))
    _, report, _ = fit(tmp_path / "a", objective=Poison(bad))
    assert report.rolled_back == 1

    class Both(Poison):
        def __call__(self, model, batch, generator):
            if model.training and self.count == 36:
                interrupt()
            return super().__call__(model, batch, generator)

    _, report, _ = fit(tmp_path / "b", objective=Both(bad))
    assert (report.stopped, report.steps) == ("interrupted", 37)
    fit(tmp_path / "b", objective=Poison({call - 37 for call in bad}), resume=True)
    assert_same_run(tmp_path / "b", tmp_path / "a")


def test_patience_and_best_survive_a_resume(tmp_path):
    changes = {"patience": 4, "learning_rate": 0.5, "schedule": "constant", "ema_decay": None, "epochs": 100}
    _, whole, _ = fit(tmp_path / "a", **changes)
    assert whole.stopped == "patience"
    _, part, _ = fit(tmp_path / "b", objective=StopAt(whole.steps - 9), **changes)
    assert part.stopped == "interrupted"
    model, rest, _ = fit(tmp_path / "b", resume=True, **changes)
    assert (rest.stopped, rest.steps, rest.best_step) == ("patience", whole.steps, whole.best_step)
    assert untimed(rest.history) == untimed(whole.history)
    _, again, _ = fit(tmp_path / "b", resume=True, **changes)
    assert (again.stopped, again.steps) == ("patience", whole.steps)
    best = RunFolder.open(tmp_path / "a").load("best").model
    assert all(torch.equal(t, best[name]) for name, t in model.state_dict().items())


def test_a_finished_run_resumes_to_nothing_more(tmp_path):
    fit(tmp_path / "run")
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    _, report, _ = fit(tmp_path / "run", resume=True)
    assert (report.stopped, report.steps, report.resumed_from) == ("epochs", TOTAL, TOTAL)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before


def test_a_damaged_latest_checkpoint_costs_one_checkpoint(tmp_path, unbroken):
    path = tmp_path / "run"
    with pytest.raises(Crash):
        fit(path, objective=At(32, crash))
    newest = RunFolder.open(path).steps()[-1]
    file = path / f"step-{newest:08d}" / "train.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="Falling back"):
        _, report, _ = fit(path, objective=At(), resume=True)
    assert report.resumed_from < newest
    assert_same_run(path, unbroken)


def test_time_limit_counts_across_resumes(tmp_path):
    _, first, run = fit(tmp_path / "run", objective=StopAt(3))
    spent = run.load("latest").state["progress"]["seconds"]
    assert 0 < spent <= first.seconds
    _, second, _ = fit(tmp_path / "run", resume=True, time_limit=spent)
    assert (second.stopped, second.steps) == ("time", 3)
    assert second.seconds >= spent


def test_another_config_or_other_rows_are_refused(tmp_path):
    fit(tmp_path / "run", max_steps=3)
    with pytest.raises(OptionError, match="batch_size"):
        fit(tmp_path / "run", resume=True, max_steps=3, batch_size=16)
    with pytest.raises(DataError, match="training rows"):
        fit(tmp_path / "run", resume=True, max_steps=3, data=table(300))
    run = RunFolder.open(tmp_path / "run")
    with pytest.raises(OptionError, match="resume=True"):
        Fitter(progress=False).fit(Gaussian(), table(), run=run)


def test_resume_without_a_checkpoint_starts_anew(tmp_path, unbroken):
    RunFolder.create(tmp_path / "run", {"model": "stub"})
    _, report, _ = fit(tmp_path / "run", objective=At(), resume=True)
    assert report.resumed_from is None
    assert_same_run(tmp_path / "run", unbroken)


def _check_kills(tmp_path, kills, epochs):
    path = tmp_path / "killed"
    RunFolder.create(path, {"model": "stub"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "train_stubs.py"), str(path)]
    command += [str(epochs), str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed at") == kills
    fit(tmp_path / "whole", epochs=epochs)
    assert_same_run(path, tmp_path / "whole")
    assert not [p for p in path.rglob("*") if ".tmp-" in p.name or ".old-" in p.name]


def test_kill_9_a_few_times(tmp_path):
    _check_kills(tmp_path, kills=5, epochs=90)  # work for seconds: a starved test must not come too late to kill


@pytest.mark.slow
def test_kill_9_forty_times(tmp_path):
    _check_kills(tmp_path, kills=40, epochs=120)


def test_state_floats_keep_every_bit(tmp_path):
    fit(tmp_path / "run", max_steps=7)
    run = RunFolder.open(tmp_path / "run")
    history = run.load("latest").state["progress"]["history"]
    assert history == json.loads(json.dumps(history)) == run.read_metrics()


def test_rows_stub_is_a_dataset():
    x = torch.arange(10.0)[:, None]
    whole = [b.x for b in Rows(x).batches(3, torch.Generator().manual_seed(0))]
    tail = [b.x for b in Rows(x).batches(3, torch.Generator().manual_seed(0), start=2)]
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], tail, strict=True))
