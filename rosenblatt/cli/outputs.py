"""What `rosenblatt fit` says and leaves behind: scores, samples, plots, report.json."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rosenblatt.cli.options import Json
from rosenblatt.cli.rows import BUNDLED_SOURCE, SAMPLES, Rows
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import CheckpointError
from rosenblatt.data import Table, write_table
from rosenblatt.eval.bits import Estimate, mean_log_prob
from rosenblatt.train import FitReport, RunFolder
from rosenblatt.train.runtime import seeded_generator
from rosenblatt.train.storage import JSON_LIMIT, read_bytes, read_json, replace_bytes, to_json

ROWS_AT_ONCE = 2048
SAMPLES_AT_ONCE = 10_000  # fixed, since the rows drawn for a seed depend on it
REPORT, SAMPLE_FILE = "report.json", "samples.csv"
PLOTS = ("corner.png", "marginals.png", "pit.png", "training.png")


@dataclass(frozen=True)
class Scores:
    """Held-out log-likelihoods in nats per row, and their paired difference."""

    model: Estimate
    gaussian: Estimate
    difference: Estimate


def row_log_prob(flow: Flow, table: Table) -> Tensor:
    """Log-density of every row, in the units of the table."""
    with torch.no_grad():
        return torch.cat([flow.log_prob(batch.x).double() for batch in table.ordered_batches(ROWS_AT_ONCE)])


def compare(flow: Flow, gaussian: Flow, test: Table) -> Scores:
    """Score a model and the baseline on the same rows."""
    first, second = row_log_prob(flow, test), row_log_prob(gaussian, test)
    return Scores(
        mean_log_prob(first, test.weight),
        mean_log_prob(second, test.weight),
        mean_log_prob(first - second, test.weight),
    )


def sample_chunks(flow: Flow, rows: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Draw `rows` rows in chunks, so that any number fits in memory."""
    for first in range(0, rows, SAMPLES_AT_ONCE):
        with torch.no_grad():
            # The last chunk is drawn in full as well: more rows of one seed begin with the same rows.
            yield flow.sample(SAMPLES_AT_ONCE, generator=generator)[: rows - first]


def write_outputs(
    store: RunFolder,
    flow: Flow,
    rows: Rows,
    report: FitReport,
    scores: Scores | None,
    *,
    samples: int,
    plots: bool,
) -> list[str]:
    """Write samples, plots and the report into the run folder; returns the names of the files."""
    written = []
    if samples:
        seed = store.config["fit"]["seed"]
        chunks = sample_chunks(flow, samples, seeded_generator(seed, SAMPLES))
        write_table(store.path / SAMPLE_FILE, rows.fit.columns, chunks)
        written.append(SAMPLE_FILE)
    if plots:
        written += draw(flow, rows.fit if rows.test is None else rows.test, store, store.path)
    replace_bytes(store.path / REPORT, to_json(_finite(_report(store, flow, rows, report, scores))))
    return [*written, REPORT]


def draw(flow: Flow, table: Table, store: RunFolder, folder: Path) -> list[str]:
    """Save the plots of a run as PNG; returns their names."""
    from rosenblatt.plot import save_plots

    return [Path(path).name for path in save_plots(flow, table, store.read_metrics(), folder)]


def remove_outputs(folder: Path) -> None:
    """Remove what an earlier run left beside its checkpoints, which would be taken for the new run's."""
    for name in (SAMPLE_FILE, REPORT, *PLOTS):
        (folder / name).unlink(missing_ok=True)


def summary(model: str, report: FitReport, rows: Rows, scores: Scores | None) -> str:
    """The result of a fit in a few lines."""
    steps = "" if report.stopped == "closed form" else f" after {report.steps:,} steps in {report.seconds:.0f} s"
    lines = [f"fitted: stopped by {report.stopped}{steps}{_kept(report)}"]
    if report.skipped_steps or report.rolled_back:
        lines.append(f"guard: {report.skipped_steps} steps skipped, {report.rolled_back} roll backs, see metrics.jsonl")
    if scores is None:
        if report.best_validation is not None:
            lines.append(f"validation log-likelihood: {report.best_validation:.4f} nats per row (no test rows)")
        return "\n".join(lines)
    width = max(len(model), len("gaussian")) + 11
    table = {model: scores.model, "gaussian": scores.gaussian, f"{model} - gaussian": scores.difference}
    lines.append(f"held-out log-likelihood, nats per row +- standard error, {rows.test_rows:,} test rows:")
    lines += [f"  {name:<{width}} {score.value:10.4f} +- {score.standard_error:.4f}" for name, score in table.items()]
    return "\n".join(lines)


def next_steps(folder: Path, rows: Rows) -> list[str]:
    """Commands to go on with."""
    table = ["TABLE"] if rows.source == BUNDLED_SOURCE else [rows.source]
    commands = [
        ["score", str(folder), *table, "--out", "scores.csv"],
        ["sample", str(folder), "-n", "1000"],
        ["audit", str(folder)],
        ["info", str(folder)],
    ]
    return [shlex.join(["rosenblatt", *words]) for words in commands]


def _kept(report: FitReport) -> str:
    if report.best_validation is None or report.stopped == "closed form":
        return ""
    return f", best validation {report.best_validation:.4f} nats at step {report.best_step:,}"


def _report(store: RunFolder, flow: Flow, rows: Rows, report: FitReport, scores: Scores | None) -> Json:
    config = store.config
    left_out = ("history", "events")
    nats = None
    if scores is not None:
        nats = {field.name: list(getattr(scores, field.name)) for field in dataclasses.fields(scores)}
    return {
        "command": config["provenance"]["command"],
        "model": config["model"],
        "options": config["options"],
        "parameters": count_parameters(flow),
        "columns": config["columns"],
        "data": config["data"],
        "dequantise": config["dequantise"],
        "warnings": rows.warnings,
        "seed": config["fit"]["seed"],
        "fit": {name: value for name, value in dataclasses.asdict(report).items() if name not in left_out},
        "nats_per_row": nats,
        "versions": config["versions"],
    }


def read_scores(store: RunFolder) -> dict[str, tuple[float, float]]:
    """Read the held-out scores of a run's report; none while the fit is unfinished."""
    path = store.path / REPORT
    if not path.is_file():
        return {}
    scores = read_json(read_bytes(path, limit=JSON_LIMIT), path).get("nats_per_row") or {}
    try:
        return {str(name): (float(value), float(error)) for name, (value, error) in scores.items()}
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError(f"{path}: not a report of `rosenblatt fit`; remove it.") from None


def count_parameters(flow: Flow) -> int:
    """Number of trained weights."""
    return sum(p.numel() for p in flow.parameters())


def _finite(value: Any) -> Any:
    """JSON has no infinities or NaN: they are written as text."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value
