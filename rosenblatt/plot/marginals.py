"""One column at a time: histogram and cumulative distribution of data and model."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rosenblatt.core.density import Flow
from rosenblatt.eval import dkw_band
from rosenblatt.plot.style import BAND, DATA, MODEL, FittedDensity, Floats, limits, samples_of, subject, tidy

PANELS_PER_ROW = 3
BINS = 60


def marginals(
    model: Flow | FittedDensity, data: object, *, samples: object = None, n: int = 5000, seed: int = 0
) -> Figure:
    """Draw, for each column, histograms of data and `n` samples, and below them both cumulative distributions.

    The grey band around the data's CDF holds the true CDF of all its values with probability 99.9 % (DKW). `samples`
    takes rows drawn already. More than 12 columns: the first 12, and the title says so. Raises `DataError` for rows
    that do not fit the model.
    """
    _, rows, columns = held = subject(model, data)
    ours = samples_of(held, samples, n, seed)
    across = min(PANELS_PER_ROW, held.shown)
    down = -(-held.shown // across)
    figure = Figure(figsize=(4.2 * across, 4.4 * down + 0.4), layout="constrained")
    heights = [1.5, 1.0] * down
    grid = figure.subplots(2 * down, across, squeeze=False, gridspec_kw={"height_ratios": heights})
    for cell in range(across * down):
        row, column = divmod(cell, across)
        upper, lower = grid[2 * row, column], grid[2 * row + 1, column]
        if cell >= held.shown:
            upper.set_visible(False)
            lower.set_visible(False)
            continue
        ends = limits(rows)[cell]
        _histograms(upper, rows[:, cell], ours[:, cell], ends)
        _distributions(lower, rows[:, cell], ours[:, cell], ends)
        lower.set_xlabel(columns[cell], fontsize=11)
        if column == 0:
            upper.set_ylabel("density", fontsize=10)
            lower.set_ylabel("cumulative", fontsize=10)
    grid[0, 0].legend(frameon=False, fontsize=10)
    figure.suptitle(f"marginal distributions{held.remark}", fontsize=12)
    return figure


def _histograms(axes: Axes, rows: Floats, ours: Floats, ends: tuple[float, float]) -> None:
    edges = np.linspace(*ends, BINS + 1)
    for values, colour, filled, label in ((rows, DATA, True, "data"), (ours, MODEL, False, "model")):
        # Per row of all rows, so that what lies outside the axes lowers the bars inside as it should.
        heights = np.histogram(values, edges)[0] / (len(values) * np.diff(edges))
        axes.stairs(heights, edges, color=colour, fill=filled, alpha=0.35 if filled else 1, linewidth=1.6, label=label)
    axes.set_xlim(*ends)
    axes.tick_params(labelbottom=False)
    tidy(axes)


def _distributions(axes: Axes, rows: Floats, ours: Floats, ends: tuple[float, float]) -> None:
    x = np.linspace(*ends, 600)
    band = dkw_band(len(rows), false_alarm=1e-3)
    theirs, fitted = (np.searchsorted(np.sort(values), x, side="right") / len(values) for values in (rows, ours))
    axes.fill_between(x, np.maximum(theirs - band, 0), np.minimum(theirs + band, 1), color=BAND, linewidth=0)
    axes.plot(x, theirs, color=DATA, linewidth=1.4)
    axes.plot(x, fitted, color=MODEL, linewidth=1.4)
    axes.set(xlim=ends, ylim=(-0.02, 1.02))
    tidy(axes)
