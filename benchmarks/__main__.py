"""`python -m benchmarks NAME [...]`: run one of the measurements of this folder."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys

PACKAGES = ("checks", "speed")  # have a command.py; the others are run as `python -m benchmarks.NAME` would
BENCHMARKS = {
    "speed": "training, scoring and sampling against zuko, nflows, normflows and flowjax",
    "power": "train on POWER: `power CONFIG.toml`",
    "power_contest": "POWER at equal budget, one row a model",
    "checks": "what the methods' own checks ask for, expected and measured",
    "heavy_tails": "mtaf against a Gaussian base on insurance losses and market returns",
    "heads": "cost and likelihood of the cheaper heads of NITS, on image patches",
    "score_stream": "score 10 million rows: rows per second, memory, cores",
    "images": "NITS-Conv against PixelCNN++ on digits, MNIST, CIFAR-10, in exact bits: `images CONFIG.toml`",
    "roundtrip": "round trips of trained flows where the data ends",
    "lfi": "posteriors from simulations: five published tasks against their reference samples",
    "regression": "the law of a target given its row, on nine UCI tables: likelihood, CRPS, coverage",
    "timeseries": "forecasts of exchange rates and electricity load against three baselines",
    "manifolds": "likelihoods of protein angles and places on Earth by flows on the torus and the sphere",
    "compression": "bytes of images: by likelihood, compressed, as PNG and as WebP",
    "sampling": "cost of a NITS sample against a NITS density, at the published sizes",
}


def main(arguments: list[str]) -> int:
    """Dispatch to the benchmark named first; argparse leaves with exit code 2 when there is none of that name."""
    listing = "\n".join(f"  {name:12} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Measurements of rosenblatt:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=list(BENCHMARKS), help="which measurement to run")
    chosen = parser.parse_args(arguments[:1])
    if chosen.name in PACKAGES:
        return int(importlib.import_module(f"benchmarks.{chosen.name}.command").main(arguments[1:]))
    sys.argv = [f"benchmarks.{chosen.name}", *arguments[1:]]
    runpy.run_module(f"benchmarks.{chosen.name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
