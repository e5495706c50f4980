"""The law of a target given its row, on nine UCI tables with their published splits: likelihood, CRPS, coverage.

    python -m benchmarks regression [--sets yacht,boston] [--models nits,mdn] [--splits 5] [--table]

Data in ROSENBLATT_DATA or ../shared/data (uci_regression9.npz): sets and splits of Hernandez-Lobato & Adams 2015 and
Gal & Ghahramani 2016. One recipe for all sets and models (benchmarks/configs/regression.toml). Each finished fit is
written at once and skipped by the next run, so a run may be broken off, and two may share the sets between them.

Eight of the nine targets are rounded numbers (wine's takes 6 values, naval's 51), at which a density can grow without
bound. So the score of a row is that of its cell: `log((F(y + w/2) - F(y - w/2)) / w)`, with w the step of the grid of
the training targets, the log-probability of what was recorded in nats, at most -log w. Where cells are narrow it is the
log-density at y, which is written down beside it. Likewise an interval is asked whether it holds a place drawn evenly
in the cell.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import math
import platform
import time
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.power import ROOT, data_file
from benchmarks.regression_report import summarise, tables
from rosenblatt.conditional import fit_conditional
from rosenblatt.data import Table
from rosenblatt.ensemble import Ensemble, fit_ensemble
from rosenblatt.objectives.rules import crps_from_quantiles
from rosenblatt.preparation import DataWarning
from rosenblatt.train import FitConfig

CONFIG, RESULTS = ROOT / "configs" / "regression.toml", ROOT / "results" / "regression.json"
SETS = ("boston", "concrete", "energy", "kin8nm", "naval", "ccpp", "protein", "wine_red", "yacht")
COVERED = (0.5, 0.8, 0.95)
QUANTILES = 200  # of each predicted law, in equal strata over all members; fewer where there are many test rows
MOST_QUANTILES = 200_000  # of all test rows
SMALLEST_MASS = 1e-250  # of a cell, below which float64 loses it and the density at its middle stands for it


class Split(NamedTuple):
    """Training and test rows of one split in float64, the target in its own units, and the step of its grid."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    step: float | None


def load(name: str, split: int) -> Split:
    """Rows of a set by its published split; a rounded target is put back on its grid, off which float32 carries it."""
    with np.load(data_file("uci_regression9.npz"), allow_pickle=False) as stored:
        rows = torch.from_numpy(stored[name].astype(np.float64))
        places = torch.from_numpy(stored[f"{name}_test_idx"][split].astype(np.int64))
    test = torch.zeros(len(rows), dtype=torch.bool)
    test[places] = True
    step = Table(rows[~test, -1:].float(), ["y"]).grid_step("y")
    x, y = rows[:, :-1], rows[:, -1:]
    if step is not None:
        step = float(f"{step:.6g}")
        y = (y / step).round() * step
    return Split(x[~test], y[~test], x[test], y[test], step)


def recipe_for(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """The part of the recipe that depends on the number of training rows."""
    return max((part for part in config["sizes"] if part["rows"] <= rows), key=lambda part: int(part["rows"]))


def plan(config: dict[str, Any], model: str, rows: int) -> dict[str, Any]:
    """All that decides a fit besides the rows; noise of the inputs shrinks as these grow in number."""
    size = dict(recipe_for(config, rows))
    del size["rows"]
    chosen = config["models"][model]
    members = size.pop("members")
    recipe = {"given_noise": config["given_noise"] / math.sqrt(rows), "noise": config["noise"], "members": members}
    fit = {**config["fit"], **size, **chosen.get("fit", {})}
    return {"options": chosen.get("options", {}), "fit": fit, **recipe, "closed_form": chosen.get("closed_form", False)}


def learn(model: str, data: Split, chosen: dict[str, Any], seed: int) -> Ensemble:
    """Fit as planned; a fit in closed form takes all rows at once."""
    table = Table(data.y, ["y"])
    fit = FitConfig.from_dict({**chosen["fit"], "seed": seed})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # that targets are rounded is what the cells are for
        if chosen["closed_form"]:
            return Ensemble([fit_conditional(model, table, data.x, options=chosen["options"], config=fit)])
        return fit_ensemble(
            model,
            table,
            data.x,
            members=chosen["members"],
            noise=chosen["noise"],
            given_noise=chosen["given_noise"],
            steps=None if data.step is None else {"y": data.step},
            options=chosen["options"],
            config=fit,
        )


def score(law: Ensemble, data: Split) -> dict[str, Any]:
    """What a fit is worth on the test rows."""
    x, y = data.test_x, data.test_y
    with torch.no_grad():
        log_density = law.log_prob(y, x)
        cell = log_density if data.step is None else cell_score(law, x, y, data.step, log_density)
        quantiles = pooled_quantiles(law, x)
        below = law.to_uniform(y, x) if data.step is None else spread_pit(law, x, y, data.step)
    levels = (torch.arange(len(quantiles), dtype=torch.float64) + 0.5) / len(quantiles)
    crps = crps_from_quantiles(levels.reshape(-1, 1, 1), quantiles, y)
    error = quantiles.mean(dim=0) - y
    return {
        "log_likelihood": cell.mean().item(),
        "log_density": log_density.mean().item(),
        "worst_row": cell.min().item(),
        "crps": crps.mean().item(),
        "covered": [((below - 0.5).abs() <= share / 2).double().mean().item() for share in COVERED],
        "rmse": error.square().mean().sqrt().item(),
        "r2": (1 - error.square().sum() / (y - y.mean()).square().sum()).item(),
        "test_rows": len(y),
    }


def cell_score(law: Ensemble, x: Tensor, y: Tensor, step: float, log_density: Tensor) -> Tensor:
    """Log of the mean density over the cell of each recorded number, from whichever tail keeps the digits."""
    below_low, above_low = law.tails(y - step / 2, x)
    below_high, above_high = law.tails(y + step / 2, x)
    mass = torch.where(below_high < 0.5, below_high - below_low, above_low - above_high).squeeze(-1)
    return torch.where(mass > SMALLEST_MASS, mass.clamp_min(SMALLEST_MASS).log() - math.log(step), log_density)


def spread_pit(law: Ensemble, x: Tensor, y: Tensor, step: float) -> Tensor:
    """CDF at places drawn evenly in the cells of recorded numbers, which is uniform if the law is right.

    At the middles of cells that are wider than the law it would be near 1/2 (Czado, Gneiting & Held 2009).
    """
    low, high = law.to_uniform(y - step / 2, x), law.to_uniform(y + step / 2, x)
    share = torch.rand(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    return low + share * (high - low)


def pooled_quantiles(law: Ensemble, x: Tensor) -> Tensor:
    """Numbers (count, rows, 1) in ascending order that stand for the mean of the members' laws."""
    count = min(QUANTILES, max(40, MOST_QUANTILES // len(x)))
    each = -(-count // len(law.members))
    levels = ((torch.arange(each, dtype=torch.float64) + 0.5) / each).reshape(-1, 1, 1).expand(each, len(x), 1)
    parts = []
    for member in law.members:
        told = member.encode(x)
        parts.append(member.flow.from_uniform(levels, told.expand(each, *told.shape)))
    return torch.cat(parts).sort(dim=0).values


def measure(name: str, model: str, split: int, config: dict[str, Any]) -> dict[str, Any]:
    """Fit a model to one split of a set and score it."""
    data = load(name, split)
    chosen = plan(config, model, len(data.y))
    start = time.process_time()
    law = learn(model, data, chosen, config["seed"])
    fitted = time.process_time()
    result = score(law, data)
    reports = [report for report in law.reports if report is not None]
    return {
        **result,
        "validation": [report.best_validation for report in reports],
        "steps": [report.steps for report in reports],
        "best_step": [report.best_step for report in reports],
        "skipped_steps": sum(report.skipped_steps for report in reports),
        "weights": sum(p.numel() for p in law.members[0].parameters()),
        "training_cpu_seconds": fitted - start,
        "scoring_cpu_seconds": time.process_time() - fitted,
        "plan": digest(chosen),
    }


def digest(chosen: dict[str, Any]) -> str:
    """Name of a plan: a fit made by another one is made again."""
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def results() -> Iterator[dict[str, Any]]:
    """The results file, held alone and written back whole."""
    with CONFIG.open() as lock:  # a file that is always there, so that none is left behind
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read()
        yield found
        partial = RESULTS.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(RESULTS)


def read() -> dict[str, Any]:
    """Results so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"fits": {}}


def store(name: str, model: str, split: int, result: dict[str, Any], config: dict[str, Any]) -> None:
    """Put one fit beside those that are there, and the summary of all in front."""
    with results() as found:
        fits = found.pop("fits")
        fits.setdefault(name, {}).setdefault(model, {})[str(split)] = result
        order = [name for name in SETS if name in fits]
        fits = {
            name: {
                model: dict(sorted(fits[name][model].items(), key=lambda item: int(item[0])))
                for model in config["models"]
                if model in fits[name]
            }
            for name in order
        }
        found.clear()
        found |= {
            "command": "python -m benchmarks regression",
            "data": "nine UCI tables, published splits, uci_regression9.npz",
            "config": config,
            "threads": 1,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "summary": summarise(fits),
            "fits": fits,
        }


def main() -> None:
    """Run what is not yet there, then print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks regression", description=__doc__.splitlines()[0])
    config = tomllib.loads(CONFIG.read_text())
    parser.add_argument("--sets", default=",".join(SETS), help="sets to run, with commas between")
    parser.add_argument("--models", default=",".join(config["models"]), help="models to run, with commas between")
    parser.add_argument("--splits", type=int, default=config["splits"], help="how many of the published splits")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there and run nothing")
    given = parser.parse_args()
    sets, models = given.sets.split(","), given.models.split(",")
    for kind, names, known in (("set", sets, SETS), ("model", models, tuple(config["models"]))):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"no {kind} '{unknown[0]}'; there are {', '.join(known)}")
    torch.set_num_threads(1)
    if not given.table:
        run(sets, models, given.splits, config)
    print(tables(read()["fits"]))


def run(sets: list[str], models: list[str], splits: int, config: dict[str, Any]) -> None:
    """Fit and score everything that is not there by the same plan: all sets and models of a split, then the next."""
    for split in range(splits):
        for name in sets:
            rows = len(load(name, split).y)
            for model in models:
                done = read()["fits"].get(name, {}).get(model, {}).get(str(split), {})
                if done.get("plan") == digest(plan(config, model, rows)):
                    continue
                result = measure(name, model, split, config)
                store(name, model, split, result, config)
                print(
                    f"{name:9} {model:14} split {split}  log-likelihood {result['log_likelihood']:8.3f}  "
                    f"CRPS {result['crps']:.4f}  {result['training_cpu_seconds']:.0f} + "
                    f"{result['scoring_cpu_seconds']:.0f} CPU s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
