"""POWER at equal budget: every model trains for the same processor time on the same rows, one thread each.

    python -m benchmarks power_contest [MODEL ...]      # train (or go on with) these models; all by default
    python -m benchmarks power_contest --calibrate      # measure the steps that fill the budget
    python -m benchmarks power_contest --table          # print the table of what has been trained

Settings are in benchmarks/configs/power_contest.toml, the readings in ROSENBLATT_DATA or ../shared/data
(power_full_train_val.npz). Columns come in the order time first, total power last, for every model. The first
`selection_rows` of the validation rows choose the best weights; the figure is of all the others.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rosenblatt.models  # noqa: F401 - fills the registry
from benchmarks.power import ROOT, data_file
from rosenblatt.core.density import Density
from rosenblatt.core.errors import InverseError
from rosenblatt.core.registry import build
from rosenblatt.core.types import Batch
from rosenblatt.data import Table, maf_power
from rosenblatt.objectives import NLL, Objective
from rosenblatt.train import FitConfig, Fitter, RunFolder

CONFIG = ROOT / "configs" / "power_contest.toml"
RESULTS = ROOT / "results" / "power_contest.json"
CALIBRATION_STEPS, CALIBRATION_ROUNDS = 30, 5


class CpuClock:
    """Counts the processor seconds of a run over all its resumes; validations write them down."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = float(path.read_text()) if path.exists() else 0.0
        self.start = time.process_time()

    def seconds(self) -> float:
        """Processor seconds so far."""
        return self.before + time.process_time() - self.start

    def log(self, record: dict[str, object]) -> None:
        """Print a validation record and keep the time."""
        self.path.write_text(str(self.seconds()))
        print(json.dumps({**record, "cpu_seconds": self.seconds()}), flush=True)


class StepClock:
    """An objective that writes down when it is asked."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.measure = objective, objective.measure
        self.marks: list[float] = []

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Note the time and return the losses."""
        self.marks.append(time.process_time())
        return self.objective(model, batch, generator)


def time_first(table: Table) -> Table:
    """The same rows with the columns turned around."""
    return table.select(table.columns[::-1])


def rows() -> tuple[Table, Table, Table]:
    """Training rows, rows that select, rows that judge."""
    train, validation = (time_first(table) for table in maf_power(data_file("power_full_train_val.npz")))
    first = settings()["selection_rows"]
    return train, *(Table(part, validation.columns) for part in (validation.values[:first], validation.values[first:]))


def settings() -> dict[str, Any]:
    """The committed configuration."""
    return tomllib.loads(CONFIG.read_text())


def fresh(name: str) -> Density:
    """The named model of the contest at its start."""
    config = settings()
    chosen = config["models"][name]
    return build(chosen["model"], 6, options=chosen["options"], seed=config["seed"])


def fit_config(name: str, max_steps: int | None = None, validate_every: int | None = None) -> FitConfig:
    """How the named model is trained."""
    config = settings()
    options = {**config["fit"], **config["models"][name].get("fit", {})}
    steps = max_steps or config["models"][name]["steps"]
    every = validate_every or -(-steps // options["validations"])
    del options["validations"]
    return FitConfig.from_dict({"seed": config["seed"], **options, "max_steps": steps, "validate_every": every})


def score(model: Density, table: Table) -> tuple[float, float, int]:
    """Mean log-likelihood and its standard error in nats, and the rows left out because the model refused them."""
    kept, refused = [], 0
    with torch.no_grad():
        for batch in table.ordered_batches(4096):
            x = batch.x
            while len(x):
                try:
                    kept.append(model.log_prob(x).double())
                    break
                except InverseError as error:
                    sound = torch.ones(len(x), dtype=torch.bool)
                    sound[error.rows] = False
                    refused += len(error.rows)
                    x = x[sound]
    scores = torch.cat(kept)
    return scores.mean().item(), (scores.std() / len(scores) ** 0.5).item(), refused


def train(name: str, tables: tuple[Table, Table, Table]) -> None:
    """Train one model to the end of its budget and add its row to the results."""
    run_path = ROOT.parent / "runs" / "power_contest" / name
    resume = run_path.exists()
    run_path.parent.mkdir(parents=True, exist_ok=True)
    run = RunFolder.open(run_path) if resume else RunFolder.create(run_path, {"benchmark": "power_contest"})
    model, clock = fresh(name), CpuClock(run_path.with_suffix(".seconds"))
    report = Fitter(fit_config(name), loggers=[clock], progress=False).fit(
        model, tables[0], validation=tables[1], run=run, resume=resume
    )
    training_seconds = clock.seconds()
    if report.stopped == "interrupted":
        clock.path.write_text(str(training_seconds))
        raise SystemExit(f"{name}: interrupted at step {report.steps}; the same command goes on.")
    nats, error, refused = score(model, tables[2])
    row = {
        "validation_nats": nats,
        "standard_error": error,
        "refused_rows": refused,
        "selected_at": report.best_validation,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": report.steps,
        "epochs": report.epochs,
        "cpu_minutes": training_seconds / 60,
        "wall_minutes": report.seconds / 60,
        "skipped_steps": report.skipped_steps,
        "rolled_back": report.rolled_back,
        "history": [[record["step"], record["validation"]] for record in report.history],
        **settings()["models"][name],
    }
    write(name, row)
    print(f"{name}: {nats:.4f} +- {error:.4f} nats, {training_seconds / 60:.1f} CPU minutes", flush=True)


def write(name: str, row: dict[str, Any]) -> None:
    """Add one model to the results file."""
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    result |= {
        "command": "python -m benchmarks power_contest",
        "data": "POWER, published preprocessing, all training rows; figures of the validation rows not used to select",
        "fit": settings()["fit"],
        "budget_minutes": settings()["budget_minutes"],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    result["models"][name] = row
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def calibrate(names: list[str]) -> None:
    """Time a few steps of each model in turns, and print how many fill the budget."""
    tables = rows()
    small = Table(tables[0].values[: 512 * CALIBRATION_STEPS], tables[0].columns)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(CALIBRATION_ROUNDS):
        for name in names:
            seconds[name].append(seconds_per_step(name, small))
    scoring = {name: cpu_seconds(lambda name=name: score(fresh(name).eval(), tables[1])) for name in names}
    config = settings()
    for name in names:
        step = sorted(seconds[name])[CALIBRATION_ROUNDS // 2]
        left = config["budget_minutes"] * 60 - config["fit"]["validations"] * scoring[name]
        print(f"{name}: {1000 * step:.1f} ms a step, {scoring[name]:.1f} s a validation; steps = {int(left / step)}")


def seconds_per_step(name: str, table: Table) -> float:
    """Processor seconds of a training step, what a fit costs at its start left out."""
    model = fresh(name)
    fitter = Fitter(fit_config(name, CALIBRATION_STEPS, CALIBRATION_STEPS), progress=False)
    clock = StepClock(model.objective or NLL())
    fitter.fit(model, table, clock, validation=Table(table.values[:8], table.columns))
    marks = clock.marks
    inner = marks[5:CALIBRATION_STEPS]
    return (inner[-1] - inner[0]) / (len(inner) - 1)


def cpu_seconds(call: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def table() -> None:
    """Print what has been trained, best first, in Markdown."""
    result = json.loads(RESULTS.read_text())
    print("| model | nats | s.e. | weights | steps | CPU minutes |\n| --- | --- | --- | --- | --- | --- |")
    for name, row in sorted(result["models"].items(), key=lambda item: -item[1]["validation_nats"]):
        print(
            f"| {name} | {row['validation_nats']:.3f} | {row['standard_error']:.3f} | {row['parameters']:,} | "
            f"{row['steps']:,} | {row['cpu_minutes']:.1f} |"
        )


def main(arguments: list[str]) -> None:
    """Train, calibrate or print."""
    torch.set_num_threads(1)
    names = [word for word in arguments if not word.startswith("--")] or list(settings()["models"])
    if "--table" in arguments:
        table()
    elif "--calibrate" in arguments:
        calibrate(names)
    else:
        tables = rows()
        for name in names:
            if not RESULTS.exists() or name not in json.loads(RESULTS.read_text())["models"]:
                train(name, tables)


if __name__ == "__main__":
    main(sys.argv[1:])
