"""Posteriors and likelihoods learned from simulations, against conjugate ones; bounds; what is refused and how."""

import math
import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

from rosenblatt.core.density import Density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Likelihood
from rosenblatt.data import Table
from rosenblatt.eval import c2st, sbc
from rosenblatt.inference import (
    conditional_density,
    fit_likelihood,
    fit_posterior,
    sample_posterior,
    simulate,
)
from rosenblatt.inference.simulation import prior_support, vector_prior
from rosenblatt.preparation import DataWarning
from rosenblatt.train import FitConfig

NOISE = 0.6
MIX = torch.tensor([[1.0, 0.5], [0.0, 2.0], [1.0, -1.0]])  # x = MIX theta + NOISE e: three numbers, two parameters
PRIOR = Independent(Normal(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 0.5])), 1)
SEEN = torch.tensor([0.5, -3.0, 2.5])
AFFINE = {"model": "maf", "options": {"transforms": 1, "hidden": 32, "blocks": 1}}
SHORT = FitConfig(epochs=1, seed=0)
TINY = {"transforms": 1, "hidden": 8, "blocks": 1}


def simulator(theta):
    return theta @ MIX.T + NOISE * torch.randn(len(theta), 3)


def exact_posterior(x=SEEN):
    """Conjugate: precision diag(1 / s^2) + MIX'MIX / NOISE^2."""
    precision = torch.diag(PRIOR.base_dist.scale**-2) + MIX.T @ MIX / NOISE**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (PRIOR.base_dist.loc / PRIOR.base_dist.scale**2 + MIX.T @ x / NOISE**2)
    return MultivariateNormal(mean, covariance)


@pytest.fixture(scope="module")
def joint():
    return simulate(PRIOR, simulator, 4000, seed=0)


TRAINING = FitConfig(epochs=40, batch_size=200, learning_rate=1e-2, ema_decay=0.99, seed=0)


@pytest.fixture(scope="module")
def posterior():
    more = simulate(PRIOR, simulator, 8000, seed=0)
    return fit_posterior(*more, **AFFINE, prior=PRIOR, config=TRAINING)


def test_posterior_is_the_conjugate_one(posterior):
    exact = exact_posterior()
    drawn = posterior.sample(4000, SEEN, generator=torch.Generator().manual_seed(0)).float()
    deviation = exact.variance.sqrt()
    # A tenth of a deviation and an eighth of the variances: several times what 4,000 draws scatter.
    assert ((drawn.mean(dim=0) - exact.mean).abs() < 0.1 * deviation).all()
    scaled = torch.cov(drawn.T) / torch.outer(deviation, deviation)
    wanted = exact.covariance_matrix / torch.outer(deviation, deviation)
    assert torch.allclose(scaled, wanted, atol=0.125)
    torch.manual_seed(1)
    assert abs(c2st(exact.sample((2000,)), drawn[:2000], passes=100).value - 0.5) < 0.045  # 4.9 sigma is 0.039


def test_posterior_loses_few_nats_over_all_data_and_is_calibrated(posterior):
    theta, x = simulate(PRIOR, simulator, 1000, seed=1)
    exact = torch.stack([exact_posterior(row).log_prob(truth) for truth, row in zip(theta, x, strict=True)])
    lost = exact.double() - posterior.log_prob(theta, x)
    assert -0.01 < float(lost.mean()) < 0.03  # Kullback-Leibler divergence, averaged over data
    assert sbc(posterior, theta, x, generator=torch.Generator().manual_seed(0)).calibrated
    with torch.no_grad():
        u = posterior.to_uniform(theta, x)
    assert ((u > 0) & (u < 1)).all()


def test_fitted_posterior_says_what_it_is(posterior):
    assert posterior.likelihood is Likelihood.EXACT
    assert posterior.report.best_validation is not None
    assert posterior.sample(3, SEEN).dtype == torch.float64
    assert not posterior.sample(3, SEEN).requires_grad
    one, many = posterior.log_prob(SEEN[:2], SEEN), posterior.log_prob(SEEN[:2].numpy()[None], SEEN.numpy()[None])
    assert one.shape == ()
    assert many.shape == (1,)
    assert float(one) == pytest.approx(float(many[0]), rel=1e-12)
    drawn, log_prob = posterior.sample_and_log_prob(5, torch.stack([SEEN, SEEN + 1]))
    assert drawn.shape == (5, 2, 2)
    assert torch.allclose(log_prob, posterior.log_prob(drawn, torch.stack([SEEN, SEEN + 1])), atol=1e-6)


def test_units_of_data_and_parameters_change_nothing_but_the_density(joint):
    config = FitConfig(epochs=2, seed=0, dtype="float64")
    scale, shift = 1e4, 3e7
    plain = fit_posterior(*joint, **AFFINE, config=config)
    moved = fit_posterior(joint.theta.double() * scale + shift, joint.x.double() * 1e-5 - 2e3, **AFFINE, config=config)
    theta, x = joint.theta[:50].double(), joint.x[:50].double()
    expected = plain.log_prob(theta, x) - 2 * math.log(scale)
    assert torch.allclose(moved.log_prob(theta * scale + shift, x * 1e-5 - 2e3), expected, atol=1e-3)


def test_bounds_of_the_prior_hold_exactly_even_untrained():
    prior = Uniform(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 5.0]))
    joint = simulate(prior, lambda theta: theta + torch.randn_like(theta), 500)
    posterior = fit_posterior(*joint, options=TINY, prior=prior, config=SHORT)
    far = torch.tensor([[40.0, -70.0]])
    drawn = posterior.sample(5000, far, generator=torch.Generator().manual_seed(0))
    assert (drawn >= torch.tensor([-1.0, 0.0])).all()
    assert (drawn <= torch.tensor([1.0, 5.0])).all()
    outside = torch.tensor([[-1.0001, 1.0], [0.0, 5.001], [0.0, -1e-9]], dtype=torch.float64)
    assert (posterior.log_prob(outside, joint.x[:1]) == -torch.inf).all()
    # The mass inside is one, by a midpoint rule on the box.
    side = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    grid = torch.cartesian_prod(2 * side - 1, 5 * side)
    mass = posterior.log_prob(grid, joint.x[:1]).exp().mean() * 10
    assert float(mass) == pytest.approx(1, abs=2e-3)


def test_likelihood_with_slice_sampling_gives_the_conjugate_posterior(joint):
    likelihood = fit_likelihood(*joint, **AFFINE, config=TRAINING)
    drawn = sample_posterior(likelihood, PRIOR, SEEN, 400, prior_draws=2000, warmup=20)
    exact = exact_posterior()
    assert drawn.values.shape == (400, 2)
    assert ((drawn.values.mean(dim=0) - exact.mean).abs() < 0.25 * exact.variance.sqrt()).all()
    assert torch.allclose(drawn.values.std(dim=0).float(), exact.variance.sqrt(), rtol=0.25)  # 0.17 by 400 draws
    assert drawn.effective_prior_draws > 10


class Known(Density):
    """A likelihood written down: any function of (x, theta)."""

    def __init__(self, function, context):
        super().__init__()
        self.features, self.context, self.function = 1, context, function

    def log_prob(self, x, context=None):
        return self.function(x, context)

    def sample_and_log_prob(self, n, context=None, *, generator=None):
        raise NotImplementedError


def test_slice_sampling_is_exact_where_the_target_is_narrow_bounded_and_bent():
    # Two parameters on the unit square, tied to a thin band about theta_1 = theta_0^2 that runs into the corner.
    width = 0.05
    known = Known(lambda x, theta: Normal(theta[:, 0] ** 2 - theta[:, 1], width).log_prob(x[:, 0]), 2)
    drawn = sample_posterior(
        known, Uniform(torch.zeros(2), torch.ones(2)), torch.tensor([0.0]), 1500, warmup=80, prior_draws=5000
    )
    theta = drawn.values
    assert ((theta > 0) & (theta < 1)).all()
    assert drawn.memory.abs().max() < 0.2
    # Almost all of the band is inside, so theta_0 is uniform but for the ends, and the distance from the curve normal.
    u = theta[:, 0].sort().values
    steps = torch.arange(1, 1501) / 1500
    assert float((u - steps).abs().max()) < 0.07 + 0.03  # DKW at false alarm 1e-6, and what the ends take
    middle = theta[(theta[:, 0] > 0.3) & (theta[:, 0] < 0.9)]
    distance = (middle[:, 1] - middle[:, 0] ** 2) / width
    assert abs(float(distance.mean())) < 4.9 / math.sqrt(len(middle)) * 1.5
    assert float(distance.std()) == pytest.approx(1, abs=0.12)


def test_slice_sampling_keeps_the_shares_of_modes_and_multiplies_observations():
    # p(x | theta) = N(x; |theta|, 0.2): two modes; prior N(0.5, 1) weighs them by N(1; 0.5, 1) : N(-1; 0.5, 1).
    known = Known(lambda x, theta: Normal(theta[:, 0].abs(), 0.2).log_prob(x[:, 0]), 1)
    prior = Normal(torch.tensor([0.5]), 1.0)
    seen = torch.full((4, 1), 1.0)  # four looks: the width is 0.1
    drawn = sample_posterior(known, prior, seen, 1000, prior_draws=5000, warmup=20)
    precision = 4 / 0.2**2 + 1
    right, left = (mean / precision for mean in (100 + 0.5, -100 + 0.5))
    share = 1 / (1 + math.exp(-1.0 * 100 / 101))  # log odds 2 * 0.5 * 1 * 100 / 101
    upper = drawn.values[drawn.values[:, 0] > 0, 0]
    assert abs(len(upper) / 1000 - share) < 4.9 * math.sqrt(share * (1 - share) / 1000)
    assert float(upper.mean()) == pytest.approx(right, abs=0.02)
    assert float(upper.std()) == pytest.approx(precision**-0.5, rel=0.15)
    assert float(drawn.values[drawn.values[:, 0] < 0, 0].mean()) == pytest.approx(left, abs=0.03)


def test_chains_that_remember_are_reported():
    # Spikes 1e-9 wide that no line through another chain's place meets: chains stay where they began.
    def comb(x, theta):
        return -((theta[:, 0] * 50).frac().sub(0.5).div(1e-6)).square()

    with pytest.warns(DataWarning, match="memory"):
        sample_posterior(Known(comb, 1), Uniform(torch.zeros(1), torch.ones(1)), torch.zeros(1), 200, warmup=4)
    impossible = Known(lambda x, theta: torch.full((len(theta),), -torch.inf), 1)
    with pytest.raises(DataError, match="none of 20000 prior draws"):
        sample_posterior(impossible, Uniform(torch.zeros(1), torch.ones(1)), torch.zeros(1), 5)
    with pytest.raises(OptionError, match="n=0"):
        sample_posterior(impossible, Uniform(torch.zeros(1), torch.ones(1)), torch.zeros(1), 0)


def test_an_embedding_network_is_trained_along():
    # Twenty noisy looks at one number: the embedding has to find their mean.
    draw = torch.Generator().manual_seed(0)
    theta = torch.randn(2000, 1, generator=draw)
    x = theta + torch.randn(2000, 20, generator=draw)
    embedding = torch.nn.Linear(20, 1)
    before = embedding.weight.detach().clone()
    config = FitConfig(epochs=15, batch_size=100, learning_rate=2e-2, ema_decay=0.99, seed=0)
    posterior = fit_posterior(theta, x, model="maf", options=TINY, embedding=embedding, config=config)
    assert not torch.equal(before.double(), embedding.weight)
    fresh = torch.randn(1000, 1, generator=draw)
    seen = fresh + torch.randn(1000, 20, generator=draw)
    exact = Normal(seen.mean(dim=1) * 20 / 21, 21**-0.5).log_prob(fresh[:, 0]).double()
    assert -0.02 < float((exact - posterior.log_prob(fresh, seen)).mean()) < 0.1
    with pytest.raises(OptionError, match="embedding"):
        fit_posterior(theta, x, embedding=torch.nn.Flatten(0), config=SHORT)


def test_simulating_is_reproducible_and_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    first, again, other = (simulate(PRIOR, simulator, 10, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.theta, again.theta)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_failed_simulations_are_dropped_and_counted(joint):
    x = joint.x.clone()
    x[::400, 1] = math.nan
    x[7, 0] = math.inf
    with pytest.warns(DataWarning, match="x: 11 of 4000 simulations hold NaN or infinities and are dropped"):
        left_out = fit_posterior(joint.theta, x, options=TINY, config=SHORT)
    whole = torch.isfinite(x).all(dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = fit_posterior(joint.theta[whole], x[whole], options=TINY, config=SHORT)
    assert torch.equal(left_out.log_prob(joint.theta, joint.x), expected.log_prob(joint.theta, joint.x))
    with pytest.raises(DataError, match=r"factor p\(complete \| theta\)"):
        fit_likelihood(joint.theta, x)
    with pytest.raises(DataError, match="none of 4000 simulations"):
        fit_posterior(joint.theta, x * math.nan)


def test_missing_numbers_after_the_fit(posterior):
    gap = torch.tensor([0.5, math.nan, 2.5])
    both = posterior.log_prob(SEEN[:2], torch.stack([SEEN, gap]))
    assert torch.equal(both[0], posterior.log_prob(SEEN[:2], torch.stack([SEEN, SEEN]))[0])
    assert torch.isnan(both[1])
    assert torch.isnan(posterior.log_prob(torch.tensor([math.nan, 0.0]), SEEN))
    with pytest.raises(DataError, match="x: a number that is not finite came"):
        posterior.sample(2, gap)


def test_a_constant_column_of_x_is_only_shifted(joint):
    x = torch.cat([joint.x, torch.full((4000, 1), 0.1)], dim=1)
    posterior = fit_posterior(joint.theta, x, options=TINY, config=SHORT)
    assert torch.isfinite(posterior.log_prob(joint.theta, x)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t, x: fit_posterior(t[:-1], x), DataError, "x: 4000 rows came for 3999 rows of theta"),
        (lambda t, x: fit_posterior(t, x, support=[(0, None), None]), DataError, "outside the declared support"),
        (lambda t, x: fit_posterior(t, x, prior=Normal(torch.zeros(3), 1.0)), OptionError, "prior: 3 parameters came"),
        (lambda t, x: fit_posterior(t, x, prior=PRIOR, support=[None, None]), OptionError, "support: came besides"),
        (lambda t, x: fit_posterior(t, x, prior=Normal(0.0, 1.0)), OptionError, "prior: .* over vectors"),
        (lambda t, x: fit_posterior(t, x, prior="normal"), OptionError, "prior: str came"),
        (lambda t, x: fit_posterior(t * 0 + 1, x), DataError, "every value is 1"),
        (lambda t, x: fit_posterior(t, x, model="nfs"), OptionError, "model: 'nfs' is unknown"),
        (lambda t, x: fit_posterior(t * math.nan, x), DataError, "missing or not finite"),
        (lambda t, x: simulate(PRIOR, lambda theta: theta[:5], 9), DataError, "simulator: shape .5, 2. came for 9"),
        (lambda t, x: simulate(PRIOR, simulator, 0), OptionError, "simulations: 0 came"),
    ],
)
def test_bad_input_is_told_in_a_sentence(joint, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(*joint)
    assert len(str(caught.value)) < 300


def test_rows_of_another_width_are_told_by_name(posterior):
    with pytest.raises(DataError, match=r"x: shape \(2,\) came, \(\.\.\., 3\) was expected"):
        posterior.sample(1, SEEN[:2])
    with pytest.raises(DataError, match=r"x: shape \(4,\) came"):
        posterior.log_prob(SEEN[:2], torch.zeros(4))
    with pytest.raises(DataError, match=r"theta: shape \(3,\) came"):
        posterior.log_prob(SEEN, SEEN)
    with pytest.raises(DataError, match="x: shape"):
        posterior.log_prob(SEEN[:2])


def test_supports_are_read_from_priors():
    half = torch.distributions.Exponential(torch.ones(2))
    ends = [(s.lower, s.upper) for s in prior_support(half)]
    assert ends == [(0.0, math.inf)] * 2
    assert prior_support(PRIOR)[0].whole_line
    assert vector_prior(Uniform(torch.zeros(2), torch.ones(2))).event_shape == (2,)


@pytest.mark.parametrize(
    "prior", [torch.distributions.Dirichlet(torch.ones(3)), torch.distributions.Poisson(torch.ones(3))], ids=str
)
def test_a_prior_that_lives_on_no_box_is_refused(prior):
    with pytest.raises(OptionError, match="is no interval per parameter"):
        prior_support(prior)


def test_the_page_runs_and_its_posterior_is_calibrated(capsys, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "simulation.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    script = tmp_path / "snippet.py"
    script.write_text(snippet)
    made = runpy.run_path(str(script))
    assert made["draws"].shape == (1000, 2)
    assert "off" not in capsys.readouterr().out


def test_an_untrained_conditional_density_starts_near_the_prior():
    draw = torch.Generator().manual_seed(0)
    theta, x = 3 + 2 * torch.randn(500, 2, generator=draw), torch.randn(500, 1, generator=draw)
    flow = conditional_density("nsf", Table(theta, ["a", "b"]), x, seed=0).requires_grad_(False)
    plain = Normal(theta.mean(dim=0), theta.std(dim=0)).log_prob(theta).sum(dim=-1)
    assert abs(float((flow.log_prob(theta, x) - plain).mean())) < 0.2
    assert np.isfinite(flow.log_prob(theta.numpy(), x.numpy()).numpy()).all()
