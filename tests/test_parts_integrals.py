"""Integrals of positive functions and dense sigmoidal nets against numpy's polynomials and scipy's quadrature."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from numpy.polynomial import Polynomial
from numpy.polynomial.legendre import leggauss

import rosenblatt.models  # noqa: F401 - enters every model in the registry
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.quadrature import gauss_legendre
from rosenblatt.core.registry import build
from rosenblatt.elementwise.dense_sigmoid import DenseSigmoid
from rosenblatt.elementwise.integral import STEEPEST, IntegratedNet, SumOfSquares
from rosenblatt.elementwise.sigmoid_mixture import DeepSigmoid


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2, 3, 8, 33, 100])
def test_gauss_legendre_is_numpys_and_exact_for_polynomials(order):
    nodes, weights = gauss_legendre(order)
    expected_nodes, expected_weights = leggauss(order)
    np.testing.assert_allclose(nodes, (1 + expected_nodes) / 2, atol=1e-15)
    np.testing.assert_allclose(weights, expected_weights / 2, rtol=1e-11)
    for power in (0, 1, order, 2 * order - 1):
        assert (weights * nodes**power).sum().item() == pytest.approx(1 / (power + 1), rel=1e-13)
    with pytest.raises(OptionError):
        gauss_legendre(0)


def numpys_squares(sos, theta):
    """The integrand as numpy's polynomial, from the published formula."""
    raw = sos.spec.split(theta)["coefficients"].numpy()
    total = Polynomial([0.0])
    for row in raw:
        terms = [10 * np.tanh(a / 10) / math.sqrt(math.factorial(i)) for i, a in enumerate(row)]
        terms[0] += sos.squares**-0.5
        total = total + Polynomial(terms) ** 2
    return 1e-3 + (1 - 1e-3) * total


@pytest.mark.parametrize(("squares", "degree"), [(1, 1), (2, 3), (5, 4)])
def test_sum_of_squares_is_the_integral_of_numpys_polynomial(squares, degree):
    sos = SumOfSquares(squares, degree, bound=5.0)
    x = torch.linspace(-5, 5, 41, dtype=torch.float64)
    for theta in normal(5, sos.spec.size, seed=1, scale=1.5):
        density = numpys_squares(sos, theta)
        value, log_det = sos(x, theta.expand(41, -1))
        expected = theta[0].item() + density.integ(lbnd=0)(x.numpy())
        np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(log_det, np.log(density(x.numpy())), rtol=1e-9, atol=1e-9)
        by_quadrature = scipy.integrate.quad(density, 0, 2.5, epsabs=1e-12)[0]
        assert value[30].item() - theta[0].item() == pytest.approx(by_quadrature, rel=1e-10)


def test_sum_of_squares_goes_on_as_its_tangent():
    sos = SumOfSquares(2, 3, bound=2.0)
    theta = normal(sos.spec.size, seed=2)
    slope, end = numpys_squares(sos, theta)(-2.0), sos(torch.tensor([-2.0]).double(), theta).value
    far, log_det = sos(torch.tensor([-2.5, -1e3, -1e30], dtype=torch.float64), theta)
    assert (far - end).tolist() == pytest.approx([-0.5 * slope, -998 * slope, -1e30 * slope], rel=1e-12)
    assert log_det.tolist() == pytest.approx([math.log(slope)] * 3, rel=1e-12)


def test_a_square_that_vanishes_leaves_the_smallest_slope():
    sos = SumOfSquares(1, 1)
    raw = 10 * math.atanh(-1 / 10)  # q(t) = 1 - t
    theta = sos.spec.join(shift=torch.zeros(()), coefficients=torch.tensor([[0.0, raw]])).double()
    theta[-1] = raw
    x = torch.tensor([1.0]).double()
    assert sos(x, theta).log_det.item() == pytest.approx(math.log(1e-3), abs=1e-12)
    y = sos(torch.linspace(0.9, 1.1, 51, dtype=torch.float64), theta).value
    assert (y.diff() > 0).all()
    assert sos.inverse(y, theta).value.tolist() == pytest.approx(np.linspace(0.9, 1.1, 51).tolist(), abs=1e-10)


def integrand(net, theta):
    """`exp(h)` from the formula, with numpy alone."""
    parts = {name: part.numpy() for name, part in net.spec.split(theta).items()}
    width = 2 * net.bound / net.cells
    sharpness = 2 / width * np.tanh(parts["sharpness"] * width / 2)
    outer = 10 * np.tanh(parts["outer"] / 10)
    products = outer * sharpness
    largest = max(products[products > 0].sum(), -products[products < 0].sum())
    outer = outer / math.sqrt(1 + (largest * width / 1.5) ** 2)

    def g(t):
        t = np.asarray(t)[..., None]
        hidden = np.tanh(sharpness * (t - parts["location"])) - np.tanh(-sharpness * parts["location"])
        return np.exp(3 * np.tanh(parts["log_slope"] / 3) + (outer * hidden).sum(-1))

    return g


def test_integrated_net_is_scipys_integral():
    net = IntegratedNet()
    x = torch.tensor([-4.0, -2.71, -1.0, -0.013, 0.0, 0.4, 1.7, 3.999], dtype=torch.float64)
    for theta in net.start().double() + normal(4, net.spec.size, seed=3, scale=1.0):
        g = integrand(net, theta)
        value, log_det = net(x, theta.expand(len(x), -1))
        expected = [theta[0].item() + scipy.integrate.quad(g, 0, end, epsabs=1e-12, limit=200)[0] for end in x.tolist()]
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(log_det, np.log(g(x.numpy())), atol=1e-4)


def test_log_det_is_the_derivative_of_the_sum_that_runs_not_of_the_integrand():
    net = IntegratedNet(4, bound=4.0, cells=4, nodes=1)
    theta = net.start().double() + normal(net.spec.size, seed=4, scale=2.0)
    x = torch.linspace(-3.9, 3.9, 30, dtype=torch.float64).requires_grad_()
    value, log_det = net(x, theta)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert torch.allclose(torch.log(slope), log_det, atol=1e-12)
    error = log_det.detach().numpy() - np.log(integrand(net, theta)(x.detach().numpy()))
    assert np.abs(error).max() > 0.01  # one node cannot integrate this; the density is right all the same
    # Between the ends of cells the map is smooth, so Gauss sums of its slope give its rise, and it has no gaps.
    nodes, weights = gauss_legendre(40)
    for begin in (-4.0, -2.0, 0.0, 2.0):
        inside = begin + 2 * nodes
        rise = (2 * weights * torch.exp(net(inside, theta).log_det)).sum()
        ends = net(torch.tensor([begin, begin + 2]).double(), theta).value
        assert rise.item() == pytest.approx(ends.diff().item(), rel=1e-9)


def test_the_quadrature_increases_up_to_the_steepest_integrand():
    for order in range(1, 25):
        nodes, weights = gauss_legendre(order)
        worst = (weights * torch.exp(STEEPEST * nodes) * (1 - STEEPEST * nodes)).sum()
        assert worst.item() > 0.15
    exact = 2 * (math.exp(STEEPEST) - 1) / STEEPEST - math.exp(STEEPEST)
    assert worst.item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nodes", [1, 4])
def test_integrated_net_increases_whatever_its_weights(nodes, dtype):
    net = IntegratedNet(6, bound=3.0, cells=6, nodes=nodes)
    x = torch.linspace(-3.2, 3.2, 641).to(dtype)
    for scale in (1.0, 10.0, 1e3, 1e30):
        theta = normal(100, net.spec.size, seed=5, scale=scale).to(dtype)
        theta[:, 0] = 0
        theta[::2, -6:] = theta[::2, -6:].clamp(-3, 3)  # hidden units where the data are
        value, log_det = net(x, theta.unsqueeze(1))
        assert torch.isfinite(log_det).all()
        size = 1 + value[:, 1:].abs()
        assert (value.diff(dim=-1) >= (-4e-6 if dtype == torch.float32 else -1e-13) * size).all()
        visible = log_det[:, 1:] > torch.log((1e-3 if dtype == torch.float32 else 1e-10) * size)
        assert (value.diff(dim=-1)[visible] > 0).all()
        assert visible.double().mean() > 0.5


def test_dense_sigmoid_of_one_layer_is_the_deep_sigmoid():
    dense, deep = DenseSigmoid(5, 1), DeepSigmoid(5, 1)
    parts = {name: normal(20, 5, seed=seed) for seed, name in enumerate(("shifts", "log_slopes", "logits"))}
    x = normal(20, seed=9, scale=3.0)
    first = dense(
        x,
        dense.spec.join(
            shift_1=parts["shifts"], log_slope_1=parts["log_slopes"], outward_1=parts["logits"].unsqueeze(-2)
        ),
    )
    second = deep(x, deep.spec.join(**{name: part.unsqueeze(-2) for name, part in parts.items()}))
    assert torch.allclose(first.value, second.value, rtol=1e-13, atol=1e-13)
    assert torch.allclose(first.log_det, second.log_det, rtol=1e-13, atol=1e-13)


def test_numbers_between_dense_layers_differ_from_the_start():
    dense = DenseSigmoid(6, 3)
    theta = dense.start().double().requires_grad_()
    x = normal(200, seed=1)
    value, log_det = dense(x, theta.expand(200, -1))
    loss = (0.5 * value.square() - log_det).mul(x.cos()).sum()
    (grad,) = torch.autograd.grad(loss, theta)
    for name in ("inward_2", "inward_3"):
        part = dense.spec.split(grad)[name]
        assert (part[:, 1:] - part[:, :-1]).abs().min() > 0  # no two numbers learn the same


def refused_rows(part, y, theta):
    try:
        part.inverse(y, theta)
    except InverseError as error:
        return error.rows
    return []


ALL = [SumOfSquares(2, 3), IntegratedNet(6), DenseSigmoid(4, 2)]


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
def test_theta_zero_is_the_identity(part):
    x = torch.linspace(-8.0, 8.0, 101)
    value, log_det = part(x, torch.zeros(101, part.spec.size))
    assert (value - x).abs().max() <= 4e-6
    assert log_det.abs().max() <= 2e-6


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("scale", [1.0, 5.0, 50.0])
def test_an_inverse_up_to_a_thousand_is_right_or_refused(part, scale):
    theta = part.start().double() + normal(300, part.spec.size, seed=6, scale=scale)
    ends = torch.cat([torch.linspace(-1e3, 1e3, 101).double(), normal(199, seed=7, scale=4.0)])
    for targets in (ends, part(ends, theta).value):
        refused = refused_rows(part, targets, theta)
        assert len(refused) < 100  # one by one, not wholesale
        keep = torch.ones(300, dtype=torch.bool)
        keep[refused] = False
        y, kept = targets[keep], theta[keep]
        x, log_det = part.inverse(y, kept)
        slope, ulp = torch.exp(-log_det), torch.finfo(torch.float64).eps * x.abs()
        assert ((part(x, kept).value - y).abs() <= 1e-10 * (1 + y.abs()) + 8 * slope * ulp).all()


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
def test_no_gradient_is_ever_nan_or_infinite(part):
    for scale in (0.0, 1.0, 50.0, 1e30):
        x = torch.tensor([-1e30, -1e4, -5.0, -4.0, 0.0, 1 / 3, 4.0, 5.0, 5.0000005, 1e30]).requires_grad_()
        theta = normal(10, part.spec.size, seed=8, scale=scale).float().requires_grad_()
        value, log_det = part(x, theta)
        usable = torch.isfinite(value)
        (value[usable].sum() * 1e-6 + log_det[usable].sum()).backward()
        assert torch.isfinite(x.grad).all()
        assert torch.isfinite(theta.grad).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SumOfSquares(0), "squares: 0"),
        (lambda: SumOfSquares(degree=0), "degree: 0"),
        (lambda: SumOfSquares(bound=math.inf), "bound: inf"),
        (lambda: IntegratedNet(0), "units: 0"),
        (lambda: IntegratedNet(nodes=0), "nodes: 0"),
        (lambda: IntegratedNet(cells=3), "cells: 3"),
        (lambda: IntegratedNet(bound=-1.0), "bound: -1.0"),
        (lambda: DenseSigmoid(0), "units: 0"),
        (lambda: DenseSigmoid(layers=0), "layers: 0"),
        (lambda: build("sos", 2, options={"transforms": 0}), "transforms: 0"),
        (lambda: build("umnn", 2, options={"transforms": 0}), "transforms: 0"),
        (lambda: build("naf", 2, options={"transforms": 0}), "transforms: 0"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()
