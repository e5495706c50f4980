"""Tails at a glance: how often values lie far out, and what index each depth of the tail suggests."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rosenblatt.core.errors import DataError
from rosenblatt.data import Table
from rosenblatt.eval.tail_index import distances, hill_path
from rosenblatt.eval.tails import TWO_SIDED, ColumnTail, TailReport, tail_report
from rosenblatt.plot.style import BAND, DATA, MODEL, MOST_COLUMNS, tidy

PANELS_PER_ROW = 3
MOST_POINTS = 2000  # of a survival curve; the far tail is drawn in full


def tails(data: object, report: TailReport | None = None) -> Figure:
    """Draw, for each column, the survival function of `|x - median|` on log scales, and below it the Hill plot.

    A power law is a straight line: that of a heavy column's index is drawn where it was fitted (blue). The Hill plot
    shows the index that each number k of largest values suggests, with its 95 % band, and marks the k chosen. `report`
    takes a `tail_report` of the same table. More than 12 columns: the first 12, and the title says so. Raises
    `DataError` for a column with NaN or infinities or a report of other columns.

    >>> import torch
    >>> len(tails(torch.randn(200, 2, generator=torch.Generator().manual_seed(0))).axes)
    4
    """
    table = Table.from_any(data)
    total = table.features
    shown = min(total, MOST_COLUMNS)
    if report is None:
        report = tail_report(table.select(table.columns[:shown]))
    names = tuple(column.name for column in report.columns)
    if names[:shown] != table.columns[:shown]:
        raise DataError(f"report: it is of columns {names}, {table.columns} were expected; pass the table's own.")
    across = min(PANELS_PER_ROW, shown)
    down = -(-shown // across)
    figure = Figure(figsize=(4.2 * across, 5.2 * down + 0.4), layout="constrained")
    grid = figure.subplots(2 * down, across, squeeze=False)
    for cell in range(across * down):
        row, place = divmod(cell, across)
        upper, lower = grid[2 * row, place], grid[2 * row + 1, place]
        if cell >= shown:
            upper.remove()
            lower.remove()
            continue
        away = distances(table.values[:, cell])
        _survival(upper, away, report.columns[cell])
        _hill(lower, away, report.columns[cell])
        if place == 0:
            upper.set_ylabel("share beyond", fontsize=10)
            lower.set_ylabel("tail index", fontsize=10)
    remark = f" (first {MOST_COLUMNS} of {total} columns)" if total > MOST_COLUMNS else ""
    figure.suptitle(f"tails{remark}", fontsize=12)
    return figure


def _survival(axes: Axes, away: Tensor, column: ColumnTail) -> None:
    rank = np.arange(1, len(away) + 1)
    steps = np.unique(np.geomspace(1, len(away), MOST_POINTS).round().astype(int)) - 1
    axes.loglog(away.numpy()[steps], rank[steps] / len(away), ".", color=DATA, markersize=3)
    if column.heavy:
        start, end = float(away[column.k]), float(away[0])
        x = np.geomspace(start, end, 50)
        axes.loglog(x, column.k / len(away) * (x / start) ** -column.index, color=MODEL, linewidth=1.8)
    axes.set_xlim(left=float(away[len(away) // 2]) / 10)  # nearer the median there is no tail to see
    verdict = f"heavy, index {column.index:.2f}" if column.heavy else "light"
    axes.set_title(f"{column.name}   {verdict}", fontsize=11)
    axes.set_xlabel("distance to the median", fontsize=10)
    tidy(axes)


def _hill(axes: Axes, away: Tensor, column: ColumnTail) -> None:
    ks, xi = (part.numpy() for part in hill_path(away))
    margin = TWO_SIDED / np.sqrt(ks)
    low = 1 / (xi * (1 + margin))
    high = 1 / (xi * np.maximum(1 - margin, 1e-3))
    axes.fill_between(ks, low, high, color=BAND, linewidth=0)
    axes.plot(ks, 1 / xi, color=DATA, linewidth=1.4)
    axes.plot(column.hill.k, 1 / column.hill.xi, "o", color=MODEL, markersize=8, markerfacecolor="white")
    axes.set_xscale("log")
    axes.set_ylim(0, 2 * max(1 / column.hill.xi, float(np.median(1 / xi))))
    axes.set_xlabel("largest values used, k", fontsize=10)
    tidy(axes)
