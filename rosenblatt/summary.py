"""What a fit leaves beside its checkpoints, the same for the estimator and the command line: above all report.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rosenblatt.assembly import TableFlow, assemble
from rosenblatt.core.errors import CheckpointError, DataError
from rosenblatt.data import Table
from rosenblatt.eval import BitsPerDim, Estimate, mean_log_prob
from rosenblatt.train import FitReport, RunFolder
from rosenblatt.train.storage import JSON_LIMIT, read_bytes, read_json, replace_bytes, to_json

REPORT, SAMPLE_FILE = "report.json", "samples.csv"
PLOTS = (
    *("corner.png", "marginals.png", "pit.png", "training.png", "reliability.png", "groups.png", "curves.png"),
    *("intervals.png", "intervals_1.png", "intervals_2.png", "intervals_3.png"),
    *("samples.png", "images.png", "bits.png", "calibration.png"),
)


class Comparison(NamedTuple):
    """Mean log-densities of held-out rows in nats per row, and their paired difference.

    The baseline is the Gaussian with full covariance that fits the training rows best, in the units of the columns
    and without regard to supports; None where the training rows have no such Gaussian.
    """

    model: Estimate
    gaussian: Estimate | None = None
    difference: Estimate | None = None


class Summary(NamedTuple):
    """The end of a fit: its report, and scores of the validation and the test rows where there are any.

    A model of images has the bits per dimension of its test images, `bits`, in place of comparisons.
    """

    report: FitReport
    validation: Comparison | None = None
    test: Comparison | None = None
    bits: BitsPerDim | None = None


def compare(flow: TableFlow, train: Table, held_out: Table) -> Comparison:
    """Score `flow` and the Gaussian fitted to `train` on the rows `held_out`, at least two."""
    weight = held_out.weight
    log_prob = flow.by_rows(flow.log_prob, held_out.values)
    model = mean_log_prob(log_prob, weight)
    try:
        gaussian = assemble("gaussian", train).double()
        gaussian.initialise(train.values, weight=train.weight)
    except DataError:  # too few rows for a covariance, or no Gaussian has one
        return Comparison(model)
    baseline = gaussian.by_rows(gaussian.log_prob, held_out.values)
    return Comparison(model, mean_log_prob(baseline, weight), mean_log_prob(log_prob - baseline, weight))


def new_run(path: str | Path, config: Mapping[str, Any], *, overwrite: bool) -> RunFolder:
    """Make a run folder (`RunFolder.create`) without what an earlier fit left there, which would seem the new one's."""
    run = RunFolder.create(path, config, overwrite=overwrite)
    for name in (REPORT, SAMPLE_FILE, *PLOTS):
        (run.path / name).unlink(missing_ok=True)
    for member in member_folders(run.path):
        forget_run(RunFolder.create(member, {}, overwrite=True))
    return run


def member_folders(path: Path) -> list[Path]:
    """Folders of the members of an ensemble in that of their run."""
    return [folder for folder in sorted(path.glob("member-*")) if (folder / "config.json").is_file()]


def forget_run(run: RunFolder) -> None:
    """Remove a run without any checkpoint, its own or of its members; other files stay, and then the folder too."""
    members = [RunFolder.open(folder) for folder in member_folders(run.path)]
    if run.steps() or any(member.steps() for member in members):
        return
    for member in members:
        forget_run(member)
    for name in ("config.json", "metrics.jsonl", REPORT, "lock"):
        (run.path / name).unlink(missing_ok=True)
    with suppress(OSError):  # the folder holds files that are not a run's
        run.path.rmdir()


def write_summary(run: RunFolder, summary: Summary) -> None:
    """Write report.json; the history is in metrics.jsonl, and what was fitted to what in config.json."""
    fit = dataclasses.asdict(summary.report)
    del fit["history"]
    scores = {"validation": _scores(summary.validation), "test": _scores(summary.test)}
    stored: dict[str, Any] = {"fit": fit, "nats_per_row": scores}
    if summary.bits is not None:
        stored["bits_per_dim"] = {"test": summary.bits._asdict()}
    try:
        replace_bytes(run.path / REPORT, to_json(_encoded(stored)))
    except OSError as error:
        raise CheckpointError(f"{run.path / REPORT}: cannot be written ({error.strerror}); free space.") from None


def read_summary(run: RunFolder) -> Summary | None:
    """Read what `write_summary` wrote; None while a fit is unfinished, also one that went on after a first report."""
    path = run.path / REPORT
    if not path.exists():
        return None
    stored = _decoded(read_json(read_bytes(path, limit=JSON_LIMIT), path))
    try:
        report = FitReport(**stored["fit"], history=run.read_metrics())
        needed = (report.steps, report.epochs, report.seconds)
        perhaps = (report.best_step, report.best_validation, report.final_train)
        numbers = (*needed, *(number for number in perhaps if number is not None))
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("numbers were expected")
        scores = stored["nats_per_row"]
        bits = _bits(stored.get("bits_per_dim"))
        summary = Summary(report, _comparison(scores["validation"]), _comparison(scores["test"]), bits)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not the report of a fit ({error}); remove it.") from None
    return summary if report.steps in run.steps()[-1:] else None


def _scores(comparison: Comparison | None) -> dict[str, Estimate | None] | None:
    return None if comparison is None else comparison._asdict()


def _comparison(scores: Mapping[str, Any] | None) -> Comparison | None:
    if scores is None:
        return None
    read = {name: None if pair is None else Estimate(*map(float, pair)) for name, pair in scores.items()}
    return Comparison(**read)  # type: ignore[arg-type]


def _bits(scores: Mapping[str, Any] | None) -> BitsPerDim | None:
    if scores is None:
        return None
    test = scores["test"]
    return BitsPerDim(float(test["value"]), float(test["standard_error"]), str(test["claim"]))


def _encoded(value: Any) -> Any:
    """The same with text for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _encoded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decoded(value: Any) -> Any:
    """The inverse of `_encoded`, up to tuples."""
    if isinstance(value, dict):
        return {key: _decoded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    return float(value) if value in ("inf", "-inf", "nan") else value
