"""COMET flows: Pareto fits against scipy, marginals that are those of the data, and tails that a fit keeps."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.core import registry
from rosenblatt.core.errors import DataError, InverseError, OptionError
from rosenblatt.eval.mass import grid_mass
from rosenblatt.models.comet import SMALLEST_XI, ParetoMarginals, pareto_fit

CORRELATION = 0.7


def even(rows):
    """Probabilities of equal steps."""
    return (torch.arange(rows, dtype=torch.float64) + 0.5) / rows


def copula_rows(rows, seed):
    """Student-t columns with df 2 and a Gaussian copula, and their log-density."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    z[:, 1] = CORRELATION * z[:, 0] + math.sqrt(1 - CORRELATION**2) * z[:, 1]
    joint = scipy.stats.multivariate_normal([0, 0], [[1, CORRELATION], [CORRELATION, 1]])
    x = scipy.stats.t(2).ppf(scipy.stats.norm.cdf(z.numpy()))
    log_prob = joint.logpdf(z) + (scipy.stats.t(2).logpdf(x) - scipy.stats.norm.logpdf(z)).sum(axis=1)
    return torch.from_numpy(x), float(log_prob.mean())


@pytest.mark.parametrize("xi", [0.1, 0.5, 1.5])
def test_pareto_fit_is_scipys(xi):
    generator = np.random.default_rng(int(10 * xi))
    excess = scipy.stats.genpareto(xi, scale=3.0).rvs(1500, random_state=generator)
    rows = torch.from_numpy(np.concatenate([excess, -np.ones(500)])).unsqueeze(-1)
    found = [float(part) for part in pareto_fit(rows, torch.full((2000,), 1 / 2000).double())]
    expected_xi, _, expected_sigma = scipy.stats.genpareto.fit(excess, floc=0)
    assert found == pytest.approx([expected_xi, expected_sigma], rel=2e-3)


def test_a_light_tail_is_exponential():
    excess = scipy.stats.uniform.ppf(even(1000).numpy())
    xi, sigma = pareto_fit(torch.from_numpy(excess).unsqueeze(-1), torch.full((1000,), 1e-3).double())
    assert xi.item() == SMALLEST_XI
    assert sigma.item() == pytest.approx(0.5 * (1 - SMALLEST_XI), rel=1e-6)


def test_marginals_are_those_of_the_rows_and_their_density_is_continuous():
    laws = [scipy.stats.t(2, loc=5), scipy.stats.gumbel_r(), scipy.stats.norm(scale=0.1)]
    x = torch.stack([torch.from_numpy(law.ppf(even(20_000))) for law in laws], dim=1)
    marginals = ParetoMarginals(3).double()
    with torch.no_grad():
        marginals.initialise(x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))])
    for level in (0.0003, 0.01, 0.049, 0.3, 0.5, 0.9, 0.96, 0.9997):
        point = torch.tensor([law.ppf(level) for law in laws])
        share = torch.sigmoid(marginals(point).value)
        odds = share / (1 - share) / (level / (1 - level))
        # Deep in a tail lighter than exponential (the other columns have one) even xi = 0.01 is too heavy.
        usable = 3 if 0.001 < level < 0.999 else 1
        assert (odds[:usable].log().abs() < 0.15).all(), (level, odds)
    assert abs(1 / marginals.xi[:, 0] - 2).max() < 0.15  # of Student-t with df 2
    for end in (0, -1):
        at, away = marginals.body.x[:, end], (-1e-9 if end == 0 else 1e-9)
        assert abs(marginals(at).log_det - marginals(at + away).log_det) < 1e-6
        assert (marginals(at).value - marginals(at + away).value).abs().max() < 1e-6
    # The tails are the formula.
    u, xi, sigma = marginals.body.x[0, -1], marginals.xi[1, 0], marginals.sigma[1, 0]
    x = torch.stack([u + 50, torch.zeros(()), torch.zeros(())])
    beyond = 1 - torch.sigmoid(marginals(x).value[0])
    assert beyond.item() == pytest.approx(0.05 * scipy.stats.genpareto(xi, scale=sigma).sf(50.0), rel=1e-9)


def test_tails_survive_the_fit_and_the_density_comes_near_to_the_truth():
    train, _ = copula_rows(20_000, 1)
    test, truth = copula_rows(20_000, 2)
    options = {"transforms": 2, "hidden": 16, "blocks": 1}
    model = registry.build("comet", 2, options=options, seed=0)
    model.initialise(train.float())
    before = truth - model.log_prob(test.float()).mean().item()
    optimiser, generator = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(3)
    for _ in range(120):
        rows = train[torch.randint(0, len(train), (256,), generator=generator)].float()
        optimiser.zero_grad()
        (-model.log_prob(rows).mean()).backward()
        optimiser.step()
    model.double()
    after = truth - model.log_prob(test).mean().item()
    assert before == pytest.approx(-0.5 * math.log(1 - CORRELATION**2), abs=0.05)  # the copula's information
    assert after < 0.06
    drawn = model.sample(40_000, generator=torch.Generator().manual_seed(4)).detach()
    for column in (*drawn.T, *-drawn.T):
        largest = column.sort(descending=True).values[:401]
        hill = torch.log(largest[:-1] / largest[-1]).mean()
        # Hill's estimate of 1 / 2 has the standard error 0.025; Pareto fits of 1000 rows that of 0.05.
        assert 0.3 < hill < 0.72


def test_the_mass_of_a_heavy_column_is_one():
    train, _ = copula_rows(4000, 5)
    model = registry.build("comet", 1, options={"transforms": 1, "hidden": 8}, seed=0).double()
    model.initialise(train[:, :1])
    assert abs(grid_mass(model, near=train[:, :1], cells=4096) - 1) < 2e-3


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(OptionError, match="coupling"):
        registry.build("comet", 2, options={"coupling": "maf"})
    with pytest.raises(OptionError, match="tail"):
        registry.build("comet", 2, options={"tail": 0.5})
    x = torch.stack([even(1000), (even(1000) > 0.4).double()], dim=1)
    with pytest.raises(DataError, match=r"columns \[1\]"):
        ParetoMarginals(2).initialise(x)
    cut = torch.stack([even(1000), even(1000).clamp(max=0.94)], dim=1)  # as prices above a limit are
    for rows in (cut, -cut):
        marginals = ParetoMarginals(2)
        with pytest.raises(DataError, match=r"columns \[1\] have one value in a whole tail"):
            marginals.initialise(rows)
        assert torch.isfinite(marginals(rows).value).all()
    with pytest.raises(DataError, match="add rows"):
        ParetoMarginals(2).initialise(x[:100])


def test_a_quantile_beyond_the_dtype_is_named():
    marginals = ParetoMarginals(1)
    with torch.no_grad():
        marginals.initialise(torch.tan(math.pi * (even(2000) - 0.5)).unsqueeze(-1))
    with pytest.raises(InverseError, match=r"rows 1\)"):
        marginals.inverse(torch.tensor([[1.0], [200.0]]))
