"""Calibration of conditional densities: quantiles, groups of rows, and how sharp the intervals are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rosenblatt.core.errors import DataError
from rosenblatt.eval import GroupCoverage, Sharpness, reliability, reliability_band
from rosenblatt.eval import coverage_by_group as measured
from rosenblatt.eval.pits import checked_pit
from rosenblatt.plot.style import BAND, DATA, MODEL, OFF, series_styles, shortened, tidy

MOST_GROUPS = 30
MOST_TARGETS = 3
MOST_SERIES = 6
TITLE, LABEL = 12, 10


def pit_reliability(
    pit: Any, *, names: Sequence[str] | None = None, levels: int = 99, false_alarm: float = 1e-3
) -> Figure:
    """Draw the share of rows at or below each stated quantile, left as it is and right less the level, with its band.

    `pit` is F(y | x), (rows,) or (rows, targets) with `names`, or a mapping of models' names to (rows,) of the same
    rows. A right model stays in the grey band at all levels, and all curves do, with probability `1 - false_alarm` (see
    `rosenblatt.eval.reliability`); the legend says where each does not. More than 6 curves: the first 6, and the title
    says so. Raises `DataError` for shapes that do not fit, no rows, NaN or numbers outside [0, 1].

    >>> len(pit_reliability(torch.linspace(0.01, 0.99, 50)).axes)
    2
    """
    u, labels = _curves(pit, names)
    remark = f"; first {MOST_SERIES} of {len(labels)} curves" if len(labels) > MOST_SERIES else ""
    u, labels = u[:, :MOST_SERIES], labels[:MOST_SERIES]
    found = reliability(u, levels=levels, false_alarm=false_alarm)
    at = found.levels.numpy()
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    whole, away = figure.subplots(1, 2)
    for axes, base in ((whole, 0.0), (away, at)):
        axes.fill_between(at, found.low.numpy() - base, found.high.numpy() - base, color=BAND, linewidth=0)
        axes.plot([0, 1], [0, 1] if axes is whole else [0, 0], color=DATA, linewidth=0.8)
        for target, (label, style) in enumerate(zip(labels, series_styles(), strict=False)):
            off = int(found.outside[:, target].sum())
            verdict = f"off at {off} of {len(at)} levels" if off else "in the band"
            text = f"{shortened(label)}: {verdict}" if label else verdict
            axes.plot(at, found.share[:, target].numpy() - base, linewidth=1.7, label=text, **style)
        axes.set_xlim(0, 1)
        axes.set_xlabel("level of the stated quantile", fontsize=LABEL)
        tidy(axes)
    whole.set_ylim(0, 1)
    whole.set_ylabel("share of rows at or below it", fontsize=LABEL)
    away.set_ylabel("share less level", fontsize=LABEL)
    figure.legend(
        *whole.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=LABEL
    )
    percent = f"{100 * (1 - false_alarm):.6g} %"
    figure.suptitle(
        f"reliability of {found.rows:,} rows; grey: {percent} band of a right model{remark}", fontsize=TITLE
    )
    return figure


def coverage_by_group(
    pit: Any,
    groups: Any,
    *,
    interval: float | tuple[float, float] = 0.8,
    bins: int | None = None,
    false_alarm: float = 0.05,
    names: Sequence[str] | None = None,
    label: str = "group",
) -> Figure:
    """Draw the share of rows that an interval holds in each group, with exact 95 % intervals, and mark those off.

    Arguments are those of `rosenblatt.eval.coverage_by_group`; `names` are of the targets, which get a panel each, and
    `label` of the groups. A group is off (orange, square) by its p-value corrected for the number of groups and
    targets, not because its own interval misses the line, as one in twenty does. More than 30 groups: those with the
    smallest p-values, and the title says so; more than 3 targets likewise. Raises as the measure does.

    >>> figure = coverage_by_group(torch.linspace(0.01, 0.99, 50), ["a", "b"] * 25)
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['a (25 rows)', 'b (25 rows)']
    """
    found = measured(pit, groups, interval=interval, bins=bins, false_alarm=false_alarm)
    targets = found.share.shape[1]
    _check_names(names, targets, "target")
    shown = min(targets, MOST_TARGETS)
    chosen = torch.arange(len(found.names))
    if len(chosen) > MOST_GROUPS:
        chosen = found.p_value[:, :shown].amin(dim=1).argsort(stable=True)[:MOST_GROUPS].sort().values
    longest = max(len(shortened(found.names[group])) for group in chosen.tolist())
    figure = Figure(figsize=(1.6 + 0.08 * longest + 4.2 * shown, 1.6 + 0.3 * len(chosen)), layout="constrained")
    least, most = float(found.low[chosen, :shown].min()), float(found.high[chosen, :shown].max())
    ends = min(least, found.nominal), max(most, found.nominal)
    air = 0.03 * (ends[1] - ends[0])
    for target, axes in enumerate(figure.subplots(1, shown, sharex=True, sharey=True, squeeze=False)[0]):
        _groups(axes, found, chosen.tolist(), target)
        axes.set_xlim(max(ends[0] - air, -0.02), min(ends[1] + air, 1.02))
        axes.set_xlabel("share of rows inside", fontsize=LABEL)
        if targets > 1:
            axes.set_title(shortened(names[target] if names else f"target {target}"), fontsize=LABEL + 1)
    figure.axes[0].set_ylabel(shortened(label), fontsize=LABEL)
    remarks = [
        f"; the {MOST_GROUPS} of {len(found.names)} with the smallest p" if len(found.names) > MOST_GROUPS else "",
        f"; {shown} of {targets} targets" if targets > shown else "",
    ]
    off = int(found.off.any(dim=1).sum())
    figure.suptitle(
        f"coverage of an interval that claims {found.nominal:.4g}\n{_counted(off, 'group')} off{''.join(remarks)}",
        fontsize=TITLE,
    )
    return figure


def sharpness_calibration(
    models: Sharpness | Mapping[str, Sharpness], *, unit: str = "units of y", false_alarm: float = 1e-3
) -> Figure:
    """Draw how true central intervals are (left), and how wide they are for the share that they hold (right).

    Left, `share - level` at each level: below 0 intervals are too narrow; a right model stays in the grey band at all
    levels with probability `1 - false_alarm`. Right, mean width in `unit` with its standard error over the share really
    held: of two curves the lower one is sharper at equal coverage. Give one `Sharpness` or several by name, of the same
    rows and levels. Raises `DataError` for none, or for different rows or levels.
    """
    named = {"": models} if isinstance(models, Sharpness) else dict(models)
    if not named:
        raise DataError("models: none came, at least one was expected; see `rosenblatt.eval.sharpness`.")
    first = next(iter(named.values()))
    if any(found.rows != first.rows or not torch.equal(found.level, first.level) for found in named.values()):
        raise DataError("models: different rows or levels came; measure all models on the same rows and levels.")
    remark = f"; first {MOST_SERIES} of {len(named)} models" if len(named) > MOST_SERIES else ""
    curves = list(named.items())[:MOST_SERIES]
    at = first.level.numpy()
    # Central intervals are nested: |2 u - 1| of a right model is uniform, and its counts have the same band.
    low, high = reliability_band(first.rows, first.level, false_alarm=false_alarm / len(curves))
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    away, width = figure.subplots(1, 2)
    # A single level is a bar of some width.
    ends = at if len(at) > 1 else np.array([at[0] - 0.02, at[0] + 0.02])
    band = [np.broadcast_to(end.numpy() / first.rows - at, ends.shape) for end in (low, high)]
    away.fill_between(ends, *band, color=BAND, linewidth=0)
    away.axhline(0, color=DATA, linewidth=0.8)
    for (name, found), look in zip(curves, series_styles(), strict=False):
        text = f"{shortened(name) + ': ' if name else ''}mean |share - level| {found.error:.3f}"
        style = {"marker": "o", **look, "markersize": 4.5, "linewidth": 1.6}
        away.plot(at, found.deviation.numpy(), label=text, **style)
        width.errorbar(
            found.share.numpy(), found.width.numpy(), found.width_error.numpy(), capsize=2, label=text, **style
        )
    away.set_xlabel("level of the central interval", fontsize=LABEL)
    away.set_ylabel("share held less level", fontsize=LABEL)
    width.set_xlabel("share held", fontsize=LABEL)
    width.set_ylabel(f"mean width, {shortened(unit)}", fontsize=LABEL)
    width.set_ylim(bottom=0)
    for axes in (away, width):
        tidy(axes)
    figure.legend(*away.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=LABEL)
    percent = f"{100 * (1 - false_alarm):.6g} %"
    figure.suptitle(f"intervals of {first.rows:,} rows; grey: {percent} band of a right model{remark}", fontsize=TITLE)
    return figure


def _groups(axes: Axes, found: GroupCoverage, chosen: list[int], target: int) -> None:
    axes.axvline(found.nominal, color=DATA, linewidth=1)
    for off, colour, marker in ((False, MODEL, "o"), (True, OFF, "s")):
        rows = [place for place, group in enumerate(chosen) if bool(found.off[group, target]) is off]
        if not rows:
            continue
        of = [chosen[place] for place in rows]
        share, low, high = (part[of, target].numpy() for part in (found.share, found.low, found.high))
        axes.errorbar(
            share, rows, xerr=[share - low, high - share], fmt=marker, color=colour, capsize=2.5, markersize=5
        )
    labels = [f"{shortened(found.names[group])} ({_counted(int(found.rows[group]), 'row')})" for group in chosen]
    axes.set_yticks(range(len(chosen)), labels)
    axes.set_ylim(len(chosen) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    tidy(axes)


def _counted(many: int, what: str) -> str:
    return f"{many:,} {what}{'' if many == 1 else 's'}"


def _curves(pit: Any, names: Sequence[str] | None) -> tuple[torch.Tensor, list[str]]:
    if isinstance(pit, Mapping):
        columns = [checked_pit(part) for part in pit.values()]
        if not columns or any(column.shape != (len(columns[0]), 1) for column in columns):
            shapes = [tuple(column.shape) for column in columns]
            raise DataError(f"pit: shapes {shapes} came by model, (rows,) of the same rows was expected of each.")
        return torch.cat(columns, dim=1), [str(name) for name in pit]
    u = checked_pit(pit)
    _check_names(names, u.shape[1], "target")
    if names is not None:
        return u, [str(name) for name in names]
    return u, [""] if u.shape[1] == 1 else [f"target {target}" for target in range(u.shape[1])]


def _check_names(names: Sequence[str] | None, many: int, what: str) -> None:
    if names is not None and (isinstance(names, str) or len(names) != many):
        raise DataError(f"names: {names!r} came, {many} were expected: one per {what}.")
