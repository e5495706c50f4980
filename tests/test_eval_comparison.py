"""Models compared on the same rows: tests that reject as often as they say, and the table made of them."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.transform import Identity
from rosenblatt.eval import (
    ScoreTable,
    default_lags,
    diebold_mariano,
    newey_west,
    paired_difference,
    paired_t,
    score_rows,
)
from rosenblatt.plot import score_table


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moving_average(rows, memory, seed):
    """Means of `memory` neighbouring draws times sqrt(memory): variance 1, long-run variance `memory`."""
    z = normal(rows + memory - 1, seed=seed)
    return z.unfold(0, memory, 1).sum(dim=-1) / math.sqrt(memory)


def test_paired_t_is_the_t_test_of_scipy():
    first, second = normal(9), normal(9, seed=1) + 0.5
    found, expected = paired_t(first, second), scipy.stats.ttest_rel(first.numpy(), second.numpy())
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.value / found.standard_error == pytest.approx(expected.statistic, rel=1e-12)
    assert found[:2] == pytest.approx(paired_difference(first, second)[:2], rel=1e-12)


def test_newey_west_is_its_formula():
    values, lags = normal(11).numpy(), 3
    offset = values - values.mean()
    total = sum(
        (1 - abs(i - j) / (lags + 1)) * offset[i] * offset[j]
        for i in range(11)
        for j in range(11)
        if abs(i - j) <= lags
    )
    found = newey_west(torch.as_tensor(values), lags=lags)
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(math.sqrt(total / (11 * 10)), rel=1e-12)


def test_newey_west_finds_the_long_run_variance():
    rows, memory, lags = 200_000, 4, 60
    found = newey_west(moving_average(rows, memory, 0), lags=lags)
    # Bartlett's bias is -sum |k| g_k / lags = -2 (1 * 3 + 2 * 2 + 3 * 1) / 4 / lags, its relative noise
    # sqrt(4 lags / (3 rows)).
    expected = memory - 5 / (lags + 1)
    assert rows * found.standard_error**2 / expected == pytest.approx(1, abs=5 * math.sqrt(4 * lags / (3 * rows)))
    assert 5 * math.sqrt(4 * lags / (3 * rows)) < 0.11


def test_p_values_are_as_rare_as_they_say_also_with_dependent_rows():
    repeats, rows, memory, level = 400, 500, 4, 0.05
    wrong, right = 0, 0
    for seed in range(repeats):
        difference = moving_average(rows, memory, 100 + seed)
        zero = torch.zeros_like(difference)
        wrong += paired_t(difference, zero).p_value < level
        right += diebold_mariano(difference, zero, lags=12).p_value < level
    # The t test takes the error for half of what it is: it rejects with P(|N(0, 4)| > 1.96) = 0.327.
    expected = 2 * scipy.stats.norm.sf(scipy.stats.norm.isf(level / 2) / 2)
    assert scipy.stats.binomtest(int(wrong), repeats, expected).pvalue > 1e-6
    # Bartlett's bias leaves 0.90 of the variance here, and estimating it some noise: rejection within 0.05 to 0.09.
    assert scipy.stats.binom.sf(int(right) - 1, repeats, 0.09) > 1e-6
    assert scipy.stats.binom.cdf(int(right), repeats, 0.05) > 1e-6
    # So many repeats tell the two apart.
    assert scipy.stats.binom.ppf(1 - 1e-6, repeats, 0.09) < scipy.stats.binom.ppf(1e-6, repeats, expected)


def test_differences_that_no_noise_hides_and_scores_that_are_infinite():
    one = torch.ones(4)
    assert paired_t(one, one) == (0.0, 0.0, 1.0)
    assert paired_t(2 * one, one) == (1.0, 0.0, 0.0)
    spoiled = torch.tensor([math.inf, 1.0, 2.0, 3.0])
    found = paired_t(spoiled, one)
    assert found.value == math.inf
    assert math.isnan(found.standard_error)
    assert math.isnan(found.p_value)
    with pytest.raises(DataError, match="infinite in the same rows"):
        paired_t(spoiled, spoiled)
    with pytest.raises(DataError, match=r"NaN came in 1 rows \(2\)"):
        paired_t(one, torch.tensor([0.0, 0.0, math.nan, 0.0]))
    with pytest.raises(DataError, match="same rows"):
        paired_t(one, one[:3])
    with pytest.raises(DataError, match="two rows"):
        newey_west(one[:1])
    for lags in (-1, 4):
        with pytest.raises(OptionError, match="lags"):
            diebold_mariano(one, 2 * one, lags=lags)
    assert default_lags(2) == 1


def example():
    noise = normal(400)
    better = 1 + 0.3 * normal(400, seed=1)
    return {
        "good": {"CRPS": better, "log score": noise},
        "as good": {"CRPS": better + 0.01 * normal(400, seed=5), "log score": noise + 1.0 + 0.1 * better},
        "worse": {"CRPS": better + 0.02 + 0.05 * normal(400, seed=3).abs()},
    }


def test_table_marks_what_paired_tests_tell_apart():
    scores = example()
    table = ScoreTable(scores, indicators={"good": {"inside 80%": (normal(400) > 0).double()}})
    best = table.best("CRPS")
    assert best in ("good", "as good")
    other = {"good": "as good", "as good": "good"}[best]
    assert [table.mark(model, "CRPS") for model in (best, other, "worse")] == ["*", "~", ""]
    # Side by side the means of the worst and the best are within their errors; only pairing tells them apart.
    first, last = table.estimate(best, "CRPS"), table.estimate("worse", "CRPS")
    assert last.value - first.value < 4 * first.standard_error
    assert table.versus("worse", best, "CRPS").p_value < 1e-10
    assert table.mark("as good", "log score") == ""
    assert table.mark("worse", "log score") == ""
    assert table.mark("good", "inside 80%") == ""
    rows = table.rows()
    assert len(rows) == 6
    assert rows[0].keys() == rows[-1].keys()
    worst = next(row for row in rows if row["model"] == "worse")
    assert worst["mean"] == pytest.approx(float(scores["worse"]["CRPS"].mean()))
    assert worst["difference"] == pytest.approx(float((scores["worse"]["CRPS"] - scores[best]["CRPS"]).mean()))
    text, marked = str(table).splitlines(), table.markdown(2).splitlines()
    assert len(text) == 4
    assert len({line.index(")") for line in text[1:]}) == 1  # columns stand below each other
    assert marked[1] == "| --- | ---: | ---: | ---: |"
    place = list(scores).index(best)
    assert marked[2 + place].startswith(f"| {best} | **{first.value:.2f} ({first.standard_error:.2f})** |")
    assert f"({table.estimate(other, 'CRPS').standard_error:.2f}) ~ |" in marked[2 + list(scores).index(other)]
    assert marked[4].count("| - |") >= 1


def test_marks_reject_an_equal_model_as_rarely_as_they_say():
    repeats, models, rejected = 400, 4, 0
    for seed in range(repeats):
        rows = normal(models, 60, seed=1000 + seed)
        table = ScoreTable({str(number): {"s": values} for number, values in enumerate(rows)}, false_alarm=0.05)
        rejected += any(table.mark(str(number), "s") == "" for number in range(models))
    # The best of four equal ones was chosen by its luck: at worst all six pairs, each at a third of the level, may
    # reject, and hardly less often than one of them does.
    assert scipy.stats.binom.sf(rejected - 1, repeats, 0.1) > 1e-6
    assert scipy.stats.binom.cdf(rejected, repeats, 0.05 / 3) > 1e-6


def test_lags_reach_the_errors_of_the_table():
    series = moving_average(500, 6, 0)
    errors = [ScoreTable({"a": {"s": series}}, lags=lags).estimate("a", "s").standard_error for lags in (0, 10, None)]
    assert errors[1] > 1.7 * errors[0]
    assert errors[2] == newey_west(series).standard_error


def test_a_model_that_excludes_a_row_is_never_level_with_the_best():
    table = ScoreTable({"a": {"log": torch.tensor([1.0, 2.0, 1.5])}, "b": {"log": torch.tensor([1.0, math.inf, 1.5])}})
    assert table.mark("b", "log") == ""
    assert "inf (nan)" in str(table)
    assert table.rows()[1]["p_value"] is None


def test_scores_of_fitted_densities_go_into_the_table():
    y = normal(300, 1)
    models = {"true": Flow(Identity(), StandardNormal(1)).double(), "wide": StandardNormal(1).double()}
    scored = {name: score_rows(model, y * (1 if name == "true" else 3), draws=39) for name, model in models.items()}
    table = ScoreTable(
        {name: scores.columns() for name, scores in scored.items()},
        indicators={name: scores.indicators() for name, scores in scored.items()},
    )
    assert table.best("CRPS") == table.best("log score") == "true"
    assert table.mark("wide", "CRPS") == ""
    assert abs(table.estimate("true", "inside 80%").value - 0.8) < 5 * math.sqrt(0.16 / 300)


def test_estimates_are_what_a_picture_takes():
    table = ScoreTable(example())
    found = table.estimates("CRPS")
    assert found["worse"] == {"CRPS": table.estimate("worse", "CRPS")}
    assert len(score_table(found).axes) == 1
    with pytest.raises(OptionError, match="worse"):
        table.estimates()


def test_tables_that_cannot_be():
    one = {"a": {"s": torch.zeros(3)}}
    with pytest.raises(DataError, match=r"\[3, 4\] rows"):
        ScoreTable(one | {"b": {"s": torch.zeros(4)}})
    with pytest.raises(DataError, match="NaN"):
        ScoreTable({"a": {"s": torch.tensor([0.0, math.nan])}})
    with pytest.raises(OptionError, match="scores"):
        ScoreTable({})
    with pytest.raises(OptionError, match="indicators"):
        ScoreTable(one, indicators={"b": {"w": torch.zeros(3)}})
    with pytest.raises(OptionError, match="false_alarm"):
        ScoreTable(one, false_alarm=0.0)
    table = ScoreTable(one)
    with pytest.raises(OptionError, match="column"):
        table.best("t")
    with pytest.raises(OptionError, match="model"):
        table.estimate("c", "s")
    with pytest.raises(OptionError, match="column"):
        table.versus("a", "a", "t")
    assert table.mark("a", "s") == "*"
    assert np.isfinite(table.estimate("a", "s").value)
