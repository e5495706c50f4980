"""Tail estimators against their definitions, and the report on laws whose tails are known."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval import dkw_band, exponential_p_value, tail_report
from rosenblatt.eval.tail_index import (
    ESTIMATORS,
    _correction,
    _largest_resampled,
    distances,
    hill,
    hill_path,
    kernel,
    moments,
    weighted_variance,
)
from rosenblatt.eval.tails import TESTED_SHARE, ColumnTail
from rosenblatt.plot import tails

FALSE_ALARM = 1e-6
SIGMAS = scipy.stats.norm.isf(FALSE_ALARM / 2)  # 4.89
HEAVY = {"t1": scipy.stats.t(1), "t2": scipy.stats.t(2), "t4": scipy.stats.t(4), "pareto": scipy.stats.pareto(1.5)}
INDEX = {"t1": 1.0, "t2": 2.0, "t4": 4.0, "pareto": 1.5}
LIGHT = {"normal": scipy.stats.norm(), "exponential": scipy.stats.expon(), "uniform": scipy.stats.uniform()}


def drawn(law, rows, seed=0):
    return torch.from_numpy(law.ppf(np.random.default_rng(seed).uniform(size=rows)))


def rows_needed(law):
    """Rows for which a symmetric law is called heavy, at false alarm 1e-6, with probability 1 - 1e-6.

    By the delta method for Gini's coefficient `1 - E min(e, e') / E e` of the exceedances e.
    """
    threshold = law.isf(TESTED_SHARE / 2)
    e = np.concatenate([[0.0], np.geomspace(1e-4, 1e7, 200_000)])
    survival = law.sf(threshold + e) / law.sf(threshold)
    widths = np.diff(e)
    middle = np.sqrt(survival[1:] * survival[:-1])
    below = np.concatenate([[0.0], np.cumsum(middle * widths)])  # E min(x, e)
    mean, least = below[-1], np.sum(middle**2 * widths)
    influence = least * (e - mean) / mean**2 - 2 * (below - least) / mean
    share = -np.diff(survival)
    spread = math.sqrt(np.sum(share * (0.5 * (influence[1:] + influence[:-1])) ** 2))
    gini = 1 - least / mean
    one_sided = scipy.stats.norm.isf(FALSE_ALARM)
    return (one_sided * (1 / math.sqrt(12) + spread) / (gini - 0.5)) ** 2 / TESTED_SHARE


def test_estimators_are_their_definitions():
    logs = drawn(scipy.stats.pareto(1.3), 60).log().sort(descending=True).values
    ks = torch.tensor([5, 17, 40])
    for place, k in enumerate(ks.tolist()):
        above = (logs[:k] - logs[k]).numpy()
        m1, m2 = above.mean(), (above**2).mean()
        assert hill(logs, ks)[place].item() == pytest.approx(m1, rel=1e-12)
        assert moments(logs, ks)[place].item() == pytest.approx(m1 + 1 - 0.5 / (1 - m1**2 / m2), rel=1e-11)
        s, spacing = np.arange(1, k + 1) / k, -np.diff(logs[: k + 1].numpy())
        g = np.sum(s * 15 / 8 * (1 - s**2) ** 2 * spacing)
        q = np.sum(15 / 8 * (2 * s * (1 - s**2) ** 2 - 4 * s**3 * (1 - s**2)) * spacing)
        assert kernel(logs, ks)[place].item() == pytest.approx(g - 1 + q / g, rel=1e-11)


def test_estimators_of_exact_tails_scatter_as_they_should():
    k, n = 4000, 400_000
    for law, xi, names in (
        (scipy.stats.pareto(2.0), 0.5, ("hill", "moments", "kernel")),
        (scipy.stats.uniform(), -1.0, ("moments", "kernel")),
    ):
        logs = drawn(law, n).log().sort(descending=True).values[: k + 1]
        for name in names:
            variance = weighted_variance(ESTIMATORS[name].weights, xi) if xi > 0 else 12.0
            found = float(ESTIMATORS[name].estimate(logs, torch.tensor([k])))
            assert abs(found - xi) < SIGMAS * math.sqrt(variance / k) + 0.01, (name, found)


def test_known_variances():
    assert weighted_variance(ESTIMATORS["hill"].weights, 0.7) == pytest.approx(0.49, rel=1e-9)
    assert weighted_variance(ESTIMATORS["moments"].weights, 0.7) == pytest.approx(1.49, rel=1e-4)


def test_auxiliary_statistics_have_the_bias_that_corrects_k():
    # Danielsson et al. (2001): (log k1 / (2 log n1 - log k1))^(2 (log n1 - log k1) / log n1) for Hill's estimator.
    for k1, n1 in ((200, 7000), (1500, 7000)):
        share = math.log(k1) / math.log(n1)
        expected = max((share / (2 - share)) ** (2 * (1 - share)), 0.25)
        assert _correction(ESTIMATORS["hill"], 0.5, k1, n1) == pytest.approx(expected, rel=1e-3)
    # Weights are derivatives of the estimator with respect to spacings of an exact power law.
    k, xi = 20_000, 0.4
    s = (torch.arange(k, dtype=torch.float64) + 1) / k
    plain = xi / (torch.arange(k, dtype=torch.float64) + 1)
    bump = 1e-4 * s.square() * plain
    for name, estimator in ESTIMATORS.items():
        both = [(estimator.estimate, estimator.weights)]
        if name != "hill":  # its auxiliary statistic is scaled freely
            both.append((estimator.auxiliary, estimator.auxiliary_weights))
        for statistic, weights in both:
            ends = [
                float(statistic(torch.cat([part.flip(0).cumsum(0).flip(0), part.new_zeros(1)]), torch.tensor([k])))
                for part in (plain + bump, plain - bump)
            ]
            derivative = (ends[0] - ends[1]) / (2 * 1e-4 * xi)
            # The first spacings, where logarithms are large, are a sum and no integral yet.
            assert derivative == pytest.approx(float((weights(s, xi) * s.square()).mean()), abs=2e-3), name


def test_resampled_largest_values_have_the_law_of_order_statistics():
    levels = torch.arange(1000, dtype=torch.float64).flip(0)
    largest = _largest_resampled(levels, 700, 300, 20_000, torch.Generator().manual_seed(3))
    assert (largest.diff(dim=-1) <= 0).all()
    band = dkw_band(20_000, false_alarm=FALSE_ALARM / 3)
    for i in (1, 50, 300):
        place = (999 - largest[:, i - 1]).sort().values.numpy()  # floor(1000 U), U the i-th smallest of 700
        grid = np.arange(1, 1000)
        below = np.searchsorted(place, grid, side="left") / len(place)
        assert np.abs(below - scipy.stats.beta(i, 701 - i).cdf(grid / 1000)).max() < band


def test_p_values_of_exponential_tails_are_uniform():
    e = torch.empty(3000, 60, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(1))
    p = np.sort([exponential_p_value(5.0 * row) for row in e])
    steps = np.arange(1, 3001) / 3000
    assert max(np.abs(steps - p).max(), np.abs(steps - 1 / 3000 - p).max()) < dkw_band(3000, false_alarm=FALSE_ALARM)


@pytest.mark.parametrize("name", LIGHT)
def test_light_tails_are_called_light(name):
    report = tail_report({name: drawn(LIGHT[name], 20_000, seed=7)}, false_alarm=FALSE_ALARM, resamples=50)
    (column,) = report.columns
    assert not column.heavy
    assert column.index == math.inf
    assert report.options == {"df": [None]}
    assert "light" in str(report)


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_tails_are_called_heavy_with_their_index(name):
    rows = 60_000
    assert rows_needed(HEAVY["t4"]) < rows  # the lightest of them
    data = {name: 250.0 + 0.01 * drawn(HEAVY[name], rows, seed=8)}
    (column,) = tail_report(data, false_alarm=FALSE_ALARM, resamples=100).columns
    assert column.heavy
    assert column.standard_error == pytest.approx(column.xi / math.sqrt(column.k))
    # The best k leaves a bias of about one standard error, and a k twice as large doubles it.
    assert abs(column.xi * INDEX[name] - 1) < (SIGMAS + 2) / math.sqrt(column.k)
    assert column.k > {"t4": 150, "pareto": 250}.get(name, 800)
    assert f"tail index {column.index:.2f}" in str(column)
    said = {"t1": "mean", "t2": "variance", "t4": "mean and variance exist", "pareto": "the variance does not"}
    assert said[name] in str(column)


def test_index_is_the_inverse_of_xi_and_not_one_more():
    rows = [tail_report(drawn(HEAVY["t2"], 10_000, seed).unsqueeze(-1), resamples=60) for seed in range(4)]
    mean = np.mean([report.columns[0].index for report in rows])
    assert abs(mean - 2) < 0.3


def test_report_names_columns_repeats_and_knows_no_units():
    data = {"steady": drawn(LIGHT["normal"], 3000), "wild": drawn(HEAVY["t1"], 3000, seed=1)}
    first = tail_report(data, resamples=60)
    assert tail_report(data, resamples=60) == first
    assert [column.name for column in first.columns] == ["steady", "wild"]
    moved = tail_report({name: 1e3 - 1e-3 * column for name, column in data.items()}, resamples=60)
    assert moved.columns[1].xi == pytest.approx(first.columns[1].xi, rel=1e-6)
    assert first.df[0] is None
    assert first.df[1] == first.columns[1].index
    assert "1 of 2 columns are heavy" in str(first)
    assert isinstance(first.columns[0], ColumnTail)


def test_rounded_and_zero_inflated_columns_get_an_answer():
    rounded = drawn(LIGHT["normal"], 5000).mul(2).round()
    holed = torch.where(torch.arange(5000) % 4 > 0, 0.0, drawn(HEAVY["t1"], 5000))
    report = tail_report({"rounded": rounded, "holed": holed}, false_alarm=FALSE_ALARM, resamples=30)
    assert [column.heavy for column in report.columns] == [False, True]


def test_bad_columns_and_options_are_refused():
    good = drawn(LIGHT["normal"], 200)
    for bad in (torch.where(good > 2, torch.nan, good), torch.where(good > 2, torch.inf, good), 0 * good):
        with pytest.raises(DataError, match="column 'b'"):
            tail_report({"a": good, "b": bad})
    for options in ({"false_alarm": 0.0}, {"resamples": 0}):
        with pytest.raises(OptionError, match=next(iter(options))):
            tail_report(good.unsqueeze(-1), **options)
    with pytest.raises(DataError, match="exceedances"):
        exponential_p_value(torch.zeros(20))


def test_hill_path_ends_at_a_fifth_of_the_values():
    away = distances(drawn(HEAVY["t2"], 1000))
    ks, xi = hill_path(away)
    assert (ks[0], ks[-1]) == (10, len(away) // 5)
    k = int(ks[30])
    assert xi[30].item() == pytest.approx((away[:k].log() - away[k].log()).mean().item())


def test_picture_shows_the_power_law_and_the_chosen_k():
    data = {"steady": drawn(LIGHT["normal"], 2000), "wild": drawn(HEAVY["t1"], 2000, seed=1)}
    report = tail_report(data, resamples=50)
    figure = tails(data, report)
    figure.canvas.draw()
    assert len(figure.axes) == 4
    steady, wild, _, path = figure.axes
    assert len(steady.lines) == 1
    x, y = wild.lines[1].get_data()
    slope = math.log(y[-1] / y[0]) / math.log(x[-1] / x[0])
    assert slope == pytest.approx(-report.columns[1].index)
    points = wild.lines[0].get_data()
    assert np.interp(x[0], points[0][::-1], points[1][::-1]) == pytest.approx(y[0], rel=0.05)  # starts on the data
    marked = path.lines[1].get_data()
    assert [float(part[0]) for part in marked] == pytest.approx([report.columns[1].k, report.columns[1].index])
    assert wild.get_title().startswith("wild   heavy, index")
    with pytest.raises(DataError, match="report"):
        tails({"other": data["wild"]}, report)


def test_picture_says_which_columns_it_leaves_out():
    figure = tails(torch.randn(150, 14, generator=torch.Generator().manual_seed(0)))
    assert "first 12 of 14 columns" in figure.get_suptitle()
    assert len(figure.axes) == 24
