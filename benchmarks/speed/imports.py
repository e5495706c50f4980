"""Import time: a fresh interpreter that brings in what is needed to build a flow, from start to exit."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks.speed.contest import Plan
from benchmarks.speed.processes import ROOT, child_environment
from benchmarks.speed.results import Record
from benchmarks.speed.rounds import interleave, ratio, summary
from benchmarks.speed.sizes import OURS

# `import nflows` and `import flowjax` bring in next to nothing, and neither does `import rosenblatt`.
STATEMENTS = {
    "python": "pass",
    "torch": "import torch",
    "rosenblatt (lazy)": "import rosenblatt",
    OURS: "from rosenblatt import build",
    "zuko": "import zuko",
    "nflows": "import nflows.flows, nflows.transforms, nflows.distributions",
    "normflows": "import normflows",
    "flowjax": "import flowjax.flows, flowjax.distributions, flowjax.bijections",
}


def imports(plan: Plan) -> Iterator[list[Record]]:
    """Seconds from the start of the interpreter to its exit, nothing subtracted."""
    wanted = {
        name: code for name, code in STATEMENTS.items() if name.split()[0] in {"python", "torch", *plan.libraries}
    }
    series = interleave({name: _timer(code, plan.threads) for name, code in wanted.items()}, plan.effort)
    records = []
    for name, code in wanted.items():
        record = {"section": "imports", "quantity": "import", "library": name, "statement": code}
        record |= {"threads": plan.threads, **summary(series[name])}
        if name != OURS:
            record |= ratio(series[name], series[OURS])
        records.append(record)
    yield records


def _timer(code: str, threads: int) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=child_environment(threads))
        return time.perf_counter() - start

    return run
