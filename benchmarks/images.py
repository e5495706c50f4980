"""NITS-Conv against PixelCNN++ on images: exact bits per dimension, one network, one budget, one seed.

    python -m benchmarks images CONFIG.toml [--model NAME] [--runs FOLDER]

The models of a config differ in the CDF of a pixel alone: a network of it (NITS), or a mixture of logistics. The
weights kept are those of least loss on the validation images; test images are scored once, and differences are paired
by image. Each model has a run folder, which all commands of `rosenblatt` take; an interrupted run is taken up again by
the same command, and `--model` trains one of them, so that several can be trained at once. What is there goes to
benchmarks/results/CONFIG.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.image_sets import Parts, image_parts
from benchmarks.power import Printer
from rosenblatt.data import Images
from rosenblatt.eval import bits_per_dimension, mean_log_prob, paired_difference
from rosenblatt.image_runs import config_of_images, image_model
from rosenblatt.layers.discretised import Discretised
from rosenblatt.train import FitConfig, FitReport, Fitter, RunFolder

ROOT = Path(__file__).resolve().parent
RESULT, SCORES = "benchmark.json", "test_bits.npy"
SAMPLES = 100


def train(name: str, config: Mapping[str, Any], parts: Parts, folder: Path) -> dict[str, Any]:
    """Train one model, or go on training it, and write its result into its run folder."""
    fit = FitConfig.from_dict(config["fit"])
    options = {**config["network"], **config["models"][name]}
    model = image_model(name, parts.train, options=options, seed=fit.seed)
    resume = folder.exists()
    described = config_of_images(name, parts.train, fit, options=options, data={"source": parts.name})
    run = RunFolder.open(folder) if resume else RunFolder.create(folder, described)
    start = time.process_time()
    report = Fitter(fit, progress=False, loggers=[Printer()]).fit(
        model, parts.train, validation=parts.validation, run=run, resume=resume
    )
    result = {
        "options": options,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_cpu_seconds": None if resume else round(time.process_time() - start, 1),
        **_training(report, parts.train.features),
    }
    if report.signal is not None:
        raise SystemExit(f"stopped at step {report.steps} and saved; the same command goes on.")
    scores = {part: bits_of(model, getattr(parts, part)) for part in ("validation", "test")}
    for part, bits in scores.items():
        mean = mean_log_prob(bits)
        result[f"{part}_bits_per_dim"] = {"value": mean.value, "standard_error": mean.standard_error}
    result["claim"] = model.likelihood.value
    result.update(sampling(model.cpu(), parts.train))
    np.save(folder / SCORES, scores["test"].numpy())
    (folder / RESULT).write_text(json.dumps(result))
    return result


def _training(report: FitReport, features: int) -> dict[str, Any]:
    def bits(nats: float | None) -> float | None:
        return None if nats is None else float(bits_per_dimension(torch.tensor(nats, dtype=torch.float64), features))

    return {
        "training_seconds": round(report.seconds, 1),
        "steps": report.steps,
        "epochs": report.epochs,
        "best_step": report.best_step,
        "skipped_steps": report.skipped_steps,
        "rolled_back": report.rolled_back,
        "bits_by_step": [
            {"step": record["step"], "train": bits(record["train"]), "validation": bits(record["validation"])}
            for record in report.history
        ],
    }


def bits_of(model: Discretised, images: Images) -> torch.Tensor:
    """Bits per dimension of each image, (count,), in float64."""
    device = next(model.parameters()).device
    with torch.no_grad():
        nats = [model.log_prob(batch.x.to(device)).double().cpu() for batch in images.ordered_batches(256)]
    return bits_per_dimension(torch.cat(nats), model.features)


def sampling(model: Discretised, train: Images) -> dict[str, Any]:
    """Cost of some samples beside a network pass for every pixel, and their mean and spread beside the images'."""
    start = time.process_time()
    drawn = model.sample(SAMPLES, generator=torch.Generator().manual_seed(0))
    own = time.process_time() - start
    start = time.process_time()
    with torch.no_grad():
        model.layer.conditioner(drawn)
    one_pass = time.process_time() - start
    pixels = train.pixels[:10_000].double()
    return {
        "samples": SAMPLES,
        "cpu_seconds_for_samples": round(own, 2),
        "cpu_seconds_of_a_network_pass_for_every_number": round(one_pass * model.features, 2),
        "mean_and_standard_deviation_of_samples": [round(float(drawn.mean()), 3), round(float(drawn.std()), 3)],
        "mean_and_standard_deviation_of_train": [round(float(pixels.mean()), 3), round(float(pixels.std()), 3)],
    }


def gather(config: Mapping[str, Any], parts: Parts, runs: Path) -> dict[str, Any]:
    """Put the results of all models together that are trained."""
    models, scores = {}, {}
    for name in config["models"]:
        if (runs / name / RESULT).exists():
            models[name] = json.loads((runs / name / RESULT).read_text())
            scores[name] = torch.from_numpy(np.load(runs / name / SCORES, allow_pickle=False))
    names = list(models)
    return {
        "data": parts.name,
        "images": {part: len(getattr(parts, part)) for part in ("train", "validation", "test")},
        "models": models,
        "paired_difference_test_bits_per_dim": {
            f"{names[0]} - {other}": paired_difference(scores[names[0]], scores[other])._asdict() for other in names[1:]
        },
        "config": config,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def main(words: list[str] | None = None) -> None:
    """Train, score and write the result down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks images", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--model", help="train this model only")
    parser.add_argument("--runs", type=Path, help="folder of the run folders; runs/CONFIG by default")
    asked = parser.parse_args(words)
    config = tomllib.loads(asked.config.read_text())
    runs = asked.runs or ROOT.parent / "runs" / asked.config.stem
    parts = image_parts(config["data"])
    for name in config["models"] if asked.model is None else [asked.model]:
        result = train(name, config, parts, runs / name)
        found = result["test_bits_per_dim"]
        print(f"{name}: test {found['value']:.4f} +- {found['standard_error']:.4f} bits/dim, {result['claim']}")
    result = {"command": f"python -m benchmarks images {asked.config}", **gather(config, parts, runs)}
    print(result["paired_difference_test_bits_per_dim"])
    (ROOT / "results" / f"{asked.config.stem}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
