"""What is measured: each section yields its records as soon as they are known."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.speed.contest import Contestant, Plan, build, contest
from benchmarks.speed.processes import Process, started
from benchmarks.speed.results import Record
from benchmarks.speed.rounds import interleave, ratio, summary
from benchmarks.speed.sizes import COMPILED, OURS, QUANTITIES, transforms

# Set beside NITS, with five transforms where it has one; the last two in training at one size only.
BESIDE_NITS = {"zuko NSF": "nsf_ar", "zuko NAF": "naf", "zuko UNAF": "unaf"}
NEURAL, NEURAL_FEATURES = ("zuko NAF", "zuko UNAF"), 63

CENTRE = {"rows": 4096, "features": 16, "hidden": 256, "transforms": 5}
AXES = {
    "rows": [256, 1024, 4096, 16384, 65536],
    "features": [2, 4, 8, 16, 32, 64, 128],
    "hidden": [64, 128, 256, 512, 1024],
    "transforms": [1, 2, 5, 10],
}
SCALING_FAMILIES = ("maf", "nsf_ar")
SCALING_ROUNDS = 3

FLOOR_FAMILIES = ("maf", "nsf_ar", "nits")
FLOOR_FEATURES, FLOOR_ROWS, FLOOR_HIDDEN = 63, 2048, (256, 512, 1024)

SAMPLE_FAMILIES = ("maf", "nsf_ar", "nits", "nits_random")
SAMPLE_ROWS = (1000, 10_000)

# The authors' code, CPU-seconds of one thread on another, unnamed machine: D, train step, log-density, samples.
AUTHORS = {
    "power": (6, 0.48, 0.51, 0.83),
    "gas": (8, 0.52, 0.56, 1.4),
    "hepmass": (21, 0.39, 0.37, 7.2),
    "miniboone": (43, 0.46, 0.90, 26.8),
    "bsds300": (63, 1.70, 2.15, 70.9),
}
AUTHORS_ROWS = {"train": 512, "log_prob": 2000, "sample": 256}


def compare(plan: Plan) -> Iterator[list[Record]]:
    """Every family at every number of columns: train step, log-density, samples, all libraries interleaved."""
    with started(plan.libraries, plan.threads) as processes:
        for family, features in itertools.product(plan.families, plan.features):
            size = {"family": family, "features": features, "hidden": 256, "transforms": transforms(family)}
            contestants = _build_everywhere(processes, size)
            for quantity in plan.quantities:
                if quantity == "sample":
                    taking_part = [c for c in contestants if c.label not in (*NEURAL, *COMPILED)]
                else:
                    taking_part = [c for c in contestants if quantity == "train" or c.label not in NEURAL]
                about = {"section": "compare", **size, "quantity": quantity, "rows": QUANTITIES[quantity]}
                yield contest(taking_part, about, plan)
            _clear(processes)


def _build_everywhere(processes: dict[str, Process], size: dict[str, Any]) -> list[Contestant]:
    """The family in every library that has it."""
    wanted: list[tuple[str, Process, dict[str, Any]]] = []
    for library, process in processes.items():
        if size["family"] != "nits" or library.partition("+")[0] == OURS:
            wanted.append((library, process, size))
        elif library == "zuko":
            taken = BESIDE_NITS if size["features"] == NEURAL_FEATURES else {"zuko NSF": "nsf_ar"}
            wanted += [(n, process, {**size, "family": f, "transforms": transforms(f)}) for n, f in taken.items()]
    built = [build(label, process, size) for label, process, size in wanted]
    return [contestant for contestant in built if contestant is not None]


def _clear(processes: dict[str, Process]) -> None:
    for process in processes.values():
        process.ask("clear")


def scaling(plan: Plan) -> Iterator[list[Record]]:
    """Ours and zuko along rows, columns, width and depth, one at a time from a common centre; few rounds."""
    rounds = min(plan.effort.rounds, SCALING_ROUNDS)
    plan = dataclasses.replace(plan, effort=dataclasses.replace(plan.effort, rounds=rounds))
    points = [{**CENTRE, axis: value} for axis, values in AXES.items() for value in values]
    unique = [point for number, point in enumerate(points) if point not in points[:number]]
    libraries = [library for library in plan.libraries if library in (OURS, "zuko")]
    with started(libraries, plan.threads) as processes:
        for family, point in itertools.product([f for f in plan.families if f in SCALING_FAMILIES], unique):
            size = {"family": family, **{name: value for name, value in point.items() if name != "rows"}}
            contestants = _build_everywhere(processes, size)
            for quantity in ("log_prob", "train"):
                yield contest(
                    contestants, {"section": "scaling", **size, "quantity": quantity, "rows": point["rows"]}, plan
                )
            _clear(processes)


def floor(plan: Plan) -> Iterator[list[Record]]:
    """Our log-density and train step over the matrix products they contain, as the width grows."""
    with started([OURS], plan.threads) as processes:
        for family, hidden in itertools.product([f for f in plan.families if f in FLOOR_FAMILIES], FLOOR_HIDDEN):
            size = {"family": family, "features": FLOOR_FEATURES, "hidden": hidden, "transforms": transforms(family)}
            contestants = _build_everywhere(processes, size)
            for quantity in ("log_prob", "train"):
                yield contest(contestants, {"section": "floor", **size, "quantity": quantity, "rows": FLOOR_ROWS}, plan)
            _clear(processes)


def samples(plan: Plan) -> Iterator[list[Record]]:
    """What n samples cost over the log-density of n rows."""
    with started([OURS], plan.threads) as processes:
        process = processes[OURS]
        for family, features in itertools.product(SAMPLE_FAMILIES, plan.features):
            plain = family.removesuffix("_random")
            if plain not in plan.families:
                continue
            size = {"family": plain, "features": features, "hidden": 256, "transforms": transforms(plain)}
            built = build(OURS, process, {**size, "random": plain != family})
            if built is None:
                continue
            for rows in SAMPLE_ROWS:
                timers = {name: built.timer(name, rows, features) for name in ("log_prob", "sample")}
                series = interleave(timers, plan.effort)
                yield [
                    {"section": "samples", **size, "family": family, "quantity": "sample", "rows": rows}
                    | {"library": OURS, "threads": plan.threads, **summary(series["sample"])}
                    | {"log_prob_seconds": summary(series["log_prob"])["seconds"]}
                    | ratio(series["sample"], series["log_prob"], "sample_ratio")
                ]
            _clear(processes)


def nits_cost(plan: Plan) -> Iterator[list[Record]]:
    """CPU-seconds of one thread at the published NITS sizes, for comparison with the authors' own code."""
    plan = dataclasses.replace(plan, threads=1)
    with started([OURS], 1) as processes:
        for dataset, (features, *authors) in AUTHORS.items():
            size = {"family": "nits", "features": features}
            contestant = build(OURS, processes[OURS], size, published=dataset)
            if contestant is None:
                continue
            for (quantity, rows), theirs in zip(AUTHORS_ROWS.items(), authors, strict=True):
                about = {"section": "nits_cost", "dataset": dataset, **size, "quantity": quantity, "rows": rows}
                for record in contest([contestant], about, plan, clock="cpu"):
                    yield [{**record, "authors_seconds": theirs, "authors_ratio": theirs / record["seconds"]}]
            _clear(processes)


def memory(plan: Plan) -> Iterator[list[Record]]:
    """Largest resident memory of a fresh process that builds a model and scores 10,000 rows once."""
    rows = QUANTITIES["log_prob"]
    for family, features, library in itertools.product(plan.families, plan.features, plan.libraries):
        if library in COMPILED or (family == "nits" and library != OURS):
            continue
        size = {"family": family, "features": features, "hidden": 256, "transforms": transforms(family)}
        peaks = []
        for _ in range(min(plan.effort.rounds, 3)):
            with started([library], plan.threads) as processes:
                before = processes[library].ask("memory")["bytes"]
                contestant = build(library, processes[library], size)
                if contestant is None:
                    break
                contestant.timer("log_prob", rows, features)()
                peaks.append(processes[library].ask("memory")["bytes"])
        if not peaks:
            print(f"{library} {size}: no memory figure", file=sys.stderr)
            continue
        about = {"section": "memory", **size, "quantity": "memory", "rows": rows, "library": library}
        yield [{**about, "threads": plan.threads, "bytes": sorted(peaks)[len(peaks) // 2], "start_bytes": before}]
