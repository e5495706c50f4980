"""Pictures of a fitted density: matplotlib figures, made without pyplot's global state."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.objectives import measure_of
from rosenblatt.plot.calibration import coverage_by_group, pit_reliability, sharpness_calibration
from rosenblatt.plot.conditional import save_conditional_plots
from rosenblatt.plot.corner import corner
from rosenblatt.plot.files import write
from rosenblatt.plot.forecasts import fan_chart, quantile_curves
from rosenblatt.plot.images import bits_by_place, image_grids, level_calibration, save_image_plots
from rosenblatt.plot.marginals import marginals
from rosenblatt.plot.pit import pit
from rosenblatt.plot.scores import score_table
from rosenblatt.plot.style import FittedDensity, drawn, subject
from rosenblatt.plot.tails import tails
from rosenblatt.plot.training import training_curve

__all__ = [
    "bits_by_place",
    "corner",
    "coverage_by_group",
    "fan_chart",
    "image_grids",
    "level_calibration",
    "marginals",
    "pit",
    "pit_reliability",
    "quantile_curves",
    "save_conditional_plots",
    "save_image_plots",
    "save_plots",
    "score_table",
    "sharpness_calibration",
    "tails",
    "training_curve",
]

SAMPLES = 10_000


def save_plots(
    model: Flow | FittedDensity,
    data: object,
    metrics: Sequence[Mapping[str, Any]],
    folder: str | Path,
    *,
    seed: int = 0,
) -> list[Path]:
    """Write corner.png, marginals.png, pit.png and training.png into `folder`; returns the files written.

    A model without a Rosenblatt transform gets no pit.png, a model without training records no training.png. Raises
    `DataError` for rows that do not fit the model or a folder that cannot be written to.
    """
    held = subject(model, data)
    table = dict(zip(held.columns, held.rows.T, strict=True))
    samples = drawn(held.flow, SAMPLES, seed)
    figures = {
        "corner": corner(held.flow, table, samples=samples),
        "marginals": marginals(held.flow, table, samples=samples),
    }
    with contextlib.suppress(OptionError):  # the base has no coordinate-wise CDF
        figures["pit"] = pit(held.flow, table)
    if metrics:
        figures["training"] = training_curve(metrics, measure=measure_of(held.flow))
    return write(figures, folder)
