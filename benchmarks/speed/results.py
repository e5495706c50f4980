"""The results file: one record per figure, keyed by what was measured, so that partial runs merge."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks.speed.processes import ROOT

PATH = ROOT / "benchmarks" / "results" / "speed.json"
PACKAGES = ("torch", "zuko", "nflows", "normflows", "flowjax", "jax", "numpy")
KEY_FIELDS = ("section", "family", "dataset", "quantity", "features", "rows", "hidden", "transforms", "library")

Record = dict[str, Any]


def key(record: Record) -> str:
    """What a record is about, as text: the same measurement has the same key in every run."""
    return " ".join(f"{name}={record[name]}" for name in KEY_FIELDS if record.get(name) is not None)


def load(path: Path = PATH) -> dict[str, Any]:
    """Read the results file, or an empty one."""
    if not path.exists():
        return {"command": "python -m benchmarks speed", "machines": {}, "records": {}}
    stored: dict[str, Any] = json.loads(path.read_text())
    return stored


def merge(results: dict[str, Any], records: list[Record], machine: dict[str, Any]) -> dict[str, Any]:
    """Put records in place of those with the same key; machines that no record names any more are dropped."""
    name = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:8]
    merged = {**results["records"], **{key(record): {**record, "machine": name} for record in records}}
    machines = {**results["machines"], name: machine}
    named = {record["machine"] for record in merged.values()}
    return {
        **results,
        "machines": {name: machines[name] for name in sorted(machines) if name in named},
        "records": dict(sorted(merged.items())),
    }


def save(results: dict[str, Any], path: Path = PATH) -> None:
    """Write the results file in one piece."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(beside, path)


def machine() -> dict[str, Any]:
    """Processor, cores and versions; the date is left out."""
    versions = {"python": platform.python_version(), "rosenblatt": _own_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system(), "versions": versions}


def _own_version() -> str:
    text = (ROOT / "rosenblatt" / "_version.py").read_text()
    return text.partition('__version__ = "')[2].partition('"')[0]


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
