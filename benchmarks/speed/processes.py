"""The parent's end of the worker processes; this side imports no library under test."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerError(RuntimeError):
    """A worker could not answer; the message is its own."""


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a measuring process: a thread count, this checkout first, bytecode kept."""
    env = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # or our modules alone would be compiled at every import
    return env


class Process:
    """One library in a process of its own."""

    def __init__(self, library: str, threads: int) -> None:
        self.library = library
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker", library, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=child_environment(threads),
        )

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Send one request and wait for its answer; raises `WorkerError` with the worker's reason."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"do": do, **details}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process of {self.library} ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # in the middle of a long call
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def started(libraries: list[str], threads: int) -> Iterator[dict[str, Process]]:
    """Processes of several libraries, ended at the end whatever happens."""
    processes: dict[str, Process] = {}
    try:
        for library in libraries:
            processes[library] = Process(library, threads)
        yield processes
    finally:
        for process in processes.values():
            process.close()


def installed(libraries: list[str]) -> list[str]:
    """The libraries that can be imported; one line to standard error for each that cannot."""
    found = []
    for library in libraries:
        name = library.partition("+")[0]
        if name == "rosenblatt" or importlib.util.find_spec(name) is not None:
            found.append(library)
        else:
            extra = "bench-jax" if name == "flowjax" else "bench"
            print(f'{name} is not installed and is left out; pip install -e ".[{extra}]" brings it.', file=sys.stderr)
    return found
