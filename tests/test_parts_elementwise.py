"""Affine, spline and sigmoid mixtures against oracles of much higher precision."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.sigmoid_mixture import DeepSigmoid, LogisticMixture
from rosenblatt.elementwise.spline import LARGEST_SLOPE, SMALLEST_BIN, SMALLEST_SLOPE, RationalQuadraticSpline

mpmath.mp.dps = 50


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle_spline(x, theta, bins, bound, tails):
    """Published formulas, fifty digits."""
    theta = [mpmath.mpf(float(t)) for t in theta]
    x, bound = mpmath.mpf(float(x)), mpmath.mpf(bound)

    def knots(raw):
        powers = [mpmath.exp(t) for t in raw]
        floor = mpmath.mpf(SMALLEST_BIN)
        shares = [floor + (1 - bins * floor) * power / sum(powers) for power in powers]
        return [2 * bound * sum(shares[:k]) - bound for k in range(bins)] + [bound]

    def slope(raw):
        limit = mpmath.log(LARGEST_SLOPE) if raw > 0 else -mpmath.log(SMALLEST_SLOPE)
        return mpmath.exp(limit * mpmath.tanh(raw / limit))

    xs, ys = knots(theta[:bins]), knots(theta[bins : 2 * bins])
    ds = [slope(t) for t in theta[2 * bins :]]
    if tails == "linear":
        ds = [mpmath.mpf(1), *ds, mpmath.mpf(1)]
    k = max(i for i in range(bins) if x >= xs[i])
    h, s = ys[k + 1] - ys[k], (ys[k + 1] - ys[k]) / (xs[k + 1] - xs[k])
    p = (x - xs[k]) / (xs[k + 1] - xs[k])
    below = s + (ds[k + 1] + ds[k] - 2 * s) * p * (1 - p)
    y = ys[k] + h * (s * p**2 + ds[k] * p * (1 - p)) / below
    slope_here = s**2 * (ds[k + 1] * p**2 + 2 * s * p * (1 - p) + ds[k] * (1 - p) ** 2) / below**2
    return float(y), float(mpmath.log(slope_here))


@pytest.mark.parametrize("tails", ["linear", "none"])
@pytest.mark.parametrize("bins", [2, 5, 8])
def test_spline_agrees_with_fifty_digits(bins, tails):
    spline = RationalQuadraticSpline(bins=bins, bound=2.5, tails=tails)
    theta = normal(40, spline.spec.size, seed=bins)
    x = torch.cat([torch.linspace(-2.49, 2.49, 37), torch.tensor([-2.5, 0.0, 2.5])]).double()
    value, log_det = spline(x, theta)
    for i in range(40):
        expected = oracle_spline(x[i], theta[i], bins, 2.5, tails)
        assert value[i].item() == pytest.approx(expected[0], rel=1e-13, abs=1e-13)
        assert log_det[i].item() == pytest.approx(expected[1], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("tails", ["linear", "none"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 50.0])
def test_spline_round_trip_residual(tails, scale):
    spline = RationalQuadraticSpline(tails=tails)
    theta = normal(4000, spline.spec.size, scale=scale)
    y = normal(4000, seed=1, scale=2.0)
    y[:5] = torch.tensor([3.0, -3.0, 0.0, 1e-6, -1e-6])
    y = y if tails == "linear" else y.clamp(-3, 3)
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        narrow, at = y.to(dtype), theta.to(dtype)
        x, back_log_det = spline.inverse(narrow, at)
        value, log_det = spline(x, at)
        # x itself is rounded: half an ulp times the slope is not the algorithm's fault.
        ulp = torch.finfo(dtype).eps * x.abs() * torch.exp(log_det)
        assert ((value - narrow).abs() <= limit * (1 + narrow.abs()) + ulp).all()
        assert x.dtype == log_det.dtype == back_log_det.dtype == dtype
        if dtype == torch.float64 and scale <= 1:
            assert (log_det + back_log_det).abs().max() <= 1e-9


def test_spline_is_exact_at_the_box_and_the_identity_beyond():
    spline = RationalQuadraticSpline(bins=6, bound=3.0)
    x = torch.tensor([-3.0, 3.0, -7.5, 1e30, math.inf])
    theta = normal(5, spline.spec.size, scale=3).float()
    value, log_det = spline(x, theta)
    assert torch.equal(value, x)
    assert torch.equal(log_det[2:], torch.zeros(3))
    assert log_det[:2].abs().max() < 1e-6  # boundary slope 1
    assert torch.equal(spline.inverse(x, theta).value, x)


def test_spline_without_tails_ends_at_its_box():
    spline = RationalQuadraticSpline(bins=4, bound=1.0, tails="none")
    theta = normal(5, spline.spec.size)
    x = torch.tensor([-1.0, 1.0, -1.001, 1.001, math.nan]).double()
    value, log_det = spline(x, theta)
    assert value[:4].tolist() == [-1.0, 1.0, -math.inf, math.inf]
    assert torch.isfinite(log_det[:2]).all()
    assert log_det[2:4].tolist() == [-math.inf] * 2
    assert torch.isnan(value[4])
    with pytest.raises(InverseError, match="outside") as caught:
        spline.inverse(torch.tensor([0.5, 1.2]).double(), theta[:2])
    assert caught.value.rows == [1]


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_spline_never_decreases_even_in_float32(scale):
    spline = RationalQuadraticSpline()
    x = torch.linspace(-3.1, 3.1, 10_001, dtype=torch.float64)
    for row in normal(10, spline.spec.size, seed=4, scale=scale):
        theta = row.expand(len(x), -1)
        assert (spline(x, theta).value.diff() > 0).all()
        assert (spline(x.float(), theta.float()).value.diff() >= 0).all()


ALL = [
    Affine(),
    RationalQuadraticSpline(bins=5),
    RationalQuadraticSpline(bins=5, tails="none"),
    LogisticMixture(4),
    DeepSigmoid(units=4, layers=2),
]


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
def test_theta_zero_is_the_identity(part):
    x = torch.linspace(-3.0, 3.0, 101)
    value, log_det = part(x, torch.zeros(101, part.spec.size))
    assert (value - x).abs().max() <= 1e-6
    assert log_det.abs().max() <= 1e-6


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
def test_gradients_of_both_directions(part):
    inside = torch.tensor([-2.7, -1.31, -0.2, 0.05, 0.9, 2.3]).double().requires_grad_()
    theta = normal(6, part.spec.size, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: tuple(part(x, t)), (inside, theta))
    assert torch.autograd.gradcheck(lambda y, t: tuple(part.inverse(y, t)), (inside, theta))
    (slope,) = torch.autograd.grad(part(inside, theta).value.sum(), inside)
    assert torch.allclose(torch.log(slope), part(inside, theta).log_det, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("part", ALL, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_no_gradient_is_ever_nan_or_infinite(part, scale):
    x = torch.tensor([-1e30, -1e4, -3.0, 0.0, 3.0, 3.0000002, 50.0, 1e30]).requires_grad_()
    theta = normal(8, part.spec.size, scale=scale).float().requires_grad_()
    value, log_det = part(x, theta)
    usable = torch.isfinite(value)
    (value[usable].sum() * 1e-3 + log_det[usable].sum()).backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(theta.grad).all()


def test_affine_scale_is_bounded_smoothly_and_asymmetrically():
    raw = torch.tensor([-1e9, -3.0, -1e-6, 0.0, 1e-6, 3.0, 1e9]).double()
    theta = torch.stack([torch.ones(7).double(), raw], dim=-1)
    value, log_det = Affine()(torch.full((7,), 3.0).double(), theta)
    low, high = mpmath.exp(-2), mpmath.exp(5)
    odds = [(1 - low) / (high - 1) * mpmath.exp(r * (high - low) / (1 - low) / (high - 1)) for r in raw.tolist()[1:-1]]
    between = [float(mpmath.log(low + (high - low) * o / (1 + o))) for o in odds]
    assert log_det.tolist() == pytest.approx([-2.0, *between, 5.0], rel=1e-9, abs=1e-14)
    assert between[1] == pytest.approx(-1e-6, rel=1e-6)  # slope 1 at the identity
    assert torch.allclose(value, 2 * torch.exp(log_det))


def test_affine_round_trip_in_float32():
    theta = normal(1000, 2, scale=3).float()
    x = normal(1000, seed=1, scale=5).float()
    y, log_det = Affine()(x, theta)
    back, back_log_det = Affine().inverse(y, theta)
    assert torch.equal(log_det, -back_log_det)
    assert ((back - x).abs() <= 1e-6 * (1 + x.abs() + theta[:, 0].abs())).all()


def test_logistic_mixture_is_scipys():
    mixture = LogisticMixture(5)
    theta = normal(1, mixture.spec.size, seed=2)
    parts = mixture.spec.split(theta[0])
    weight = torch.softmax(parts["logits"], 0).numpy()
    slope = torch.exp(7 * torch.tanh(parts["log_scales"] / 7)).numpy()
    x = torch.linspace(-12, 12, 49).double()
    frozen = [scipy.stats.logistic(m, 1 / a) for m, a in zip(parts["locations"].numpy(), slope, strict=True)]

    def mixed(method):
        return sum(w * getattr(part, method)(x.numpy()) for w, part in zip(weight, frozen, strict=True))

    wide = theta.expand(49, -1)
    np.testing.assert_allclose(mixture.cdf(x, wide), mixed("cdf"), rtol=1e-12)
    np.testing.assert_allclose(torch.exp(mixture.log_sf(x, wide)), mixed("sf"), rtol=1e-12)
    np.testing.assert_allclose(torch.exp(mixture.log_prob(x, wide)), mixed("pdf"), rtol=1e-12)
    np.testing.assert_allclose(mixture.quantile(mixture.cdf(x[15:34], wide[15:34]), wide[15:34]), x[15:34], atol=1e-9)


def test_logistic_mixture_tails_in_float32():
    mixture = LogisticMixture(5)
    x = torch.tensor([-1e4, -300.0, 300.0, 1e4])
    theta = normal(4, mixture.spec.size, seed=5).float()
    narrow, wide = mixture.log_prob(x, theta).double(), mixture.log_prob(x.double(), theta.double())
    assert ((narrow - wide).abs() <= 1e-5 * wide.abs()).all()


def test_interval_probabilities_of_a_mixture_keep_their_digits():
    mixture = LogisticMixture(4)
    theta = normal(1, mixture.spec.size, seed=6)
    edges = torch.linspace(-8, 8, 257).double()
    inner = mixture.log_interval(edges[:-1], edges[1:], theta.expand(256, -1))
    open_ends = torch.cat([mixture.log_cdf(edges[:1], theta), mixture.log_sf(edges[-1:], theta)])
    assert torch.exp(torch.cat([inner, open_ends])).sum().item() == pytest.approx(1.0, abs=1e-12)

    lower, width = mpmath.mpf(40), mpmath.mpf("1e-12")
    parts = {name: [mpmath.mpf(v.item()) for v in part] for name, part in mixture.spec.split(theta[0]).items()}
    total = sum(mpmath.exp(v) for v in parts["logits"])
    exact = mpmath.mpf(0)
    upper = mpmath.mpf(float(torch.tensor(40.0).double() + 1e-12))
    for logit, m, raw in zip(*parts.values(), strict=True):
        a = mpmath.exp(7 * mpmath.tanh(raw / 7))
        tail_low, tail_high = (1 / (1 + mpmath.exp(a * (t - m))) for t in (lower, upper))
        exact += mpmath.exp(logit) / total * (tail_low - tail_high)
    assert upper - lower < 2 * width
    got = mixture.log_interval(torch.tensor([40.0]).double(), torch.tensor([float(upper)], dtype=torch.float64), theta)
    assert got.item() == pytest.approx(float(mpmath.log(exact)), rel=1e-12)


@pytest.mark.parametrize("components", [1, 2, 10, 33])
def test_start_breaks_symmetry_near_the_identity(components):
    x = torch.linspace(-20, 20, 2001)
    mixture = LogisticMixture(components)
    start = mixture.start()
    assert (mixture.cdf(x, start.expand(2001, -1)) - torch.sigmoid(x)).abs().max() <= 0.02
    assert len(set(mixture.spec.split(start)["locations"].tolist())) == components
    deep = DeepSigmoid(units=components, layers=2)
    middle = x[x.abs() < 3]
    value = deep(middle, deep.start().expand(len(middle), -1)).value
    assert (torch.sigmoid(value) - torch.sigmoid(middle)).abs().max() <= 0.04


def test_deep_sigmoid_reaches_the_whole_line():
    flow = DeepSigmoid(units=6, layers=3)
    theta = normal(4, flow.spec.size, seed=8)
    y = torch.tensor([-1e3, -20.0, 20.0, 1e3]).double()
    x, _ = flow.inverse(y, theta)
    assert ((flow(x, theta).value - y).abs() <= 1e-10 * (1 + y.abs())).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Affine(contract=0.0),
        lambda: RationalQuadraticSpline(bins=1),
        lambda: RationalQuadraticSpline(bound=0.0),
        lambda: RationalQuadraticSpline(tails="circular"),
        lambda: LogisticMixture(0),
        lambda: DeepSigmoid(layers=0),
    ],
)
def test_bad_options_are_refused(make):
    with pytest.raises(OptionError):
        make()
