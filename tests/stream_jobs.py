"""Jobs for the tests of worker processes: they must be importable there. Also a command line with small chunks."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

from rosenblatt.core.errors import DataError, InverseError


@dataclass(frozen=True)
class Squares:
    """Squares of the row numbers; at chunk `at` something happens instead."""

    at: int = -1
    what: str = ""

    def start(self):
        if self.what == "start":
            raise DataError("this job cannot start; give it up.")
        return self.compute

    def compute(self, chunk):
        assert torch.get_num_threads() == 1
        if chunk.number == self.at:
            misbehave(self.what, chunk)
        elif self.what:
            time.sleep(0.02 * (chunk.number % 3))
        return np.arange(chunk.first, chunk.first + chunk.rows, dtype=np.float64)[:, None] ** 2


def misbehave(what, chunk):
    if what == "ours":
        raise DataError(f"row {chunk.first} is bad; drop it.")
    if what == "inverse":
        raise InverseError("are lost", [3])
    if what == "system":
        raise OSError(28, "No space left on device")
    if what == "memory":
        raise MemoryError
    if what == "bug":
        raise KeyError("gone")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)


def small_chunks(words):
    """The command line with chunks of 500 rows."""
    from rosenblatt.cli import main, sampling, scoring

    scoring.CHUNK_ROWS = sampling.CHUNK_ROWS = 500
    return main(words)


def write_slowly():
    """Let every part take its time, so that the command is still at work when a test stops it."""
    from rosenblatt.cli.parts import Parts

    write = Parts.write

    def slow(self, chunk, array):
        time.sleep(0.02)
        write(self, chunk, array)

    Parts.write = slow


if __name__ in ("__main__", "__mp_main__"):  # here and in the workers, which run this file again
    write_slowly()
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    sys.exit(small_chunks(sys.argv[1:]))
