"""What `rosenblatt fit` says and leaves behind: scores, samples, plots, report.json."""

from __future__ import annotations

import shlex
from pathlib import Path

from rosenblatt.cli.rows import BUNDLED_SOURCE, Rows
from rosenblatt.cli.sampling import sample_chunks
from rosenblatt.core.density import Density, Flow
from rosenblatt.data import Table, write_table
from rosenblatt.summary import REPORT, SAMPLE_FILE, Summary, write_summary
from rosenblatt.train import FitReport, RunFolder


def write_outputs(
    store: RunFolder,
    flow: Flow,
    rows: Rows,
    summary: Summary,
    *,
    samples: int,
    plots: bool,
) -> list[str]:
    """Write samples, plots and the report into the run folder; returns the names of the files."""
    written = []
    if samples:
        write_table(
            store.path / SAMPLE_FILE, rows.fit.columns, sample_chunks(flow, samples, store.config["fit"]["seed"])
        )
        written.append(SAMPLE_FILE)
    if plots:
        written += draw(flow, rows.fit if rows.test is None else rows.test, store, store.path)
    write_summary(store, summary)
    return [*written, REPORT]


def draw(flow: Flow, table: Table, store: RunFolder, folder: Path) -> list[str]:
    """Save the plots of a run as PNG; returns their names."""
    from rosenblatt.plot import save_plots

    return [Path(path).name for path in save_plots(flow, table, store.read_metrics(), folder)]


def result(model: str, summary: Summary, rows: Rows) -> str:
    """The result of a fit in a few lines."""
    report, scores = summary.report, summary.test
    steps = "" if report.stopped == "closed form" else f" after {report.steps:,} steps in {report.seconds:.0f} s"
    lines = [f"fitted: stopped by {report.stopped}{steps}{_kept(report)}"]
    if report.skipped_steps or report.rolled_back:
        lines.append(f"guard: {report.skipped_steps} steps skipped, {report.rolled_back} roll backs, see metrics.jsonl")
    if scores is None:
        validation = report.best_validation
        if report.measure != "nats":  # the score of training is no log-likelihood
            validation = None if summary.validation is None else summary.validation.model.value
        if validation is not None:
            lines.append(f"validation log-likelihood: {validation:.4f} nats per row (no test rows)")
        return "\n".join(lines)
    width = max(len(model), len("gaussian")) + 11
    lines.append(f"held-out log-likelihood, nats per row +- standard error, {rows.test_rows:,} test rows:")
    lines += [
        f"  {name:<{width}} {score.value:10.4f} +- {score.standard_error:.4f}"
        for name, score in zip((model, "gaussian", f"{model} - gaussian"), scores, strict=True)
        if score is not None
    ]
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
    return f", best validation {report.best_validation:.4f} {report.measure} at step {report.best_step:,}"


def count_parameters(model: Density) -> int:
    """Number of trained weights."""
    return sum(p.numel() for p in model.parameters())
