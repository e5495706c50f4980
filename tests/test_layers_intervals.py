"""Probabilities of intervals: cells add up, far tails keep their digits, counts and ordinal classes are learned."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from rosenblatt.conditional import PairRuntime, Pairs, conditional_density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.data import Table
from rosenblatt.layers.intervals import interval_log_prob
from rosenblatt.layers.scaling import Standardise
from rosenblatt.objectives.rounded import RoundedNLL
from rosenblatt.testing.tables import disturbed
from rosenblatt.train import FitConfig, Fitter

DDN = {"orders": 1, "bins": 32, "channels": [4], "hidden": 8}
MODELS = [
    ("nits", {"hidden": 16, "widths": [6, 6, 1]}),
    ("made_mixture", {"hidden": 16, "components": 4}),
    ("mdn", {"components": 3}),
    ("ddn", DDN),
    ("ddn", {**DDN, "tails": False, "box": [-5.0, 5.0]}),
]
NAMES = ["nits", "made_mixture", "mdn", "ddn", "ddn_box"]


def made(name, options, features=1, context=0):
    return disturbed(build(name, features, context, options=options, seed=0), 0.2)


def poisson(x):
    """Rates of counts given x (rows, 1)."""
    return torch.exp(1 + x[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), MODELS, ids=NAMES)
def test_256_bins_add_up_to_one(name, options, dtype):
    model = made(name, options).to(dtype)
    edges = torch.linspace(-6, 6, 257, dtype=dtype).unsqueeze(-1)
    edges[0], edges[-1] = -math.inf, math.inf
    at = edges[:-1].nan_to_num(neginf=-6.0)
    log_mass = interval_log_prob(model, edges[:-1], edges[1:], at=at)
    assert not torch.isnan(log_mass).any()
    assert log_mass.exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("name", "options"), MODELS, ids=NAMES)
def test_cells_of_two_columns_add_up_to_one(name, options):
    model = made(name, options, features=2, context=1)
    middles = torch.arange(-8, 9, dtype=torch.float64)
    cells = torch.cartesian_prod(middles, middles)
    context = torch.tensor([0.7], dtype=torch.float64)
    log_mass = RoundedNLL(lowest=-8, highest=8).pmf(model, cells, context)
    assert log_mass.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("name", "options"), [MODELS[0], MODELS[2], MODELS[3]], ids=["nits", "mdn", "ddn"])
def test_intervals_are_differences_of_the_rosenblatt_transform(name, options):
    model = made(name, options, features=2).double()
    at = torch.tensor([0.3, 0.0], dtype=torch.float64)
    low, high = torch.tensor([-0.4, -1.0]).double(), torch.tensor([0.8, 0.2]).double()
    found = interval_log_prob(model, low, high, at=at).exp()
    ends = [model.to_uniform(torch.stack([at[0], end[1]]))[1] for end in (low, high)]
    assert found[1].item() == pytest.approx((ends[1] - ends[0]).item(), abs=1e-12)
    first = [model.to_uniform(end)[0] for end in (low, high)]
    assert found[0].item() == pytest.approx((first[1] - first[0]).item(), abs=1e-12)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_bins_of_normals_keep_their_digits(dtype, side):
    # One Gaussian, in units: P(z in (u, u + 1/8)) by 50-digit integration, down to a mass of 1e-33.
    model = build("mdn", 1, options={"components": 1}, seed=0).after(Standardise([3.0], [2.0])).to(dtype)
    with torch.no_grad():
        model.transform.steps[-1].conditioner.source.free.zero_()
    for u in (2.0, 6.0, 9.5, 12.0):
        low, high = sorted((side * u, side * (u + 0.125)))
        ends = torch.tensor([[3 + 2 * low], [3 + 2 * high]], dtype=dtype)
        found = interval_log_prob(model, ends[0], ends[1]).item()
        with mpmath.workdps(50):
            exact = float(mpmath.log(mpmath.ncdf(-u) - mpmath.ncdf(-(u + 0.125))))
        assert found == pytest.approx(exact, abs=1e-4)


def test_units_and_supports_stand_in_front():
    table = Table(torch.rand(200, 1, generator=torch.Generator().manual_seed(0)).double() * 9, ["wait"])
    from rosenblatt.assembly import assemble
    from rosenblatt.core.types import Support

    model = assemble("nits", table, options=MODELS[0][1], supports={"wait": Support(0.0, math.inf)}, seed=0)
    edges = torch.tensor([-2.0, 0.0, 0.5, 3.0, 40.0, math.inf], dtype=torch.float64).unsqueeze(-1)
    log_mass = interval_log_prob(model, edges[:-1], edges[1:])
    assert log_mass[0] < -30  # the bound itself stands for its neighbour inside
    assert log_mass.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_missing_empty_and_reversed_intervals_leave_other_rows_alone():
    model = made("made_mixture", MODELS[1][1], features=1, context=1)
    low = torch.tensor([[0.0], [math.nan], [1.0], [2.0], [0.0]])
    high = torch.tensor([[1.0], [1.0], [1.0], [1.0], [1.0]])
    context = torch.tensor([[0.5], [0.5], [0.5], [0.5], [math.nan]])
    found = interval_log_prob(model, low, high, context)[:, 0]
    assert found[0].item() == interval_log_prob(model, low[:1], high[:1], context[:1]).item()
    assert torch.isnan(found[[1, 3, 4]]).all()
    assert torch.isneginf(found[2])


@pytest.mark.parametrize(("name", "options"), MODELS, ids=NAMES)
def test_gradients_are_finite_with_open_ends(name, options):
    model = made(name, options, features=2, context=1)
    x = torch.tensor([[0.0, 3.0], [5.0, 0.0], [4.0, 1.0]])
    loss = -RoundedNLL(lowest=0, highest=5).pmf(model, x, torch.zeros(3, 1)).sum()
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_densities_without_conditional_cdfs_are_refused():
    ends = torch.zeros(1, 2), torch.ones(1, 2)
    for name, options in (("nsf", {"transforms": 2, "hidden": 8}), ("ddn", {**DDN, "orders": 2})):
        with pytest.raises(OptionError, match="single autoregressive layer"):
            interval_log_prob(build(name, 2, options=options), *ends)
    model = made("made_mixture", MODELS[1][1], features=2)
    with pytest.raises(DataError, match="at="):
        interval_log_prob(model, torch.tensor([[-math.inf, 0.0]]), torch.tensor([[math.inf, 1.0]]))
    with pytest.raises(DataError, match="features"):
        interval_log_prob(model, torch.zeros(1, 3), torch.ones(1, 3))
    with pytest.raises(OptionError, match="step"):
        RoundedNLL(0.0)
    with pytest.raises(OptionError, match="lowest"):
        RoundedNLL(lowest=2, highest=2)


def fitted(model, values, given, objective, options):
    density = conditional_density(model, Table(values, ["y"]), given, options=options, seed=0)
    config = FitConfig(epochs=40, batch_size=256, learning_rate=5e-3, patience=None)
    Fitter(config, runtime=PairRuntime("cpu"), progress=False).fit(
        density, Pairs(Table(torch.cat([values, given], dim=1), ["y", "x"]), 1), objective
    )
    return density.double()


def test_counts_are_learned_as_well_as_poisson_regression_knows_them():
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(3000, 1, generator=generator).double() - 1
    y = torch.poisson(poisson(x), generator=generator).unsqueeze(-1)
    objective = RoundedNLL(lowest=0)
    model = fitted("made_mixture", y, x, objective, {"hidden": 16, "components": 5})
    given = 2 * torch.rand(4000, 1, generator=generator).double() - 1
    counts = torch.poisson(poisson(given), generator=generator).unsqueeze(-1)
    with torch.no_grad():
        gap = torch.from_numpy(stats.poisson(poisson(given).numpy()).logpmf(counts[:, 0].numpy())) - objective.pmf(
            model, counts, given
        )
        cells = objective.pmf(model, torch.arange(60.0).double().unsqueeze(-1), torch.full((60, 1), 0.5).double())
    # Ignoring x would lose 0.35 nats; too good by more than 5 standard errors would be no probability.
    assert -5 * gap.std().item() / math.sqrt(4000) < gap.mean().item() < 0.05
    assert cells.exp().sum().item() == pytest.approx(1, abs=1e-6)
    expected = stats.poisson(math.exp(1.5)).pmf(np.arange(60))
    assert np.abs(cells.exp().numpy() - expected).sum() / 2 < 0.08  # total variation


def test_ordinal_classes_are_learned_with_open_ends():
    # Four classes of a logistic of location 2 x, cut at -1, 0 and 2: an ordered logit, whose probabilities are known.
    generator = torch.Generator().manual_seed(1)
    cuts = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)

    def draw(rows):
        x = 2 * torch.rand(rows, 1, generator=generator).double() - 1
        latent = 2 * x[:, 0] + torch.logit(torch.rand(rows, generator=generator).double())
        return x, torch.bucketize(latent, cuts).double().unsqueeze(-1)

    x, y = draw(3000)
    objective = RoundedNLL(lowest=0, highest=3)
    model = fitted("mdn", y, x, objective, {"hidden": 16, "components": 3})
    given, classes = draw(4000)
    edges = torch.cat([cuts.new_tensor([-math.inf]), cuts, cuts.new_tensor([math.inf])])
    shares = torch.sigmoid(edges - 2 * given).diff(dim=-1)
    truth = torch.log(shares.gather(1, classes.long()))[:, 0]
    with torch.no_grad():
        gap = truth - objective.pmf(model, classes, given)
    assert -5 * gap.std().item() / math.sqrt(4000) < gap.mean().item() < 0.03
