"""Every pair of columns at once: data against samples of the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rosenblatt.core.density import Flow
from rosenblatt.plot.style import DATA, MODEL, FittedDensity, limits, samples_of, subject

INCHES = 1.9  # per column
LEVELS = tuple(1 - np.exp(-0.5 * np.square([0.5, 1.0, 1.5, 2.0])))  # mass within 0.5 .. 2 sigma of a 2-D normal


def corner(
    model: Flow | FittedDensity, data: object, *, samples: object = None, n: int = 5000, seed: int = 0
) -> Figure:
    """Draw data (dots, grey) against `n` samples of the model (contours, blue) for every pair of columns.

    Contours hold 12, 39, 68 and 86 % of the mass, those of a normal at 0.5, 1, 1.5 and 2 sigma. `samples` takes rows
    drawn already. More than 12 columns: the first 12, and the title says so. Axes cover the central 99.8 % of the
    data. Raises `DataError` for rows that do not fit the model.

    The panels are those of corner.py (Foreman-Mackey 2016).
    """
    import corner as corner_package

    _, rows, columns = held = subject(model, data, n)
    ours = samples_of(held, samples, n, seed)
    k = held.shown
    size = max(4.0, INCHES * k + 0.6)
    figure = Figure(figsize=(size, size))
    shared = {
        "fig": figure,
        "bins": 40,
        "range": limits(rows)[:k],
        "labels": list(columns[:k]),
        "label_kwargs": {"fontsize": 10},
        "labelpad": 0.05,
        "plot_density": False,
        "max_n_ticks": 4,
    }
    dots = {"alpha": min(0.5, 400 / len(rows)), "ms": 2.0}
    with _no_root_handler():
        corner_package.corner(
            rows[:, :k], color=DATA, plot_contours=False, data_kwargs=dots, hist_kwargs=_bars(), **shared
        )
        corner_package.corner(
            ours[:, :k],
            color=MODEL,
            plot_datapoints=False,
            no_fill_contours=True,
            levels=LEVELS,
            smooth=1.0,
            contour_kwargs={"linewidths": 1.1},
            hist_kwargs=_bars(),
            **shared,
        )
    for axes in figure.axes:
        axes.tick_params(labelsize=8)
    for index in range(k):  # bars of the data must not be cut off by those of the model drawn last
        panel = figure.axes[index * k + index]
        panel.set_ylim(0, 1.1 * panel.dataLim.ymax)
    handles = [Line2D([], [], color=DATA, lw=3, label="data"), Line2D([], [], color=MODEL, lw=3, label="model")]
    place = figure if k > 1 else figure.axes[0]
    place.legend(handles=handles, loc="upper right", frameon=False, fontsize=12 if k > 1 else 9)
    if held.remark:
        figure.suptitle(f"data and model{held.remark}", fontsize=12)
    return figure


def _bars() -> dict[str, Any]:
    return {"density": True, "linewidth": 1.4}  # a new one each time: corner writes its colour into it


@contextmanager
def _no_root_handler() -> Iterator[None]:
    """Keep corner's remarks on contours from installing a handler on the root logger."""
    silent = logging.NullHandler()
    logging.getLogger().addHandler(silent)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(silent)
