"""Run the checks, print each line as it is measured, and write the table down."""

from __future__ import annotations

import dataclasses
import importlib
import json
import platform
import sys
import time
from typing import Any

import torch

from benchmarks.power import ROOT

SECTIONS = ("maf", "nsf", "iaf", "elf", "mtaf", "quantile_flow", "energy_flow", "inverses", "float32", "ddn")
RESULTS = ROOT / "results" / "checks.json"
PAGE = ROOT.parent / "docs" / "checks.md"
HEAD = """# What the methods' own checks say

Every line is measured by `python -m benchmarks checks`, one thread, fixed seeds; the figures are in
`benchmarks/results/checks.json`. Expected are closed forms, published figures, or the bands that the method must reach.

| method | what | expected | measured | holds |
| --- | --- | --- | --- | --- |
"""


def main(arguments: list[str]) -> int:
    """Run the named sections (all by default); exit code 1 if a line does not hold."""
    torch.set_num_threads(1)
    chosen = arguments or list(SECTIONS)
    if unknown := [name for name in chosen if name not in SECTIONS]:
        print(f"section: '{unknown[0]}' came, one of {', '.join(SECTIONS)} was expected.", file=sys.stderr)
        return 2
    stored = json.loads(RESULTS.read_text())["sections"] if RESULTS.exists() else {}
    for name in chosen:
        stored[name] = run(name)
        write({section: stored[section] for section in SECTIONS if section in stored})
    return int(any(not line["holds"] for name in chosen for line in stored[name]["checks"]))


def run(name: str) -> dict[str, Any]:
    """Measure one section."""
    start, lines = time.process_time(), []
    for check in importlib.import_module(f"benchmarks.checks.{name}").checks():
        lines.append(dataclasses.asdict(check))
        print(
            f"{'ok ' if check.holds else 'NO '} {check.method}: {check.what}: {check.measured:.4g} ({check.expected})"
        )
        sys.stdout.flush()
    return {"cpu_seconds": round(time.process_time() - start, 1), "checks": lines}


def write(sections: dict[str, Any]) -> None:
    """Write the results and the page made of them."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    result = {"command": "python -m benchmarks checks", "versions": versions, "sections": sections}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(page(sections))


def page(sections: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [line for section in sections.values() for line in section["checks"]]
    return HEAD + "".join(
        f"| {line['method']} | {line['what'].replace('|', '/')} | {line['expected']} | {line['measured']:.4g} | "
        f"{'yes' if line['holds'] else '**no**'} |\n"
        for line in lines
    )
