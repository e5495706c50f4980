"""The two pictures of docs/speed.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.speed.results import Record
from benchmarks.speed.sections import AXES, CENTRE, SCALING_FAMILIES
from benchmarks.speed.sizes import OURS

OURS_COLOUR, PEER_COLOUR, GREY = "#1f6fb4", "#404040", "#d9d9d9"
TORCH_PEERS = ("zuko", "nflows", "normflows")
TITLES = {"train": "train step, 512 rows", "log_prob": "log-density, 10,000 rows", "sample": "1,000 samples"}
FAMILY_TITLES = {"maf": "MAF", "nsf_ar": "NSF (AR)", "nsf_c": "NSF (C)"}
AXIS_TITLES = {"rows": "rows", "features": "columns", "hidden": "hidden units", "transforms": "transforms"}


def fastest_peers(records: list[Record], quantity: str) -> list[Record]:
    """For every family and number of columns the record of the fastest other PyTorch library."""
    best: dict[tuple[str, int], Record] = {}
    for record in records:
        wanted = record["section"] == "compare" and record["quantity"] == quantity and record["library"] in TORCH_PEERS
        if wanted and record["family"] in FAMILY_TITLES:
            place = (record["family"], record["features"])
            if place not in best or record["ratio"] < best[place]["ratio"]:
                best[place] = record
    return [best[place] for place in sorted(best, key=lambda p: (list(FAMILY_TITLES).index(p[0]), p[1]))]


def ratios(records: list[Record], path: Path) -> None:
    """Bars: the time of the fastest other PyTorch library over ours, its name above the bar."""
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    panels = figure.subplots(1, len(TITLES), sharey=True)
    for axes, (quantity, title) in zip(panels, TITLES.items(), strict=True):
        shown = fastest_peers(records, quantity)
        heights = np.array([record["ratio"] for record in shown])
        lows, highs = np.array([record["ratio_range"] for record in shown]).reshape(-1, 2).T
        colours = [OURS_COLOUR if height >= 1 else PEER_COLOUR for height in heights]
        # A bar stands on 1, so that its length is the factor in either direction.
        axes.bar(range(len(shown)), heights - 1, bottom=1, color=colours, width=0.7)
        axes.errorbar(
            range(len(shown)), heights, [heights - lows, highs - heights], fmt="none", ecolor="#909090", capsize=2
        )
        for place, record in enumerate(shown):
            above = max(record["ratio_range"][1], 1.0) * 1.06
            axes.text(
                place, above, record["library"], ha="center", va="bottom", fontsize=8, rotation=90, color="#606060"
            )
        axes.axhline(1, color="black", linewidth=1)
        labels = [f"{FAMILY_TITLES[record['family']]}, D={record['features']}" for record in shown]
        axes.set_xticks(range(len(shown)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
        axes.set_title(title, fontsize=11)
        _logarithmic(axes)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].set_ylabel("fastest other PyTorch library / ours\n(above 1 we are faster)", fontsize=11)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high * 2)  # room for the names
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def scaling(records: list[Record], path: Path) -> None:
    """Lines: times of ours and zuko along rows, columns, width and depth."""
    found = [record for record in records if record["section"] == "scaling"]
    figure = Figure(figsize=(12.0, 6.0), layout="constrained")
    panels = figure.subplots(len(SCALING_FAMILIES), len(AXES), sharey="row", squeeze=False)
    for family, line in zip(SCALING_FAMILIES, panels, strict=True):
        for axis, axes in zip(AXES, line, strict=True):
            others = {name: value for name, value in CENTRE.items() if name != axis}
            along = [r for r in found if r["family"] == family and all(r[n] == v for n, v in others.items())]
            for library, colour in (("zuko", PEER_COLOUR), (OURS, OURS_COLOUR)):
                for quantity, style in (("log_prob", "o-"), ("train", "s--")):
                    points = sorted(
                        (r[axis], r["seconds"]) for r in along if r["library"] == library and r["quantity"] == quantity
                    )
                    what = "log-density" if quantity == "log_prob" else "train step"
                    if points:
                        axes.plot(
                            *zip(*points, strict=True), style, color=colour, markersize=4, label=f"{library}, {what}"
                        )
            axes.set_xscale("log", base=2)
            axes.set_xticks(AXES[axis], [str(value) for value in AXES[axis]])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(AXIS_TITLES[axis], fontsize=11)
            _logarithmic(axes)
        line[0].set_ylabel(f"{FAMILY_TITLES[family]}: seconds", fontsize=11)
    panels[0][0].legend(frameon=False, fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", which="both", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
