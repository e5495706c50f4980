"""Autoregressive quantile flows: the score they are trained by, and what comes out of training."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from rosenblatt.conditional import fit_conditional
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.roots import find_root_traced
from rosenblatt.core.types import REAL, Batch, Mapped
from rosenblatt.data import Table
from rosenblatt.elementwise.backwards import Backwards
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.elementwise.sigmoid_mixture import DeepSigmoid
from rosenblatt.estimators import FlowDensity
from rosenblatt.models.ffjord import ffjord
from rosenblatt.models.nits import nits
from rosenblatt.models.quantile_flow import quantile_flow
from rosenblatt.objectives.quantile import QuantileScore, stratified
from rosenblatt.testing.tables import disturbed, seeded
from rosenblatt.train import FitConfig

FAMILIES = ("spline", "deep_sigmoid", "nits", "affine")


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_crps(y, mean, sd):
    z = (y - mean) / sd
    return sd * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))


def small(**options):
    return disturbed(seeded(lambda: quantile_flow(2, hidden=8, bins=5, units=3, **options)), 0.2).double()


def losses(model, x, objective, repeats, context=None):
    """Losses of each row, (repeats, rows)."""
    with torch.no_grad():
        return torch.stack([objective(model, Batch(x, context), draw(seed)) for seed in range(repeats)])


@pytest.mark.parametrize("direction", ["quantile", "cdf"])
def test_the_score_of_a_gaussian_is_its_closed_crps(direction):
    model = small(family="affine", direction=direction)
    x = torch.randn(6, 2, generator=draw(3), dtype=torch.float64)
    layer = model.transform.steps[0]
    shift, log_scale = layer.elementwise.maps[0].inverse(torch.zeros(6, 2).double(), layer.conditioner(x))
    expected = gaussian_crps(x.numpy(), shift.detach().numpy(), log_scale.exp().detach().numpy()).sum(axis=-1)
    found = losses(model, x, QuantileScore(64, direction), 100)
    error = found.std(dim=0) / 10
    # 12 comparisons over both directions; 5.5 standard errors are passed once in 2e6 cases, each.
    assert (np.abs(found.mean(dim=0).numpy() - expected) < 5.5 * error.numpy() + 1e-9).all()
    assert error.max() < 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_both_directions_have_the_same_score_for_the_same_conditionals(family):
    model = small(family=family)
    x = torch.randn(5, 2, generator=draw(4), dtype=torch.float64)
    ways = [losses(model, x, QuantileScore(32, direction), 30) for direction in ("quantile", "cdf")]
    gap = ways[0].mean(dim=0) - ways[1].mean(dim=0)
    error = (sum(way.var(dim=0) for way in ways) / 30).sqrt()
    assert (gap.abs() < 6 * error).all()
    assert (error < 0.03 * ways[0].mean(dim=0)).all()


def test_more_levels_vary_less_and_validation_uses_more():
    model = small()
    x = torch.randn(50, 2, generator=draw(5), dtype=torch.float64)
    few, many = (losses(model.train(), x, QuantileScore(count), 40).var(dim=0).mean() for count in (2, 16))
    assert many < few / 16  # strata do better than the 1/8 of independent levels
    assert losses(model.eval(), x, QuantileScore(2), 40).var(dim=0).mean() < few / 4


def test_levels_are_strata_of_the_open_interval():
    levels = stratified(4, torch.zeros(1000, 2), draw())
    assert ((levels * 4).floor() == torch.arange(4.0).reshape(4, 1, 1)).all()
    assert ((levels > 0) & (levels < 1)).all()
    p_value = stats.kstest((4 * levels % 1).flatten().numpy(), "uniform").pvalue
    assert p_value > 1e-6
    assert torch.isfinite(torch.logit(stratified(1, torch.zeros(1), draw()).clamp(min=1.0 - 2.0**-53)))


@pytest.mark.parametrize("family", FAMILIES)
def test_quantiles_cannot_cross_and_match_the_cdf(family):
    model = small(family=family)
    u = torch.linspace(1e-6, 1 - 1e-6, 4001, dtype=torch.float64)
    with torch.no_grad():
        x = model.from_uniform(torch.stack([u, torch.full_like(u, 0.3)], dim=-1))
        assert (x[:, 0].diff() > 0).all()
        assert (model.to_uniform(x)[:, 0] - u).abs().max() < 1e-9


def test_sampling_needs_no_search(monkeypatch):
    def search(*args, **options):
        raise AssertionError("a root search")

    models = [small(family=family) for family in FAMILIES]
    monkeypatch.setattr("rosenblatt.elementwise.base.find_root", search)
    monkeypatch.setattr("rosenblatt.elementwise.monotone_net.solve", search)
    with torch.no_grad():
        for model in models:
            assert torch.isfinite(model.sample(10, generator=draw())).all()
    for family in ("spline", "deep_sigmoid"):
        model = small(family=family).train()
        objective = QuantileScore()
        objective(model, Batch(torch.zeros(3, 2).double()), draw()).sum().backward()


def test_the_twin_is_the_family_itself():
    twin, flow = (seeded(lambda d=d: quantile_flow(2, hidden=8, direction=d)) for d in ("cdf", "quantile"))
    assert isinstance(flow.transform.steps[0].elementwise.maps[1], Backwards)
    assert not isinstance(twin.transform.steps[0].elementwise.maps[1], Backwards)
    assert (twin.objective.direction, flow.objective.direction) == ("cdf", "quantile")


def test_rows_that_are_not_finite_spoil_their_own_loss_alone():
    model = small().train()
    x = torch.randn(4, 2, generator=draw(6), dtype=torch.float64)
    clean = model.objective(model, Batch(x), draw())
    x[1, 0] = torch.nan
    spoiled = model.objective(model, Batch(x), draw())
    rows = torch.tensor([0, 2, 3])
    assert torch.isnan(spoiled[1])
    assert torch.equal(spoiled[rows], clean[rows])
    spoiled[rows].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_what_the_score_is_not_for_is_refused():
    batch = Batch(torch.zeros(2, 2))
    with pytest.raises(OptionError, match="one conditional layer"):
        QuantileScore()(ffjord(2, hidden=8), batch, draw())
    assert QuantileScore(direction="cdf")(nits(2, hidden=8), batch, draw()).shape == (2,)
    for options, named in (({"levels": 3}, "levels"), ({"direction": "up"}, "direction"), ({"family": "x"}, "family")):
        with pytest.raises(OptionError, match=named):
            quantile_flow(2, **options)
    with pytest.raises(OptionError, match="interval"):
        Backwards(MonotoneNet((4, 1), lower=0.0, upper=1.0))


def test_a_table_in_far_units_is_fitted_by_the_estimator():
    x = torch.randn(1500, 2, generator=draw(7), dtype=torch.float64)
    x[:, 1] = x[:, 0].sign() * 2 + 0.5 * x[:, 1]
    rows = (x * torch.tensor([1e3, 1e-3]) + torch.tensor([1e5, -4.0])).numpy()
    options = {"hidden": 32, "bins": 8}
    density = FlowDensity(
        "quantile_flow",
        model_options=options,
        max_steps=300,
        learning_rate=5e-3,
        random_state=0,
        validation_fraction=0.2,
    ).fit(rows)
    assert density.report_.measure == "minus CRPS in standard units"
    assert -1.1 < density.report_.best_validation < -0.5
    gaussian = FlowDensity("gaussian", random_state=0).fit(rows)
    assert density.score(rows) > gaussian.score(rows) + 0.2
    u = density.rosenblatt(rows)
    assert np.abs(density.inverse_rosenblatt(u) - rows).max() < 1e-6 * 1e5
    assert isinstance(density.model_, Flow)


def test_a_regression_gets_exact_quantiles():
    generator = draw(8)
    given = torch.rand(2000, 1, generator=generator, dtype=torch.float64)
    y = 100 + 50 * given + (5 + 20 * given) * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    config = FitConfig(max_steps=400, learning_rate=5e-3, seed=0)
    options = {"hidden": 32, "family": "affine"}
    density = fit_conditional("quantile_flow", Table(y, ["y"]), given, options=options, config=config)
    assert density.report.measure == "minus CRPS in standard units"
    at = torch.tensor([[0.2], [0.8]], dtype=torch.float64)
    expected = 100 + 50 * at + (5 + 20 * at) * torch.tensor(stats.norm.ppf([0.1, 0.5, 0.9]))
    u = density.to_uniform(expected.T.unsqueeze(-1), at)
    assert (u.squeeze(-1) - torch.tensor([[0.1], [0.5], [0.9]])).abs().max() < 0.05


def test_the_traced_search_finds_what_the_search_finds_with_its_derivatives():
    family = DeepSigmoid(3, 2)
    theta = 0.7 * torch.randn(8, family.spec.size, generator=draw(9), dtype=torch.float64)
    y = 3 * torch.randn(8, generator=draw(10), dtype=torch.float64)

    def traced(y, theta):
        return find_root_traced(lambda x: family(x, theta), y, REAL, tolerance=1e-12)

    assert (traced(y, theta) - family.inverse(y, theta).value).abs().max() < 1e-12
    y.requires_grad_()
    theta.requires_grad_()
    assert torch.autograd.gradcheck(traced, (y, theta), fast_mode=True)
    assert torch.autograd.gradgradcheck(traced, (y, theta), atol=1e-4, fast_mode=True)
    each = torch.func.vmap(lambda y, theta: family.inverse(y, theta).value)(y, theta)
    assert torch.equal(each.detach(), traced(y, theta).detach())


def test_the_traced_search_does_not_answer_where_there_is_no_root():
    flat = find_root_traced(
        lambda x: Mapped(torch.tanh(x), -2 * torch.log(torch.cosh(x.clamp(-300, 300)))),
        torch.tensor([0.5, 2.0]).double(),
        REAL,
        tolerance=1e-12,
    )
    assert flat[0].item() == pytest.approx(math.atanh(0.5))
    assert torch.isnan(flat[1])
