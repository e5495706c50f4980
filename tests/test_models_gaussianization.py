"""Gaussianization: knots against a formula in exact numbers, fits against known entropies, and the rules of the fit."""

import math
import sys

import numpy as np
import pytest
import scipy.stats
import torch

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.bases import StandardNormal
from rosenblatt.core import registry
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import TOYS
from rosenblatt.elementwise.normal_mixture import NormalMixture
from rosenblatt.eval.mass import grid_mass
from rosenblatt.layers.knots import KnotSpline, weighted_quantiles
from rosenblatt.models.gaussianization import MixtureBends
from rosenblatt.models.rbig import GaussianizingLayer
from rosenblatt.train import FitConfig, Fitter

rbig_module = sys.modules["rosenblatt.models.rbig"]  # the package has the builder under that name


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rbig(features=2, **options):
    return registry.build("rbig", features, options=options, seed=0).double()


def spline(features=2, bins=5, seed=1):
    made = KnotSpline(features, bins).double()
    x, y = (normal(features, bins + 1, seed=seed + k).exp().cumsum(-1) - 4 for k in (0, 1))
    made.through(x, y, normal(features, bins + 1, seed=seed + 2).exp())
    return made


def test_knot_spline_meets_its_knots_with_its_slopes():
    made = spline()
    for k in range(6):
        value, log_slope = made.by_column(made.x[:, k])
        assert torch.allclose(value, made.y[:, k], atol=1e-13)
        assert torch.allclose(log_slope.exp(), made.slope[:, k], rtol=1e-12)


def test_knot_spline_is_its_formula_and_straight_beyond():
    made = spline(features=1)
    x, y, d = made.x[0], made.y[0], made.slope[0]
    for k, t in ((0, 0.3), (2, 0.5), (4, 0.9)):
        w, h = x[k + 1] - x[k], y[k + 1] - y[k]
        s = h / w
        top = h * (s * t**2 + d[k] * t * (1 - t))
        expected = y[k] + top / (s + (d[k] + d[k + 1] - 2 * s) * t * (1 - t))
        assert torch.allclose(made((x[k] + t * w).reshape(1)).value, expected.reshape(1), rtol=1e-13)
    ends = torch.stack([x[0] - 7.0, x[-1] + 1e6]).unsqueeze(-1)
    expected = torch.stack([y[0] - 7.0 * d[0], y[-1] + 1e6 * d[-1]]).unsqueeze(-1)
    assert torch.allclose(made(ends).value, expected, rtol=1e-13)


def test_knot_spline_derivative_and_inverse():
    made, x = spline(), 5 * normal(400, 2, seed=8)
    x.requires_grad_()
    value, log_slope = made.by_column(x)
    (slope,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
    assert (slope.log() - log_slope).abs().max() < 1e-11
    back, log_det = made.inverse(value)
    assert (back - x).abs().max() < 1e-11
    assert (log_det + log_slope.sum(-1)).abs().max() < 1e-10


def test_knot_spline_refuses_knots_in_disorder():
    made = KnotSpline(1, 2)
    good, tied = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    for x, y, slope in ((tied, good, good + 1), (good, tied, good + 1), (good, good, good)):
        with pytest.raises(OptionError, match="must increase"):
            made.through(x, y, slope)


def test_weighted_quantiles_are_numpys_and_count_weights_as_repetitions():
    rows, levels = normal(101, 2), torch.tensor([0.1, 0.5, 0.77]).double()
    share = torch.full((101,), 1 / 101, dtype=torch.float64)
    expected = np.quantile(rows.numpy(), levels.numpy(), axis=0, method="hazen").T
    np.testing.assert_allclose(weighted_quantiles(rows, share, levels), expected, rtol=1e-10)
    # A row that weighs three times as much moves the law like three equal rows, up to half a row's weight.
    weight = torch.ones(101).double()
    weight[:30] = 3
    heavy = weighted_quantiles(rows, weight / weight.sum(), levels)
    repeated = torch.cat([rows, rows[:30], rows[:30]])
    for column in range(2):
        below = (repeated[:, column, None] <= heavy[column]).double().mean(0)
        assert (below - levels).abs().max() <= 3 / len(repeated)


@pytest.mark.parametrize("rotation", ["random", "pca"])
def test_rbig_closes_nearly_all_of_the_gap_of_the_gaussian_on_the_parabola(rotation):
    toy = TOYS["parabola"]
    train, test = (toy.sample(20_000, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    gaussian = registry.build("gaussian", 2).double()
    model = rbig(transforms=25, rotation=rotation)
    for density in (gaussian, model):
        density.initialise(train)
    truth = toy.log_prob(test).mean().item()
    gap, left = (truth - density.log_prob(test).mean().item() for density in (gaussian, model))
    assert gap > 0.5
    assert -0.005 < left < 0.04  # measured: 0.008 (random), 0.03 (pca)
    # Its log-density is one: the mass is one, and its own samples say the same as importance weights of the truth.
    assert abs(grid_mass(model, near=train[:2000], cells=128) - 1) < 2e-3
    ratio = torch.exp(model.log_prob(test) - toy.log_prob(test))
    assert abs(ratio.mean().item() - 1) < 5 * ratio.std().item() / math.sqrt(len(ratio))


def test_rbig_of_gaussian_rows_is_the_gaussian():
    # No curve pays for its numbers, so the whole fit is standardising: axes of the covariance, then nothing.
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.3, -0.4, 2.0]]).double()
    rows = normal(5000, 3, seed=3) @ factor.mT + torch.tensor([5.0, 0.0, -300.0])
    model, gaussian = rbig(3, transforms=6, rotation="pca"), registry.build("gaussian", 3).double()
    for density in (model, gaussian):
        density.initialise(rows)
    assert (model.log_prob(rows) - gaussian.log_prob(rows)).abs().max() < 1e-3


def test_a_layer_makes_skewed_heavy_columns_normal():
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64).numpy()
    rows = torch.from_numpy(np.stack([scipy.stats.expon.ppf(uniform), scipy.stats.t(3).ppf(uniform[::-1])], axis=1))
    layer = GaussianizingLayer(2, 24, pca=False, first=True).double()
    layer.initialise(rows)
    z = layer(rows).value
    for column in z.T:
        assert scipy.stats.kstest(column, "norm").statistic < 0.004  # quantiles of the rows themselves are its knots
    assert (z.abs() > 4).double().mean() < 2e-3


def test_ties_and_weights():
    rows = torch.cat([torch.zeros(500, 1), torch.ones(500, 1), normal(1000, 1)]).double()
    model = rbig(1, transforms=1)
    model.initialise(rows)
    # A quarter of the rows is in each step, which the curve climbs as fast as it may.
    slope = (
        model.log_prob(torch.tensor([[0.0], [1.0]]).double()) - model.base.log_prob(model.to_base(rows[[0, 500]]))
    ).exp()
    assert (slope * rows.std() - 100).abs().max() < 60
    assert abs(grid_mass(model, lower=torch.tensor([-8.0]), upper=torch.tensor([8.0]), cells=20_000) - 1) < 2e-3
    # Rows of weight 0 might as well not be there.
    weighted, without = rbig(1, transforms=2), rbig(1, transforms=2)
    weight = torch.cat([torch.zeros(1000), torch.ones(1000)])
    weighted.initialise(rows, None, weight)
    without.initialise(rows[1000:])
    x = normal(50, 1, seed=9)
    assert (weighted.log_prob(x) - without.log_prob(x)).abs().max() < 0.02


def test_a_layer_is_the_same_however_many_columns_are_fitted_together(monkeypatch):
    rows, largest = normal(300, 5).exp(), []
    whole, pieces = (GaussianizingLayer(5, 8, pca=False, first=True) for _ in range(2))
    whole.initialise(rows)
    monkeypatch.setattr(rbig_module, "NUMBERS_AT_ONCE", 600)
    quantiles = rbig_module.weighted_quantiles

    def watched(some, *rest):
        largest.append(some.numel())
        return quantiles(some, *rest)

    monkeypatch.setattr(rbig_module, "weighted_quantiles", watched)
    pieces.initialise(rows)
    assert largest == [600, 600, 300]
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(pieces.get_buffer(name), buffer, rtol=1e-6, atol=0.0)


def test_rbig_refuses_what_it_cannot_do():
    with pytest.raises(OptionError, match="context"):
        registry.build("rbig", 2, 1)
    with pytest.raises(OptionError, match="rotation"):
        rbig(rotation="ica")
    with pytest.raises(DataError, match=r"columns \[1\]"):
        rbig(2, transforms=1).initialise(torch.stack([normal(50), torch.ones(50).double()], dim=1))


def test_the_fitter_takes_all_rows_and_no_steps():
    from rosenblatt.data import Table

    toy = TOYS["parabola"]
    rows = toy.sample(3000, generator=torch.Generator().manual_seed(5)).float()
    model = registry.build("rbig", 2, options={"transforms": 5}, seed=0)
    report = Fitter(FitConfig(validation_fraction=0.0)).fit(model, Table.from_any(rows.numpy()))
    direct = registry.build("rbig", 2, options={"transforms": 5}, seed=0)
    direct.initialise(rows)
    assert (report.stopped, report.steps) == ("closed form", 0)
    assert torch.allclose(model.log_prob(rows), direct.log_prob(rows), atol=1e-4)


def test_normal_mixture_has_the_mixtures_density_far_into_the_tails():
    mixture = NormalMixture(3)
    weight, mean, sd = torch.tensor([[0.2, 0.5, 0.3], [-1.0, 0.5, 4.0], [0.4, 2.0, 1.0]], dtype=torch.float64)
    theta = mixture.at(weight, mean, sd)
    x = torch.tensor([-60.0, -7.0, -1.0, 0.3, 2.0, 5.0, 40.0]).double()
    value, log_det = mixture(x, theta)
    parts = [math.log(w) + scipy.stats.norm(m, s).logpdf(x) for w, m, s in zip(weight, mean, sd, strict=True)]
    got = log_det.numpy() + scipy.stats.norm.logpdf(value)
    np.testing.assert_allclose(got, np.logaddexp.reduce(parts), rtol=1e-11)
    # Far out the widest component is alone, and the map nearly straight with its slope.
    assert abs(log_det[[0, -1]] + math.log(2)).max() < 0.01


def test_gaussianization_starts_at_a_good_fit_and_trains_to_a_better_one():
    toy = TOYS["parabola"]
    train, test = (toy.sample(4000, generator=torch.Generator().manual_seed(seed)).float() for seed in (1, 2))
    model = registry.build("gaussianization", 2, options={"transforms": 4, "components": 8}, seed=0)
    model.initialise(train)
    truth = toy.log_prob(test.double()).mean().item()
    start = truth - model.log_prob(test).mean().item()
    optimiser, generator = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(3)
    for _ in range(40):
        rows = train[torch.randint(0, len(train), (128,), generator=generator)]
        optimiser.zero_grad()
        (-model.log_prob(rows).mean()).backward()
        optimiser.step()
    end = truth - model.log_prob(test).mean().item()
    assert start < 0.25  # the Gaussian's gap is 0.54
    assert end < 0.6 * start


def test_the_start_of_a_bend_is_maximum_likelihood_of_a_mixture():
    truth = torch.cat([normal(6000, 1) * 0.5 - 2, normal(4000, 1, seed=1) + 3]).double()
    bends = MixtureBends(1, 2, context=0, hidden=8).double()
    with torch.no_grad():
        bends.initialise(truth)
    parts = bends.elementwise.spec.split(bends.conditioner.free[0])
    order = parts["locations"].argsort()
    found = torch.stack(
        [torch.softmax(parts["logits"], 0), parts["locations"], 7 * torch.tanh(parts["log_scales"] / 7)]
    )
    expected = torch.tensor([[0.6, 0.4], [-2.0, 3.0], [math.log(2), 0.0]])
    assert (found[:, order] - expected).abs().max() < 0.08
    before = bends.conditioner.free.clone()
    with torch.no_grad():
        bends.initialise(5 * truth)  # a second call changes nothing
    assert torch.equal(bends.conditioner.free, before)


def test_the_start_from_few_rows_leaves_the_tails_alone():
    model = registry.build("gaussianization", 3, options={"transforms": 6}, seed=0).double()
    model.initialise(normal(50, 3))
    test = normal(2000, 3, seed=1)
    truth = StandardNormal(3).log_prob(test)
    gap = truth - model.log_prob(test).detach()  # without a prior on the widths some rows lose thousands of nats
    assert gap.mean() < 1.0
    assert gap.max() < 30.0


def test_a_bend_of_a_column_that_is_all_but_constant_is_refused():
    rows = torch.cat([normal(3000, 1), torch.zeros(3000, 1)], dim=1)
    rows[7, 1] = 1.0
    with pytest.raises(DataError, match=r"columns \[1\]"):
        MixtureBends(2, 3, context=0, hidden=8).initialise(rows)
