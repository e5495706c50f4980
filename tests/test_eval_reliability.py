"""Measures of calibration: exact where a law is known, with their stated false alarms, and power where a PIT is off."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval import (
    clopper_pearson,
    coverage,
    coverage_by_group,
    dkw_band,
    holm,
    pit_histogram,
    randomised_pit,
    reliability,
    reliability_band,
    sample_pit,
    sharpness,
    uniformity,
)
from rosenblatt.eval.reliability import _probability_within

FALSE_ALARM = 1e-6


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def factorials(rows):
    return np.array([math.lgamma(max(k, 1)) for k in range(rows + 2)])


def test_probability_of_a_band_is_that_of_enumeration():
    rows, levels = 6, np.array([0.2, 0.45, 0.8])
    low, high = np.array([0, 1, 3]), np.array([3, 4, 6])
    widths = np.diff([0, *levels, 1])
    expected = sum(
        stats.multinomial.pmf(counts, rows, widths)
        for counts in itertools.product(range(rows + 1), repeat=4)
        if sum(counts) == rows and all(a <= c <= b for a, c, b in zip(low, np.cumsum(counts), high, strict=False))
    )
    assert _probability_within(rows, levels, low, high, factorials(rows)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("rows", "levels"), [(10, 9), (60, 19)])
def test_the_band_has_its_false_alarm_by_simulation(rows, levels):
    stated, tables = 0.1, 20_000
    at = np.arange(1, levels + 1) / (levels + 1)
    low, high = reliability_band(rows, at, false_alarm=stated)
    exact = 1 - _probability_within(rows, at, low.numpy(), high.numpy(), factorials(rows))
    assert stated / 2 < exact <= stated  # steps of binomial counts leave some of it unused
    counts = (uniform(tables, rows, 1) <= torch.from_numpy(at)).sum(dim=1)
    escapes = int(((counts < low) | (counts > high)).any(dim=1).sum())
    law = stats.binom(tables, exact)
    assert law.ppf(FALSE_ALARM / 2) <= escapes <= law.isf(FALSE_ALARM / 2)


@pytest.mark.parametrize("rows", [1, 10, 1000, 100_000])
def test_the_band_keeps_its_false_alarm_without_waste(rows):
    at = torch.arange(1, 100, dtype=torch.float64) / 100
    low, high = reliability_band(rows, at, false_alarm=1e-3)
    exact = 1 - _probability_within(rows, at.numpy(), low.numpy(), high.numpy(), factorials(rows))
    assert exact <= 1e-3
    if rows >= 1000:
        assert exact > 0.8e-3
        width = (high - low) / 2 / rows
        assert (width < 1.1 * dkw_band(rows, false_alarm=1e-3)).all()  # hardly wider in the middle
        assert width[0] < 0.35 * dkw_band(rows, false_alarm=1e-3)  # tails are where it is narrow


def test_one_level_has_the_binomial_quantiles():
    low, high = reliability_band(50, [0.3], false_alarm=0.01)
    assert (int(low), int(high)) == (stats.binom.ppf(0.005, 50, 0.3), stats.binom.isf(0.005, 50, 0.3))


def test_shares_are_their_definition():
    u = uniform(37, 2)
    found = reliability(u, levels=[0.1, float(u[3, 1]), 0.9])
    for place, level in enumerate(found.levels):
        for target in range(2):
            assert found.share[place, target] == (u[:, target] <= level).double().mean()
    assert reliability(u[:, 0].numpy()).share.flatten().tolist() == reliability(u).share[:, 0].tolist()


def test_a_right_model_is_calibrated_and_a_wrong_one_is_not():
    """The law u = v^(1/a) puts t^a below t: the gap at 1/2 must exceed the band and the noise of a share there."""
    power, level = 1.3, 0.5
    gap = abs(level**power - level)
    tail = stats.norm.isf(FALSE_ALARM / 99 / 2)  # no equal band is wider than with a share per level
    rows = math.ceil(((tail + stats.norm.isf(FALSE_ALARM)) * 0.5 / gap) ** 2)
    assert rows < 20_000
    u = uniform(rows)
    assert reliability(u, false_alarm=FALSE_ALARM).calibrated
    wrong = reliability(u ** (1 / power), false_alarm=FALSE_ALARM)
    assert not wrong.calibrated
    assert bool(wrong.outside[49])
    assert "off at" in str(wrong)
    assert "ok" in str(reliability(u, false_alarm=FALSE_ALARM))
    assert wrong.error.item() == pytest.approx(abs(1 / 2 - 1 / (power + 1)), abs=0.01)  # integral of |t^a - t|


def test_heavy_tails_are_seen_where_the_dkw_band_is_blind():
    rows, excess = 4000, 0.02
    u = uniform(rows)
    heavy = torch.where(uniform(rows, seed=1) < excess, 0.005 * u, u)
    assert float(uniformity(heavy.unsqueeze(1)).statistic) < dkw_band(rows)
    assert not reliability(heavy, false_alarm=FALSE_ALARM).calibrated


def test_targets_share_the_false_alarm():
    one, four = (reliability(uniform(200, targets), false_alarm=0.04) for targets in (1, 4))
    assert (four.low <= one.low).all()
    assert (four.high >= one.high).all()
    assert torch.equal(four.high, reliability(uniform(200), false_alarm=0.01).high)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_clopper_pearson_is_that_of_scipy(confidence):
    for trials in (1, 7, 300):
        for successes in {0, 1, trials // 3, trials}:
            expected = stats.binomtest(successes, trials).proportion_ci(confidence)
            low, high = clopper_pearson(successes, trials, confidence=confidence)
            assert low.item() == pytest.approx(expected.low, abs=1e-10)
            assert high.item() == pytest.approx(expected.high, abs=1e-10)


def test_coverage_of_known_laws():
    found = coverage(uniform(30, 2))
    assert found.share.shape == found.low.shape == found.high.shape == (3, 2)
    u = uniform(20_000)
    narrow = 0.5 + 1.25 * (u - 0.5)  # intervals that claim L hold L / 1.25
    narrow = coverage(narrow.clamp(0, 1), (0.5, 0.8), confidence=1 - FALSE_ALARM)
    for place, level in enumerate((0.5, 0.8)):
        assert float(narrow.low[place]) <= level / 1.25 <= float(narrow.high[place]) < level


def test_groups_that_are_off_are_found_and_no_others():
    rows = 3000
    u = uniform(3 * rows)
    off = slice(rows, 2 * rows)
    u[off] = 0.5 + 0.8 * (u[off] - 0.5)  # group b is too wide: its 80 % intervals hold all
    groups = np.repeat(["a", "b", "c"], rows)
    found = coverage_by_group(u, groups, false_alarm=FALSE_ALARM)
    assert found.names == ("a", "b", "c")
    assert found.rows.tolist() == [rows] * 3
    assert found.off.flatten().tolist() == [False, True, False]
    assert float(found.share[1]) == 1.0
    assert "off" in str(found).splitlines()[2]
    as_numbers = coverage_by_group(u, torch.arange(3 * rows), bins=3, false_alarm=FALSE_ALARM)
    assert torch.equal(as_numbers.share, found.share)
    assert as_numbers.names == ("0 to 2999", "3000 to 5999", "6000 to 8999")


def test_a_shift_shows_in_the_median_of_its_group():
    u = uniform(2000, 2)
    u[:1000, 1] = u[:1000, 1] ** 1.5
    found = coverage_by_group(u, [True] * 1000 + [False] * 1000, interval=(0, 0.5), false_alarm=FALSE_ALARM)
    assert found.nominal == 0.5
    assert found.off.tolist() == [[False, False], [False, True]]  # names are sorted: False, True
    assert ", target 1:" in str(found)


def test_group_tests_have_their_false_alarm():
    """Right models, 5 groups of 40 rows: how many of 4,000 tables call any group off."""
    stated, tables = 0.1, 4000
    groups = np.repeat(np.arange(5), 40)
    inside = (uniform(tables, 5, 40) <= 0.8).sum(dim=2).double().numpy()
    law = stats.binom(40, 0.8)
    p_value = np.minimum(2 * np.minimum(law.cdf(inside), law.sf(inside - 1)), 1)
    alarms = int((p_value.min(axis=1) * 5 <= stated).sum())  # Holm calls any off where the smallest is, times 5
    assert alarms <= stats.binom.isf(FALSE_ALARM, tables, stated)
    u = uniform(tables, 5, 40)[0].flatten()
    found = coverage_by_group(u, groups, interval=(0, 0.8))
    expected = holm(torch.from_numpy(p_value[0]))
    assert found.p_value.flatten().tolist() == pytest.approx(expected.tolist())


def test_holm_is_its_definition():
    p = uniform(3, 4) / 10
    ordered = sorted(p.flatten().tolist())
    running = np.maximum.accumulate([min(1.0, (12 - k) * value) for k, value in enumerate(ordered)])
    corrected = holm(p)
    assert corrected.shape == p.shape
    assert sorted(corrected.flatten().tolist()) == pytest.approx(running.tolist())


def test_bins_of_equal_numbers_stay_together():
    for many in (10, 90):
        found = coverage_by_group(uniform(100), [0.0] * many + [1.0] * (100 - many), bins=4)
        assert found.names == ("0", "1")
        assert found.rows.tolist() == [many, 100 - many]


def test_a_randomised_pit_is_uniform_where_the_plain_one_is_not():
    rows = 20_000
    counts = torch.from_numpy(np.random.default_rng(0).poisson(1.5, rows))
    law = stats.poisson(1.5)
    below, at = law.cdf(counts - 1), law.pmf(counts)
    u = randomised_pit(below, at, generator=torch.Generator().manual_seed(0))
    assert float(uniformity(u.unsqueeze(1)).statistic) < dkw_band(rows)
    assert reliability(u, false_alarm=FALSE_ALARM).calibrated
    assert not reliability(below + at, false_alarm=FALSE_ALARM).calibrated
    assert torch.equal(u, randomised_pit(below, at, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("digits", [None, 0], ids=["continuous", "rounded"])
def test_the_pit_among_samples_is_uniform_with_few_draws_and_ties(digits):
    rows = 20_000
    drawn = torch.randn(8, rows, generator=torch.Generator().manual_seed(0))
    drawn = drawn if digits is None else drawn.round(decimals=digits)
    u = sample_pit(drawn[0], drawn[1:], generator=torch.Generator().manual_seed(1))
    assert float(uniformity(u.unsqueeze(1)).statistic) < dkw_band(rows)
    shifted = sample_pit(drawn[0] + 1, drawn[1:], generator=torch.Generator().manual_seed(1))
    assert float(uniformity(shifted.unsqueeze(1)).statistic) > 0.2


def test_the_histogram_test_is_that_of_scipy():
    u = uniform(1000, 2)
    found = pit_histogram(u, bins=10)
    for target in range(2):
        counts = np.histogram(u[:, target], 10, (0, 1))[0]
        expected = stats.chisquare(counts)
        assert found.counts[:, target].tolist() == counts.tolist()
        assert found.chi_square[target].item() == pytest.approx(expected.statistic)
        assert found.p_value[target].item() == pytest.approx(expected.pvalue)
    assert found.calibrated
    assert found.low <= int(found.counts.min()) <= int(found.counts.max()) <= found.high
    assert not pit_histogram(u**1.5, bins=10, false_alarm=FALSE_ALARM).calibrated
    assert pit_histogram(torch.tensor([0.0, 1.0] * 10)).counts.flatten().tolist() == [10, 10]
    assert len(pit_histogram(u).counts) == 20


def test_sharpness_of_a_normal_is_known():
    rows, scale = 20_000, 3.0
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    y = scale * torch.randn(rows, generator=torch.Generator().manual_seed(0)).double()
    spread = 1 + uniform(rows)  # widths of all rows differ, and the mean has a standard error
    quantiles = spread.unsqueeze(1) * scale * torch.from_numpy(stats.norm.ppf(levels))
    found = sharpness(y * spread, quantiles, levels)
    assert found.level.tolist() == pytest.approx([0.5, 0.9])
    expected = 2 * scale * stats.norm.ppf([0.75, 0.95])
    assert found.width.tolist() == pytest.approx((expected * float(spread.mean())).tolist())
    assert found.width_error.tolist() == pytest.approx((expected * float(spread.std()) / rows**0.5).tolist())
    for share, level in zip(found.share, (0.5, 0.9), strict=True):
        assert abs(float(share) - level) < 4.9 * math.sqrt(level * (1 - level) / rows)
    half = sharpness(y * spread, quantiles / 2, levels)
    inside = [math.erf(z / 2 / math.sqrt(2)) for z in stats.norm.ppf([0.75, 0.95])]
    assert half.share.tolist() == pytest.approx(inside, abs=4.9 * 0.5 / rows**0.5)
    assert half.error == pytest.approx(np.mean([0.5 - inside[0], 0.9 - inside[1]]), abs=0.02)
    assert "width" in str(half)


@pytest.mark.parametrize("rows", [2, 10, 333])
def test_the_noise_of_a_right_model_is_the_mean_deviation_of_a_binomial(rows):
    found = sharpness(torch.zeros(rows), torch.tensor([-1.0, -0.5, 0.5, 1.0]).expand(rows, 4), [0.1, 0.35, 0.65, 0.9])
    for noise, level in zip(found.noise, (0.3, 0.8), strict=True):
        counts = np.arange(rows + 1)
        expected = (stats.binom.pmf(counts, rows, level) * abs(counts / rows - level)).sum()
        assert float(noise) == pytest.approx(expected)


NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: reliability([]), DataError, "pit: shape"),
        (lambda: reliability(uniform(2, 2, 2)), DataError, "pit: shape"),
        (lambda: coverage([0.1, NAN]), DataError, "pit: NaN came in 1 of 2"),
        (lambda: reliability([0.1, 1.2]), DataError, "outside"),
        (lambda: reliability([0.1], levels=[0.5, 0.2]), OptionError, "increasing"),
        (lambda: reliability([0.1], levels=[0.0, 0.2]), OptionError, "increasing"),
        (lambda: reliability([0.1], levels=[]), DataError, "levels"),
        (lambda: reliability([0.1], false_alarm=0), OptionError, "false_alarm"),
        (lambda: reliability_band(0, [0.5]), OptionError, "rows"),
        (lambda: clopper_pearson(3, 2), DataError, "successes"),
        (lambda: clopper_pearson(0, 0), DataError, "successes"),
        (lambda: clopper_pearson(1, 2, confidence=1), OptionError, "confidence"),
        (lambda: coverage([0.5], [1.0]), OptionError, "levels"),
        (lambda: coverage([0.5], []), OptionError, "levels"),
        (lambda: coverage_by_group([0.5, 0.5], ["a"]), DataError, "one label a row"),
        (lambda: coverage_by_group([0.5, 0.5], [1.0, NAN]), DataError, "groups: NaN"),
        (lambda: coverage_by_group([0.5, 0.5], [1.0, NAN], bins=2), DataError, "finite numbers"),
        (lambda: coverage_by_group([0.5, 0.5], [1.0, 2.0], bins=3), OptionError, "bins"),
        (lambda: coverage_by_group([0.5], ["a"], interval=(0.5, 0.2)), OptionError, "interval"),
        (lambda: coverage_by_group([0.5], ["a"], interval=1.0), OptionError, "interval"),
        (lambda: randomised_pit([0.5], [0.6]), DataError, "add up"),
        (lambda: randomised_pit([0.5], [NAN]), DataError, "NaN"),
        (lambda: randomised_pit([0.5], [0.1, 0.2]), DataError, "at: shape"),
        (lambda: sample_pit([0.5], [[0.1, 0.2]]), DataError, "samples: shape"),
        (lambda: sample_pit([NAN], [[0.1]]), DataError, "NaN"),
        (lambda: pit_histogram([0.5] * 19), OptionError, "few rows"),
        (lambda: pit_histogram([0.5] * 30, bins=4), OptionError, "few rows"),
        (lambda: sharpness([0.0, 1.0], [[0.0, 1.0]], [0.1, 0.9]), DataError, "shapes"),
        (lambda: sharpness([0.0, NAN], [[0.0, 1.0]] * 2, [0.1, 0.9]), DataError, "NaN"),
        (lambda: sharpness([0.0, 1.0], [[1.0, 0.0]] * 2, [0.1, 0.9]), DataError, "decrease"),
        (lambda: sharpness([0.0, 1.0], [[0.0, 1.0]] * 2, [0.1, 0.8]), OptionError, "1 - a"),
        (lambda: sharpness([0.0, 1.0], [[0.0]] * 2, [0.5]), OptionError, "at least two"),
    ],
)
def test_bad_requests_are_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_read_only_arrays_are_taken_and_left_alone():
    u = uniform(50).numpy()
    u.flags.writeable = False
    assert reliability(u).share.shape == (99, 1)
    assert torch.equal(coverage_by_group(u, u, bins=2).share, coverage_by_group(u.copy(), u.copy(), bins=2).share)
    assert sharpness(u, np.broadcast_to([0.1, 0.9], (50, 2)), [0.1, 0.9]).width.item() == pytest.approx(0.8)
