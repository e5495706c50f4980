"""Means, standard errors and tables of the regression benchmark."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Test negative log-likelihoods of a Gaussian law as published, in nats.
GAUSSIAN_ROWS = {"boston": 3.02, "yacht": 3.63, "energy": 2.09, "concrete": 3.77}
LEVELS = ("50 %", "80 %", "95 %")
Fits = dict[str, dict[str, dict[str, dict[str, Any]]]]


def summarise(fits: Fits) -> dict[str, Any]:
    """Mean and standard error over splits, by set and model; coverage, and who is best, over all sets."""
    by_set = {name: {model: _over_splits(list(done.values())) for model, done in fits[name].items()} for name in fits}
    models = list(dict.fromkeys(model for name in by_set for model in by_set[name]))
    coverage = {
        model: np.mean([by_set[name][model]["covered"] for name in by_set if model in by_set[name]], axis=0).tolist()
        for model in models
    }
    return {"sets": by_set, "coverage_over_sets": coverage, "verdict": _verdict(by_set), "crps_lead": _leads(fits)}


def _over_splits(done: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"splits": len(done), "covered": np.mean([d["covered"] for d in done], axis=0).tolist()}
    for key in ("log_likelihood", "log_density", "crps", "rmse", "r2"):
        values = np.array([d[key] for d in done])
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
        summary[key] = {"mean": float(values.mean()), "standard_error": None if error is None else float(error)}
    summary["cpu_seconds"] = sum(d["training_cpu_seconds"] + d["scoring_cpu_seconds"] for d in done)
    return summary


def _verdict(by_set: dict[str, dict[str, Any]]) -> dict[str, Any]:
    verdict: dict[str, Any] = {"best_by_likelihood": {}, "quantile_flow_crps_no_worse": {}, "beats_gaussian_rows": {}}
    for name, found in by_set.items():
        # The baseline is no model of ours, and the quantile flow learns by another score.
        ours = {model: part for model, part in found.items() if model != "gaussian"}
        by_likelihood = {model: part for model, part in ours.items() if model != "quantile_flow"}
        if not by_likelihood:
            continue
        best = max(ours, key=lambda model: ours[model]["log_likelihood"]["mean"])
        value = ours[best]["log_likelihood"]["mean"]
        verdict["best_by_likelihood"][name] = best
        if name in GAUSSIAN_ROWS:
            verdict["beats_gaussian_rows"][name] = bool(-value < GAUSSIAN_ROWS[name])
        if "quantile_flow" in ours:
            rival = min(part["crps"]["mean"] for part in by_likelihood.values())
            verdict["quantile_flow_crps_no_worse"][name] = bool(ours["quantile_flow"]["crps"]["mean"] <= rival)
    return verdict


def _leads(fits: Fits) -> dict[str, Any]:
    """By how much the quantile flow's CRPS is lower than the best other model's, with its error over paired splits."""
    leads = {}
    for name, found in fits.items():
        own = found.get("quantile_flow", {})
        rivals = {model: done for model, done in found.items() if model not in ("gaussian", "quantile_flow")}
        if not own or not rivals:
            continue
        best = min(rivals, key=lambda model: float(np.mean([d["crps"] for d in rivals[model].values()])))
        lead = np.array([rivals[best][split]["crps"] - own[split]["crps"] for split in own if split in rivals[best]])
        error = float(lead.std(ddof=1) / math.sqrt(len(lead))) if len(lead) > 1 else None
        mean = float(lead.mean()) if len(lead) else None
        leads[name] = {"rival": best, "mean": mean, "standard_error": error}
    return leads


def tables(fits: Fits) -> str:
    """All figures as Markdown: a table for each score, rows of sets and columns of models."""
    if not fits:
        return "no results yet"
    summary = summarise(fits)
    by_set = summary["sets"]
    models = list(summary["coverage_over_sets"])
    head = f"| set | {' | '.join(models)} |\n|---|{'---|' * len(models)}"
    parts = []
    titles = {
        "log_likelihood": "Test log-likelihood of the recorded target, nats in its own units",
        "log_density": "Log-density at the recorded target, nats",
        "crps": "CRPS, in units of the target (lower is better)",
        "rmse": "RMSE of the mean",
    }
    for key, title in titles.items():
        best = max if key.startswith("log") else min
        lines = [_line(name, by_set[name], models, key, best) for name in by_set]
        parts.append("\n".join([f"{title}: mean ± standard error over splits", "", head, *lines]))
    lines = [
        f"| {level} | " + " | ".join(f"{100 * summary['coverage_over_sets'][m][row]:.1f}" for m in models) + " |"
        for row, level in enumerate(LEVELS)
    ]
    parts.append("\n".join(["Coverage of central intervals, % of test rows, mean over sets", "", head, *lines]))
    parts.append("\n".join(f"{key}: {value}" for key, value in summary["verdict"].items()))
    parts.append(
        "\n".join(f"CRPS lead of quantile_flow, {name}: {lead}" for name, lead in summary["crps_lead"].items())
    )
    seconds = sum(by_set[name][model]["cpu_seconds"] for name in by_set for model in by_set[name])
    parts.append(f"{seconds / 60:.1f} CPU minutes in all")
    return "\n\n".join(parts)


def _line(name: str, found: dict[str, Any], models: list[str], key: str, best: Any) -> str:
    values = {model: found[model][key]["mean"] for model in models if model in found}
    winner = best(values, key=lambda model: values[model])
    cells = []
    for model in models:
        if model not in found:
            cells.append("")
            continue
        error = found[model][key]["standard_error"]
        digits = 4 if abs(values[winner]) < 0.1 and not key.startswith("log") else 3 if abs(values[winner]) < 1 else 2
        text = f"{values[model]:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
        cells.append(f"**{text}**" if model == winner else text)
    return f"| {name} | {' | '.join(cells)} |"
