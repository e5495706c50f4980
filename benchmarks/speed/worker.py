"""A process with one library in it, which answers one request at a time: a JSON line in, a JSON line out.

Each library has a process of its own because importing one changes global state (zuko turns the validation of
torch.distributions off, JAX keeps threads), and because a sleeping process disturbs no other.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.speed.sizes import Size

LEAST_SECONDS = 0.02  # a call shorter than this is repeated within a round until so much time has gone by
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Worker:
    """Models built so far, by name, and the calls prepared on them."""

    def __init__(self, library: str, threads: int) -> None:
        self.library = library
        self.models: dict[str, Any] = {}
        self.calls: dict[str, Callable[[], object]] = {}
        self.last: dict[str, float] = {}
        if library == "flowjax":
            _keep_to_cores(threads)
            import benchmarks.speed.jax_model
        else:
            import torch

            import benchmarks.speed.libraries  # noqa: F401

            torch.set_num_threads(threads)

    def build(self, name: str, size: dict[str, Any], published: str | None = None) -> dict[str, Any]:
        """Build a model (with `published`, NITS at the sizes for that UCI table) and count its weights."""
        if self.library == "flowjax":
            from benchmarks.speed.jax_model import JaxModel

            self.models[name] = JaxModel(Size(**size))
            return self.models[name].counts()
        import torch

        from benchmarks.speed import libraries
        from benchmarks.speed.floor import multiply_adds

        torch.manual_seed(0)  # the peers draw their starting weights from the global state; this process is theirs
        if published:
            model = libraries.ours_published(published, size["features"])
        else:
            model = libraries.build(self.library, Size(**size))
        self.models[name] = model
        return {**model.counts(), "multiply_adds": multiply_adds(model.module), "note": model.note}

    def clear(self) -> dict[str, Any]:
        """Forget everything built."""
        for kept in (self.models, self.calls, self.last):
            kept.clear()
        if "+compile" in self.library:
            import torch

            torch.compiler.reset()
        return {}

    def time(self, name: str, quantity: str, rows: int, features: int, clock: str = "wall") -> dict[str, Any]:
        """Seconds of one call, the mean over the calls of one round."""
        key = f"{name} {quantity} {rows}"
        if key not in self.calls:
            data = np.random.default_rng(0).standard_normal((rows, features), dtype=np.float32)
            self.calls[key] = getattr(self.models[name], quantity)(rows if quantity == "sample" else data)
        elif self.last[key] < LEAST_SECONDS:
            self.calls[key]()  # wakes the threads and refills the caches after another process's turn
        self.last[key] = mean_seconds(self.calls[key], CLOCKS[clock])
        return {"seconds": self.last[key]}

    def gemm_rate(self, clock: str = "wall") -> dict[str, Any]:
        """Multiply-adds per second of a large matrix product."""
        from benchmarks.speed.floor import gemm_rate

        return {"rate": gemm_rate(CLOCKS[clock])}

    def memory(self) -> dict[str, Any]:
        """Largest resident memory of this process so far, in bytes."""
        unit = 1 if sys.platform == "darwin" else 1024
        return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def mean_seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Mean time of a call, repeated until LEAST_SECONDS have gone by."""
    spent, calls = 0.0, 0
    while spent < LEAST_SECONDS:
        start = clock()
        call()
        spent += clock() - start
        calls += 1
    return spent / calls


def _keep_to_cores(count: int) -> None:
    """Leave this process `count` cores: JAX takes as many threads as it sees cores, and has no option for it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def main() -> None:
    """Answer requests until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("--threads", type=int, required=True)
    chosen = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints does not get between the answers
    worker = Worker(chosen.library, chosen.threads)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # the parent leaves this contestant out and says why
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
