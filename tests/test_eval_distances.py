"""Distances of two samples against closed forms, brute force and another implementation."""

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval import c2st, energy_distance, mmd, sliced_wasserstein

SIGMAS = scipy.stats.norm.isf(0.5e-6)  # false alarm 1e-6, two-sided
DISTANCES = [energy_distance, mmd, sliced_wasserstein, c2st]


def normal(rows, features, seed, mean=0.0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(rows, features, dtype=torch.float64, generator=draw)


def brute(x, y, kernel):
    """The three means over distinct pairs, one pair at a time."""
    within = [np.mean([kernel(a, b) for a, b in itertools.permutations(part, 2)]) for part in (x, y)]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


KERNELS = {
    "energy": (energy_distance, lambda a, b: -np.linalg.norm(a - b)),
    "mmd": (lambda x, y: mmd(x, y, bandwidth=0.8), lambda a, b: math.exp(-((a - b) ** 2).sum() / (2 * 0.64))),
}


@pytest.mark.parametrize("name", KERNELS)
def test_value_and_jackknife_are_those_of_brute_force(name):
    distance, kernel = KERNELS[name]
    x, y = normal(7, 3, 0), normal(5, 3, 1, mean=0.5)
    found = distance(x, y)
    assert found.value == pytest.approx(brute(x.numpy(), y.numpy(), kernel), rel=1e-12)
    variance = 0.0
    for part, other, swap in ((x, y, False), (y, x, True)):
        left_out = []
        for row in range(len(part)):
            pair = (np.delete(part.numpy(), row, axis=0), other.numpy())
            left_out.append(brute(*(pair[::-1] if swap else pair), kernel))
        variance += (len(part) - 1) * np.var(left_out)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_energy_distance_of_two_normal_laws():
    shift = 0.7
    folded = 2 / math.sqrt(math.pi) * math.exp(-(shift**2) / 4) + shift * math.erf(shift / 2)  # E|N(shift, 2)|
    expected = 2 * folded - 2 * 2 / math.sqrt(math.pi)
    found = energy_distance(normal(3000, 1, 0), normal(2000, 1, 1, mean=shift))
    assert 0 < found.standard_error < 0.2 * expected
    assert abs(found.value - expected) < SIGMAS * found.standard_error


def test_mmd_of_two_normal_laws():
    width, features, shift = 1.5, 3, 0.4
    same = (width**2 / (width**2 + 2)) ** (features / 2)  # E k(X, X') for X - X' ~ N(0, 2 I)
    expected = 2 * same * (1 - math.exp(-features * shift**2 / (2 * (width**2 + 2))))
    found = mmd(normal(3000, features, 0), normal(2000, features, 1, mean=shift), bandwidth=width)
    assert 0 < found.standard_error < 0.2 * expected
    assert abs(found.value - expected) < SIGMAS * found.standard_error


@pytest.mark.parametrize("distance", [energy_distance, mmd])
def test_unbiased_where_the_laws_agree(distance):
    found = [distance(normal(60, 2, 2 * seed), normal(40, 2, 2 * seed + 1)) for seed in range(200)]
    values = np.array([estimate.value for estimate in found])
    assert values.min() < 0 < values.max()
    assert abs(values.mean()) < SIGMAS * values.std() / math.sqrt(len(values))
    # The jackknife errs on the wide side (Efron & Stein 1981).
    assert 0.9 * values.std() < np.sqrt(np.mean([e.standard_error**2 for e in found])) < 3 * values.std()


def test_the_bandwidth_taken_is_the_median_distance():
    x, y = normal(30, 2, 0), normal(20, 2, 1)
    median = float(torch.pdist(torch.cat([x, y])).median())
    assert mmd(x, y) == mmd(x, y, bandwidth=median)


def test_sliced_wasserstein_in_one_dimension_is_scipys():
    x, y = normal(70, 1, 0), normal(45, 1, 1, mean=1.0, scale=2.0)
    expected = scipy.stats.wasserstein_distance(x.squeeze().numpy(), y.squeeze().numpy())
    assert sliced_wasserstein(x, y, order=1.0).value == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_a_shift_is_the_shift_over_the_root_of_the_dimension():
    x, shift = normal(300, 4, 0), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    found = sliced_wasserstein(x, x + shift, projections=2000)  # E (u'm)^2 = |m|^2 / 4
    assert found.standard_error < 0.05
    assert abs(found.value - float(shift.norm()) / 2) < SIGMAS * found.standard_error
    draws = [sliced_wasserstein(x, x + shift, generator=torch.Generator().manual_seed(s)) for s in range(40)]
    scatter = np.std([draw.value for draw in draws], ddof=1)
    assert scatter == pytest.approx(np.mean([draw.standard_error for draw in draws]), rel=0.6)  # 4.9 sigma of 40


def test_c2st_is_a_half_for_one_law_and_near_the_best_classifier_for_two():
    x = normal(1000, 2, 0)
    same = c2st(x, normal(1000, 2, 1), passes=60)
    assert abs(same.value - 0.5) < SIGMAS * 0.5 / math.sqrt(2000) + 0.01
    apart = c2st(x, normal(1000, 2, 1, mean=1.0), passes=60)
    best = scipy.stats.norm.cdf(math.sqrt(2) / 2)  # halfway between means sqrt(2) apart
    assert best - 0.04 < apart.value < best + SIGMAS * apart.standard_error
    assert apart.standard_error == pytest.approx(math.sqrt(apart.value * (1 - apart.value) / 2000))


def test_c2st_sees_what_no_marginal_shows():
    factor = torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64))
    found = c2st(normal(1000, 2, 0), normal(1000, 2, 1) @ factor.T, passes=100)
    assert found.value > 0.65


def test_c2st_agrees_with_scikit_learn():
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    x, y = normal(600, 2, 0), normal(600, 2, 1, mean=0.3, scale=1.5)
    rows = torch.cat([x, y]).sub(x.mean(dim=0)).div(x.std(dim=0)).numpy()
    labels = np.repeat([0, 1], 600)
    network = MLPClassifier((20, 20), max_iter=40, tol=0.0, n_iter_no_change=100, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 40 passes do not converge, and need not
        scores = cross_val_score(network, rows, labels, cv=KFold(5, shuffle=True, random_state=0))
    found = c2st(x, y, passes=40)
    # The two see the same rows with other starts and folds.
    assert abs(found.value - scores.mean()) < 0.03


@pytest.mark.parametrize("distance", DISTANCES)
def test_samples_that_cannot_be_compared_are_refused(distance):
    with pytest.raises(DataError, match="equal width"):
        distance(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(DataError, match="two or more rows"):
        distance(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(DataError, match="NaN"):
        distance(torch.tensor([[0.0], [math.nan]]), torch.zeros(2, 1))


def test_options_that_cannot_work_are_refused():
    rows = torch.zeros(4, 1)
    with pytest.raises(OptionError, match="bandwidth"):
        mmd(rows, rows)  # all equal, so the median distance is 0
    with pytest.raises(OptionError, match="order"):
        sliced_wasserstein(rows, rows, order=0.5)
    with pytest.raises(OptionError, match="folds"):
        c2st(rows, rows, folds=1)
    with pytest.raises(DataError, match="same size"):
        c2st(rows, torch.zeros(5, 1))
