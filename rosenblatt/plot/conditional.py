"""Every picture of a fitted regression: reliability, intervals, groups, curves over a single input, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Table
from rosenblatt.eval import sharpness
from rosenblatt.plot.calibration import MOST_TARGETS, coverage_by_group, pit_reliability, sharpness_calibration
from rosenblatt.plot.files import write
from rosenblatt.plot.forecasts import CENTRAL, quantile_curves
from rosenblatt.plot.style import Floats, limits
from rosenblatt.plot.training import training_curve

LEVELS = np.array([0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
LEVELS = np.concatenate([LEVELS, [0.5], 1 - LEVELS[::-1]])
LOW, HIGH = 3, -4  # places of the levels 0.1 and 0.9
GRID = 200
LEAST_IN_A_GROUP, MOST_GROUPS = 50, 8


class FittedRegression(Protocol):
    """An estimator of p(y | X), such as `ConditionalFlow`."""

    columns_: tuple[str, ...]
    n_features_in_: int

    def pit(self, X: Any, y: Any) -> Floats:
        """F(y | X), (rows,) or (rows, targets)."""

    def predict_quantiles(self, X: Any, levels: Any) -> Floats:
        """Quantiles, (rows, levels) or (rows, targets, levels)."""


def save_conditional_plots(
    model: FittedRegression, X: Any, y: Any, folder: str | Path, *, metrics: Sequence[Mapping[str, Any]] = ()
) -> list[Path]:
    """Write reliability.png, intervals.png, groups.png, and where they apply curves.png and training.png.

    `X` and `y` are rows held out of the fit, in any form the model takes. Intervals (sharpness against calibration) of
    several targets, whose units differ, are in a file each: intervals_1.png and so on, three at most. Groups are cut by
    the width of the 80 % interval of the first target, which the model says from X alone: do its narrow intervals hold
    as much as its wide ones? Groups need 100 rows, they and reliability a model with a CDF; curves need one target and
    one column of numbers. `metrics` are the records of the training. Returns the files written. Raises `DataError` for
    rows that the model does not take or a folder that cannot be written to.
    """
    names, table = list(model.columns_), Table.from_any(y)
    targets = table.values.double().numpy()
    if targets.shape[1] != len(names):
        raise DataError(f"y: {targets.shape[1]} columns came, {len(names)} were expected, as in the fit.")
    rows = len(targets)
    stated = np.asarray(model.predict_quantiles(X, LEVELS)).reshape(rows, len(names), len(LEVELS))
    try:
        pit = np.asarray(model.pit(X, y)).reshape(rows, len(names))
    except OptionError:  # the model has no CDF
        pit = None
    figures = {} if pit is None else {"reliability": pit_reliability(pit, names=names)}
    for target in range(min(len(names), MOST_TARGETS)):
        found = sharpness(targets[:, target], stated[:, target], LEVELS)
        file = "intervals" if len(names) == 1 else f"intervals_{target + 1}"
        figures[file] = sharpness_calibration({names[target]: found}, unit=names[target])
    bins = min(MOST_GROUPS, rows // LEAST_IN_A_GROUP)
    if bins > 1 and pit is not None:
        width = stated[:, 0, HIGH] - stated[:, 0, LOW]
        label = f"width of 80 %, {names[0]}"
        figures["groups"] = coverage_by_group(pit, width, bins=bins, names=names, label=label)
    curves = _curves(model, X, targets) if len(names) == model.n_features_in_ == 1 else None
    if curves is not None:
        figures["curves"] = curves
    if metrics:
        figures["training"] = training_curve(metrics)
    return write(figures, folder)


def _curves(model: FittedRegression, X: Any, targets: Floats) -> Figure | None:
    try:
        table = Table.from_any(X)
    except DataError:  # a column of text or categories has no axis
        return None
    seen: Floats = table.values.double().numpy()
    if not bool(np.isfinite(seen).all()):
        return None
    grid = np.linspace(*limits(seen)[0], GRID)
    named = getattr(model, "feature_names_in_", None)
    given = grid[:, np.newaxis] if named is None else {str(named[0]): grid}
    quantiles = np.asarray(model.predict_quantiles(given, CENTRAL)).reshape(GRID, len(CENTRAL))
    names = (table.columns[0], model.columns_[0])
    return quantile_curves(grid, quantiles, X=seen[:, 0], y=targets[:, 0], names=names)
