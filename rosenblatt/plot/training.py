"""How training went: scores of training and held-out rows over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rosenblatt.core.errors import DataError
from rosenblatt.plot.style import DATA, MODEL, tidy


def training_curve(
    metrics: Sequence[Mapping[str, Any]], *, measure: str = "nats", dimensions: int | None = None
) -> Figure:
    """Draw training and held-out scores over the steps, and mark the best.

    `metrics` are the records of a run's metrics.jsonl or of `FitReport.history`: step, train, validation; `measure` is
    what `FitReport.measure` calls the scores, by default nats of log-likelihood. Records of the members of an ensemble
    make a curve each. With `dimensions`, the numbers of an image, nats are drawn as bits per dimension, the fewer the
    better; a lower bound of the ones is an upper bound of the others. The first steps may leave the axes. Raises
    `DataError` when there is no record.
    """
    if not metrics:
        raise DataError("metrics: no records came, at least one was expected; fit the model first.")
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    late: list[float] = []
    what = "rows" if dimensions is None else "images"
    for key, colour, rows in (("train", DATA, f"training {what}"), ("validation", MODEL, f"held-out {what}")):
        label: str | None = rows
        for member in dict.fromkeys(record.get("member") for record in metrics):
            own = [record for record in metrics if record.get("member") == member]
            known = [(record["step"], record[key]) for record in own if record.get(key) is not None]
            if not known:
                continue
            steps, scores = np.array(known, dtype=float).T
            scores = scores if dimensions is None else -scores / (dimensions * np.log(2))
            late += scores[len(scores) // 10 :].tolist()
            if key == "validation":
                best = int(scores.argmax() if dimensions is None else scores.argmin())
                if member is None:
                    label = f"{rows}, best {scores[best]:.3f} at step {steps[best]:,.0f}"
                axes.plot(steps[best], scores[best], "o", color=MODEL, markersize=9, markerfacecolor="white", zorder=5)
            marker = "o" if len(known) < 30 else None
            axes.plot(steps, scores, color=colour, linewidth=1.8, marker=marker, markersize=4, label=label)
            label = None
    if late:
        air = 0.08 * (max(late) - min(late)) or 0.5
        low, high = (2 * air, air) if dimensions is None else (air, 2 * air)
        axes.set_ylim(min(late) - low, max(late) + high)
    axes.set_xlabel("step", fontsize=11)
    unit = "log-likelihood, nats per row" if measure == "nats" else measure
    if dimensions is not None:
        unit = "bits per dimension (upper bound)" if measure == "nats (lower bound)" else "bits per dimension"
    axes.set_ylabel(unit, fontsize=11)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=11, loc="lower right" if dimensions is None else "upper right")
    tidy(axes)
    return figure
