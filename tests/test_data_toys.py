import math

import numpy as np
import pytest
import torch
from scipy import stats

from rosenblatt.core.errors import DataError
from rosenblatt.data import TOYS

FALSE_ALARM = 1e-6
SIGMAS = float(stats.norm.isf(FALSE_ALARM / 2))
# Boxes that hold all but 1e-9 of the mass, with the smoothness that the midpoint rule needs.
BOXES = {
    "two_moons": ((-5.0, 5.0), (-5.0, 5.0)),
    "eight_gaussians": ((-8.0, 8.0), (-8.0, 8.0)),
    "spirals": ((-7.0, 7.0), (-7.0, 7.0)),
    "parabola": ((-8.0, 50.0), (-13.0, 13.0)),
    "checkerboard": ((-5.0, 5.0), (-5.0, 5.0)),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_there_are_ten_toys_under_their_own_names():
    assert len(TOYS) == 10
    assert all(name == toy.name for name, toy in TOYS.items())


def grid(name):
    """Cell centres of 280 x 280 cells over the toy's box, first axis slowest, and the area of a cell."""
    axes = []
    for low, high in BOXES[name]:
        edges = torch.linspace(low, high, 281, dtype=torch.float64)
        axes.append((edges[1:] + edges[:-1]) / 2)
    return torch.cartesian_prod(*axes), math.prod(float(axis[1] - axis[0]) for axis in axes)


@pytest.mark.parametrize("name", BOXES)
def test_density_integrates_to_one_and_to_its_entropy(name):
    x, cell = grid(name)
    log_prob = TOYS[name].log_prob(x)
    p = log_prob.exp() * cell
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-6)
    if TOYS[name].entropy is not None:
        assert -float((p * log_prob.clamp(min=-1e3)).sum()) == pytest.approx(TOYS[name].entropy, abs=1e-5)


@pytest.mark.parametrize("name", BOXES)
def test_sampler_fills_regions_by_their_mass(name):
    x, cell = grid(name)
    mass = (TOYS[name].log_prob(x).exp() * cell).reshape(8, 35, 8, 35).sum(dim=(1, 3)).flatten()
    sample = TOYS[name].sample(20_000, generator(1)).numpy()
    counts = np.histogram2d(*sample.T, bins=8, range=BOXES[name])[0].flatten()
    expected = mass.numpy() * len(sample)
    often = expected > 10
    counts = np.append(counts[often], len(sample) - counts[often].sum())
    expected = np.append(expected[often], len(sample) - expected[often].sum())
    keep = expected > 1
    statistic = ((counts - expected)[keep] ** 2 / expected[keep]).sum()
    assert counts[~keep].sum() < 30
    assert stats.chi2.sf(statistic, keep.sum() - 1) > FALSE_ALARM


MARGINALS = {
    "correlated_gaussian": [stats.norm(scale=0.5 + i / 2) for i in range(6)],
    "student_t": [stats.t(4)] * 3,
    "uniform_box": [stats.uniform(0, 2)] * 3,
    "funnel": [stats.norm(scale=1.5)],
    "log_normal": [stats.lognorm(0.5), stats.lognorm(0.8)],
}


@pytest.mark.parametrize("name", MARGINALS)
def test_sampler_has_the_marginals(name):
    columns = TOYS[name].sample(20_000, generator(1)).T.numpy()
    for column, marginal in zip(columns, MARGINALS[name], strict=False):
        assert stats.kstest(column, marginal.cdf).pvalue > FALSE_ALARM


def test_published_entropies():
    assert TOYS["parabola"].entropy == pytest.approx(3.5310, abs=5e-5)
    assert TOYS["checkerboard"].entropy == pytest.approx(3.4657, abs=5e-5)


@pytest.mark.parametrize("name", [name for name, toy in TOYS.items() if toy.entropy is not None])
def test_sampler_agrees_with_the_entropy(name):
    toy = TOYS[name]
    loss = -toy.log_prob(toy.sample(100_000, generator()))
    standard_error = float(loss.std()) / math.sqrt(len(loss))
    assert abs(float(loss.mean()) - toy.entropy) <= SIGMAS * standard_error + 1e-9


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        (
            "correlated_gaussian",
            lambda toy: stats.multivariate_normal(cov=(toy.factor @ toy.factor.T).numpy()),
        ),
        ("student_t", lambda toy: stats.multivariate_t(shape=(toy.factor @ toy.factor.T).numpy(), df=4)),
    ],
)
def test_log_prob_equals_scipy(name, frozen):
    toy = TOYS[name]
    x = toy.sample(50, generator())
    expected = torch.as_tensor(frozen(toy).logpdf(x.numpy()))
    torch.testing.assert_close(toy.log_prob(x), expected, rtol=0, atol=1e-11)


def test_log_normal_equals_its_definition():
    toy = TOYS["log_normal"]
    x = toy.sample(50, generator())
    logs = stats.multivariate_normal(cov=(toy.factor @ toy.factor.T).numpy()).logpdf(x.log().numpy())
    expected = torch.as_tensor(logs) - x.log().sum(dim=-1)
    torch.testing.assert_close(toy.log_prob(x), expected, rtol=0, atol=1e-11)


def test_funnel_equals_its_definition():
    x = TOYS["funnel"].sample(50, generator())
    v, rest = x[:, 0].numpy(), x[:, 1:].numpy()
    conditional = stats.norm.logpdf(rest, scale=np.exp(v / 2)[:, None]).sum(axis=-1)
    expected = torch.as_tensor(stats.norm.logpdf(v, scale=1.5) + conditional)
    torch.testing.assert_close(TOYS["funnel"].log_prob(x), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", TOYS)
def test_odd_rows_shapes_and_random_state(name):
    toy = TOYS[name]
    state = torch.random.get_rng_state()
    x = toy.sample(24, generator())
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(x, toy.sample(24, generator()))
    whole = toy.log_prob(x)
    torch.testing.assert_close(toy.log_prob(x.reshape(2, 3, 4, -1)), whole.reshape(2, 3, 4))
    assert toy.log_prob(x[:0]).shape == (0,)
    assert toy.log_prob(x.float()).dtype == torch.float32
    x[0, 0], x[1, -1], x[2, :] = math.nan, math.inf, -math.inf
    odd = toy.log_prob(x)
    assert math.isnan(odd[0])
    assert odd[1] == odd[2] == -math.inf
    assert torch.equal(odd[3:], whole[3:])
    with pytest.raises(DataError, match="features"):
        toy.log_prob(x[:, 1:])


@pytest.mark.parametrize(
    ("name", "point"),
    [("uniform_box", -1e-9), ("log_normal", 0.0), ("checkerboard", 4.001), ("checkerboard", -4.001)],
)
def test_outside_the_support_is_minus_infinity(name, point):
    toy = TOYS[name]
    x = toy.sample(1, generator())
    x[0, 0] = point
    assert toy.log_prob(x)[0] == -math.inf
