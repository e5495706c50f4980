"""Scores of several models side by side, with what chance may have done to them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from rosenblatt.core.errors import DataError
from rosenblatt.plot.style import DATA, MODEL, Floats, shortened, tidy

NORMAL_95 = 1.96


def score_table(
    scores: Mapping[str, Mapping[str, tuple[float, float]]], *, higher_is_better: tuple[str, ...] = ()
) -> Figure:
    """Draw scores of models as dots with 95 % intervals (1.96 standard errors), a panel per score, the number beside.

    `scores` maps a model's name to its scores by name, each a (value, standard error) such as an `Estimate`.
    The lowest of a panel is blue, or the highest of those `higher_is_better`. Models are in order of the first score.
    Overlapping intervals do not say that models are alike: all were scored on the same rows, and only a paired test
    compares them. Raises `DataError` for no models, different scores or numbers that are not finite.

    >>> figure = score_table({"flow": {"CRPS": (0.31, 0.01)}, "baseline": {"CRPS": (0.42, 0.02)}})
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['flow', 'baseline']
    """
    measures = list(next(iter(scores.values()), {}))
    if not measures or any(list(found) != measures for found in scores.values()):
        raise DataError(
            f"scores: the same scores of every model were expected, in one order; the first has {measures}."
        )
    for model, found in scores.items():
        for measure, (value, error) in found.items():
            if not (math.isfinite(value) and math.isfinite(error) and error >= 0):
                raise DataError(
                    f"scores: {value} +- {error} came for {measure} of {model}, finite numbers were expected."
                )
    unknown = set(higher_is_better) - set(measures)
    if unknown:
        raise DataError(f"higher_is_better: {sorted(unknown)} came, some of {measures} were expected.")
    signs = {measure: -1 if measure in higher_is_better else 1 for measure in measures}
    order = sorted(scores, key=lambda model: signs[measures[0]] * scores[model][measures[0]][0])
    longest = max(len(shortened(model)) for model in order)
    figure = Figure(
        figsize=(1.0 + 0.085 * longest + 3.9 * len(measures), 1.1 + 0.38 * len(order)), layout="constrained"
    )
    for axes, measure in zip(figure.subplots(1, len(measures), sharey=True, squeeze=False)[0], measures, strict=True):
        values, errors = np.array([scores[model][measure] for model in order], dtype=float).T
        best = int((signs[measure] * values).argmin())
        digits = _digits(errors)
        for place, (value, error) in enumerate(zip(values, errors, strict=True)):
            colour = MODEL if place == best else DATA
            axes.errorbar(value, place, xerr=NORMAL_95 * error, fmt="o", color=colour, capsize=3, markersize=6)
            text = f"{value:.{digits}f} ± {error:.{digits}f}".replace("-", "\N{MINUS SIGN}")  # as on the axis
            axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=colour)
        axes.set_yticks(range(len(order)), [shortened(model) for model in order])
        axes.set_ylim(len(order) - 0.5, -0.5)
        better = "higher" if measure in higher_is_better else "lower"
        axes.set_title(f"{shortened(measure)} ({better} is better)", fontsize=11)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        tidy(axes)
    return figure


def _digits(errors: Floats) -> int:
    """As many decimals as show two digits of the smallest error."""
    known = errors[errors > 0]
    return 3 if len(known) == 0 else int(min(max(1 - math.floor(math.log10(float(known.min()))), 0), 8))
