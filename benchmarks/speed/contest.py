"""One measurement: contestants built in their processes and timed in interleaved rounds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.speed.processes import Process, WorkerError
from benchmarks.speed.results import Record
from benchmarks.speed.rounds import Effort, Series, interleave, ratio, summary
from benchmarks.speed.sizes import FAMILIES, OURS, QUANTITIES


@dataclass(frozen=True)
class Plan:
    """What the command line asked for."""

    libraries: list[str]  # those installed
    families: list[str] = field(default_factory=lambda: list(FAMILIES))
    features: list[int] = field(default_factory=lambda: [6, 43, 63])
    quantities: list[str] = field(default_factory=lambda: list(QUANTITIES))
    threads: int = 2
    effort: Effort = field(default_factory=Effort)


@dataclass(frozen=True)
class Contestant:
    """A model in one of the processes, under the name that the report gives it."""

    label: str
    process: Process
    counts: Record

    def timer(self, quantity: str, rows: int, features: int, clock: str = "wall") -> Callable[[], float]:
        """A call that gives the seconds of one round."""
        request = {"name": self.label, "quantity": quantity, "rows": rows, "features": features, "clock": clock}
        return lambda: float(self.process.ask("time", **request)["seconds"])


def build(label: str, process: Process, size: Record, published: str | None = None) -> Contestant | None:
    """Build one model in its process, or say on standard error why not."""
    try:
        return Contestant(label, process, process.ask("build", name=label, size=size, published=published))
    except WorkerError as error:
        print(f"{label} {size}: left out: {error}", file=sys.stderr)
        return None


def gemm_timer(process: Process, clock: str = "wall") -> Callable[[], float]:
    """A call that gives the seconds of one multiply-add within a large matrix product."""
    return lambda: 1.0 / float(process.ask("gemm_rate", clock=clock)["rate"])


def contest(contestants: list[Contestant], about: Record, plan: Plan, clock: str = "wall") -> list[Record]:
    """Interleaved rounds of one quantity, the machine's matrix product among them: one record per contestant."""
    calls: dict[str, Callable[[], float]] = {}
    first: dict[str, float] = {}
    for contestant in contestants:
        timer = contestant.timer(about["quantity"], about["rows"], about["features"], clock)
        try:
            first[contestant.label] = timer()
        except WorkerError as error:
            print(f"{contestant.label} {about}: left out: {error}", file=sys.stderr)
            continue
        calls[contestant.label] = timer
    if OURS not in calls:  # nothing to compare with
        return []
    own = next(contestant for contestant in contestants if contestant.label == OURS)
    calls["gemm"] = gemm_timer(own.process, clock)
    series = interleave(calls, plan.effort)
    return [
        _record(contestant, {**about, "threads": plan.threads, "first_call_seconds": first[contestant.label]}, series)
        for contestant in contestants
        if contestant.label in first
    ]


def _record(contestant: Contestant, about: Record, series: dict[str, Series]) -> Record:
    rounds, counts = series[contestant.label], contestant.counts
    record = {**about, "library": contestant.label, **summary(rounds)}
    record |= {name: counts[name] for name in ("weights", "visible", "note") if counts.get(name)}
    if contestant.label == OURS:
        record["gemm_rate"] = 1.0 / float(summary(series["gemm"])["seconds"])  # multiply-adds per second
    else:
        record |= ratio(rounds, series[OURS])
    multiply_adds: dict[str, Any] = counts.get("multiply_adds", {})
    work = multiply_adds.get(about["quantity"])
    if work and contestant.label.partition("+")[0] == OURS:
        floor = [None if seconds is None else seconds * work * about["rows"] for seconds in series["gemm"]]
        record |= {"floor_seconds": summary(floor)["seconds"], **ratio(rounds, floor, "floor_ratio")}
    return record
