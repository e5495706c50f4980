"""Train a model on POWER with its published preprocessing and write down the validation log-likelihood.

    python -m benchmarks.power benchmarks/configs/power_nits_cpu.toml

The readings are found in ROSENBLATT_DATA or ../shared/data (power_full_train_val.npz). An interrupted run is taken
up again by the same command.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tomllib
from pathlib import Path

import torch

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.core.registry import build
from rosenblatt.data import maf_power
from rosenblatt.train import FitConfig, Fitter, RunFolder

ROOT = Path(__file__).resolve().parent


def data_file(name: str) -> Path:
    """Find a file of the data folder; says where it was looked for."""
    folders = [os.environ.get("ROSENBLATT_DATA"), str(ROOT.parent.parent / "shared" / "data")]
    for folder in filter(None, folders):
        if (path := Path(folder) / name).exists():
            return path
    raise SystemExit(f"{name} was found in none of {folders}; set ROSENBLATT_DATA to its folder.")


class Printer:
    """Prints each validation record."""

    def log(self, record: dict[str, object]) -> None:
        """Print one record as JSON."""
        print(json.dumps(record), flush=True)


def main(config_path: str) -> None:
    """Train as the config says; results go to benchmarks/results/<config>.json."""
    name = Path(config_path).stem
    config = tomllib.loads(Path(config_path).read_text())
    train, validation = maf_power(data_file("power_full_train_val.npz"))
    model = build(config["model"], train.features, options=config.get("options"), seed=config["seed"])
    fit = FitConfig.from_dict({"seed": config["seed"], **config["fit"]})
    run_path = ROOT.parent / "runs" / name
    resume = run_path.exists()
    run = RunFolder.open(run_path) if resume else RunFolder.create(run_path, {"benchmark": name, **config})
    report = Fitter(fit, loggers=[Printer()]).fit(model, train, validation=validation, run=run, resume=resume)

    device = next(model.parameters()).device
    with torch.no_grad():
        scores = [model.log_prob(batch.x.to(device)).double().cpu() for batch in validation.ordered_batches(8192)]
    score = torch.cat(scores)
    result = {
        "config": config_path,
        "command": f"python -m benchmarks.power {config_path}",
        "data": "POWER, published preprocessing, all training rows",
        "train_rows": len(train),
        "validation_rows": len(validation),
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_nats": score.mean().item(),
        "validation_standard_error": (score.std() / len(score) ** 0.5).item(),
        "validation_worst_row": score.min().item(),
        "steps": report.steps,
        "epochs": report.epochs,
        "stopped": report.stopped,
        "training_seconds": report.seconds,
        "skipped_steps": report.skipped_steps,
        "rolled_back": report.rolled_back,
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": fit.threads or torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "history": report.history,
    }
    path = ROOT / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{name}: {score.mean():.4f} +- {result['validation_standard_error']:.4f} nats, {report.seconds:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1])
