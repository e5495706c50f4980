"""The monotone net against other people's formulas: logistic mixtures, quadrature, its own derivative."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from rosenblatt.elementwise.monotone_net import MonotoneNet

WIDTHS = [(8, 1), (16, 16, 1), (8, 8, 8, 1)]
SUPPORTS = [{}, {"lower": -5.0, "upper": 5.0}]


def thetas(net, scale, count=3):
    generator = torch.Generator().manual_seed(21)
    return net.start().double() + scale * torch.randn(count, net.spec.size, generator=generator).double()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_one_hidden_layer_on_the_line_is_a_mixture_of_logistics(scale):
    net = MonotoneNet((8, 1), epsilon=0.0)
    x = np.concatenate([np.linspace(-12, 12, 101), [1e3, -1e3]])
    for theta in thetas(net, scale):
        parts = {name: part.numpy() for name, part in net.spec.split(theta).items()}
        slope = np.exp(-7 * np.tanh(parts["slope_1"][:, 0] / 7))
        weight = np.exp(parts["mixture"]) / np.exp(parts["mixture"]).sum()
        law = stats.logistic(loc=parts["offset_1"], scale=1 / slope)
        at = torch.tensor(x)
        spread = theta.expand(len(x), -1)
        np.testing.assert_allclose(net.cdf(at, spread), law.cdf(x[:, None]) @ weight, rtol=1e-12, atol=1e-300)
        log_prob = np.logaddexp.reduce(np.log(weight) + law.logpdf(x[:, None]), axis=1)
        np.testing.assert_allclose(net.log_prob(at, spread), log_prob, rtol=1e-12, atol=1e-12)
        log_sf = np.logaddexp.reduce(np.log(weight) + law.logsf(x[:, None]), axis=1)
        np.testing.assert_allclose(net.log_sf(at, spread), log_sf, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("support", SUPPORTS, ids=["line", "interval"])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_density_integrates_to_one_between_quantiles(widths, support):
    net = MonotoneNet(widths, **support)
    for theta in thetas(net, 1.0, count=2):

        def density(x, theta=theta):
            return float(torch.exp(net.log_prob(torch.tensor(x, dtype=torch.float64), theta)))

        levels = torch.tensor([1e-13, 1e-6, *np.linspace(0.05, 0.95, 10), 1 - 1e-6, 1 - 1e-13]).double()
        edges = net.quantile(levels, theta.expand(len(levels), -1)).tolist()
        ends = [net.domain.lower, *edges, net.domain.upper] if net.domain.bounded else edges
        mass = sum(integrate.quad(density, a, b, limit=200)[0] for a, b in pairwise(ends))
        assert mass == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("support", SUPPORTS, ids=["line", "interval"])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_quantiles_of_steep_nets(widths, support):
    net = MonotoneNet(widths, **support)
    u = torch.rand(200, generator=torch.Generator().manual_seed(22), dtype=torch.float64)
    for theta in thetas(net, 3.0):
        for dtype, residual in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            levels, spread = u.to(dtype), theta.to(dtype).expand(200, -1)
            x = net.quantile(levels, spread)
            density = torch.exp(net.log_prob(x.double(), spread.double()))
            ulp = torch.nextafter(x.abs(), torch.tensor(torch.inf, dtype=dtype)) - x.abs()
            error = (net.cdf(x, spread) - levels).double().abs()
            assert bool((error <= residual + 4 * ulp * density).all()), (dtype, error.max())


def test_tails_of_the_start_are_right_in_float32_to_1e4():
    net = MonotoneNet((16, 16, 1))
    x = torch.tensor([sign * 10.0**k for k in (1, 2, 3, 4) for sign in (-1, 1)])
    theta = net.start().expand(len(x), -1)
    narrow = net.log_prob(x, theta).double()
    wide = net.log_prob(x.double(), theta.double())
    assert bool(torch.isfinite(wide).all())
    torch.testing.assert_close(narrow, wide, rtol=1e-5, atol=0.0)


def test_both_tails_keep_relative_precision():
    net = MonotoneNet((8, 1), epsilon=0.0)
    theta = net.start().double().expand(2, -1)
    x = torch.tensor([-200.0, 200.0], dtype=torch.float64)
    tails = torch.stack([net.log_cdf(x, theta)[0], net.log_sf(x, theta)[1]])
    # With unit tail slopes -200 is log-mass -400, which no subtraction from one could hold.
    assert bool((tails < -300).all())
    torch.testing.assert_close(tails[0], tails[1], rtol=1e-6, atol=0.0)


def test_support_is_compact():
    net = MonotoneNet((16, 16, 1), lower=-5.0, upper=5.0)
    beyond = np.nextafter([-5.0, 5.0], [-math.inf, math.inf])
    x = torch.tensor([*beyond, -math.inf, math.inf, -5.0, 5.0], dtype=torch.float64)
    theta = net.start().double().expand(len(x), -1)
    log_prob = net.log_prob(x, theta)
    assert (log_prob[:4] == -math.inf).all()
    assert torch.isfinite(log_prob[4:]).all()
    assert net.cdf(x, theta).tolist() == [0, 1, 0, 1, 0, 1]


def test_units_differ_at_the_start():
    net = MonotoneNet((16, 16, 1))
    theta = net.start().requires_grad_()
    x = torch.linspace(-3, 3, 50)
    net.log_prob(x, theta.expand(50, -1)).mean().backward()
    gradients = net.spec.split(theta.grad)["offset_1"]
    assert len({round(value, 9) for value in gradients.tolist()}) == 16


def test_an_inverse_takes_at_most_40_evaluations(monkeypatch):
    net = MonotoneNet((16, 16, 1))
    bound_type = type(net.bind(net.start().double().unsqueeze(0)))
    calls = []
    original = bound_type.__call__
    monkeypatch.setattr(bound_type, "__call__", lambda self, x: calls.append(1) or original(self, x))
    theta = thetas(net, 1.0, count=500)
    u = torch.rand(500, generator=torch.Generator().manual_seed(23), dtype=torch.float64)
    net.quantile(u, theta)
    assert len(calls) <= 40
