"""Fits for the tests of several processes: run alone from the tests, and in two processes as a script."""

from __future__ import annotations

import json
import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from test_train_resume import At, interrupt
from train_stubs import CONFIG, Fixed, Gaussian, Rows, table

from rosenblatt.core.errors import OptionError, ProcessLost
from rosenblatt.data import digits
from rosenblatt.image_runs import image_model
from rosenblatt.objectives import NLL
from rosenblatt.train import FitConfig, Fitter, JoinedProcesses, LocalRuntime, Processes, RunFolder, storage
from rosenblatt.train.session import Session

EXACT = {"dtype": "float64", "max_steps": 23, "clip_norm": 0.5, "ema_decay": 0.9, "validation_fraction": 32 / 321}
TABLES = {"table": {"accumulate": 1}, "accumulated": {"accumulate": 4}}


def rows():
    """289 rows to fit in steps of 32: the last of a pass holds one, so that one of two processes has none."""
    x = table(321).x
    x[17, 1] = torch.nan  # a step a pass is skipped
    return Rows(x, torch.linspace(0.0, 2.0, 321))


def fit(processes, *, model=None, data=None, objective=None, loggers=(), run=None, resume=False, **changes):
    """Fit the stub as one of `processes`; returns (model, report)."""
    model = Gaussian(dropout=0.0) if model is None else model
    fitter = Fitter(
        FitConfig.from_dict({**CONFIG, **changes}),
        runtime=LocalRuntime("cpu", processes=processes),
        loggers=loggers,
        progress=False,
    )
    return model, fitter.fit(model, rows() if data is None else data, objective or NLL(), run=run, resume=resume)


def fit_images(processes):
    """Fit 54 digits in steps of 16, the last of a pass of 6."""
    images = digits().split([60 / 1797, 1 - 60 / 1797], torch.Generator().manual_seed(1))[0]
    model = image_model("nits_conv", images, options={"filters": 4, "widths": [4, 1]}, seed=processes.rank)
    changes = {"dtype": "float64", "batch_size": 16, "epochs": 2, "validate_every": 3, "learning_rate": 0.01}
    return fit(processes, model=model, data=images, **changes)


class Records(list):
    """A logger that keeps what it is told."""

    def log(self, record):
        self.append(record)


def at(path, processes):
    """The folder of a run for the first process; nothing that can be used for the others."""
    return RunFolder.create(path, {"model": "stub"}) if processes.first else object()


def again(path, processes):
    return RunFolder.open(path) if processes.first else None


def whole_jobs(out, processes):
    """Fits whose weights must be those of one process."""
    for name, changes in TABLES.items():
        keep(out, name, processes, *fit(processes, **EXACT, **changes))
    keep(out, "images", processes, *fit_images(processes))
    keep(out, "fixed", processes, *fit(processes, model=Fixed(start=True), data=table(50)))
    path = out / "begun alone"
    keep(out, "resumed", processes, *fit(processes, **EXACT, run=again(path, processes), resume=True))


def stop_jobs(out, processes):
    """Fits that one process alone has reason to stop."""
    records = Records()
    if not processes.first:
        for name in ("write_bytes", "replace_bytes", "write_folder"):
            setattr(storage, name, None)  # whoever else writes fails
    random = {"model": Gaussian(), "max_steps": 20, "loggers": [records]}
    model, report = fit(processes, run=at(out / "whole", processes), objective=At(), **random)
    keep(out, "whole", processes, model, report, logged=len(records), resumed=report.resumed_from)
    signalled = At(7, interrupt) if processes.rank == 1 else At()
    random["model"] = Gaussian()
    model, report = fit(processes, run=at(out / "broken", processes), objective=signalled, **random)
    keep(out, "interrupted", processes, model, report, signal=report.signal)
    random["model"] = Gaussian()
    model, report = fit(processes, run=again(out / "broken", processes), resume=True, objective=At(), **random)
    keep(out, "broken", processes, model, report, resumed=report.resumed_from)
    seconds = Session.seconds
    if processes.rank == 1:
        Session.seconds = lambda self: 100.0 * (self.state.progress.step >= 5)
    keep(out, "late", processes, *fit(processes, time_limit=99.0))
    Session.seconds = seconds


def failing_jobs(out, processes):
    """Fits that fail, the last of them in one process alone, which ends there."""
    said = []
    try:
        fit(processes, data=table(300, seed=processes.rank))
    except OptionError as error:
        said.append(str(error))

    def fail():
        raise ValueError("the second process fails")

    try:
        fit(processes, objective=At(3, fail) if processes.rank == 1 else At())
    except (ProcessLost, ValueError) as error:
        said += [type(error).__name__, str(error)]
    (out / f"failing-{processes.rank}.json").write_text(json.dumps(said))


def keep(out, name, processes, model, report, **facts):
    """Put the result away for the test to read."""
    facts |= {"stopped": report.stopped, "steps": report.steps, "skipped": report.skipped_steps}
    facts |= {"best": report.best_validation, "scores": [record["validation"] for record in report.history]}
    (out / f"{name}-{processes.rank}.json").write_text(json.dumps(facts))
    safetensors.torch.save_file(model.state_dict(), out / f"{name}-{processes.rank}.safetensors")


def in_two_processes(out):
    """Run all jobs in two processes; returns their exit codes."""
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                meeting = f"file://{out / 'meeting'}"
                dist.init_process_group(
                    "gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=100)
                )
                for jobs in (whole_jobs, stop_jobs, failing_jobs):
                    jobs(out, JoinedProcesses())
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


def begin_alone(out):
    """Leave a run behind that one process stopped after 6 steps."""
    run = RunFolder.create(out / "begun alone", {"model": "stub"})
    return fit(Processes(), **EXACT, run=run, objective=At(6, interrupt, jitter=False))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(int(any(in_two_processes(Path(sys.argv[1])))))
