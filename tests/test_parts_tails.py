"""Small closed maps and tail maps against scipy and fifty digits, far into the tails and in float32."""

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

from rosenblatt.bases import StandardLogistic, StandardNormal
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.elementwise.simple import Arcsinh, Kumaraswamy, SinhArcsinh, TwoSlopes, YeoJohnson, between
from rosenblatt.elementwise.tails import ParetoTails, TailTransform
from rosenblatt.layers.block_triangular import BlockLU

mpmath.mp.dps = 50
FAR = torch.tensor([-1e4, -517.0, -3.0, -1e-3, 0.0, 0.4, 2.5, 80.0, 1e4], dtype=torch.float32)
PARTS = [SinhArcsinh(), TwoSlopes(), TwoSlopes(sharp=True), YeoJohnson(), Arcsinh(), Kumaraswamy(), ParetoTails()]
PARTS.append(TailTransform())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wide(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def density(part, base, x, theta):
    mapped = part(x, theta)
    return base.log_prob(mapped.value.unsqueeze(-1)) + mapped.log_det


def xi_of(raw, low=0.01, start=0.05):
    odds = (start - low) / (2 - start) * math.exp(raw)
    return low + (2 - low) * odds / (1 + odds)


def test_yeo_johnson_is_scipys():
    x = torch.linspace(-30, 30, 41).double()
    for raw in (-2.0, -0.3, 0.0, 0.7, 5.0):
        value, log_det = YeoJohnson()(x, wide([raw]))
        power = 1 + 0.9 * math.tanh(raw / 0.9)
        np.testing.assert_allclose(value, scipy.stats.yeojohnson(x.numpy(), power), rtol=1e-12, atol=1e-13)
        expected = (power - 1) * np.sign(x.numpy()) * np.log1p(np.abs(x.numpy()))
        np.testing.assert_allclose(log_det, expected, rtol=1e-12)


def test_arcsinh_behind_a_normal_base_is_johnsons_su():
    raw, x = 1.5, torch.linspace(-40, 40, 33).double()
    bend = xi_of(raw, low=0.001)
    law = scipy.stats.johnsonsu(0, 1 / bend, scale=1 / bend)
    found = density(Arcsinh(), StandardNormal(1), x, wide([raw]))
    np.testing.assert_allclose(found, law.logpdf(x.numpy()), rtol=1e-11)


def test_kumaraswamy_has_its_digits_in_both_tails():
    a, b = (mpmath.exp(2 * mpmath.tanh(mpmath.mpf(raw) / 2)) for raw in (0.8, -1.3))
    x = wide([-700.0, -40.0, -1.0, 0.3, 50.0, 900.0])
    theta = wide([0.8, -1.3])
    part = Kumaraswamy()
    for point, low, high in zip(x.tolist(), part.log_cdf(x, theta), part.log_sf(x, theta), strict=True):
        inner = (1 + mpmath.exp(-mpmath.mpf(point))) ** -a
        with mpmath.workdps(900):
            survival = (1 - (1 + mpmath.exp(-mpmath.mpf(point))) ** -a) ** b
            log_low, log_high = mpmath.log(1 - survival), mpmath.log(survival)
        assert 0 < inner <= 1
        assert low.item() == pytest.approx(float(log_low), rel=1e-13, abs=1e-300)
        assert high.item() == pytest.approx(float(log_high), rel=1e-13, abs=1e-300)


def test_sinh_arcsinh_far_out_is_a_power():
    theta = wide([0.5, -1.0])
    tail, skew = math.exp(math.tanh(0.5)), -4 * math.tanh(0.25)
    value, log_det = SinhArcsinh()(wide([1e30, -1e30]), theta)
    expected = [tail * math.log(2e30) - skew, tail * math.log(2e30) + skew]
    np.testing.assert_allclose(torch.log(2 * value.abs()), expected, rtol=1e-13)
    np.testing.assert_allclose(log_det, math.log(tail) + np.array(expected) - math.log(2e30), rtol=1e-13)


def test_two_slopes_reach_their_slopes():
    theta = wide([-1.0, 0.4])
    left, right = (2 * math.tanh(raw / 2) for raw in (-1.0, 0.4))
    far = wide([-1e9, 1e9])
    for sharp in (False, True):
        part = TwoSlopes(sharp=sharp)
        np.testing.assert_allclose(part(far, theta).log_det, [left, right], atol=1e-12)
        back, log_det = part.inverse(far, theta)
        np.testing.assert_allclose(back, far.numpy() / np.exp([left, right]), rtol=1e-8)
        np.testing.assert_allclose(log_det, [-left, -right], atol=1e-12)
    value, log_det = TwoSlopes(sharp=True)(wide([-2.0, 0.0, 2.0]), theta)
    np.testing.assert_allclose(value, [-2 * math.exp(left), 0, 2 * math.exp(right)])
    np.testing.assert_allclose(log_det, [left, right, right])


@pytest.mark.parametrize("raw", [(-2.0, 1.0), (0.0, 0.0), (3.0, 5.0)])
def test_tail_transform_of_a_normal_is_a_two_sided_generalised_pareto(raw):
    xi = wide([xi_of(part) for part in raw])
    x = torch.cat([FAR.double(), wide([1e30, -1e100])])
    found = density(TailTransform(), StandardNormal(1), x, wide(raw))
    shape = torch.where(x >= 0, xi[1], xi[0]).numpy()
    np.testing.assert_allclose(found, scipy.stats.genpareto.logpdf(x.abs().numpy(), shape) - math.log(2), rtol=1e-11)


def test_tail_transform_in_fifty_digits_from_float32():
    theta = torch.tensor([-1.0, 2.0])
    value, log_det = TailTransform()(FAR, theta)
    for x, z, slope in zip(FAR.tolist(), value.tolist(), log_det.tolist(), strict=True):
        xi = mpmath.mpf(xi_of(theta[1 if x >= 0 else 0].item()))
        m = mpmath.log1p(xi * abs(x)) / xi
        exact = mpmath.findroot(lambda t, m=m: mpmath.log(mpmath.erfc(t / mpmath.sqrt(2))) + m, abs(z) + 1e-9)
        assert abs(z) == pytest.approx(float(exact), rel=1e-6, abs=1e-9)
        hazard = mpmath.sqrt(2 / mpmath.pi) * mpmath.exp(-(exact**2) / 2) / mpmath.erfc(exact / mpmath.sqrt(2))
        assert slope == pytest.approx(float(-mpmath.log(1 + xi * abs(x)) - mpmath.log(hazard)), rel=1e-6, abs=1e-7)


def test_pareto_tails_are_powers_with_their_index():
    theta = wide([1.0, 3.0])
    tails = ParetoTails()
    for side, raw in ((-1, 1.0), (1, 3.0)):
        xi = xi_of(raw)
        x = side * wide([1e6, 1e9])
        log_tail = tails.log_sf(x, theta) if side > 0 else tails.log_cdf(x, theta)
        assert (log_tail[0] - log_tail[1]).item() == pytest.approx(3 * math.log(10) / xi, rel=1e-4)


@pytest.mark.parametrize(("part", "base"), [(ParetoTails(), StandardLogistic(1)), (TailTransform(), StandardNormal(1))])
def test_float32_tails_agree_with_float64(part, base):
    theta = torch.tensor([0.7, 4.0])
    narrow = density(part, base, FAR, theta).double()
    exact = density(part, base, FAR.double(), theta.double())
    assert ((narrow - exact).abs() <= 1e-6 + 2e-6 * exact.abs()).all()
    value = part(FAR, theta).value
    back = part.inverse(value, theta).value
    # The float32 result is rounded once: what that moves x by is all that may be lost.
    slope = torch.exp(part(FAR.double(), theta.double()).log_det)
    assert ((back - FAR).abs() <= 6e-8 * (FAR.abs() + value.abs() / slope) + 1e-12).all()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_derivatives_of_both_directions(part):
    x = wide([-7.3, -1.1, -0.2, 0.3, 1.6, 12.0]).requires_grad_()
    theta = normal(6, part.spec.size, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: tuple(part(x, t)), (x, theta))
    assert torch.autograd.gradgradcheck(lambda x, t: tuple(part(x, t)), (x, theta))
    y = part(x, theta).value.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda y, t: tuple(part.inverse(y, t)), (y, theta))
    assert torch.allclose(part.inverse(y, theta).value, x, rtol=1e-11)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: type(part).__name__)
def test_infinities_keep_their_sign_and_vmap_works(part):
    ends = torch.tensor([-math.inf, math.inf])
    assert part(ends, normal(2, part.spec.size).float()).value.tolist() == ends.tolist()
    x, theta = normal(5, seed=2), normal(5, part.spec.size, seed=3)
    each = torch.func.vmap(torch.func.grad(lambda x, t: part(x, t).value))(x, theta)
    torch.testing.assert_close(torch.log(each), part(x, theta).log_det, rtol=1e-10, atol=1e-12)


def test_an_inverse_beyond_float32_raises_with_its_rows():
    part, y = ParetoTails(), torch.tensor([1.0, 80.0, math.inf])
    theta = torch.tensor([0.0, 9.0])
    with pytest.raises(InverseError, match="beyond the range") as caught:
        part.inverse(y, theta)
    assert caught.value.rows == [1]
    assert torch.isfinite(part.inverse(y[:2].double(), theta.double()).value).all()


@pytest.mark.parametrize("sizes", [[2, 3], [1, 1, 2], [4]])
def test_block_lu_lets_no_later_group_in_either_way(sizes):
    layer = BlockLU(sizes).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(normal(*parameter.shape, seed=4))
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    forbidden = group.unsqueeze(-1) < group
    x = normal(sum(sizes), seed=5)
    there = torch.func.jacrev(lambda x: layer(x).value)(x)
    back = torch.func.jacrev(lambda y: layer.inverse(y).value)(x)
    assert (there[forbidden] == 0).all()
    assert (back[forbidden] == 0).all()
    assert (there[~forbidden] != 0).all()  # nothing else is held at zero
    torch.testing.assert_close(there @ back, torch.eye(sum(sizes)).double(), rtol=0, atol=1e-9)
    assert torch.linalg.slogdet(there).logabsdet.item() == pytest.approx(layer(x).log_det.item(), abs=1e-10)


def test_bad_options_are_refused():
    with pytest.raises(OptionError, match="start"):
        between(torch.zeros(1), 0.0, 1.0, start=1.0)
    for sizes in ([], [2, 0]):
        with pytest.raises(OptionError, match="sizes"):
            BlockLU(sizes)
