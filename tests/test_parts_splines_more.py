"""Bernstein polynomials, polynomial splines and circular splines against scipy's piecewise polynomials."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BPoly, CubicHermiteSpline, PPoly

import rosenblatt.models  # noqa: F401
from rosenblatt.core import registry
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.bernstein import BernsteinPolynomial
from rosenblatt.elementwise.circular import CircularSpline
from rosenblatt.elementwise.polynomial_spline import PolynomialSpline
from rosenblatt.elementwise.spline import RationalQuadraticSpline

BOUND = 2.5
PI = math.pi
DEGREES = (1, 2, 3)


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(raw):
    powers = np.exp(raw - raw.max())
    return powers / powers.sum()


def shares(raw):
    return 1e-3 + (1 - 1e-3 * len(raw)) * softmax(raw)


def scipy_bernstein(degree, tails, raw):
    """The polynomial from its coefficients."""
    if tails == "none":
        rises = 2 * BOUND * (1e-3 / degree + (1 - 1e-3) * softmax(raw))
        first = -BOUND
    else:
        limit = np.where(raw[:degree] > 0, np.log(30), np.log(1e3))
        rises = 2 * BOUND / degree * np.exp(limit * np.tanh(raw[:degree] / limit))
        first = raw[degree] - rises.sum() / 2
    coefficients = first + np.concatenate([[0.0], rises.cumsum()])
    return BPoly(coefficients[:, None], [-BOUND, BOUND])


def scipy_spline(degree, bins, raw):
    """The piecewise polynomial from the formulas of the papers."""
    widths = 2 * BOUND * (np.full(bins, 1 / bins) if degree == 1 else shares(raw[:bins]))
    x = np.concatenate([[-BOUND], -BOUND + widths.cumsum()])
    if degree == 2:
        spans = (widths[1:] + widths[:-1]) / 2
        inner = softmax(raw[bins:])
        density = np.concatenate([[1.0], 1e-3 + (1 - 1e-3) * inner * spans.sum() / (inner @ spans), [1.0]])
        lines = PPoly(np.stack([np.diff(density) / widths, density[:-1]]), x)
        whole = lines.antiderivative()
        return PPoly(whole.c - np.array([[0.0], [0.0], [BOUND]]), x)
    y = np.concatenate([[-BOUND], -BOUND + 2 * BOUND * shares(raw[-bins:]).cumsum()])
    secant = np.diff(y) / np.diff(x)
    if degree == 1:
        return PPoly(np.stack([secant, y[:-1]]), x)
    slopes = [min(1.0, 3 * secant[0])]
    for k in range(1, bins):
        parabola = (secant[k - 1] * widths[k] + secant[k] * widths[k - 1]) / (widths[k - 1] + widths[k])
        slopes.append(2 * min(secant[k - 1], secant[k], parabola / 2))
    return CubicHermiteSpline(x, y, [*slopes, min(1.0, 3 * secant[-1])])


@pytest.mark.parametrize("tails", ["linear", "none"])
@pytest.mark.parametrize("degree", [1, 2, 7, 20, 60])
def test_bernstein_is_scipys_with_its_derivative(degree, tails):
    polynomial = BernsteinPolynomial(degree, BOUND, tails)
    x = torch.cat([torch.linspace(-BOUND, BOUND, 101), torch.tensor([-1e-6, 1e-6, 2.4999])]).double()
    for raw in normal(5, polynomial.spec.size, seed=degree):
        oracle = scipy_bernstein(degree, tails, raw.numpy())
        value, log_det = polynomial(x, raw)
        np.testing.assert_allclose(value, oracle(x.numpy()), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(torch.exp(log_det), oracle.derivative()(x.numpy()), rtol=1e-12)


def test_bernstein_goes_on_as_the_tangent_at_each_end():
    polynomial = BernsteinPolynomial(9, BOUND)
    raw = normal(polynomial.spec.size, seed=1)
    oracle = scipy_bernstein(9, "linear", raw.numpy())
    for end, away in ((-BOUND, -1.0), (BOUND, 1.0)):
        slope = float(oracle.derivative()(end))
        distance = torch.tensor([0.0, 1e-12, 0.3, 40.0, 1e7], dtype=torch.float64)
        value, log_det = polynomial(end + away * distance, raw)
        expected = float(oracle(end)) + slope * (end + away * distance - end)
        assert torch.allclose(value, expected, rtol=1e-12, atol=1e-12)
        assert torch.allclose(log_det, torch.full_like(log_det, math.log(slope)), rtol=1e-12, atol=1e-12)
        assert polynomial(torch.tensor(away * math.inf), raw).value == away * math.inf


def test_bernstein_reaches_the_whole_line_and_comes_back():
    polynomial = BernsteinPolynomial(12, BOUND)
    theta = normal(6, polynomial.spec.size, seed=2, scale=2.0)
    y = torch.tensor([-1e6, -30.0, -1.0, 1e-9, 7.0, 1e6]).double()
    x, log_det = polynomial.inverse(y, theta)
    value, forward_log_det = polynomial(x, theta)
    assert ((value - y).abs() <= 1e-12 * (1 + y.abs())).all()
    assert torch.equal(log_det, -forward_log_det)


@pytest.mark.parametrize("part", [BernsteinPolynomial(8, BOUND, "none"), CircularSpline(5), CircularSpline(5, True)])
def test_a_box_maps_onto_itself_and_has_nothing_outside(part):
    bound = part.domain.upper
    theta = normal(5, part.spec.size, seed=3)
    x = torch.tensor([-bound, bound, -bound - 1e-3, bound + 1e-3, math.nan], dtype=torch.float64)
    value, log_det = part(x, theta)
    assert value[:2].tolist() == pytest.approx([-bound, bound], abs=1e-14 if getattr(part, "phase", False) else 0)
    assert torch.isfinite(log_det[:2]).all()
    assert value[2:4].tolist() == [-math.inf, math.inf]
    assert log_det[2:4].tolist() == [-math.inf] * 2
    assert torch.isnan(value[4])
    with pytest.raises(InverseError, match="outside") as caught:
        part.inverse(torch.tensor([0.5, bound + 0.2]).double(), theta[:2])
    assert caught.value.rows == [1]


@pytest.mark.parametrize("bins", [3, 8, 40])
@pytest.mark.parametrize("degree", DEGREES)
def test_polynomial_spline_is_scipys_with_its_derivative(degree, bins):
    spline = PolynomialSpline(degree, bins, BOUND)
    for raw in normal(5, spline.spec.size, seed=bins):
        oracle = scipy_spline(degree, bins, raw.numpy())
        x = torch.linspace(-2.4999, 2.4999, 211).double()
        value, log_det = spline(x, raw)
        np.testing.assert_allclose(value, oracle(x.numpy()), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(torch.exp(log_det), oracle.derivative()(x.numpy()), rtol=1e-10)


@pytest.mark.parametrize("degree", DEGREES)
def test_polynomial_spline_is_continuous_at_its_knots(degree):
    bins = 6
    spline = PolynomialSpline(degree, bins, BOUND)
    for raw in normal(8, spline.spec.size, seed=4):
        knots = torch.from_numpy(scipy_spline(degree, bins, raw.numpy()).x)
        bends = []
        for step in (1e-7, 1e-9):
            below, above = spline(knots - step, raw), spline(knots + step, raw)
            rise = 2 * step * torch.maximum(torch.exp(below.log_det), torch.exp(above.log_det))
            assert ((above.value - below.value) <= 1.01 * rise + 1e-14).all()
            assert (above.value > below.value).all()
            inner = slice(0, None) if degree == 2 else slice(1, -1)
            bends.append((above.log_det - below.log_det)[inner].abs().max())
        # A continuous slope changes in proportion to the step.
        assert bends[1] > 1e-2 if degree == 1 else bends[1] < 0.011 * bends[0]


@pytest.mark.parametrize("degree", DEGREES)
def test_polynomial_spline_is_the_identity_outside(degree):
    spline = PolynomialSpline(degree, 5, BOUND)
    x = torch.tensor([-BOUND, BOUND, -7.3, 1e30, math.inf, -math.inf])
    theta = normal(6, spline.spec.size, seed=5, scale=3.0).float()
    for call in (spline, spline.inverse):
        value, log_det = call(x, theta)
        assert torch.equal(value, x)
        assert torch.equal(log_det, torch.zeros(6))
    assert torch.isnan(spline(torch.tensor(math.nan), theta).value).all()


def test_cubic_ends_are_smooth_unless_the_outer_bin_is_flat():
    spline = PolynomialSpline(3, 4, BOUND)
    theta = torch.zeros(2, spline.spec.size).double()
    theta[0, 4] = 0.5  # a higher first bin
    theta[1, 4] = -3.0
    log_det = spline(torch.full((2,), -BOUND + 1e-9, dtype=torch.float64), theta).log_det
    flat = scipy_spline(3, 4, theta[1].numpy())
    assert log_det[0].abs() < 1e-7
    assert log_det[1].item() == pytest.approx(math.log(3 * (flat(flat.x[1]) + BOUND) / (flat.x[1] + BOUND)), abs=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("degree", DEGREES)
def test_polynomial_spline_inverse_is_the_root_of_the_search(degree, scale):
    spline = PolynomialSpline(degree, 7, BOUND)
    theta = normal(500, spline.spec.size, seed=6, scale=scale)
    y = normal(500, seed=7, scale=1.5)
    for dtype, limit in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        x, back_log_det = spline.inverse(y.to(dtype), theta.to(dtype))
        value, log_det = spline(x, theta.to(dtype))
        stored = torch.finfo(dtype).eps * x.abs() * torch.exp(log_det)
        assert ((value - y.to(dtype)).abs() <= limit * (1 + y.abs()) + 2 * stored).all()
        assert torch.equal(log_det, -back_log_det)
        assert x.dtype == back_log_det.dtype == dtype
    found, searched = spline.inverse(y, theta).value, Elementwise.inverse(spline, y, theta).value
    slope = torch.exp(spline(found, theta).log_det)
    assert ((found - searched).abs() <= 1e-13 * (1 + 1 / slope)).all()


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize(
    "part",
    [
        *(PolynomialSpline(degree, 6) for degree in DEGREES),
        BernsteinPolynomial(10),
        BernsteinPolynomial(10, tails="none"),
    ],
    ids=["linear", "quadratic", "cubic", "bernstein", "bernstein_box"],
)
def test_increasing_for_any_parameters(part, scale):
    x = torch.linspace(-2.999, 2.999, 10_001, dtype=torch.float64)
    for raw in normal(10, part.spec.size, seed=8, scale=scale):
        value, log_det = part(x, raw)
        assert (value.diff() > 0).all()
        assert torch.isfinite(log_det).all()
        assert (part(x.float(), raw.float()).value.diff() >= 0).all()


def test_circular_spline_is_a_box_spline_with_tied_ends():
    circle, box = CircularSpline(5), RationalQuadraticSpline(5, PI, "none")
    theta = normal(300, circle.spec.size, seed=9)
    tied = torch.cat([theta, theta[:, 10:11]], dim=-1)
    x = normal(300, seed=10).clamp(-3.1, 3.1)
    for one, other in ((circle(x, theta), box(x, tied)), (circle.inverse(x, theta), box.inverse(x, tied))):
        assert torch.equal(one.value, other.value)
        assert torch.equal(one.log_det, other.log_det)
    ends = torch.tensor([[-PI], [PI]], dtype=torch.float64)
    low, high = circle(ends, theta).log_det
    assert torch.allclose(low, high, rtol=0, atol=1e-14)
    assert low.abs().max() > 0.1


def test_phase_turns_the_knots_and_keeps_the_ends():
    plain, turned = CircularSpline(5), CircularSpline(5, phase=True)
    theta = normal(turned.spec.size, seed=11)
    for phase in (-9.0, -0.4, 0.0, 2.0, 7.0):
        theta[-1] = phase
        x = torch.linspace(-PI, PI, 20_001, dtype=torch.float64)
        value, log_det = turned(x, theta)
        moved = torch.atan2(torch.sin(x - phase), torch.cos(x - phase))
        expected = plain(moved, theta[:-1])
        around = torch.exp(1j * (value - expected.value))
        assert (around - around[0]).abs().max() <= 1e-12  # a rotation of the spline turned
        assert torch.allclose(log_det, expected.log_det, rtol=0, atol=1e-11)
        assert value[0].item() == pytest.approx(-PI, abs=1e-14)
        assert value[-1].item() == pytest.approx(PI, abs=1e-14)
        assert log_det[0].item() == pytest.approx(log_det[-1].item(), abs=1e-12)
        assert torch.trapezoid(torch.exp(log_det), x).item() == pytest.approx(2 * PI, abs=1e-4)
        assert (value.diff() > 0).all()
        back, back_log_det = turned.inverse(value, theta)
        assert (back - x).abs().max() <= 1e-12
        assert (log_det + back_log_det).abs().max() <= 1e-10
    x, raw = x[3::4000].requires_grad_(), theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda *at: tuple(turned(*at)), (x, raw))
    assert torch.autograd.gradcheck(lambda *at: tuple(turned.inverse(*at)), (x, raw))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bernstein", {}),
        ("bernstein", {"coupling": True, "residual": False}),
        ("nsf", {"spline": "linear"}),
        ("nsf", {"spline": "quadratic", "coupling": True}),
        ("nsf", {"spline": "cubic"}),
    ],
)
def test_models_have_the_jacobian_they_report(name, options):
    model = registry.build(name, 3, 2, options={"hidden": 16, "transforms": 2, **options}, seed=0).double()
    generator = torch.Generator().manual_seed(12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x, context = normal(10, 3, seed=13, scale=2.0), normal(10, 2, seed=14)
    z, log_det = model.transform(x, context)
    back, back_log_det = model.transform.inverse(z, context)
    assert (back - x).abs().max() <= 1e-8
    assert (log_det + back_log_det).abs().max() <= 1e-7
    for row, given, expected in zip(x, context, log_det, strict=True):
        jacobian = torch.func.jacrev(lambda v, given=given: model.transform(v, given).value)(row)
        assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(expected.item(), abs=1e-8)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: BernsteinPolynomial(0), "degree"),
        (lambda: BernsteinPolynomial(101), "degree"),
        (lambda: BernsteinPolynomial(bound=-1.0), "bound"),
        (lambda: BernsteinPolynomial(tails="circular"), "tails"),
        (lambda: PolynomialSpline(4), "degree"),
        (lambda: PolynomialSpline(2, bins=2), "bins"),
        (lambda: PolynomialSpline(2, bound=math.inf), "bound"),
        (lambda: CircularSpline(1), "bins"),
        (lambda: registry.build("bernstein", 2, options={"transforms": 0}), "transforms"),
        (lambda: registry.build("nsf", 2, options={"spline": "quartic"}), "spline"),
    ],
)
def test_bad_options_are_refused_by_name(make, word):
    with pytest.raises(OptionError, match=word):
        make()
