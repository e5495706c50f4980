"""Orthogonal, exponential, triangular, planar, radial and Sylvester layers against their formulas and autodiff."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.core import roots
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Compose
from rosenblatt.elementwise.affine import Affine
from rosenblatt.layers.orthogonal import (
    MIXINGS,
    Cayley,
    Householder,
    MatrixExponential,
    Triangular,
    mixing,
    qr,
    reflections_of,
    svd,
)
from rosenblatt.layers.planar import Planar, Radial
from rosenblatt.layers.sylvester import Sylvester
from rosenblatt.testing.tables import disturbed

LINEAR = {
    "householder": Householder,
    "householder of two": lambda features: Householder(features, 2),
    "cayley": Cayley,
    "exponential": MatrixExponential,
    "triangular": Triangular,
    "qr": qr,
    "svd": svd,
}
BENDS = {
    "planar": Planar,
    "radial": Radial,
    "sylvester": Sylvester,
    "sylvester of one": lambda features, **options: Sylvester(features, 1, **options),
}


def stir(module, scale=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def data(*shape, seed=1, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_map(transform, x, context=None, tolerance=1e-9):
    """Round trip, both log-determinants, and the autodiff Jacobian."""
    value, log_det = transform(x, context)
    back, back_log_det = transform.inverse(value, context)
    assert (back - x).abs().max() <= tolerance
    assert (log_det + back_log_det).abs().max() <= tolerance
    for number, row in enumerate(x):
        given = None if context is None else context[number]
        jacobian = torch.func.jacrev(lambda row, given=given: transform(row, given)[0])(row)
        assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(log_det[number].item(), abs=tolerance)


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_are_what_their_jacobians_say(name, features):
    check_map(stir(LINEAR[name](features)).double(), data(6, features, scale=3))


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_start_as_the_identity_and_invert_in_float32(name):
    x = data(50, 6, scale=3).float()
    layer = LINEAR[name](6)
    assert (layer(x).value - x).abs().max() <= 1e-5
    assert layer(x).log_det.abs().max() == 0
    stir(layer)
    assert (layer.inverse(layer(x).value).value - x).abs().max() <= 1e-4


@pytest.mark.parametrize("name", LINEAR)
def test_a_row_outside_its_support_stays_infinite_and_alone(name):
    layer = stir(LINEAR[name](3))
    x = data(3, 3).float()
    x[1, 0] = -math.inf
    x[2, 0] = math.nan
    value = layer(x).value
    assert torch.isinf(value[1]).any()
    assert torch.isnan(value[2]).any()
    assert torch.equal(value[0], layer(x.clone().nan_to_num(0, 0, 0)).value[0])


def test_householder_is_the_product_of_its_reflections():
    vectors = data(4, 5, seed=3) * torch.tensor([[1.0], [1e-200], [1e150], [1.0]], dtype=torch.float64)
    expected = np.eye(5)
    for v in vectors.numpy():
        unit = v / np.abs(v).max()
        expected = expected @ (np.eye(5) - 2 * np.outer(unit, unit) / (unit @ unit))
    np.testing.assert_allclose(reflections_of(vectors), expected, atol=1e-14)


def test_a_zero_vector_reflects_nothing_and_has_finite_gradients():
    vectors = data(3, 4)
    vectors[1] = 0
    vectors.requires_grad_()
    matrix = reflections_of(vectors)
    assert torch.allclose(matrix, reflections_of(vectors[[0, 2]]), atol=1e-15)
    (matrix * data(4, 4, seed=2)).sum().backward()
    assert torch.isfinite(vectors.grad).all()


@pytest.mark.parametrize("make", [Householder, Cayley])
def test_orthogonal_layers_are_orthogonal_with_determinant_one(make):
    matrix = stir(make(7), 2.0).matrix()
    assert (matrix @ matrix.mT - torch.eye(7)).abs().max() <= 1e-13
    assert torch.linalg.det(matrix).item() == pytest.approx(1.0, abs=1e-12)


def test_cayley_and_exponential_are_their_formulas():
    cayley, exponential = stir(Cayley(4)).double(), stir(MatrixExponential(4), 1.0).double()
    skew = np.triu(cayley.generator.detach().numpy(), 1)
    skew = skew - skew.T
    np.testing.assert_allclose(
        cayley.matrix().detach(), np.linalg.inv(np.eye(4) + skew) @ (np.eye(4) - skew), atol=1e-14
    )
    generator = exponential.generator.detach().numpy()
    exponent = generator / np.sqrt(1 + (generator**2).sum() / 49)
    x = data(6, 4)
    value, log_det = exponential(x)
    expected = x.numpy() @ scipy.linalg.expm(exponent).T + exponential.bias.detach().numpy()
    np.testing.assert_allclose(value.detach(), expected, rtol=1e-12, atol=1e-12)
    assert log_det[0].item() == pytest.approx(np.trace(exponent), rel=1e-13)


def test_a_wild_exponential_stays_within_its_bounds():
    layer = MatrixExponential(3)
    with torch.no_grad():
        layer.generator.copy_(1e30 * data(3, 3))
    matrix = layer.double()(torch.eye(3, dtype=torch.float64)).value
    singular = torch.linalg.svdvals(matrix.detach())
    assert math.exp(-7.001) <= singular.min() <= singular.max() <= math.exp(7.001)


def test_mixing_makes_every_kind_and_refuses_others():
    x = data(4, 3)
    for kind in MIXINGS:
        assert mixing(kind, 1) == []
        check_map(stir(Compose(mixing(kind, 3))).double(), x)
    with pytest.raises(OptionError, match="plu"):
        mixing("lower", 3)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("name", BENDS)
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_bends_are_what_their_jacobians_say(name, features, context, scale):
    layer = stir(BENDS[name](features, context=context, hidden=8), scale).double()
    check_map(layer, data(6, features, scale=2), data(6, context, seed=4) if context else None)


@pytest.mark.parametrize("name", BENDS)
def test_bends_start_as_the_identity_and_invert_in_float32(name):
    layer = BENDS[name](5)
    x = data(200, 5, scale=3).float()
    value, log_det = layer(x)
    assert (value - x).abs().max() <= 1e-6
    assert log_det.abs().max() <= 1e-6
    stir(layer, 1.0)
    bent = layer(x).value
    assert (bent - x).abs().max() > 0.01  # no longer the identity
    back = layer.inverse(bent).value
    assert back.dtype == torch.float32
    assert (layer(back).value - bent).abs().max() <= 2e-5


@pytest.mark.parametrize("name", BENDS)
def test_bends_have_right_gradients_in_rows_and_weights_both_ways(name):
    layer = stir(BENDS[name](3, context=1, hidden=4)).double()
    names = [key for key, _ in layer.named_parameters()]
    x, context = data(2, 3).requires_grad_(), data(2, 1, seed=2).requires_grad_()
    weights = tuple(layer.parameters())

    class Backwards(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, y, context):
            return self.layer.inverse(y, context)

    for module, prefix in ((layer, ""), (Backwards(), "layer.")):

        def run(x, context, *weights, module=module, prefix=prefix):
            state = {prefix + key: weight for key, weight in zip(names, weights, strict=True)}
            return tuple(torch.func.functional_call(module, state, (x, context)))

        assert torch.autograd.gradcheck(run, (x, context, *weights), eps=1e-6, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("name", BENDS)
def test_odd_rows_of_bends_stay_alone_with_finite_gradients(name):
    layer = stir(BENDS[name](3), 1.0)
    x = data(6, 3).float()
    clean = layer(x)
    x[0, 1], x[1, 0], x[2, 2] = math.nan, math.inf, 1e30
    x[3] = 0
    x.requires_grad_()
    value, log_det = layer(x)
    assert torch.isnan(value[0]).any()
    assert torch.isinf(value[1]).all()
    assert torch.isfinite(value[2]).all()
    assert torch.equal(value[4:], clean.value[4:])
    (value[2:].sum() + log_det[1:].sum()).backward()
    assert torch.isfinite(x.grad[1:]).all()
    back = layer.inverse(value.detach())
    assert torch.isnan(back.value[0]).any()
    assert torch.isinf(back.value[1]).all()
    assert (back.value[4:] - x[4:]).abs().max() <= 1e-4


def test_the_centre_and_degenerate_vectors_have_finite_gradients():
    radial, planar = stir(Radial(3)).double(), stir(Planar(3)).double()
    centre = radial.conditioner.free[0, :3].detach().clone().requires_grad_()
    with torch.no_grad():
        planar.conditioner.free[0, 3:6] = 0
    x = data(3).requires_grad_()
    for layer, row in ((radial, centre), (planar, x)):
        for value, log_det in (layer(row), layer.inverse(row)):
            row.grad = None
            layer.zero_grad()
            (value.sum() + log_det).backward()
            assert torch.isfinite(row.grad).all()
            assert torch.isfinite(layer.conditioner.free.grad).all()


def test_planar_is_the_published_layer_with_an_invertible_u():
    layer = stir(Planar(4), 1.0).double()
    u, w, b = layer.conditioner.free[0].detach().split([4, 4, 1])
    low = math.exp(-2)
    slope = low + (1 - low) * math.log1p((math.e - 1) * math.exp(w @ u))
    moved = u + (slope - 1 - w @ u) * w / (w @ w)
    x = data(7, 4)
    height = torch.tanh(x @ w + b)
    value, log_det = layer(x)
    assert (value - (x + height.unsqueeze(-1) * moved)).abs().max() <= 1e-13
    assert (log_det - torch.log1p((moved @ w) * (1 - height.square()))).abs().max() <= 1e-13


def test_radial_is_the_published_layer():
    layer = stir(Radial(4), 1.0).double()
    free = layer.conditioner.free[0].detach()
    centre, alpha = free[:4], torch.exp(3 * torch.tanh(free[4] / 3))
    low = math.exp(-2)
    beta = alpha * (low + (1 - low) * math.log1p((math.e - 1) * math.exp(free[5])) - 1)
    x = data(7, 4)
    distance = (x - centre).norm(dim=-1)
    h = 1 / (alpha + distance)
    value, log_det = layer(x)
    assert (value - (x + (beta * h).unsqueeze(-1) * (x - centre))).abs().max() <= 1e-13
    expected = 3 * torch.log(1 + beta * h) + torch.log(1 + beta * h - beta * h.square() * distance)
    assert (log_det - expected).abs().max() <= 1e-13


def test_radial_inverts_from_the_centre_to_far_away():
    for raw in (-30.0, 30.0):  # slope e^-2, and about 26, at the centre
        layer = Radial(2).double()
        with torch.no_grad():
            layer.conditioner.free.copy_(torch.tensor([[0.3, -0.2, 0.1, raw]]))
        centre = layer.conditioner.free[0, :2].detach()
        offsets = torch.tensor([1.0, -0.5], dtype=torch.float64) * torch.logspace(-12, 12, 25).double().unsqueeze(-1)
        x = torch.cat([centre + offsets, centre.unsqueeze(0)])
        back = layer.inverse(layer(x).value).value
        assert ((back - x).abs() <= 1e-14 * (1 + x.abs())).all()


@pytest.mark.parametrize("width", [1, 3, 4])
def test_sylvester_is_the_published_layer_with_two_free_triangles(width):
    layer = stir(Sylvester(4, width), 1.0).double()
    free = layer.conditioner.free[0].detach()
    bumps, square = free[: 3 * width].reshape(width, 3), free[3 * width :].reshape(width, width).numpy()
    columns = reflections_of(layer.vectors.detach())[:, :width].numpy()
    k, low = np.exp(3 * np.tanh(bumps[:, 1].numpy() / 3)), math.exp(-2)
    slope = low + (1 - low) * np.log1p((math.e - 1) * np.exp(bumps[:, 0].numpy()))
    before = np.triu(square, 1) + np.diag(k)
    after = np.tril(square, -1).T + np.diag((slope - 1) / k)
    x = data(5, 4)
    bent = np.tanh(x.numpy() @ columns @ before.T + bumps[:, 2].numpy())
    value, log_det = layer(x)
    np.testing.assert_allclose(value.detach(), x.numpy() + bent @ after.T @ columns.T, atol=1e-12)
    expected = [np.linalg.slogdet(np.eye(width) + np.diag(1 - row**2) @ before @ after)[1] for row in bent]
    np.testing.assert_allclose(log_det.detach(), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["planar", "sylvester"])
def test_an_inverse_that_does_not_converge_raises_with_its_rows(name, monkeypatch):
    layer = stir(BENDS[name](3), 1.0).double()
    value = layer(data(4, 3)).value
    monkeypatch.setattr(roots, "MAX_STEPS", 1)
    with pytest.raises(InverseError, match="did not converge") as caught:
        layer.inverse(value)
    assert set(caught.value.rows) <= {0, 1, 2, 3}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Householder(0),
        lambda: Householder(3, 3),
        lambda: Householder(3, 0),
        lambda: Cayley(0),
        lambda: MatrixExponential(0),
        lambda: Triangular(0),
        lambda: Planar(0),
        lambda: Radial(0),
        lambda: Sylvester(0),
        lambda: Sylvester(3, 0),
        lambda: Sylvester(3, 4),
        lambda: Affine.one_of(0),
    ],
)
def test_bad_sizes_are_refused(make):
    with pytest.raises(OptionError):
        make()


def test_layers_of_a_stack_share_their_bounds():
    raw = torch.tensor([[0.0, -1e3], [0.0, 1e3]], dtype=torch.float64)
    x = torch.zeros(2, dtype=torch.float64)
    assert (4 * Affine.one_of(4)(x, raw).log_det).tolist() == pytest.approx([-3.5, 10.0])
    log_dets = Affine.one_of(4, backwards=True).inverse(x, raw).log_det
    assert (4 * log_dets).tolist() == pytest.approx([10.0, -3.5])


@pytest.mark.parametrize("name", ["plu", "qr", "svd", "householder", "cayley", "rotation", "exponential"])
def test_a_row_with_an_infinity_comes_back_infinite_and_not_nan(name):
    steps = Compose([disturbed(step) for step in mixing(name, 3)]).double()
    y = torch.tensor([[1.0, -torch.inf, 2.0], [1.0, 0.5, 2.0]], dtype=torch.float64)
    for run in (steps, steps.inverse):
        value, log_det = run(y)
        assert torch.isinf(value[0]).all()
        assert torch.isfinite(value[1]).all()
        assert torch.isfinite(log_det).all()


@pytest.mark.parametrize("name", ["glow", "rbig", "tan"])
def test_the_ends_of_the_uniform_scale_and_overflows_are_no_nan(name):
    model = build(name, 2, options={"transforms": 2}, seed=0).eval()
    rows = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    model.initialise(rows)
    with torch.no_grad():
        ends = model.from_uniform(torch.tensor([[0.0, 0.5], [0.5, 1.0], [0.4, 0.5]]))
        far = model.log_prob(torch.tensor([[3e38, 3e38]]))
    assert torch.isinf(ends[:2]).all()
    assert torch.isfinite(ends[2]).all()
    assert not torch.isnan(far).any()
