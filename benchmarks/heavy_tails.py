"""Real heavy tails: mTAF against a spline flow with a Gaussian base, on insurance losses and market returns.

    python -m benchmarks heavy_tails

The tables are found in ROSENBLATT_DATA or ../shared/data (heavy_tailed.npz). Both models get the same splits, splines,
steps and seed; they differ in the base and in what linear layers may mix. `mtaf` takes its tail indices from
`tail_report` of the training rows. Test nats are paired over rows; the tail error of a column is the mean of
`|log q_model - log q_test|` over the largest test distances to the median, weighted by `log((i + 1) / i)` as the
method's authors do ("area", Laszkiewicz et al. 2022), and averaged over the columns called heavy.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rosenblatt.models  # noqa: F401 - fills the registry
from benchmarks.power import data_file
from rosenblatt.core.density import Density, Flow
from rosenblatt.core.errors import FitDiverged
from rosenblatt.core.registry import build
from rosenblatt.data import Table
from rosenblatt.eval.tails import tail_report
from rosenblatt.layers.scaling import Standardise
from rosenblatt.train import FitConfig, Fitter

RESULTS = Path(__file__).resolve().parent / "results" / "heavy_tails.json"
SPLITS = 3
SIZES = {"transforms": 3, "bins": 8, "bound": 5.0, "hidden": 64}
FIT = FitConfig(max_steps=2000, batch_size=256, learning_rate=1e-3, validate_every=100, patience=8, epochs=10_000)
SAMPLES = 1_000_000
QUARTILES_OF_NORMAL = 1.349


def tables() -> dict[str, np.ndarray]:
    """Tables whose columns have a density; days without trade are left out."""
    stored = np.load(data_file("heavy_tailed.npz"), allow_pickle=False)
    names = ("danish_fire", "french_commercial_fire", "soa_group_medical", "sp500_log_return", "aon_re_fire")
    found = {name: stored[name].reshape(len(stored[name]), -1) for name in (*names, "loss_alae", "eu_stock_log_return")}
    returns = found["eu_stock_log_return"]
    found["eu_stock_log_return"] = returns[(returns != 0).all(axis=1)]
    return found


def main() -> None:
    """Fit both models to every split of every table, and write the table of results."""
    torch.set_num_threads(1)
    results = {}
    for name, values in tables().items():
        splits = [compare(torch.from_numpy(values).double(), seed) for seed in range(SPLITS)]
        results[name] = {"rows": len(values), "columns": values.shape[1], "splits": splits, **means(splits)}
        print(name, json.dumps({key: results[name][key] for key in means(splits)}), flush=True)
    result = {
        "command": "python -m benchmarks heavy_tails",
        "splits": "60 % training, 20 % validation, 20 % test at random, seeds 0, 1, 2",
        "options": SIZES,
        "fit": FIT.to_dict(),
        "tables": results,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def means(splits: list[dict[str, Any]]) -> dict[str, float]:
    """Averages over the splits of what one split measures."""
    keys = ("nsf_nats", "mtaf_nats", "gain", "gain_standard_error", "nsf_tail_error", "mtaf_tail_error")
    return {key: statistics.fmean(split[key] for split in splits) for key in keys}


def compare(values: Tensor, seed: int) -> dict[str, Any]:
    """Both models on one split."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    first, second = int(0.6 * len(values)), int(0.8 * len(values))
    train, validation, test = (values[part] for part in (order[:first], order[first:second], order[second:]))
    tails = tail_report(train.numpy())
    makes = {"nsf": {}, "mtaf": {"df": tails.df}}
    scores, errors, diverged = {}, {}, []
    for name, options in makes.items():
        model, calm = fitted(name, options, train, validation, seed)
        if not calm:
            diverged.append(name)
        with torch.no_grad():
            scores[name] = model.log_prob(test)
        heavy = [number for number, df in enumerate(tails.df) if df is not None]
        errors[name] = tail_error(model, test, heavy or list(range(values.shape[1])))
    gain = scores["mtaf"] - scores["nsf"]
    return {
        "tail_indices": tails.df,
        "diverged": diverged,
        "nsf_nats": scores["nsf"].mean().item(),
        "mtaf_nats": scores["mtaf"].mean().item(),
        "gain": gain.mean().item(),
        "gain_standard_error": (gain.std() / len(gain) ** 0.5).item(),
        "nsf_tail_error": errors["nsf"],
        "mtaf_tail_error": errors["mtaf"],
    }


def fitted(name: str, options: dict[str, Any], train: Tensor, validation: Tensor, seed: int) -> tuple[Density, bool]:
    """One model, trained in units of the training rows' quartiles, in the units of the table and float64.

    Where training diverges the best weights until then are judged, and the second result is False.
    """
    location = train.median(dim=0).values
    scale = (train.quantile(0.75, dim=0) - train.quantile(0.25, dim=0)) / QUARTILES_OF_NORMAL
    model = build(name, train.shape[1], options={**SIZES, **options}, seed=seed)
    rows, held_out = (Table.from_any(((part - location) / scale).float().numpy()) for part in (train, validation))
    try:
        Fitter(FIT, progress=False).fit(model, rows, validation=held_out)
        calm = True
    except FitDiverged:
        calm = False
    assert isinstance(model, Flow)
    return model.after(Standardise(location.tolist(), scale.tolist())).double().eval(), calm


def tail_error(model: Density, test: Tensor, columns: list[int]) -> float:
    """Weighted mean distance of log-quantiles in the tail, averaged over `columns`."""
    with torch.no_grad():
        drawn = model.float().sample(SAMPLES, generator=torch.Generator().manual_seed(0)).double()
    model.double()
    largest = len(test) // 10
    rank = torch.arange(1, largest + 1, dtype=torch.float64)
    weight = torch.log1p(1 / rank)
    level = 1 - (rank - 0.5) / len(test)
    errors = []
    for column in columns:
        middle = test[:, column].median()
        truth = (test[:, column] - middle).abs().sort(descending=True).values[:largest]
        away = (drawn[:, column] - middle).abs().sort().values
        found = away[(level * SAMPLES).long()]
        errors.append(((truth.log() - found.log()).abs() * weight).sum().item() / weight.sum().item())
    return math.fsum(errors) / len(errors)


if __name__ == "__main__":
    main()
