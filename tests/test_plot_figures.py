"""Pictures show what they claim, without touching pyplot's figures or the root logger."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError
from rosenblatt.core.transform import Identity
from rosenblatt.data import Table
from rosenblatt.estimators import FlowDensity
from rosenblatt.eval import pit_bands
from rosenblatt.plot import corner, marginals, pit, save_plots, training_curve

METRICS = [{"step": 10 * k, "train": -5.0 + k, "validation": -6.0 + k - 0.2 * k * k} for k in range(1, 6)]


@pytest.fixture(scope="module")
def normal():
    return Flow(Identity(), StandardNormal(3))


@pytest.fixture(scope="module")
def table():
    return Table(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), ("length", "mass", "age"))


def test_no_figure_of_pyplot_is_made(normal, table):
    handlers = list(logging.getLogger().handlers)
    for figure in (corner(normal, table, n=500), marginals(normal, table, n=500), pit(normal, table)):
        figure.canvas.draw()
    assert pyplot.get_fignums() == []
    assert logging.getLogger().handlers == handlers


def test_corner_has_a_panel_per_pair_and_names_the_columns(normal, table):
    figure = corner(normal, table, n=500)
    assert len(figure.axes) == 9
    assert [axes.get_xlabel() for axes in figure.axes[-3:]] == ["length", "mass", "age"]


def test_corner_draws_data_and_model_in_their_colours(normal, table):
    panel = corner(normal, table, n=500).axes[0]
    assert len({patch.get_edgecolor() for patch in panel.patches}) == 2
    tallest = max(patch.get_xy()[:, 1].max() for patch in panel.patches)
    assert tallest < panel.get_ylim()[1] < 1.5 * tallest


@pytest.mark.parametrize("make", [corner, marginals, pit])
def test_more_than_twelve_columns_are_cut_and_said(make):
    rows = torch.randn(200, 14, generator=torch.Generator().manual_seed(0))
    figure = make(Flow(Identity(), StandardNormal(14)), rows)
    assert "first 12 of 14 columns" in figure.get_suptitle()
    assert not any("x12" in axes.get_xlabel() + axes.get_title() for axes in figure.axes)


def test_pit_bars_of_the_right_model_stay_in_the_band(normal, table):
    figure = pit(normal, table, bins=20)
    low, high = pit_bands(2000, 20)
    assert len(figure.axes) == 3
    for name, axes in zip(table.columns, figure.axes, strict=True):
        counts = axes.patches[-1].get_data().values
        assert counts.sum() == 2000
        assert counts.min() >= low
        assert counts.max() <= high
        assert axes.get_title().startswith(name)
        assert float(axes.get_title().split("=")[1]) > 1e-6


def test_pit_of_a_wrong_model_says_so(normal, table):
    figure = pit(normal, Table(table.values + 1, table.columns))
    assert all("p < 1e-16" in axes.get_title() for axes in figure.axes)


def test_marginal_histograms_have_the_density_as_height(normal, table):
    upper = marginals(normal, table, n=2000).axes[0]
    for stairs in upper.patches:
        values, edges, _ = stairs.get_data()
        assert (values * np.diff(edges)).sum() == pytest.approx(0.998, abs=0.002)


def test_marginals_of_one_column():
    assert len(marginals(Flow(Identity(), StandardNormal(1)), torch.randn(50, 1), n=50).axes) == 2


def test_training_curve_marks_the_best():
    axes = training_curve(METRICS).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "training rows" in labels
    assert "held-out rows, best -4.800 at step 20" in labels


def test_training_curve_without_validation():
    records = [{"step": 1, "train": -1.0, "validation": None}]
    assert len(training_curve(records).axes[0].lines) == 1
    with pytest.raises(DataError, match="metrics"):
        training_curve([])


def test_rows_that_do_not_fit_raise(normal, table):
    for wrong in (table.select(["mass"]), Table(table.values[:0], table.columns), table.values * torch.nan):
        with pytest.raises(DataError, match="data: "):
            pit(normal, wrong)
    with pytest.raises(DataError, match="samples: "):
        corner(normal, table, samples=table.values[:, :2])


def test_save_plots_of_an_estimator(tmp_path):
    generator = np.random.default_rng(0)
    rows = {"x": generator.normal(size=300), "minute": generator.integers(0, 60, 300)}
    density = FlowDensity("gaussian", dequantise={"minute": 1.0}, random_state=0).fit(rows)
    written = save_plots(density, rows, density.report_.history, tmp_path)
    names = ["corner.png", "marginals.png", "pit.png", "training.png"]
    assert [path.name for path in written] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    with pytest.raises(DataError, match="cannot be written"):
        save_plots(density, rows, [], tmp_path / "nowhere")


def test_import_of_the_package_loads_no_heavy_library():
    code = (
        "import sys, rosenblatt; assert 'FlowDensity' in dir(rosenblatt); rosenblatt.Table; "
        "print([m for m in ('sklearn', 'matplotlib', 'pandas', 'corner') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
