"""Layers of images on flattened vectors: squeezing, convolutions, factoring out, and convolutional couplings."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from rosenblatt.bases import StandardNormal
from rosenblatt.conditioners.conv_coupling import ConvCoupling
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.transform import Compose
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.convolution import MaskedConvolution, PeriodicConvolution, convolution_steps
from rosenblatt.layers.linear import LU
from rosenblatt.layers.orthogonal import MIXINGS
from rosenblatt.layers.scaling import ActNorm
from rosenblatt.layers.shape import FactorOut, PerPixel, Squeeze, image_shape, multi_scale
from rosenblatt.nets import ConvNet
from rosenblatt.testing.tables import disturbed, seeded

SHAPE = (2, 3, 4)
SHAPES = [(1, 1, 1), (3, 1, 1), (2, 1, 3), (1, 4, 2), SHAPE]


def data(*shape, seed=1, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jacobian_of(transform, row):
    return torch.func.jacrev(lambda row: transform(row).value)(row)


def check_map(transform, features, tolerance=1e-10):
    """Round trip, both log-determinants, and the dense Jacobian, for the batches (), (4,) and (2, 3)."""
    transform = transform.double()
    for batch in ((), (4,), (2, 3)):
        x = data(*batch, features)
        value, log_det = transform(x)
        back, back_log_det = transform.inverse(value)
        assert log_det.shape == batch
        assert (back - x).abs().max() <= tolerance
        assert (log_det + back_log_det).abs().max() <= tolerance
        for row, number in zip(x.reshape(-1, features)[:2], log_det.reshape(-1), strict=False):
            assert abs(np.linalg.slogdet(jacobian_of(transform, row).detach().numpy())[1] - number.item()) <= tolerance
    wide = transform(data(5, features)).value
    narrow = transform.float()(data(5, features).float()).value
    assert (narrow - wide).abs().max() <= 1e-4
    assert transform(torch.zeros(0, features)).value.shape == (0, features)


def test_squeeze_makes_channels_of_blocks():
    image = torch.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    layer = Squeeze((2, 4, 6))
    assert layer.after == (8, 2, 3)
    squeezed = layer(image.flatten()).value.reshape(8, 2, 3)
    for c in range(2):
        for a in range(2):
            for b in range(2):
                assert torch.equal(squeezed[4 * c + 2 * a + b], image[c, a::2, b::2])
    assert torch.equal(layer.inverse(squeezed.flatten()).value, image.flatten())
    assert Squeeze((1, 1, 4)).after == (2, 1, 2)
    assert Squeeze((1, 4, 1)).after == (2, 2, 1)


@pytest.mark.parametrize("shape", [(1, 3, 2), (1, 2, 3), (1, 1, 3), (4, 1, 1)])
def test_squeeze_refuses_odd_sides(shape):
    with pytest.raises(OptionError, match="even sides"):
        Squeeze(shape)


@pytest.mark.parametrize(("image", "features"), [([1, 2], 2), ([0, 2, 2], None), ([1, 2, 2], 5)])
def test_an_image_must_hold_the_features(image, features):
    with pytest.raises(OptionError, match="image"):
        image_shape(image, features)


@pytest.mark.parametrize("kind", MIXINGS)
def test_one_by_one_convolution_is_the_matrix_at_every_pixel(kind):
    steps = seeded(lambda: convolution_steps("1x1", (3, 2, 2), linear=kind))
    layer = disturbed(Compose(steps), 0.3).double()
    check_map(layer, 12)
    layer = layer.double()
    jacobian = jacobian_of(layer, data(12)).reshape(3, 4, 3, 4)
    first = jacobian[:, 0, :, 0]
    assert torch.allclose(jacobian, torch.einsum("cd,pq->cpdq", first, torch.eye(4).double()), atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_masked_convolution_is_triangular_and_inverts(shape, kernel):
    layer = disturbed(MaskedConvolution(shape, kernel), 0.3).double()
    features = int(np.prod(shape))
    x = data(features)
    assert torch.equal(MaskedConvolution(shape, kernel).double()(x).value, x)
    check_map(layer, features)
    # In the order row, column, channel the Jacobian is lower triangular.
    order = torch.arange(features).reshape(shape).permute(1, 2, 0).flatten()
    jacobian = jacobian_of(layer.double(), x)[order][:, order]
    assert (jacobian.triu(1) == 0).all()
    if features > 6 and kernel > 1:
        assert (jacobian.tril(-1) != 0).sum() > features


def test_masked_convolution_is_a_correlation_with_its_kernel():
    layer = disturbed(MaskedConvolution((1, 5, 6)), 0.5).double()
    weight, scale = layer.weight[0, 0].detach().numpy(), torch.exp(7 * torch.tanh(layer.log_diagonal / 7)).item()
    kernel = np.zeros((3, 3))
    kernel[0], kernel[1, 0], kernel[1, 1] = weight[0], weight[1, 0], scale
    image = data(5, 6)
    expected = correlate(image.numpy(), kernel, mode="constant")
    found = layer(image.flatten()).value.detach().reshape(5, 6)
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_masked_convolution_says_when_its_inverse_overflows():
    layer = MaskedConvolution((1, 16, 16))
    with torch.no_grad():
        layer.weight.fill_(1e3)
    with pytest.raises(InverseError, match="overflow") as caught:
        layer.inverse(torch.stack([torch.zeros(256), torch.ones(256)]))
    assert caught.value.rows == [1]


@pytest.mark.parametrize("shape", SHAPES)
def test_emerging_convolution_mixes_both_ways(shape):
    features = int(np.prod(shape))
    layer = disturbed(Compose(seeded(lambda: convolution_steps("emerging", shape))), 0.3)
    check_map(layer, features)
    if shape == SHAPE:
        # The pixels around, before and after, of every channel reach the one in the middle.
        jacobian = jacobian_of(layer.double(), data(features)).reshape(*shape, *shape)
        assert (jacobian[:, 1, 1, :, 0:3, 0:3] != 0).all()


@pytest.mark.parametrize("shape", [*SHAPES, (2, 4, 5)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_periodic_convolution_is_exact(shape, kernel):
    layer = disturbed(PeriodicConvolution(shape, kernel), 0.5).double()
    features = int(np.prod(shape))
    x = data(features)
    assert (PeriodicConvolution(shape, kernel).double()(x).value - x).abs().max() <= 1e-14
    check_map(layer, features)


def test_periodic_convolution_against_sums_over_the_torus_and_a_full_transform():
    layer = disturbed(PeriodicConvolution((2, 4, 5)), 0.2).double()
    weight = layer.weight.detach().numpy()
    full = np.zeros((2, 2, 4, 5))
    for a in range(3):
        for b in range(3):
            full[:, :, (a - 1) % 4, (b - 1) % 5] += weight[:, :, a, b]
    waves = np.fft.fft2(full)
    shrink = 1 / np.sqrt(1 + (np.abs(waves) ** 2).sum(axis=(0, 1)).max() / 0.81)
    matrices = np.eye(2) + shrink * waves.transpose(2, 3, 0, 1).conj()
    image = data(2, 4, 5).numpy()
    expected = image.copy()
    for c in range(2):
        for d in range(2):
            expected[c] += correlate(image[d], shrink * weight[c, d], mode="wrap")
    value, log_det = layer(torch.tensor(image).flatten())
    np.testing.assert_allclose(value.detach().reshape(2, 4, 5), expected, atol=1e-13)
    assert log_det.item() == pytest.approx(np.log(np.abs(np.linalg.det(matrices))).sum(), abs=1e-12)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e30])
def test_periodic_convolution_is_invertible_for_every_weight(size):
    layer = disturbed(PeriodicConvolution((3, 4, 4)), size).double()
    singular = torch.linalg.svdvals(layer._frequencies()[1])
    assert singular.min() > 0.1 - 1e-9
    assert singular.max() < 1.9 + 1e-9
    x = data(3, 48)
    assert (layer.inverse(layer(x).value).value - x).abs().max() <= 1e-12


@pytest.mark.parametrize("make", [MaskedConvolution, PeriodicConvolution])
def test_a_row_outside_its_support_stays_infinite_and_alone(make):
    layer = disturbed(make((2, 2, 2)), 0.3)
    x = data(3, 8).float()
    before = layer(x).value
    x[1, 0], x[2, 0] = -torch.inf, torch.nan
    value = layer(x).value
    assert torch.equal(value[0], before[0])
    assert torch.isinf(value[1]).all()
    assert torch.isnan(value[2]).any()


@pytest.mark.parametrize("make", [MaskedConvolution, PeriodicConvolution])
def test_convolutions_have_right_gradients(make):
    layer = disturbed(make((2, 2, 3)), 0.3).double()
    x, weights = data(2, 12).requires_grad_(), tuple(layer.parameters())
    for run in (layer, layer.inverse):
        torch.autograd.gradcheck(lambda x, *_: tuple(run(x)), (x, *weights), fast_mode=True)  # noqa: B023


@pytest.mark.parametrize("make", [MaskedConvolution, PeriodicConvolution])
@pytest.mark.parametrize("kernel", [0, 2])
def test_kernels_are_odd(make, kernel):
    with pytest.raises(OptionError, match="kernel"):
        make((1, 2, 2), kernel)


def test_names_of_convolutions():
    with pytest.raises(OptionError, match="convolution: 'woodbury'"):
        convolution_steps("woodbury", (1, 2, 2))


def test_normalisation_of_channels_pools_rows_and_pixels():
    layer = PerPixel(ActNorm(2), (2, 3, 3))
    x = data(50, 2, 9).mul(torch.tensor([[1.0], [4.0]])).add(torch.tensor([[3.0], [-1.0]])).flatten(1).float()
    weight = torch.linspace(0, 1, 50)
    layer.initialise(x, weight=weight)
    value = layer(x).value.reshape(50, 2, 9)
    share = (weight / weight.sum() / 9)[:, None, None]
    mean = (share * value).sum(dim=(0, 2))
    assert mean.abs().max() <= 1e-5
    assert ((share * (value - mean[None, :, None]).square()).sum(dim=(0, 2)) - 1).abs().max() <= 1e-5
    check_map(disturbed(layer, 0.2), 18)


def test_factor_out_adds_the_log_determinant_of_what_stays():
    rest = disturbed(LU(3), 0.3)
    layer = FactorOut(rest, 3)
    check_map(layer, 5)
    x = data(4, 5)
    value, log_det = layer.double()(x)
    assert torch.equal(value[:, 3:], x[:, 3:])
    assert torch.equal(value[:, :3], rest(x[:, :3]).value)
    assert torch.equal(log_det, rest(x[:, :3]).log_det)


def test_multi_scale_halves_the_channels_and_starts_from_what_reaches_each_scale():
    def scale(shape, last):
        squeeze = Squeeze(shape)
        return [squeeze, PerPixel(ActNorm(squeeze.after[0]), squeeze.after)], squeeze.after

    steps = multi_scale((1, 4, 4), 2, scale)
    assert steps[-1].staying == 8
    flow = Flow(Compose(steps), StandardNormal(16))
    x = 5 + data(300, 16, scale=3.0).float()
    flow.initialise(x)
    inner = steps[-1].rest.steps[-1].transform
    assert bool(inner.initialised)
    assert (inner.location.abs() < 0.5).all()  # its input was standardised by the scale before
    check_map(flow.transform, 16)
    assert (flow.float().to_base(x).std(dim=0) - 1).abs().max() <= 0.2
    with pytest.raises(OptionError, match="levels: 0"):
        multi_scale((1, 4, 4), 0, scale)
    with pytest.raises(OptionError, match="single channel"):
        multi_scale((1, 4, 4), 2, lambda shape, last: ([], shape))


MASKS = {
    "channels": lambda c, i, j: c < 2,
    "channels_turned": lambda c, i, j: c >= 2,
    "checkerboard": lambda c, i, j: (i + j) % 2 == 0,
    "checkerboard_turned": lambda c, i, j: (i + j) % 2 == 1,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("residual", [True, False])
def test_conv_coupling_sees_its_part_near_by_and_nothing_else(mask, residual):
    shape = (3, 5, 6)
    net = disturbed(seeded(lambda: ConvCoupling(shape, 2, mask=mask, hidden=6, blocks=1, residual=residual)), 0.3)
    net = net.double()
    first = {n for n in range(90) if MASKS[mask](n // 30, n // 6 % 5, n % 6)}
    assert set(net.levels[0].tolist()) == first
    assert set(net.levels[1].tolist()) == set(range(90)) - first
    jacobian = torch.func.jacrev(net)(data(90)).abs().sum(dim=1)  # (theta of, x)
    reach = 3 if residual else 2  # 3x3 convolutions one after the other
    for n in (0, 3, 14, 44, 63, 89):
        i, j = n // 6 % 5, n % 6
        for m in range(90):
            k, w = m // 6 % 5, m % 6
            near = max(abs(i - k), abs(j - w)) <= reach
            assert (jacobian[n, m] != 0).item() == (n not in first and m in first and near), (n, m)
    theta = net(data(90))
    for c in range(3):  # free thetas are those of the channel
        free = [n for n in range(30 * c, 30 * c + 30) if n in first]
        assert (theta[free] == theta[free[:1]]).all()


def test_conv_coupling_theta_belongs_to_its_own_pixel():
    """A net of one layer that copies a plane: the theta of a coordinate is made at its own pixel."""
    shape = (2, 2, 3)
    net = ConvCoupling(shape, 3, hidden=1, blocks=1, residual=False)
    with torch.no_grad():
        for part in (net.net.first, net.net.last):
            part.weight.zero_()
            part.bias.zero_()
        net.net.first.weight[0, 0, 1, 1] = 1.0
        net.net.last.weight[:, 0, 1, 1] = torch.tensor([1.0, 10.0, 100.0])
    x = torch.arange(12.0)
    assert torch.equal(net(x)[6:], x[:6].unsqueeze(-1) * torch.tensor([1.0, 10.0, 100.0]))


def test_spatial_context_meets_its_pixel():
    net = disturbed(
        ConvCoupling((1, 4, 6), 2, mask="checkerboard", hidden=4, blocks=1, context=48, spatial=True, residual=False),
        0.3,
    ).double()
    by_context = torch.func.jacrev(lambda c: net(data(24), c))(data(48)).abs().sum(dim=1).reshape(24, 2, 4, 6)
    for n in (0, 5, 9, 23):
        near = torch.zeros(2, 4, 6, dtype=torch.bool)
        near[:, max(0, n // 6 - 2) : n // 6 + 3, max(0, n % 6 - 2) : n % 6 + 3] = True
        assert torch.equal(by_context[n] != 0, near)
    start = torch.tensor([0.5, -1.0])
    fresh = ConvCoupling((1, 4, 6), 2, hidden=4, context=48, spatial=True)
    fresh.start_at(start)
    assert (fresh(torch.zeros(24), torch.zeros(48)) - start).abs().max() < 0.05
    with pytest.raises(OptionError, match="multiple of 4 x 6"):
        ConvCoupling((1, 4, 6), 2, context=23, spatial=True)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("elementwise", [Affine(), RationalQuadraticSpline(4, 3.0), LogisticMixture(3)], ids=str)
def test_image_couplings_of_every_family(elementwise, mask):
    conditioner = seeded(lambda: ConvCoupling(SHAPE, elementwise.spec.size, mask=mask, hidden=4, blocks=1))
    layer = disturbed(Conditional(elementwise, conditioner), 0.2)
    check_map(layer, 24)


def test_conv_coupling_refuses_what_makes_no_network():
    with pytest.raises(OptionError, match="mask: 'half'"):
        ConvCoupling((1, 2, 2), 2, mask="half")
    with pytest.raises(OptionError, match="shape"):
        ConvCoupling((1, 2), 2)
    with pytest.raises(OptionError, match="hidden: 0"):
        ConvNet(1, 1, hidden=0)
    with pytest.raises(OptionError, match="dropout"):
        ConvNet(1, 1, dropout=1.0)
