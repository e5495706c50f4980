"""Calibration at a glance: the Rosenblatt transform of the data must be uniform."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from rosenblatt.core.density import Flow
from rosenblatt.eval import pit_bands, uniformity
from rosenblatt.plot.style import BAND, DATA, MODEL, ROWS_AT_ONCE, FittedDensity, Floats, subject, tidy

PANELS_PER_ROW = 3


def pit(model: Flow | FittedDensity, data: object, *, bins: int = 20) -> Figure:
    """Draw a histogram of each column's probability integral transform, with the band it keeps if the model is right.

    u_i = F_i(x_i | x_<i) is uniform for a right model (Rosenblatt 1952). All bars of a column stay in the band, made
    of exact binomial quantiles, with probability 99.9 %; titles give the Kolmogorov-Smirnov p-value. A U shape means
    a model that is too narrow, a hill one too wide, a slope one that is shifted. Raises `DataError` for rows that
    do not fit the model, `OptionError` when the flow has no Rosenblatt transform.
    """
    flow, rows, columns = held = subject(model, data)
    u = _transformed(flow, rows)
    low, high = pit_bands(len(u), bins)
    p_values = uniformity(torch.from_numpy(u)).p_value
    across = min(PANELS_PER_ROW, held.shown)
    down = -(-held.shown // across)
    figure = Figure(figsize=(4.0 * across, 2.9 * down + 0.4), layout="constrained")
    for cell, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
        if cell >= held.shown:
            axes.set_visible(False)
            continue
        counts, edges = np.histogram(u[:, cell], bins, (0, 1))
        axes.axhspan(low, high, color=BAND, linewidth=0)
        axes.axhline(len(u) / bins, color=DATA, linewidth=1)
        axes.stairs(counts, edges, baseline=None, color=MODEL, linewidth=1.8)
        axes.set(xlim=(0, 1), ylim=(0, 1.25 * max(high, counts.max())))
        axes.set_title(f"{columns[cell]}   KS p {_shown(float(p_values[cell]))}", fontsize=11)
        if cell >= held.shown - across:
            axes.set_xlabel("PIT", fontsize=10)
        if cell % across == 0:
            axes.set_ylabel("rows", fontsize=10)
        tidy(axes)
    figure.suptitle(f"PIT of {len(u):,} rows; grey: 99.9 % band of a right model{held.remark}", fontsize=12)
    return figure


def _shown(p_value: float) -> str:
    return f"= {p_value:.2g}" if p_value > 1e-16 else "< 1e-16"


def _transformed(flow: Flow, rows: Floats) -> Floats:
    with torch.no_grad():
        like = flow.sample(1, generator=torch.Generator().manual_seed(0))  # dtype and device of the flow's rows
        parts = [flow.to_uniform(part.to(like)).double().cpu() for part in torch.from_numpy(rows).split(ROWS_AT_ONCE)]
    u: Floats = torch.cat(parts).numpy()
    return u
