"""Forecasts and regressions as pictures: shaded central intervals over time, or over a single input."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.plot.style import DATA, FAN, MODEL, OFF, SERIES, Floats, shortened, tidy

CENTRAL = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
LEAST_PAST = 40
FEW_STEPS = 48  # more values than this are a line, not dots
MOST_DOTS = 5000  # more dots are one blot, and take long to draw


def fan_chart(
    time: Any,
    history: Any,
    *,
    samples: Any = None,
    quantiles: Any = None,
    levels: Any = CENTRAL,
    truth: Any = None,
    past: int | None = None,
    name: str = "y",
    time_name: str = "time",
) -> Figure:
    """Draw a series, and its forecast as shaded central intervals around the median that open from the last value.

    `time` (past + steps,) are numbers or dates in order, `history` (past,) what was seen. The forecast is `samples`
    (draws, steps), of which the `levels` are taken, or `quantiles` (steps, levels). `truth` (steps,), in orange, and
    `history` may have gaps (NaN). `past` is how many values of the history to show, by default the last 40 or
    four times the steps. Axes are called `name` and `time_name`: say the units. Raises `DataError` for shapes that do
    not fit, a forecast with NaN or infinities, or time out of order; `OptionError` unless one of the two forecasts came
    and the levels are increasing in (0, 1).

    >>> figure = fan_chart(np.arange(6), [1.0, 2.0, 3.0, 4.0], quantiles=[[4, 5, 6], [4, 6, 8]], levels=[0.1, 0.5, 0.9])
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['history', 'median', 'central 80 %']
    """
    seen = _numbers("history", history, 1, gaps=True)
    at = _levels(levels)
    stated = _forecast(samples, quantiles, at)
    steps = len(stated)
    when, found = _ordered(time, len(seen), steps), None if truth is None else _numbers("truth", truth, 1, gaps=True)
    if found is not None and found.shape != (steps,):
        raise DataError(f"truth: shape {found.shape} came, ({steps},) was expected: one value a step.")
    kept = min(len(seen), max(LEAST_PAST, 4 * steps) if past is None else max(past, 1))
    ahead = when[len(seen) :]
    when, seen = when[len(seen) - kept : len(seen)], seen[-kept:]
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(when, seen, color=DATA, linewidth=1.3, label="history", marker="o" if kept < 30 else None, markersize=3)
    if np.isfinite(seen[-1]):  # the fan opens from what is known
        ahead = np.concatenate([when[-1:], ahead])
        stated = np.concatenate([np.full((1, len(at)), seen[-1]), stated])
    _shade(axes, ahead, at, stated)
    if found is not None:
        look = (
            {"marker": "o", "linestyle": "", "markeredgecolor": "white"} if steps <= FEW_STEPS else {"linewidth": 1.3}
        )
        axes.plot(ahead[-steps:], found, color=OFF, markersize=5, label="truth", zorder=5, **look)
    axes.set_xlabel(shortened(time_name), fontsize=11)
    axes.set_ylabel(shortened(name), fontsize=11)
    _label_time(axes, when)
    _legend(axes)
    return figure


def quantile_curves(
    x: Any,
    quantiles: Any,
    levels: Any = CENTRAL,
    *,
    X: Any = None,
    y: Any = None,
    names: tuple[str, str] = ("x", "y"),
) -> Figure:
    """Draw quantiles of p(y | x) over one input: shaded where levels pair up as a and 1 - a, else as lines.

    `x` (points,) in any order, `quantiles` (points, levels); rows of data `X` (rows,) or (rows, 1) and `y` (rows,) are
    drawn as dots, at most 5,000 of them spread evenly, and the title says so. `names` are those of the axes: say the
    units. Raises `DataError` for shapes that do not fit or numbers that are not finite, `OptionError` for levels that
    are not increasing in (0, 1).

    >>> figure = quantile_curves([0.0, 1.0], [[0, 1, 2], [1, 3, 5]], [0.1, 0.5, 0.9])
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['median', 'central 80 %']
    """
    at = _levels(levels)
    points = _numbers("x", x, 1)
    stated = _numbers("quantiles", quantiles, 2)
    if stated.shape != (len(points), len(at)):
        raise DataError(
            f"quantiles: shape {stated.shape} came, ({len(points)}, {len(at)}) was expected: points, levels."
        )
    if (X is None) != (y is None):
        raise DataError("X, y: one came without the other; give both or none.")
    order = points.argsort(kind="stable")
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    _shade(axes, points[order], at, stated[order])
    if X is not None:
        given, seen = _numbers("X", np.asarray(X).reshape(-1) if np.shape(X)[1:] == (1,) else X, 1), _numbers("y", y, 1)
        if given.shape != seen.shape:
            raise DataError(f"X, y: {len(given)} and {len(seen)} rows came, equal numbers were expected.")
        _dots(axes, given, seen)
    axes.set_xlabel(shortened(names[0]), fontsize=11)
    axes.set_ylabel(shortened(names[1]), fontsize=11)
    _legend(axes)
    return figure


def _ordered(time: Any, past: int, steps: int) -> npt.NDArray[Any]:
    when = np.asarray(time)
    if when.shape != (past + steps,):
        raise DataError(
            f"time: shape {when.shape} came, ({past + steps},) was expected: the history and {steps} steps."
        )
    if not bool(np.all(when[1:] > when[:-1])):
        raise DataError("time: it must increase from row to row; sort the table by time.")
    return when


def _label_time(axes: Axes, when: npt.NDArray[Any]) -> None:
    if np.issubdtype(when.dtype, np.datetime64):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    elif when.dtype.kind in "iuf":
        axes.ticklabel_format(axis="x", useOffset=False)


def _dots(axes: Axes, given: Floats, seen: Floats) -> None:
    chosen = np.unique(np.linspace(0, len(given) - 1, min(len(given), MOST_DOTS)).round().astype(int))
    size, strength = (4.5, 0.9) if len(chosen) < 100 else (2.2, max(0.15, min(0.8, 300 / len(chosen))))
    axes.plot(
        given[chosen], seen[chosen], "o", color=DATA, markersize=size, alpha=strength, markeredgewidth=0, label="data"
    )
    if len(chosen) < len(given):
        axes.set_title(f"{len(chosen):,} of {len(given):,} rows shown", fontsize=10)
        # Dots of few rows outside would otherwise set the scale of all.
        low, high = np.quantile(seen, [0.0005, 0.9995])
        air = 0.15 * (high - low)
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, low - air), min(top, high + air))


def _shade(axes: Axes, x: npt.NDArray[Any], levels: Floats, quantiles: Floats) -> None:
    """Fill central intervals, wide and pale first; a median is a thick line, a level without partner a thin one."""
    alone = set(range(len(levels)))
    shaded = [
        (place, other)
        for place, level in enumerate(levels)
        for other in np.flatnonzero(np.isclose(levels, 1 - level, rtol=0, atol=1e-6))
        if level < 0.5 - 1e-6
    ]
    median = np.flatnonzero(np.isclose(levels, 0.5, rtol=0, atol=1e-6))
    for place in median:
        axes.plot(x, quantiles[:, place], color=MODEL, linewidth=2, label="median", zorder=4)
        alone.discard(int(place))
    for (low, high), shade in zip(shaded, _shades(len(shaded)), strict=True):
        label = f"central {100 * (levels[high] - levels[low]):.4g} %"
        axes.fill_between(x, quantiles[:, low], quantiles[:, high], color=shade, linewidth=0, label=label)
        alone -= {low, int(high)}
    for number, single in enumerate(sorted(alone)):
        label, pattern = f"level {levels[single]:.4g}", SERIES[1:][number % (len(SERIES) - 1)][1]
        axes.plot(x, quantiles[:, single], color=MODEL, linewidth=1.2, linestyle=pattern, label=label, zorder=3)


def _shades(many: int) -> list[tuple[float, ...]]:
    """From pale to strong mixtures of white and blue, told apart also in grey."""
    strengths = np.linspace(*FAN, many) if many != 1 else [sum(FAN) / 2]
    blue = np.array([0x1F, 0x6F, 0xB4]) / 255
    return [tuple((1 - strength + strength * blue).tolist()) for strength in strengths]


def _legend(axes: Axes) -> None:
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=10)
    for handle in legend.legend_handles:
        if isinstance(handle, Line2D) and handle.get_marker() == "o":
            handle.set(alpha=1, markersize=4)  # a pale dot cannot be told from the paper
    tidy(axes)


def _forecast(samples: Any, quantiles: Any, levels: Floats) -> Floats:
    if (samples is None) == (quantiles is None):
        raise OptionError("samples, quantiles: exactly one of the two was expected as forecast.")
    if samples is not None:
        taken: Floats = np.quantile(_numbers("samples", samples, 2), levels, axis=0).T
        return taken
    stated = _numbers("quantiles", quantiles, 2)
    if stated.shape[1] != len(levels):
        raise DataError(f"quantiles: shape {stated.shape} came, (steps, {len(levels)}) was expected: one per level.")
    return stated


def _numbers(argument: str, values: Any, axes: int, *, gaps: bool = False) -> Floats:
    rows: Floats = np.asarray(values, dtype=np.float64)
    if rows.ndim != axes or rows.size == 0:
        raise DataError(f"{argument}: shape {rows.shape} came, {axes} axes with at least one number were expected.")
    if bool(np.isinf(rows).any()) or (not gaps and bool(np.isnan(rows).any())):
        raise DataError(f"{argument}: NaN or infinities came; drop these rows first.")
    return rows


def _levels(levels: Any) -> Floats:
    at: Floats = np.asarray(levels, dtype=np.float64)
    if at.ndim != 1 or len(at) < 1 or not bool(np.all((at > 0) & (at < 1))) or not bool(np.all(np.diff(at) > 0)):
        raise OptionError("levels: increasing probabilities in (0, 1), at least one, were expected.")
    return at
