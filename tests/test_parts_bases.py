"""Bases against scipy, at the edges of their supports, and their samplers against their own CDFs."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from rosenblatt.bases import (
    Box,
    ConditionalNormal,
    FullNormal,
    GaussianMixture,
    Resampled,
    StandardLogistic,
    StandardNormal,
    StudentT,
    choose,
)
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Likelihood

FALSE_ALARM = 1e-6
POINTS = torch.tensor([-1e6, -40.0, -3.0, -1.7, -1.0, -0.1, -1e-8, 0.0, 1e-3, 0.5, 2.0, 9.0, 1e4]).double()

FACTORISED = {
    "normal": (lambda: StandardNormal(2), scipy.stats.norm()),
    "logistic": (lambda: StandardLogistic(2), scipy.stats.logistic()),
    "box": (lambda: Box(2, bound=2.5), scipy.stats.uniform(-2.5, 5.0)),
    "t1": (lambda: StudentT(2, df=1.0), scipy.stats.cauchy()),
    "t2.5": (lambda: StudentT(2, df=2.5), scipy.stats.t(2.5)),
    "t30": (lambda: StudentT(2, df=30.0), scipy.stats.t(30.0)),
}


@pytest.fixture(params=list(FACTORISED))
def pair(request):
    make, oracle = FACTORISED[request.param]
    return make().double(), oracle


def rows(points):
    return points.unsqueeze(-1).expand(-1, 2)


def test_log_prob_is_scipys(pair):
    base, oracle = pair
    got = base.log_prob(rows(POINTS)).detach().numpy()
    np.testing.assert_allclose(got, 2 * oracle.logpdf(POINTS.numpy()), rtol=1e-12, atol=1e-12)


def test_cdf_is_scipys_in_relative_terms(pair):
    base, oracle = pair
    expected = oracle.cdf(POINTS.numpy())
    got = base.cdf(rows(POINTS))[:, 0].numpy()
    np.testing.assert_allclose(got, expected, rtol=2e-12, atol=1e-300)


def test_quantile_is_scipys_with_its_ends(pair):
    base, oracle = pair
    u = torch.tensor([1e-12, 1e-3, 0.3, 0.5, 0.77, 0.999]).double()
    np.testing.assert_allclose(base.quantile(rows(u))[:, 0], oracle.ppf(u), rtol=1e-11, atol=1e-11)
    ends = base.quantile(rows(torch.tensor([0.0, 1.0]).double()))[:, 0]
    assert ends.tolist() == list(oracle.support())
    assert torch.isnan(base.quantile(rows(torch.tensor([-0.1, 1.1, math.nan]).double()))).all()


def test_odd_rows_get_their_documented_answer_and_no_bad_gradient(pair):
    base, _ = pair
    x = torch.tensor([[0.1, 0.2], [math.inf, 0.0], [0.0, -math.inf], [math.nan, math.inf], [1e30, 0.0]]).double()
    x.requires_grad_()
    log_prob = base.log_prob(x)
    log_prob_values = log_prob.tolist()
    assert math.isfinite(log_prob_values[0])
    assert log_prob_values[1:3] == [-math.inf] * 2
    assert math.isnan(log_prob_values[3])
    assert log_prob_values[4] < -60
    log_prob[[0, 1, 2, 4]].sum().backward()
    assert torch.isfinite(x.grad).all()


def test_samples_follow_the_cdf_and_leave_the_global_state_alone(pair):
    base, oracle = pair
    before = torch.random.get_rng_state()
    x, log_prob = base.sample_and_log_prob(20_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(log_prob, base.log_prob(x))
    for column in x.detach().T.numpy():
        assert scipy.stats.kstest(column, oracle.cdf).pvalue > FALSE_ALARM
    again = base.sample(20_000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(x, again)


def test_float32_tails_agree_with_float64():
    x = torch.tensor([[-1e4], [-300.0], [30.0], [1e4], [1e30]])
    for base in (StandardLogistic(1), StudentT(1, df=3.0)):
        narrow = base.log_prob(x).double()
        wide = base.double().log_prob(x.double())
        assert ((narrow - wide).abs() <= 1e-5 * wide.abs()).all()


def test_box_ends_belong_to_it():
    box = Box(1, bound=0.7)
    inside = torch.tensor([[-0.7], [0.7]])
    assert torch.allclose(box.log_prob(inside), torch.tensor(-math.log(1.4)))
    beyond = torch.nextafter(inside, 2 * inside)
    assert (box.log_prob(beyond) == -math.inf).all()
    assert box.cdf(torch.cat([beyond, inside])).flatten().tolist() == [0.0, 1.0, 0.0, 1.0]


def test_student_gradients_in_x_and_df():
    base = StudentT(2, df=[1.5, 4.0], trainable=True).double()
    x = torch.tensor([[-3.0, 0.2], [0.4, 30.0]]).double().requires_grad_()

    def log_prob(x, log_ratio):
        return torch.func.functional_call(base, {"log_ratio": log_ratio}, (x,))

    assert torch.autograd.gradcheck(log_prob, (x, base.log_ratio))
    (slope,) = torch.autograd.grad(base.cdf(x).sum(), x)
    expected = scipy.stats.t([1.5, 4.0]).pdf(x.detach().numpy())
    np.testing.assert_allclose(slope, expected, rtol=1e-12)
    draws = base.sample(1000, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.grad(draws.abs().mean(), base.log_ratio)[0].lt(0).all()  # more df, lighter tails


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_mixture_is_a_sum_of_scipy_normals(covariance):
    generator = torch.Generator().manual_seed(3)
    base = GaussianMixture(3, components=4, covariance=covariance).double()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    weight = torch.softmax(base.logits, 0).detach().numpy()
    expected = np.zeros(6)
    factors = torch.diag_embed(torch.exp(7 * torch.tanh(base.log_diagonal / 7)))
    factors = (factors + (base.lower.tril(-1) if covariance == "full" else 0)).detach().numpy()
    for w, m, a in zip(weight, base.locations.detach().numpy(), factors, strict=True):
        expected += w * scipy.stats.multivariate_normal(m, np.linalg.inv(a.T @ a)).pdf(x.numpy())
    np.testing.assert_allclose(base.log_prob(x).detach(), np.log(expected), rtol=1e-10)

    drawn, _ = base.sample_and_log_prob(20_000, generator=generator)
    means, sds = base.locations.detach().numpy(), [np.sqrt(np.diag(np.linalg.inv(a.T @ a))) for a in factors]
    for i, column in enumerate(drawn.detach().numpy().T):

        def cdf(t, i=i):
            parts = zip(weight, means, sds, strict=True)
            return sum(w * scipy.stats.norm(m[i], sd[i]).cdf(t) for w, m, sd in parts)

        assert scipy.stats.kstest(column, cdf).pvalue > FALSE_ALARM


def test_mixture_far_away_is_minus_infinity_without_bad_gradients():
    base = GaussianMixture(2, components=3)
    x = torch.tensor([[0.0, 1.0], [1e30, 0.0], [math.inf, 0.0], [math.nan, 0.0]])
    log_prob = base.log_prob(x)
    near, far, infinite, missing = log_prob.tolist()
    assert math.isfinite(near)
    assert far == infinite == -math.inf
    assert math.isnan(missing)
    log_prob[:3].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in base.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: StandardNormal(0),
        lambda: Box(2, bound=0.0),
        lambda: Box(2, bound=math.inf),
        lambda: StudentT(2, df=-1.0),
        lambda: StudentT(2, df=[1.0]),
        lambda: GaussianMixture(2, covariance="tied"),
        lambda: GaussianMixture(2, components=0),
    ],
)
def test_bad_options_are_refused(make):
    with pytest.raises(OptionError):
        make()


def test_wrong_width_is_refused():
    with pytest.raises(DataError, match="2 features"):
        StandardNormal(2).log_prob(torch.zeros(4, 3))


def disturbed(base, size=1.0, seed=4):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter))
    return base.eval()


def test_full_normal_starts_standard_and_is_scipys():
    base = FullNormal(3).double()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    np.testing.assert_allclose(base.log_prob(x).detach(), StandardNormal(3).log_prob(x), rtol=1e-14)
    disturbed(base)
    factor = (torch.diag(torch.exp(7 * torch.tanh(base.log_diagonal[0] / 7))) + base.lower[0].tril(-1)).detach().numpy()
    oracle = scipy.stats.multivariate_normal(base.locations[0].detach(), np.linalg.inv(factor.T @ factor))
    np.testing.assert_allclose(base.log_prob(x).detach(), oracle.logpdf(x), rtol=1e-10)


def test_conditional_normal_is_scipys_at_each_context_and_starts_standard():
    base = ConditionalNormal(2, 3, hidden=8).double()
    generator = torch.Generator().manual_seed(2)
    context, x = torch.randn(4, 3, generator=generator).double(), torch.randn(6, 4, 2, generator=generator).double()
    assert (base.log_prob(x, context) - StandardNormal(2).log_prob(x)).abs().max() < 0.05
    disturbed(base, 0.5)
    mean, raw = base.net(context).detach().chunk(2, dim=-1)
    oracle = scipy.stats.norm(mean, torch.exp(7 * torch.tanh(raw / 7)))
    np.testing.assert_allclose(base.log_prob(x, context).detach(), oracle.logpdf(x).sum(-1), rtol=1e-10)
    drawn, log_prob = base.sample_and_log_prob(5000, context, generator=generator)
    assert drawn.shape == (5000, 4, 2)
    assert torch.equal(log_prob, base.log_prob(drawn, context))
    for i in range(4):
        column = drawn[:, i, 0].detach().numpy()
        assert (
            scipy.stats.kstest(column, scipy.stats.norm(oracle.mean()[i, 0], oracle.std()[i, 0]).cdf).pvalue
            > FALSE_ALARM
        )
    odd = torch.tensor([[math.inf, 0.0], [math.nan, 0.0]]).double()
    answers = base.log_prob(odd, context[:2]).tolist()
    assert answers[0] == -math.inf
    assert math.isnan(answers[1])


@pytest.mark.parametrize("truncation", [2, 4, 50])
def test_resampled_is_its_law_with_the_normaliser_of_quadrature(truncation):
    base = disturbed(Resampled(1, hidden=8, blocks=1, truncation=truncation, draws=1024).double(), 2.5)
    grid = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    accept = torch.exp(base.log_acceptance(grid.unsqueeze(-1))).detach().numpy()
    proposal = scipy.stats.norm.pdf(grid)
    weight = (grid[1] - grid[0]).item()
    z = (accept * proposal).sum() * weight
    assert 0.05 < z < 0.95
    assert accept.std() > 0.1
    log_z, log_rest = base.log_normaliser()
    assert [log_z.exp().item(), log_rest.exp().item()] == pytest.approx([z, 1 - z], abs=2e-3)
    given_up = (1 - z) ** (truncation - 1)
    law = proposal * ((1 - given_up) * accept / z + given_up)
    assert law.sum() * weight == pytest.approx(1, abs=1e-6)
    got = torch.exp(base.log_prob(grid.unsqueeze(-1))).detach().numpy()
    np.testing.assert_allclose(got, law, rtol=0.01, atol=1e-12)
    assert base.likelihood is Likelihood.ESTIMATE
    # Its sampler is exact whatever the estimate of Z.
    drawn = base.sample(20_000, generator=torch.Generator().manual_seed(3)).squeeze(-1).numpy()
    cdf = np.cumsum(law) * weight
    assert scipy.stats.kstest(drawn, lambda t: np.interp(t, grid.numpy(), cdf)).pvalue > FALSE_ALARM


def test_resampled_trains_on_fresh_draws_and_scores_on_its_own():
    base = disturbed(Resampled(2, hidden=8, draws=64))
    x = torch.zeros(1, 2)
    assert torch.equal(base.log_prob(x), base.log_prob(x))
    before = torch.random.get_rng_state()
    base.train()
    first, second = base.log_prob(x), base.log_prob(x)
    assert not torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    base.calls.zero_()  # as a resumed run does, from its checkpoint
    assert torch.equal(first, base.log_prob(x))


def test_resampled_learns_a_ring_that_a_normal_has_not():
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(6000, 2, generator=generator)
    x = x[x.norm(dim=-1) > 1.0]  # exp(-1/2) of the mass is there
    base = Resampled(2, hidden=32, draws=512)
    optimiser = torch.optim.Adam(base.parameters(), lr=2e-2)
    for _ in range(120):
        rows = x[torch.randint(0, len(x), (256,), generator=generator)]
        optimiser.zero_grad()
        (-base.log_prob(rows).mean()).backward()
        optimiser.step()
    base.eval()
    gain = (base.log_prob(x) - StandardNormal(2).log_prob(x)).mean().item()
    assert 0.3 < gain < 0.51  # 1/2 at most
    drawn = base.sample(2000, generator=generator)
    assert (drawn.norm(dim=-1) < 0.8).double().mean() < 0.06  # of a normal: 0.27


def test_bases_by_name():
    kinds = {"normal": StandardNormal, "logistic": StandardLogistic, "student": StudentT, "mixture": GaussianMixture}
    for name, kind in {**kinds, "full": FullNormal, "resampled": Resampled}.items():
        assert type(choose(name, 3)) is kind
    assert choose("conditional", 3, 2).context == 2
    with pytest.raises(OptionError, match="choose one of normal"):
        choose("cauchy", 3)
    with pytest.raises(OptionError, match="context"):
        choose("conditional", 3)
