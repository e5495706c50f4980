"""Scoring rules of draws, quantiles and intervals against another implementation and closed forms."""

import math

import pytest
import scipy.stats
import scoringrules as sr
import torch

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.quadrature import gauss_legendre
from rosenblatt.objectives import rules

SIGMAS = scipy.stats.norm.isf(0.5e-6)  # false alarm 1e-6, two-sided
NORMAL = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(found, expected):
    assert torch.allclose(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fair", [True, False])
def test_rules_of_draws_agree_with_another_implementation(fair):
    samples, y = normal(7, 5, 3), normal(5, 3, seed=1)
    other = samples.movedim(0, -2).numpy()
    name = "fair" if fair else "nrg"
    first = samples[..., 0], y[:, 0]
    close(
        rules.crps_from_samples(*first, fair=fair),
        sr.crps_ensemble(first[1].numpy(), first[0].T.numpy(), estimator=name),
    )
    close(rules.energy_score(samples, y, fair=fair), sr.es_ensemble(y.numpy(), other, estimator=name))
    weights = normal(3, 3, seed=2).square()
    found = rules.variogram_score(samples, y, 0.7, weights, fair=fair)
    if fair:  # the other fair estimator pairs draws; the same number, written in another way
        each = (samples.unsqueeze(-1) - samples.unsqueeze(-2)).abs() ** 0.7
        real = (y.unsqueeze(-1) - y.unsqueeze(-2)).abs() ** 0.7
        pairs = [(each[i] - real) * (each[j] - real) for i in range(7) for j in range(7) if i != j]
        close(found, (weights * sum(pairs) / len(pairs)).sum(dim=(-1, -2)))
    else:
        close(found, sr.vs_ensemble(y.numpy(), other, weights.numpy(), p=0.7, estimator="nrg"))


def test_rules_of_quantiles_and_intervals_agree_with_another_implementation():
    y, levels = normal(6), torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    quantiles = normal(9, 6, seed=1).sort(dim=0).values
    close(rules.crps_from_quantiles(levels, quantiles, y), sr.crps_quantile(y.numpy(), quantiles.T.numpy(), levels))
    close(
        rules.pinball(y - quantiles, levels.unsqueeze(-1)),
        sr.quantile_score(y.numpy(), quantiles.numpy(), levels.unsqueeze(-1).numpy()),
    )
    close(
        rules.interval_score(quantiles[0], quantiles[-1], 2 * y, 0.8),
        sr.interval_score(2 * y.numpy(), quantiles[0].numpy(), quantiles[-1].numpy(), 0.2),
    )


def test_crps_is_twice_the_pinball_loss_over_all_levels():
    y = torch.tensor([-4.0, -0.3, 0.0, 1.2], dtype=torch.float64)
    levels, weights = gauss_legendre(400)
    quantiles = NORMAL.icdf(levels).unsqueeze(-1).expand(-1, 4)
    found = rules.crps_from_quantiles(levels, quantiles, y, weights=weights)
    assert torch.allclose(found, torch.as_tensor(sr.crps_normal(y.numpy(), 0.0, 1.0)), atol=2e-5)
    # Levels for each row of their own: the same number.
    assert torch.equal(
        rules.crps_from_quantiles(levels.unsqueeze(-1).expand(-1, 4), quantiles, y, weights=weights), found
    )


def test_expected_pinball_loss_is_least_at_the_quantile():
    nodes, weights = gauss_legendre(400)
    y = (24 * nodes - 12).unsqueeze(-1)
    mass = (24 * weights).unsqueeze(-1) * NORMAL.log_prob(y).exp()
    for level in (0.05, 0.5, 0.8):
        truth = NORMAL.icdf(torch.tensor(level, dtype=torch.float64))
        grid = truth + torch.linspace(-1, 1, 21, dtype=torch.float64)
        expected = (mass * rules.pinball(y - grid, level)).sum(dim=0)
        assert int(expected.argmin()) == 10


def moment(p, scale, features=1):
    """E |scale Z|^p for Z standard normal in `features` dimensions."""
    return scale**p * 2 ** (p / 2) * math.gamma((features + p) / 2) / math.gamma(features / 2)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.7])
def test_energy_score_is_unbiased_and_its_mean_least_at_the_truth(beta):
    rows, draws, features = 40_000, 3, 2
    y = normal(rows, features)
    means = {}
    for scale in (0.6, 1.0, 1.6):
        samples = scale * normal(draws, rows, features, seed=1)
        half = 0.5 * moment(beta, math.sqrt(2) * scale, features)
        expected = moment(beta, math.hypot(1, scale), features) - half
        found = rules.energy_score(samples, y, beta)
        error = float(found.std()) / math.sqrt(rows)
        assert half / draws > 2 * SIGMAS * error  # so many rows tell it from the score of the draws
        assert abs(float(found.mean()) - expected) < SIGMAS * error
        biased = float(rules.energy_score(samples, y, beta, fair=False).mean())
        assert abs(biased - expected - half / draws) < SIGMAS * error
        means[scale] = expected
    assert means[1.0] < min(means[0.6], means[1.6])


def test_crps_of_draws_is_unbiased():
    rows, truth = 100_000, sr.crps_normal(0.4, 0.0, 1.0)
    found = rules.crps_from_samples(normal(2, rows), torch.full((rows,), 0.4, dtype=torch.float64))
    error = float(found.std()) / math.sqrt(rows)
    assert 0.5 / math.sqrt(math.pi) > 20 * SIGMAS * error  # the bias of the score of two points
    assert abs(float(found.mean()) - truth) < SIGMAS * error


def test_variogram_score_is_unbiased_and_its_mean_least_at_the_true_correlation():
    rows, p = 40_000, 0.5
    z = normal(rows, 2)

    def correlated(z, rho):
        return torch.stack([z[..., 0], rho * z[..., 0] + math.sqrt(1 - rho**2) * z[..., 1]], dim=-1)

    y, expected = correlated(z, 0.5), {}
    true = math.sqrt(2 - 2 * 0.5)
    for rho in (0.0, 0.5, 0.8):
        drawn = math.sqrt(2 - 2 * rho)
        expected[rho] = 2 * (moment(2 * p, true) - 2 * moment(p, true) * moment(p, drawn) + moment(p, drawn) ** 2)
        found = rules.variogram_score(correlated(normal(3, rows, 2, seed=1), rho), y, p)
        error = float(found.std()) / math.sqrt(rows)
        bias = 2 * (moment(2 * p, drawn) - moment(p, drawn) ** 2) / 3
        assert bias > 2 * SIGMAS * error
        assert abs(float(found.mean()) - expected[rho]) < SIGMAS * error
    assert expected[0.5] < min(expected[0.0], expected[0.8])


def test_interval_score_is_least_in_the_mean_at_the_quantiles():
    nodes, weights = gauss_legendre(400)
    y = (24 * nodes - 12).unsqueeze(-1)
    mass = (24 * weights).unsqueeze(-1) * NORMAL.log_prob(y).exp()
    end = float(NORMAL.icdf(torch.tensor(0.9, dtype=torch.float64)))
    shifts = torch.linspace(-0.5, 0.5, 11, dtype=torch.float64)
    for lower, upper in ((-end + shifts, torch.tensor(end)), (torch.tensor(-end), end + shifts)):
        expected = (mass * rules.interval_score(lower, upper, y, 0.8)).sum(dim=0)
        assert int(expected.argmin()) == 5


SAMPLE_RULES = {
    "crps": lambda samples, y: rules.crps_from_samples(samples[..., 0], y[..., 0]),
    "energy": rules.energy_score,
    "energy of a low power": lambda samples, y: rules.energy_score(samples, y, 0.3),
    "variogram": rules.variogram_score,
}


@pytest.mark.parametrize("name", SAMPLE_RULES)
def test_gradients_are_those_of_the_score(name):
    samples, y = normal(4, 2, 3).requires_grad_(), normal(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(SAMPLE_RULES[name], (samples, y))


@pytest.mark.parametrize("name", SAMPLE_RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_points_coincide(name, dtype):
    samples = torch.ones(3, 2, 2, dtype=dtype, requires_grad=True)
    y = torch.ones(2, 2, dtype=dtype, requires_grad=True)
    score = SAMPLE_RULES[name](samples, y)
    assert torch.equal(score, torch.zeros(2, dtype=dtype))
    score.sum().backward()
    assert torch.isfinite(samples.grad).all()
    assert torch.isfinite(y.grad).all()


@pytest.mark.parametrize("name", SAMPLE_RULES)
def test_rows_that_cannot_be_scored_leave_the_others_alone(name):
    samples, y = normal(4, 5, 2), normal(5, 2, seed=1)
    clean = SAMPLE_RULES[name](samples, y)
    y[1, 0], y[2, 0], samples[2:, 3, 0] = math.nan, -math.inf, math.inf
    samples.requires_grad_()
    score = SAMPLE_RULES[name](samples, y)
    assert torch.equal(score[[0, 4]], clean[[0, 4]])
    assert torch.isnan(score[[1, 3]]).all()
    assert score[2] == math.inf
    score[[0, 4]].sum().backward()
    assert torch.isfinite(samples.grad).all()


def test_quantile_scores_of_outcomes_that_are_not_finite():
    levels, quantiles = torch.tensor([0.2, 0.8]), torch.tensor([[-1.0] * 3, [1.0] * 3])
    found = rules.crps_from_quantiles(levels, quantiles, torch.tensor([0.0, math.nan, math.inf]))
    assert found[0] == pytest.approx(0.4)
    assert torch.isnan(found[1])
    assert found[2] == math.inf


def test_pairs_in_pieces_are_the_same_score(monkeypatch):
    samples, y = normal(9, 4, 3), normal(4, 3, seed=1)
    whole = rules.energy_score(samples, y)
    monkeypatch.setattr(rules, "NUMBERS_AT_ONCE", 5 * y.numel())  # 36 pairs, 5 at a time
    assert torch.allclose(rules.energy_score(samples, y), whole, rtol=1e-14)


def test_distances_keep_their_digits_at_any_size():
    direction = torch.tensor([3.0, 4.0])
    for size in (1e-30, 1.0, 1e30):  # squares under- and overflow in float32
        found = rules.distance_power(size * direction)
        assert float(found) == pytest.approx(5 * size, rel=1e-6)
    far = 1e6 + torch.tensor([[0.25], [0.5]])  # float32 keeps 1/16 there
    assert float(rules.crps_from_samples(far, torch.tensor([1e6]))) == 0.375 - 0.125


def test_arguments_that_make_no_score():
    samples, y = normal(2, 3, 2), normal(3, 2)
    for beta in (0.0, 2.0, math.nan):
        with pytest.raises(OptionError, match="beta"):
            rules.energy_score(samples, y, beta)
    with pytest.raises(DataError, match="draws"):
        rules.energy_score(samples[:1], y)
    with pytest.raises(DataError, match="shapes"):
        rules.crps_from_samples(samples, y[0])
    with pytest.raises(DataError, match="weights"):
        rules.variogram_score(samples, y, weights=torch.ones(3, 3))
    with pytest.raises(OptionError, match="p:"):
        rules.variogram_score(samples, y, 0.0)
    with pytest.raises(DataError, match="levels"):
        rules.crps_from_quantiles(torch.tensor([0.5]), samples, y)
    for level in (0.0, 1.0):
        with pytest.raises(OptionError, match="level"):
            rules.pinball(y, level)
        with pytest.raises(OptionError, match="level"):
            rules.interval_score(y, y, y, level)
