"""Train steps, log-densities and samples of our flows beside those of other libraries.

Without a section's flag the default sections run. Figures go to benchmarks/results/speed.json as they come, each in
place of the earlier figure of the same measurement, so any part can be run again alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator

from benchmarks.speed import results, sections
from benchmarks.speed.contest import Plan
from benchmarks.speed.imports import imports
from benchmarks.speed.processes import installed
from benchmarks.speed.results import Record
from benchmarks.speed.rounds import Effort
from benchmarks.speed.sizes import COMPILED, FAMILIES, OURS, PEERS, QUANTITIES

Section = Callable[[Plan], Iterator[list[Record]]]

SECTIONS: dict[str, tuple[Section, str]] = {
    "compare": (sections.compare, "every family, library and quantity (default)"),
    "imports": (imports, "import times (default)"),
    "memory": (sections.memory, "peak memory of scoring 10,000 rows (default)"),
    "scaling": (sections.scaling, "curves over rows, columns, width and depth, ours and zuko"),
    "floor": (sections.floor, "our times over those of the matrix products they contain"),
    "samples": (sections.samples, "cost of n samples over that of n log-densities"),
    "nits-cost": (sections.nits_cost, "CPU-seconds of one thread at the published NITS sizes"),
}
DEFAULT = ("compare", "imports", "memory")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_argument_group("sections")
    for name, (_, what) in SECTIONS.items():
        which.add_argument(f"--{name}", dest="sections", action="append_const", const=name, help=what)
    which.add_argument("--all", dest="sections", action="store_const", const=list(SECTIONS), help="every section")
    which.add_argument("--report", action="store_true", help="write docs/speed.md and its plots from the results file")
    parser.add_argument("--compile", action="store_true", help="compare: add torch.compile'd figures of ours and zuko")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--features", nargs="+", type=int, default=[6, 43, 63], metavar="D", help="6 43 63")
    parser.add_argument("--quantities", nargs="+", choices=QUANTITIES, default=list(QUANTITIES), metavar="QUANTITY")
    parser.add_argument("--libraries", nargs="+", choices=PEERS, default=list(PEERS), metavar="LIBRARY", help="peers")
    parser.add_argument("--threads", type=int, default=2, help="cores for each library, 2")
    parser.add_argument("--rounds", type=int, default=7, help="7")
    parser.add_argument("--slow-rounds", type=int, default=3, help="rounds of who takes over 5 s a call, 3")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measure what was asked for, or write the report."""
    chosen = parse(arguments)
    if chosen.sections or not chosen.report:
        measure(chosen)
    if chosen.report:
        from benchmarks.speed.report import write_report

        write_report()
    return 0


def measure(chosen: argparse.Namespace) -> None:
    """Run the chosen sections; every figure is written as soon as it is there."""
    wanted = [OURS, *chosen.libraries]
    if chosen.compile:
        wanted += [library for library in COMPILED if library.partition("+")[0] in wanted]
    effort = Effort(rounds=chosen.rounds, slow_rounds=min(chosen.slow_rounds, chosen.rounds))
    plan = Plan(installed(wanted), chosen.families, chosen.features, chosen.quantities, chosen.threads, effort)
    machine = results.machine()
    _warn_if_busy()
    for name in chosen.sections or DEFAULT:
        for records in SECTIONS[name][0](plan):
            results.save(results.merge(results.load(), records, machine))
            for record in records:
                print(line(record), flush=True)


def _warn_if_busy() -> None:
    """Threads that wait for each other lose a factor of ten as soon as one of them shares its core."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        print(f"load average {load:.1f}: other work is running, so these times will mean little.", file=sys.stderr)


def line(record: Record) -> str:
    """One record as one line of text."""
    about = " ".join(str(record[name]) for name in results.KEY_FIELDS if record.get(name) is not None)
    if "bytes" in record:
        return f"{about}: {record['bytes'] / 2**20:.0f} MiB"
    parts = [f"{about}: {record['seconds']:.4g} s"]
    said = {
        "ratio": "times ours",
        "floor_ratio": "times the floor",
        "sample_ratio": "times the log-density",
    }
    for name, what in said.items():
        if name in record:
            low, high = record[f"{name}_range"]
            parts.append(f"{record[name]:.2f} ({low:.2f} to {high:.2f}) {what}")
    return ", ".join(parts)
