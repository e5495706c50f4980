"""`rosenblatt fit` as a process of its own: Ctrl-C, kill -9, and going on from there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from cli_helpers import one_sentence, write

from rosenblatt.cli import main
from rosenblatt.train import RunFolder

WORDS = (
    *("--option", "hidden=8", "--option", "widths=[4,1]", "--batch-size", "16", "--epochs", "1000"),
    *("--max-steps", "120", "--validate-every", "8", "--patience", "None", "--no-plots", "--samples", "10"),
)


@contextmanager
def running_fit(table: str, run: Path, words: tuple[str, ...] = WORDS) -> Iterator[subprocess.Popen[str]]:
    """Start a fit and hand it over when it has written checkpoints and is still at work."""
    program = [sys.executable, "-m", "rosenblatt", "fit", table, "--out", str(run), *words]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            metrics = run / "metrics.jsonl"
            deadline = time.monotonic() + 120
            while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A table and an unbroken fit of it."""
    folder = tmp_path_factory.mktemp("whole")
    table = write(folder / "rows.csv")
    assert main(["fit", table, "--out", str(folder / "run"), *WORDS]) == 0
    return table, folder / "run"


def assert_resumes_to(unbroken: Path, stopped: Path) -> None:
    assert RunFolder.open(stopped).load("latest").step < 120
    assert main(["fit", "--resume", str(stopped)]) == 0
    for which in ("latest", "best"):
        one, two = (RunFolder.open(folder).load(which) for folder in (unbroken, stopped))
        assert one.step == two.step
        assert all(torch.equal(tensor, two.model[name]) for name, tensor in one.model.items())
    assert (unbroken / "samples.csv").read_bytes() == (stopped / "samples.csv").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_saves_says_how_to_resume_and_resumes_exactly(whole: tuple[str, Path], tmp_path: Path) -> None:
    (table, unbroken), stopped = whole, tmp_path / "stopped"
    with running_fit(table, stopped) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        said = one_sentence(process.stderr.read())
    assert f"rosenblatt fit --resume {stopped}" in said
    assert_resumes_to(unbroken, stopped)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_kill_9_loses_nothing_that_was_saved_and_resumes_exactly(whole: tuple[str, Path], tmp_path: Path) -> None:
    (table, unbroken), stopped = whole, tmp_path / "stopped"
    with running_fit(table, stopped) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert_resumes_to(unbroken, stopped)
