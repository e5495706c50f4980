"""Hand-written gradients of elementwise maps against those that autograd finds for the same map."""

import pytest
import torch

from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.elementwise.spline import RationalQuadraticSpline

MAPS = {
    "affine": (Affine(), 1e-9),
    "spline": (RationalQuadraticSpline(8, 5.0), 1e-9),
    "spline_box": (RationalQuadraticSpline(5, 2.0, "none"), 1e-9),
    "nits": (MonotoneNet((16, 16, 1)), 1e-9),
    "nits_mixture": (MonotoneNet((6, 1), epsilon=0.0), 1e-9),
    "nits_deep": (MonotoneNet((5, 4, 3, 1)), 1e-8),
    "nits_interval": (MonotoneNet((8, 8, 1), lower=-3.0, upper=3.0), 1e-9),
}
ROWS = 400


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def thetas(elementwise, scale, rows=ROWS):
    return elementwise.start().double() + normal(rows, elementwise.spec.size, seed=1, scale=scale)


def points(elementwise, rows=ROWS):
    x = normal(rows, seed=2, scale=1.5)
    if elementwise.domain.bounded:
        return x.clamp(elementwise.domain.lower + 1e-3, elementwise.domain.upper - 1e-3)
    x[:8] = torch.tensor([-300.0, 300.0, -5.1, 5.1, -20.0, 20.0, 1e-9, -40.0])
    return x


def gradients(function, x, theta):
    x, theta = x.clone().requires_grad_(), theta.clone().requires_grad_()
    value, log_det = function(x, theta)
    weigh = [normal(*value.shape, seed=seed) for seed in (3, 4)]
    total = (value * weigh[0] + log_det * weigh[1]).sum()
    return value.detach(), log_det.detach(), *torch.autograd.grad(total, (x, theta))


def agree(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        row = other.abs() if other.ndim < 2 else other.abs().amax(dim=-1, keepdim=True)
        assert ((one - other).abs() <= tolerance * (1 + row)).all(), float(((one - other).abs() / (1 + row)).max())


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_pullback_is_the_gradient_of_the_map(name, scale):
    elementwise, tolerance = MAPS[name]
    x, theta = points(elementwise), thetas(elementwise, scale)
    agree(gradients(elementwise, x, theta), gradients(elementwise.evaluate, x, theta), tolerance)


@pytest.mark.parametrize("name", MAPS)
def test_points_that_share_a_theta_are_treated_as_if_each_had_its_own(name):
    elementwise, tolerance = MAPS[name]
    theta, x = thetas(elementwise, 0.5, rows=3), points(elementwise, 300).reshape(100, 3)
    own = gradients(elementwise.evaluate, x, theta.expand(100, 3, -1))
    found = gradients(elementwise, x, theta)
    agree(found, (*own[:3], own[3].sum(dim=0)), 10 * tolerance)


@pytest.mark.parametrize("name", MAPS)
def test_float32_gradients_are_those_of_float64_to_rounding(name):
    elementwise, _ = MAPS[name]
    x, theta = normal(ROWS, seed=2).clamp(-1.9, 1.9).float(), thetas(elementwise, 0.3).float()
    wide = gradients(elementwise, x.double(), theta.double())
    narrow = gradients(lambda x, theta: elementwise(x.float(), theta.float()), x.double(), theta.double())
    agree(narrow[:2], wide[:2], 2e-5)
    agree(narrow[2:], wide[2:], 2e-4)


@pytest.mark.parametrize("name", MAPS)
def test_values_without_gradients_and_for_no_rows(name):
    elementwise, tolerance = MAPS[name]
    x, theta = points(elementwise), thetas(elementwise, 1.0)
    expected = elementwise.evaluate(x, theta)
    with torch.no_grad():
        agree(elementwise(x, theta), expected, tolerance)
        turned = theta.t().contiguous().t()  # numbers of one parameter side by side, as sampling has them
        agree(elementwise(x, turned), expected, tolerance)
        assert elementwise(x[:0], theta[:0]).value.shape == (0,)


def test_long_inputs_are_cut_into_pieces_with_the_same_results():
    spline = RationalQuadraticSpline(4, 3.0)
    rows = 2 * spline.piece + 5
    x, theta = normal(rows, seed=5).float(), normal(rows, spline.spec.size, seed=6).float()
    part = slice(spline.piece - 2, spline.piece + 2)  # across the cut
    whole = gradients(lambda x, theta: spline(x.float(), theta.float()), x.double(), theta.double())
    alone = gradients(lambda x, theta: spline(x.float(), theta.float()), x[part].double(), theta[part].double())
    torch.testing.assert_close(whole[0][part], alone[0])
    torch.testing.assert_close(whole[1][part], alone[1])
