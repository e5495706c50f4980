"""The spline's hand-written gradient, its pieces and its memory layouts against plain differentiation."""

import math

import pytest
import torch

from rosenblatt.elementwise.spline import RationalQuadraticSpline, _transposed

TAILS = ("linear", "none")
BOUND = 3.0


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hard_points(count):
    """Knots of theta = 0, the ends and their neighbours, points outside, and normal ones."""
    ends = torch.tensor([BOUND, -BOUND]).double()
    near = torch.nextafter(ends, torch.zeros(2).double())
    far = torch.tensor([math.inf, -math.inf, 1e30, -1e4, 3.0000002, 5.0]).double()
    knots = torch.arange(-4, 5).double() * 0.75
    return torch.cat([knots, ends, near, far, normal(count, seed=1, scale=1.5)])


def with_hard_points(spline, scale, count=300):
    x = hard_points(count)
    theta = normal(len(x), spline.spec.size, seed=2, scale=scale)
    theta[:9] = 0.0
    return x, theta


def gradients(mapped, inputs, seed=3):
    """Gradients of a randomly weighted sum of what is finite."""
    total = 0.0
    for number, part in enumerate(mapped):
        weight = normal(*part.shape, seed=seed + number).to(part.dtype)
        total = total + torch.where(torch.isfinite(part), weight * part, 0.0).sum()
    return torch.autograd.grad(total, inputs)


def leaves(*tensors):
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 100.0])
def test_pull_back_is_the_gradient_of_evaluate(tails, scale, monkeypatch):
    spline = RationalQuadraticSpline(tails=tails)
    inputs = leaves(*with_hard_points(spline, scale))
    fused, plain = spline(*inputs), spline.evaluate(*inputs)
    assert torch.equal(fused.value, plain.value)
    assert torch.equal(fused.log_det, plain.log_det)
    by_tape = gradients(plain, inputs)
    with monkeypatch.context() as patch:
        calls = []
        pull_back = spline.pull_back
        patch.setattr(spline, "pull_back", lambda *args: (calls.append(1), pull_back(*args))[1])
        by_hand = gradients(fused, inputs)
    assert calls
    (x_fused, theta_fused), (x_plain, theta_plain) = by_hand, by_tape
    assert ((x_fused - x_plain).abs() <= 1e-10 * (1 + x_plain.abs())).all()
    size = theta_plain.abs().amax(dim=-1, keepdim=True)
    assert ((theta_fused - theta_plain).abs() <= 1e-10 * (1 + size)).all()
    beyond = inputs[0].abs() > BOUND
    assert (theta_fused[beyond] == 0).all()


@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("bins", [2, 5, 33])
def test_pull_back_for_any_number_of_bins(tails, bins):
    spline = RationalQuadraticSpline(bins=bins, bound=0.7, tails=tails)
    inputs = leaves(normal(200, seed=4, scale=0.5), normal(200, spline.spec.size, seed=5))
    for fused, plain in zip(
        gradients(spline(*inputs), inputs), gradients(spline.evaluate(*inputs), inputs), strict=True
    ):
        assert ((fused - plain).abs() <= 1e-10 * (1 + plain.abs())).all()


@pytest.mark.parametrize("tails", TAILS)
def test_float32_gradient_is_that_of_float64_to_rounding(tails):
    spline = RationalQuadraticSpline(tails=tails)
    x, theta = with_hard_points(spline, 1.0, count=3000)
    x = x[13:].float().double()  # knots would fall into other bins
    theta = theta[13:].float().double()
    wide = leaves(x, theta)
    narrow = leaves(x.float(), theta.float())
    for exact, tape, fused in zip(
        gradients(spline(*wide), wide),
        gradients(spline.evaluate(*narrow), narrow),
        gradients(spline(*narrow), narrow),
        strict=True,
    ):
        size = 1 + exact.reshape(len(x), -1).abs().amax(dim=-1)
        by_tape, by_hand = ((grad - exact).reshape(len(x), -1).abs().amax(dim=-1) / size for grad in (tape, fused))
        assert by_hand.median() <= 1e-6
        # What the roundings of the float32 knots cost, any gradient pays; the formula itself adds next to nothing.
        assert (by_hand <= 2 * by_tape + 2e-5).all()
        assert by_hand.square().mean().sqrt() <= 1.1 * by_tape.square().mean().sqrt() + 1e-6


@pytest.mark.parametrize("tails", TAILS)
def test_extreme_parameters_leave_finite_float32_gradients(tails):
    spline = RationalQuadraticSpline(tails=tails)
    generator = torch.Generator().manual_seed(6)
    signs = 2.0 * torch.randint(0, 2, (400, spline.spec.size), generator=generator) - 1
    x = normal(400, seed=7, scale=1.5).float()
    x[:4] = torch.tensor([BOUND, -BOUND, 0.0, 1e30])
    for size in (30.0, 100.0, 1e4):
        inputs = leaves(x, size * signs)
        mapped = spline(*inputs)
        assert torch.isfinite(mapped.value[x.abs() <= BOUND]).all()
        for grad in gradients(mapped, inputs):
            assert torch.isfinite(grad).all()


def test_one_spoiled_row_leaves_the_other_gradients_alone():
    spline = RationalQuadraticSpline()
    x, theta = normal(20, seed=8), normal(20, spline.spec.size, seed=9)
    clean = leaves(x, theta)
    expected = gradients(spline(*clean), clean)
    for spoil_theta in (False, True):
        at, parameters = leaves(x, theta)
        with torch.no_grad():
            (parameters[3] if spoil_theta else at[3:4]).fill_(math.nan)
        value, log_det = spline(at, parameters)
        assert torch.isnan(value[3])
        assert torch.isnan(log_det[3])
        kept = torch.arange(20) != 3
        found = gradients((value, log_det), (at, parameters))
        assert all(torch.equal(a[kept], b[kept]) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("tails", TAILS)
def test_second_derivatives_through_the_public_call(tails):
    spline = RationalQuadraticSpline(bins=3, tails=tails)
    x, theta = leaves(torch.tensor([-2.2, -0.4, 0.13, 1.9]).double(), normal(4, spline.spec.size, seed=10, scale=0.5))
    assert torch.autograd.gradcheck(lambda *at: tuple(spline(*at)), (x, theta))
    assert torch.autograd.gradgradcheck(lambda *at: tuple(spline(*at)), (x, theta))
    assert torch.autograd.gradgradcheck(lambda *at: tuple(spline.inverse(*at)), (x, theta))


@pytest.mark.parametrize("tails", TAILS)
@pytest.mark.parametrize("piece", [1, 7, 40, 10_000])
@pytest.mark.parametrize(("k", "n"), [(60, 3), (5, 8)])
def test_points_that_share_thetas(tails, piece, k, n):
    spline = RationalQuadraticSpline(tails=tails)
    spline.piece = piece
    x, theta = normal(k, n, seed=11, scale=1.5), normal(n, spline.spec.size, seed=12)
    shared, apart = leaves(x, theta), leaves(x, theta.expand(k, n, -1))
    one, other = spline(*shared), spline(*apart)
    assert torch.equal(one.value, other.value)
    assert torch.equal(one.log_det, other.log_det)
    (grad_x, grad_theta), (each_x, each_theta) = gradients(one, shared), gradients(other, apart)
    assert torch.equal(grad_x, each_x)
    assert ((grad_theta - each_theta.sum(dim=0)).abs() <= 1e-10 * (1 + each_theta.abs().sum(dim=0))).all()
    targets = one.value.detach().nan_to_num().clamp(-BOUND, BOUND)
    assert torch.equal(spline.inverse(targets, theta).value, spline.inverse(targets, theta.expand(k, n, -1)).value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pieces_and_layouts_give_the_same_bits(dtype):
    spline = RationalQuadraticSpline()
    x, theta = (part.to(dtype) for part in with_hard_points(spline, 2.0))
    whole, back = spline(x, theta), spline.inverse(x, theta)
    by_hand = gradients(spline(*(inputs := leaves(x, theta))), inputs)
    feature_major = theta.t().contiguous().t()
    for piece in (1, 5, 13, 64, 10_000):
        spline.piece = piece
        for parameters in (theta, feature_major, theta.repeat(1, 2)[:, : theta.shape[1]]):
            for found, expected in ((spline(x, parameters), whole), (spline.inverse(x, parameters), back)):
                assert torch.equal(found.value, expected.value)
                assert torch.equal(found.log_det, expected.log_det)
        x_leaf, theta_leaf = leaves(x, feature_major)
        for found, expected in zip(gradients(spline(x_leaf, theta_leaf), (x_leaf, theta_leaf)), by_hand, strict=True):
            assert ((found - expected).abs() <= 20 * torch.finfo(dtype).eps * (1 + expected.abs().amax())).all()
        taped = spline.inverse(*leaves(x, theta))
        assert torch.equal(taped.value, back.value)
        assert torch.equal(taped.log_det, back.log_det)


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("feature_major", [False, True])
def test_inputs_are_not_written_over(count, feature_major):
    spline = RationalQuadraticSpline()
    x, theta = normal(count, seed=13).float(), normal(count, spline.spec.size, seed=14).float()
    theta = theta.t().contiguous().t() if feature_major else theta
    before = x.clone(), theta.clone()
    spline(x, theta)
    spline.inverse(x, theta)
    x.requires_grad_()
    theta.requires_grad_()
    mapped = spline(x, theta)
    gradients(mapped, (x, theta))
    assert torch.equal(x, before[0])
    assert torch.equal(theta, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 5), (2, 3), (23, 1000), (1000, 23), (0, 4), (7, 1)])
def test_transposed_is_a_contiguous_copy(dtype, shape):
    matrix = normal(*shape, seed=15).to(dtype)
    for given in (matrix, matrix[shape[0] // 2 :], matrix.repeat(1, 2)[:, : shape[1]]):
        turned = _transposed(given)
        assert torch.equal(turned, given.t())
        assert turned.is_contiguous()
        turned.fill_(7.0)
        assert not (given == 7.0).any()


def test_outside_and_at_the_ends_nothing_is_rounded():
    for dtype in (torch.float32, torch.float64):
        spline = RationalQuadraticSpline()
        x = torch.tensor([-1e30, -7.3, -3.0, 3.0, 10.1, 1e30], dtype=dtype)
        theta = normal(500, 1, spline.spec.size, seed=16, scale=3).to(dtype)
        for value, log_det in (spline(x, theta), spline.inverse(x, theta)):
            assert (value == x).all()
            assert (log_det == 0).all()
        box = RationalQuadraticSpline(tails="none")
        theta = normal(500, 1, box.spec.size, seed=17, scale=3).to(dtype)
        ends = torch.tensor([-3.0, 3.0], dtype=dtype)
        near = torch.nextafter(ends, torch.zeros(2, dtype=dtype))
        for at in (ends, near):
            for value, log_det in (box(at, theta), box.inverse(at, theta)):
                assert (value.abs() <= BOUND).all()
                assert torch.isfinite(log_det).all()
        assert (box(ends, theta).value == ends).all()
        assert (box.inverse(ends, theta).value == ends).all()


def test_vmap_of_grad_takes_the_plain_form():
    spline = RationalQuadraticSpline(bins=4)
    x, theta = leaves(normal(6, seed=18), normal(6, spline.spec.size, seed=19))

    def score(x, theta):
        value, log_det = spline(x, theta)
        return log_det - 0.5 * value.square()

    found = torch.func.vmap(torch.func.grad(score, argnums=(0, 1)))(x, theta)
    expected = torch.autograd.grad(score(x, theta).sum(), (x, theta))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(found, expected, strict=True))
    shared = torch.func.vmap(torch.func.grad(score, argnums=1), in_dims=(0, None))(x, theta[0])
    each = torch.autograd.grad(score(x, theta[0]).sum(), theta)[0][0]
    assert torch.allclose(shared.sum(dim=0), each, rtol=1e-10, atol=1e-12)


def test_compiled_without_a_graph_break():
    spline = RationalQuadraticSpline(bins=4)
    x, theta = leaves(normal(3, 2, seed=20), normal(3, 2, spline.spec.size, seed=21))
    torch.compiler.reset()

    def both_ways(x, theta):
        return tuple(spline(x, theta)) + tuple(spline.inverse(x, theta))

    compiled = torch.compile(both_ways, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x, theta), both_ways(x, theta)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, expected, strict=True))
    for one, other in zip(gradients(found, (x, theta)), gradients(expected, (x, theta)), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_half_precision_out(dtype):
    spline = RationalQuadraticSpline()
    x, theta = normal(50, seed=22).to(dtype), normal(50, spline.spec.size, seed=23).to(dtype)
    for call in (spline, spline.inverse):
        narrow, wide = call(x, theta), call(x.float(), theta.float())
        for found, expected in zip(narrow, wide, strict=True):
            assert torch.equal(found, expected.to(dtype))
    inputs = leaves(x, theta)
    assert [grad.dtype for grad in gradients(spline(*inputs), inputs)] == [dtype, dtype]
