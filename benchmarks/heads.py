"""Cost and held-out likelihood of the heads of NITS, where a table is wide: 63 columns of image patches.

    python -m benchmarks heads

Patches of 8 x 8 pixels of the BSDS300 photographs, prepared as published, are found in ROSENBLATT_DATA or
../shared/data (bsds300_gray.npz). Every head gets the same rows, steps, rate and seed.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import rosenblatt.models  # noqa: F401 - fills the registry
from benchmarks.power import data_file
from rosenblatt.core.registry import build
from rosenblatt.data import Table
from rosenblatt.train import FitConfig, Fitter

RESULTS = Path(__file__).resolve().parent / "results" / "heads.json"
HEADS = {"full": {}, "low_rank": {"head": "low_rank", "rank": 16}, "shared": {"head": "shared"}}
OPTIONS = {"hidden": 256, "blocks": 2, "residual": False}
FIT = FitConfig(max_steps=1500, batch_size=512, learning_rate=5e-4, validation_fraction=0.0, patience=None)
TRAIN_ROWS, TEST_ROWS, SIDE = 200_000, 20_000, 8


def patches(photographs: np.ndarray, rows: int, draw: np.random.Generator) -> np.ndarray:
    """Patches at random places with uniform noise, less their mean and last pixel: (rows, 63)."""
    _, height, width = photographs.shape
    which = draw.integers(len(photographs), size=rows)
    top, left = draw.integers(height - SIDE + 1, size=rows), draw.integers(width - SIDE + 1, size=rows)
    windows = np.lib.stride_tricks.sliding_window_view(photographs, (SIDE, SIDE), axis=(1, 2))
    pixels = windows[which, top, left].reshape(rows, -1)
    values = (pixels + draw.random(pixels.shape)) / 256
    return (values - values.mean(axis=1, keepdims=True))[:, :-1]


def median_seconds(call: Callable[[], object], calls: int = 7) -> float:
    """Median time of a call after one to warm up."""
    call()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def main() -> None:
    """Train each head and write down what it costs and reaches."""
    stored = np.load(data_file("bsds300_gray.npz"), allow_pickle=False)
    draw = np.random.default_rng(0)
    train, test = patches(stored["train"], TRAIN_ROWS, draw), patches(stored["test"], TEST_ROWS, draw)
    location, scale = train.mean(axis=0), train.std(axis=0)
    table = Table.from_any(((train - location) / scale).astype(np.float32))
    held_out = torch.from_numpy(((test - location) / scale).astype(np.float32))
    results, scores = {}, {}
    for name, options in HEADS.items():
        model = build("nits", table.features, options={**OPTIONS, **options}, seed=0)
        report = Fitter(FIT).fit(model, table)
        model.eval()
        with torch.no_grad():
            scores[name] = model.log_prob(held_out).double() - float(np.log(scale).sum())
            scoring = median_seconds(lambda model=model: model.log_prob(held_out[:2000]), 5)
        results[name] = {
            "weights": sum(p.numel() for p in model.parameters()),
            "training_seconds_per_step": report.seconds / report.steps,
            "seconds_to_score_2000_rows": scoring,
            "test_nats": scores[name].mean().item(),
            "test_standard_error": (scores[name].std() / TEST_ROWS**0.5).item(),
            "less_than_full": (scores["full"] - scores[name]).mean().item(),
            "less_than_full_standard_error": ((scores["full"] - scores[name]).std() / TEST_ROWS**0.5).item(),
        }
        print(name, json.dumps(results[name]), flush=True)
    result = {
        "command": "python -m benchmarks heads",
        "data": f"BSDS300 grey patches, {TRAIN_ROWS} training and {TEST_ROWS} test rows, our own draws",
        "options": OPTIONS,
        "fit": FIT.to_dict(),
        "threads": torch.get_num_threads(),
        "heads": results,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
