"""Forecasts of exchange rates and of electricity load against three baselines, by rolling origins.

    python -m benchmarks timeseries [SET ...]

The series are found in ROSENBLATT_DATA or ../shared/data (timeseries.npz); benchmarks/configs/timeseries.toml says what
is held out and how the forecasters are fitted. Nothing is fitted anew on the way, and origins are one horizon apart.
The baselines are distributions: last value and seasonal naive draw whole paths of the errors they made in the training
rows (all steps and series of a path together), the Gaussian autoregression of the same lags, calendar and covariates
has the full covariance of its residuals and is simulated forward. CRPS (mean over series and steps) and energy score
(of the whole path) are in standard deviations of each series in the training rows; differences are paired over origins
and tested as Diebold and Mariano do, with Newey-West errors.

exchange_rate: 8 currencies, daily (Lai et al., Modeling long- and short-term temporal patterns, SIGIR 2018), 30 days.
electricity: demand of Victoria and temperature, means of each hour, 24 hours; both are forecast jointly, so that no
future temperature is told, public holidays are.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.power import data_file
from rosenblatt.core.allocator import keep_freed_memory
from rosenblatt.eval.comparison import diebold_mariano
from rosenblatt.forecasting import Backtest, Forecaster, Naive, Series, read_series

FOLDER = Path(__file__).resolve().parent
CONFIG, RESULTS = FOLDER / "configs" / "timeseries.toml", FOLDER / "results" / "timeseries.json"
LAST, SEASONAL, LINEAR, OURS = "last value", "seasonal naive", "Gaussian autoregression", "rosenblatt"
TESTED = ("crps", "energy", "energy of a step")


def exchange_rate() -> tuple[dict[str, Any], dict[str, Any]]:
    """The currencies, as a table and how to read it; days without trade repeat the day before, so no dates are told."""
    with np.load(data_file("timeseries.npz"), allow_pickle=False) as stored:
        rates = stored["exchange_rate"].astype(np.float64)
    return {f"currency{number}": column for number, column in enumerate(rates.T)}, {}


def electricity() -> tuple[dict[str, Any], dict[str, Any]]:
    """Hourly means of demand in MW and temperature in degrees Celsius, and public holidays."""
    with np.load(data_file("timeseries.npz"), allow_pickle=False) as stored:
        halves = stored["vic_elec"].astype(np.float64).reshape(-1, 2, 2)
        holiday = stored["vic_elec_holiday"].reshape(-1, 2)[:, 0].astype(np.float64)
    demand, temperature = halves.mean(axis=1).T
    hours = np.datetime64("2012-01-01T00", "h") + np.arange(len(demand))
    table = {"time": hours, "demand": demand, "temperature": temperature, "holiday": holiday}
    return table, {"time": "time", "covariates": ["holiday"]}


SETS = {"exchange_rate": exchange_rate, "electricity": electricity}


def forecasts(whole: Series, read: dict[str, Any], config: dict[str, Any], draws: int, seed: int) -> dict[str, Any]:
    """Backtests of the baselines and of ours by name, and what ours cost."""
    cut, horizon = len(whole) - config["held_out"], config["horizon"]
    train = whole.cut(0, cut)
    found: dict[str, Any] = {}
    for name, season in ((LAST, 1), (SEASONAL, config["season"])):
        found[name] = Naive(horizon, season).fit(train).backtest(whole, cut, n=draws, seed=seed)
    shared = {**read, "horizon": horizon, "random_state": seed, **config["shared"]}
    if shared["difference"] == "none":  # TOML has no null
        shared["difference"] = None
    linear = Forecaster("gaussian", **{**shared, "validation_fraction": 0.0}).fit(train)
    found[LINEAR] = linear.backtest(whole, cut, n=draws)
    start = time.process_time()
    forecaster = Forecaster(**{**shared, **config["forecaster"]}).fit(train)
    fitted = time.process_time()
    found[OURS] = forecaster.backtest(whole, cut, n=draws)
    found["seconds"] = {"fit": fitted - start, "backtest": time.process_time() - fitted}
    found["epochs"] = forecaster.report_.epochs
    return found


def tested(ours: Backtest, theirs: Backtest) -> dict[str, Any]:
    """Paired differences of the scores, ours minus theirs, with two-sided p-values."""
    rows = [{name: torch.from_numpy(values) for name, values in side.by_origin().items()} for side in (ours, theirs)]
    return {name: diebold_mariano(rows[0][name], rows[1][name])._asdict() for name in TESTED}


def measure(name: str, config: dict[str, Any], draws: int, seed: int) -> dict[str, Any]:
    """Scores of all forecasts of a set."""
    table, read = SETS[name]()
    whole = read_series(table, **read)
    found = forecasts(whole, read, config, draws, seed)
    tests = {method: found[method] for method in (LAST, SEASONAL, LINEAR, OURS)}
    return {
        "rows": len(whole),
        "origins": len(tests[OURS].origins),
        **config,
        "scores": {
            method: {score: mean._asdict() for score, mean in test.summary().items()} for method, test in tests.items()
        },
        "crps_of_series": {
            method: {series: mean._asdict() for series, mean in test.series().items()} for method, test in tests.items()
        },
        "ours_minus": {method: tested(tests[OURS], tests[method]) for method in (LAST, SEASONAL, LINEAR)},
        "epochs": found["epochs"],
        "cpu_seconds": found["seconds"],
    }


def shown(result: dict[str, Any]) -> str:
    """A table of the scores and of the differences."""
    lines = [f"{'':24} {'CRPS':>16} {'energy':>16} {'50 %':>6} {'80 %':>6} {'95 %':>6}  log score"]
    for method, scores in result["scores"].items():
        cells = [f"{scores[key]['value']:8.4f} ({scores[key]['standard_error']:.4f})" for key in TESTED[:2]]
        cells += [f"{100 * scores[f'coverage {share} %']['value']:6.1f}" for share in (50, 80, 95)]
        log = f"{scores['log score']['value']:10.2f}" if "log score" in scores else f"{'-':>10}"
        lines.append(f"{method:24} {' '.join(cells)} {log}")
    for method, pairs in result["ours_minus"].items():
        cells = [f"{d['value']:8.4f} ({d['standard_error']:.4f}) p {d['p_value']:.1e}" for d in map(pairs.get, TESTED)]
        lines.append(f"ours minus {method:24} {'   '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    """Measure the sets asked for, all by default, and write them into benchmarks/results/timeseries.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks timeseries", description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", choices=[[], *SETS], help="which series to forecast; all without a name")
    chosen = parser.parse_args().sets or list(SETS)
    torch.set_num_threads(1)
    keep_freed_memory()
    config = tomllib.loads(CONFIG.read_text())
    written = json.loads(RESULTS.read_text())["sets"] if RESULTS.exists() else {}
    for name in chosen:
        start = time.process_time()
        written[name] = measure(name, config["sets"][name], config["draws"], config["seed"])
        written[name]["cpu_seconds"]["all"] = time.process_time() - start
        print(f"{name}: {written[name]['origins']} origins, {written[name]['cpu_seconds']['all']:.0f} CPU s in all")
        print(shown(written[name]), flush=True)
        result = {
            "command": "python -m benchmarks timeseries",
            "config": "benchmarks/configs/timeseries.toml",
            "draws": config["draws"],
            "seed": config["seed"],
            "threads": 1,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "sets": {known: written[known] for known in SETS if known in written},
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
