"""NITS-Conv against PixelCNN++ on scikit-learn's digits: exact bits per dimension, one network, one budget, one seed.

    python -m benchmarks digits [CONFIG.toml]

Both models differ in the CDF of a pixel alone: a network of it (NITS), or a mixture of logistics. The weights kept are
those of least loss on the validation images; test images are scored once, and differences are paired by image. The
result goes to benchmarks/results/CONFIG.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.core.registry import build
from rosenblatt.data import Table
from rosenblatt.eval import bits_per_dim, bits_per_dimension, paired_difference
from rosenblatt.layers.discretised import Discretised
from rosenblatt.train import FitConfig, Fitter

ROOT = Path(__file__).resolve().parent


def split_digits(test: int, validation: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of 64 grey values 0 .. 16 for training, validation and test, disjoint, shuffled by `seed`."""
    rows = torch.tensor(load_digits().data, dtype=torch.float32)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    return rows[test + validation :], rows[test : test + validation], rows[:test]


def trained(name: str, options: dict[str, Any], fit: FitConfig, train: Tensor, validation: Tensor) -> dict[str, Any]:
    """Train one model; it comes under "model", beside what its training cost and found."""
    model = build(name, train.shape[1], options=options, seed=fit.seed)
    start = time.process_time()
    report = Fitter(fit, progress=False).fit(model, Table.from_any(train), validation=Table.from_any(validation))
    nats = [record["validation"] for record in report.history]
    bits = [None if value is None else float(bits_per_dimension(torch.tensor(value), train.shape[1])) for value in nats]
    return {
        "model": model,
        "options": options,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_cpu_seconds": round(time.process_time() - start, 1),
        "steps": report.steps,
        "best_step": report.best_step,
        "validation_bits_by_step": [
            [record["step"], value] for record, value in zip(report.history, bits, strict=True)
        ],
    }


def sampling(model: Discretised, count: int = 100) -> dict[str, Any]:
    """Cost of `count` samples, and of a network pass for every pixel; mean and spread, which pictures should share."""
    start = time.process_time()
    drawn = model.sample(count, generator=torch.Generator().manual_seed(0))
    own = time.process_time() - start
    start = time.process_time()
    with torch.no_grad():
        for _ in range(model.features):
            model.layer.conditioner(drawn)
    return {
        "samples": count,
        "cpu_seconds_for_samples": round(own, 2),
        "cpu_seconds_of_a_network_pass_for_every_pixel": round(time.process_time() - start, 2),
        "mean_and_standard_deviation_of_samples": [round(float(drawn.mean()), 3), round(float(drawn.std()), 3)],
    }


def measure(config: dict[str, Any]) -> dict[str, Any]:
    """Train and score every model of the config."""
    torch.set_num_threads(config["fit"].get("threads", 1))
    train, validation, test = split_digits(**config["data"])
    fit = FitConfig.from_dict(config["fit"])
    results: dict[str, Any] = {}
    scores = {}
    for name, own in config["models"].items():
        result = trained(name, {**config["network"], **own}, fit, train, validation)
        model = result.pop("model")
        assert isinstance(model, Discretised)
        result.update(sampling(model))
        for part, rows in (("train", train), ("validation", validation), ("test", test)):
            found = bits_per_dim(model, rows)
            result[f"{part}_bits_per_dim"] = {"value": found.value, "standard_error": found.standard_error}
        result["claim"] = found.claim
        with torch.no_grad():
            scores[name] = bits_per_dimension(model.log_prob(test).double(), test.shape[1])
        results[name] = result
        print(f"{name}: test {found}, {result['training_cpu_seconds']} CPU-s", flush=True)
    first, *others = scores
    differences = {f"{first} - {other}": paired_difference(scores[first], scores[other])._asdict() for other in others}
    print(differences)
    return {
        "data": "scikit-learn digits, 8 x 8 pixels, 17 levels",
        "images": {"train": len(train), "validation": len(validation), "test": len(test)},
        "mean_and_standard_deviation_of_train": [round(float(train.mean()), 3), round(float(train.std()), 3)],
        "models": results,
        "paired_difference_test_bits_per_dim": differences,
        "config": config,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def main() -> None:
    """Measure and write the result down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks digits", description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=ROOT / "configs" / "digits.toml")
    config: Path = parser.parse_args().config
    result = {"command": f"python -m benchmarks digits {config}", **measure(tomllib.loads(config.read_text()))}
    (ROOT / "results" / f"{config.stem}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
