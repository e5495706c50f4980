"""Run folders: whole or refused, whatever happens to the disk, the files or the writer."""

import errno
import json
import os
import pickle
import random
import resource
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from rosenblatt.core.errors import CheckpointError, OptionError
from rosenblatt.train import RunFolder, storage
from rosenblatt.train.checkpoint import MANIFEST, MODEL, STATE, TRAIN

CONFIG = {"model": "nits", "options": {"hidden": [8, 8]}, "columns": ["a", "b"]}


def net(value=0.0):
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(value)
    return module


def save(run, step, value=None, best=False, **changes):
    model = net(float(step) if value is None else value).state_dict()
    run.save(step, model, {"moment": torch.full((4,), float(step))}, {"n": step, "third": 1 / 3}, best=best, **changes)


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG)
    for step in (1, 2, 3):
        save(run, step, best=step == 2)
    return run


def reopened(run):
    return RunFolder.open(run.path)


def test_round_trip(run):
    again = reopened(run)
    assert again.config == CONFIG
    latest, best = again.load("latest"), again.load()
    assert (latest.step, best.step, again.load(1).step) == (3, 2, 1)
    assert latest.state == {"n": 3, "third": 1 / 3}
    assert torch.equal(best.model["weight"], torch.full((2, 3), 2.0))
    assert torch.equal(latest.train["moment"], torch.full((4,), 3.0))
    assert (run.path / "latest").read_text() == "3\n"
    assert (run.path / "best").read_text() == "2\n"
    names = {p.name for p in (run.path / "step-00000003").iterdir()}
    assert names == {MODEL, TRAIN, STATE, MANIFEST}
    module = net()
    assert again.load_model_into(module).step == 2
    assert torch.equal(module.weight, torch.full((2, 3), 2.0))


def test_keeps_the_last_and_the_best(run):
    for step in (4, 5, 6):
        save(run, step, keep_last=2)
    assert run.steps() == [2, 5, 6]
    save(run, 7, best=True, keep_last=1)
    assert run.steps() == [7]


def test_shared_and_strided_tensors_are_saved(run):
    weight = torch.arange(6.0).reshape(2, 3)
    run.save(9, {"a": weight, "b": weight, "c": weight.t()}, {}, {}, best=True)
    assert torch.equal(run.load().model["c"], weight.t())


def test_create_refuses_what_it_would_destroy(run, tmp_path):
    with pytest.raises(CheckpointError, match="holds a run already"):
        RunFolder.create(run.path, CONFIG)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a run folder"):
        RunFolder.create(tmp_path / "thesis", CONFIG, overwrite=True)
    (run.path / "notes.txt").write_text("mine")
    run.append_metrics({"step": 3})
    fresh = RunFolder.create(run.path, {"model": "maf"}, overwrite=True)
    assert (fresh.steps(), fresh.read_metrics(), reopened(fresh).config) == ([], [], {"model": "maf"})
    assert (run.path / "notes.txt").read_text() == "mine"
    assert not (run.path / "best").exists()
    with pytest.raises(OptionError, match="config"):
        RunFolder.create(tmp_path / "new", {"f": print})
    with pytest.raises(CheckpointError, match="cannot make"):
        RunFolder.create(run.path / "notes.txt" / "run", CONFIG)


def test_open_refuses_what_is_no_run(tmp_path, run):
    with pytest.raises(CheckpointError, match="no such run folder"):
        RunFolder.open(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        RunFolder.open(tmp_path)
    for content in (
        "{",
        "[1]",
        '{"schema": 99, "config": {}}',
        "[" * 100_000,
        "\ud800".encode("utf-8", "surrogatepass"),
    ):
        data = content if isinstance(content, bytes) else content.encode()
        (run.path / "config.json").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            RunFolder.open(run.path)


def test_an_empty_run_says_so(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG)
    for which in ("latest", "best"):
        with pytest.raises(CheckpointError, match="no checkpoint yet"):
            run.load(which)


@pytest.mark.parametrize("name", [MODEL, TRAIN, STATE, MANIFEST])
@pytest.mark.parametrize("kind", ["truncate", "flip", "extend", "remove"])
def test_every_damage_is_noticed(run, name, kind):
    path = run.path / "step-00000003" / name
    whole = path.read_bytes()
    draw = random.Random(f"{name}{kind}")
    for _ in range(50):
        at = draw.randrange(len(whole))
        if kind == "truncate":
            path.write_bytes(whole[:at])
        elif kind == "flip":
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])
        elif kind == "extend":
            path.write_bytes(whole + b" " * (1 + at))
        else:
            path.unlink(missing_ok=True)
        with pytest.raises(CheckpointError):
            run.load(3)
        with pytest.warns(UserWarning, match="before step 3"):
            assert run.load("latest").step == 2


def test_a_damaged_config_is_noticed(run):
    path = run.path / "config.json"
    path.write_text(path.read_text().replace('"a"', '"z"'))
    with pytest.raises(CheckpointError, match=r"config\.json: changed"):
        reopened(run)


def test_pointer_files_decide_nothing(run):
    for content in ("1\n", "../../etc\n", "", "\x00"):
        (run.path / "latest").write_text(content)
        (run.path / "best").write_text(content)
        assert (reopened(run).load("latest").step, reopened(run).load("best").step) == (3, 2)


def test_no_sound_checkpoint_at_all(run):
    for step in run.steps():
        (run.path / f"step-{step:08d}" / STATE).write_text("{}")
    with (
        pytest.warns(UserWarning, match="Falling back"),
        pytest.raises(CheckpointError, match="no checkpoint is sound"),
    ):
        run.load("latest")


def forge(run, name, data):
    """Replace a file of step 3 and write a manifest that vouches for it, as an attacker would."""
    folder = run.path / "step-00000003"
    (folder / name).write_bytes(data)
    files = {n: (folder / n).read_bytes() for n in (MODEL, TRAIN, STATE)}
    (folder / MANIFEST).write_bytes(run._manifest(3, 3, files))


class Bomb:
    """Leaves a mark when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def header(length):
    return length.to_bytes(8, "little")


def test_hostile_weights_are_refused(run, tmp_path):
    canary = tmp_path / "canary"
    huge = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    cases = {
        "pickle": pickle.dumps(Bomb(canary)),
        "torch pickle": pickle.dumps({"weight": Bomb(canary)}, protocol=2),
        "empty": b"",
        "huge header": header(200 << 20) + b" " * 1000,
        "negative length": b"\xff" * 16,
        "header past the end": header(100) + b"{}",
        "no JSON": header(4) + b"oops",
        "JSON list": header(2) + b"[]",
        "deep JSON": header(100_000) + b"[" * 100_000,
        "missing fields": header(9) + b'{"w": {}}',
        "10^12 features": header(len(huge)) + huge,
    }
    for data in cases.values():
        forge(run, MODEL, data)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            run.load(3)
        with pytest.raises(CheckpointError):
            run.check_model(net(), 3)
    assert not canary.exists()


def test_state_that_is_no_object_is_refused(run):
    forge(run, STATE, b"[]")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        run.load(3)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"'weight' is float32 \[2, 4\]"),
        ({"weight": torch.zeros(2, 3)}, "'bias' is absent in the file"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "x": torch.zeros(1)}, "'x' is float32"),
        ({"weight": torch.zeros(2, 3, dtype=torch.float64), "bias": torch.zeros(2)}, "float64"),
    ],
)
def test_weights_of_another_model_are_refused(run, tensors, message):
    forge(run, MODEL, safetensors.torch.save(tensors))
    module = net(5.0)
    with pytest.raises(CheckpointError, match=message):
        run.load_model_into(module, 3)
    with pytest.raises(CheckpointError, match=message):
        run.check_model(module.to("meta"), 3)


def test_weights_that_are_not_finite_are_refused(run):
    for value in (torch.nan, torch.inf):
        save(run, 4, value=value, best=True)
        module = net(5.0)
        with pytest.raises(CheckpointError, match=r"NaN|not finite"):
            run.load_model_into(module)
        assert torch.equal(module.weight, torch.full((2, 3), 5.0))


def test_an_infinite_buffer_is_no_fault(run):
    module = net(1.0)
    module.register_buffer("lower", torch.tensor(-torch.inf))
    run.save(4, module.state_dict(), {}, {}, best=True)
    assert run.load_model_into(module).step == 4


def listing(run):
    return sorted(str(p.relative_to(run.path)) for p in run.path.rglob("*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("write", range(6))
def test_a_failing_write_leaves_the_last_good_checkpoint(run, monkeypatch, code, write):
    save(run, 3)  # so that the lock exists
    before, real, count = listing(run), storage.write_bytes, 0

    def failing(path, data, **options):
        nonlocal count
        count += 1
        if count > write:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(code, os.strerror(code))
        real(path, data, **options)

    monkeypatch.setattr(storage, "write_bytes", failing)
    with pytest.raises(CheckpointError, match=r"step [34], is intact"):
        save(run, 4, best=True)
    assert not [name for name in listing(run) if "tmp" in name]
    monkeypatch.undo()
    if write < 4:
        assert listing(run) == before
        assert run.load("latest").step == 3
    else:  # the checkpoint was complete, only its signpost failed
        assert run.load("latest").step == 4


def test_a_full_disk_for_real(run):
    big = {"weight": torch.zeros(100_000)}
    before = listing(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="step 3, is intact"):
            run.save(4, big, {}, {}, best=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert listing(run) == before
    assert run.load("latest").step == 3


def test_two_writers_are_refused_and_readers_are_not(run):
    other = reopened(run)
    with run.writing():
        save(run, 4)
        for write in (lambda: save(other, 5), lambda: other.append_metrics({"step": 1}), lambda: other.rewind(1)):
            with pytest.raises(CheckpointError, match=f"process {os.getpid()} is writing"):
                write()
        assert other.load("latest").step == 4
    save(other, 5)
    assert run.load("latest").step == 5


def test_the_lock_of_a_dead_process_is_taken_over(run):
    code = (
        "import os, sys; from rosenblatt.train.storage import FolderLock; from pathlib import Path\n"
        "FolderLock(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, str(run.path / "lock")], env=environment, check=False)
    assert done.returncode == -9
    assert (run.path / "lock").read_text().strip() != str(os.getpid())
    save(run, 4)
    assert run.load("latest").step == 4


def test_leftovers_of_a_killed_writer_go(run):
    for name in ("step-00000004.tmp-123", "step-00000002.old-77"):
        (run.path / name).mkdir()
        (run.path / name / MODEL).write_bytes(b"half")
    (run.path / "latest.tmp-123").write_text("4")
    (run.path / "step-5.tmp-notes").write_text("mine")
    assert run.steps() == [1, 2, 3]
    save(run, 4)
    assert not [n for n in listing(run) if ".tmp-1" in n or ".old-" in n]
    assert (run.path / "step-5.tmp-notes").exists()


def test_a_link_is_not_followed_when_old_steps_go(run, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep")
    (run.path / "step-00000000").symlink_to(precious)
    save(run, 4)
    assert (precious / "file").read_text() == "keep"
    assert not (run.path / "step-00000000").is_symlink()


def test_metrics_survive_a_cut_and_a_rewind(run):
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "train": 0.1 * step})
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 4, "tr')
    assert [r["step"] for r in run.read_metrics()] == [1, 2, 3]
    run.rewind(2)
    assert run.read_metrics() == [{"step": 1, "train": 0.1}, {"step": 2, "train": 0.2}]
    assert (run.steps(), run.load("latest").step, run.load("best").step) == ([1, 2], 2, 2)
    assert (run.path / "latest").read_text() == "2\n"


def test_metrics_hold_no_nan(run):
    with pytest.raises(ValueError, match="JSON"):
        run.append_metrics({"train": float("nan")})
