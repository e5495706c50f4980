"""Conditioners, linear layers, scaling and support maps."""

import math

import numpy as np
import pytest
import torch

from rosenblatt.conditioners.coupling import Coupling
from rosenblatt.conditioners.independent import Independent
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.linear import LU, Permutation, Reverse, Rotation
from rosenblatt.layers.scaling import ActNorm, Standardise
from rosenblatt.layers.support import SupportMap


def stir(module, scale=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def data(*shape, seed=1, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_map(transform, x, tolerance=1e-9):
    """Round trip, both log-determinants, and the autodiff Jacobian."""
    value, log_det = transform(x)
    back, back_log_det = transform.inverse(value)
    assert (back - x).abs().max() <= tolerance
    assert (log_det + back_log_det).abs().max() <= tolerance
    jacobians = torch.stack([torch.func.jacrev(lambda row: transform(row)[0])(row) for row in x])
    assert (torch.linalg.slogdet(jacobians)[1] - log_det).abs().max() <= tolerance


COUPLINGS = {
    "half": ([0, 1, 2], [3, 4]),
    "even": ([0, 2, 4], [1, 3]),
    "odd": ([1, 3], [0, 2, 4]),
    "list": ([1, 4], [0, 2, 3]),
}


@pytest.mark.parametrize("mask", list(COUPLINGS))
@pytest.mark.parametrize("context", [0, 2])
def test_coupling_sees_the_first_part_and_nothing_else(mask, context):
    first, second = COUPLINGS[mask]
    option = [i in first for i in range(5)] if mask == "list" else mask
    net = stir(Coupling(5, 3, mask=option, hidden=16, context=context)).double()
    assert [level.tolist() for level in net.levels] == [first, second]
    x, c = data(5), data(context) if context else None
    jacobian = torch.func.jacrev(lambda row: net(row, c))(x).abs().sum(dim=1)  # (theta of, x)
    seen = torch.zeros(5, 5, dtype=torch.bool)
    seen[torch.tensor(second).unsqueeze(1), torch.tensor(first)] = True
    assert (jacobian[seen] > 0).all()
    assert (jacobian[~seen] == 0.0).all()
    if context:
        by_context = torch.func.jacrev(lambda row: net(x, row))(c).abs().sum(dim=(1, 2))
        assert (by_context > 0).all()


@pytest.mark.parametrize("mask", ["half", "even", "odd", [True], [False]])
def test_coupling_of_one_feature_is_a_free_map(mask):
    net = Coupling(1, 3, mask=mask)
    assert [level.tolist() for level in net.levels] == [[0]]
    assert net(torch.zeros(4, 1)).shape == (4, 1, 3)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("make", [Independent, Coupling])
def test_walk_equals_forward_and_start_is_where_it_was_set(make, context):
    net = make(4, 3, hidden=16, context=context)
    start = torch.tensor([0.5, -1.0, 2.0])
    net.start_at(start)
    x, c = data(2, 3, 4).float(), data(2, 3, context).float() if context else None
    assert (net(x, c) - start).abs().max() < 0.05
    stir(net)
    theta = net(x, c)
    walk = net.walk(c)
    for number, level in enumerate(net.levels):
        assert torch.allclose(walk.theta(number, x), theta.index_select(-2, level), atol=1e-6)


def test_coupling_spline_inverts_with_an_outlier_in_the_batch():
    layer = stir(Conditional(RationalQuadraticSpline(), Coupling(4, 23, hidden=16)), 0.1).double()
    check_map(layer, data(6, 4))
    x = data(3, 4)
    x[1, 0] = 1e30
    alone = layer(x[[0, 2]])
    together = layer(x)
    assert torch.isfinite(together.value).all()
    assert torch.allclose(together.value[[0, 2]], alone.value, rtol=1e-12)


@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("make", [LU, Rotation, ActNorm, Reverse])
def test_linear_layers_are_what_their_jacobians_say(make, features):
    check_map(stir(make(features)).double(), data(8, features))


@pytest.mark.parametrize("make", [LU, Rotation])
def test_linear_layers_start_as_the_identity(make):
    x = data(5, 3).float()
    assert torch.equal(make(3)(x).value, x)


def test_lu_float32_round_trip_and_oracle():
    layer = stir(LU(12))
    x = data(200, 12, scale=3).float()
    value, log_det = layer(x)
    assert (layer.inverse(value).value - x).abs().max() <= 1e-4
    lower = np.tril(layer.factors.detach().double().numpy(), -1) + np.eye(12)
    diagonal = np.exp(7 * np.tanh(layer.log_diagonal.detach().double().numpy() / 7))
    matrix = lower @ (np.triu(layer.factors.detach().double().numpy(), 1) + np.diag(diagonal))
    expected = x.double().numpy() @ matrix.T + layer.bias.detach().numpy()
    np.testing.assert_allclose(value.detach(), expected, atol=1e-4)
    assert log_det[0].item() == pytest.approx(np.linalg.slogdet(matrix)[1], abs=1e-5)


def test_rotation_is_orthogonal_with_determinant_one():
    layer = stir(Rotation(6), 2.0)
    matrix = layer(torch.eye(6)).value.mT
    assert (matrix @ matrix.mT - torch.eye(6)).abs().max() <= 1e-5
    assert torch.linalg.det(matrix).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("make", [LU, Rotation])
def test_a_row_outside_its_support_stays_infinite_and_alone(make):
    layer = stir(make(3))
    x = data(3, 3).float()
    x[1, 0] = -math.inf
    x[2, 0] = math.nan
    value = layer(x).value
    assert torch.isinf(value[1]).all()
    assert torch.isnan(value[2]).any()
    assert torch.allclose(value[0], layer(x[0]).value)


def test_random_permutation_travels_with_the_state():
    saved = Permutation([2, 0, 3, 1])
    loaded = Permutation(range(4))
    loaded.load_state_dict(saved.state_dict())
    x = data(5, 4)
    assert torch.equal(loaded(x).value, x[:, [2, 0, 3, 1]])
    assert torch.equal(loaded.inverse(saved(x).value).value, x)


def test_standardise_keeps_digits_far_from_zero_and_its_buffers():
    location, scale = torch.tensor([[1.6e9, -3.0], [1e-3, 1e5]], dtype=torch.float64)
    layer = Standardise(location, scale)
    z = data(50, 2)
    x = z * scale + location
    value, log_det = layer(x)
    assert (value[:, 0] - (x[:, 0] - 1.6e9) / 1e-3).abs().max() == 0
    assert log_det[0].item() == pytest.approx(-math.log(1e-3) - math.log(1e5))
    assert (layer.inverse(value).value - x).abs().max() <= 1e-6
    assert set(layer.state_dict()) == {"location", "scale"}
    assert layer(x.float()).value.dtype == torch.float32


@pytest.mark.parametrize(
    ("location", "scale"),
    [([0.0], [0.0]), ([0.0], [-1.0]), ([0.0], [math.inf]), ([math.nan], [1.0]), ([0.0], [1.0, 2.0])],
)
def test_standardise_refuses_what_is_no_scale(location, scale):
    with pytest.raises(OptionError):
        Standardise(location, scale)


def test_actnorm_standardises_once_with_weights():
    x = data(400, 3, scale=5) + 100
    weight = torch.rand(400, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    layer = ActNorm(3).double()
    layer.initialise(x, None, weight)
    z = layer(x).value
    share = (weight / weight.sum()).unsqueeze(-1)
    assert (share * z).sum(dim=0).abs().max() <= 1e-10
    assert ((share * z.square()).sum(dim=0) - 1).abs().max() <= 1e-10
    layer.initialise(x * 7)
    assert torch.equal(layer(x).value, z)
    fresh = ActNorm(3).double()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x).value, z)
    assert bool(fresh.initialised)
    with pytest.raises(DataError, match=r"columns \[1\]"):
        ActNorm(2).initialise(torch.tensor([[1.0, 5.0], [2.0, 5.0]]))


SUPPORTS = [(0.1, 0.9), (2.0, None), (None, -3.0), (None, None)]


def test_support_map_is_a_bijection_with_the_right_log_det():
    layer = SupportMap(SUPPORTS, [1.0, 10.0, 0.5, 1.0])
    z = data(50, 4, scale=3)
    x, _ = layer.inverse(z)
    assert ((x[:, 0] > 0.1) & (x[:, 0] < 0.9) & (x[:, 1] > 2) & (x[:, 2] < -3)).all()
    check_map(layer, x, tolerance=1e-8)
    assert (layer(x).value - z).abs().max() <= 1e-9


def test_support_map_formulas_and_far_identity():
    layer = SupportMap([(0, 1), (5, None), (None, 5)], [1.0, 2.0, 2.0])
    x = torch.tensor([0.25, 7.0, 3.0]).double()
    expected = [math.log(0.25 / 0.75), math.log(math.expm1(1.0)), -math.log(math.expm1(1.0))]
    assert layer(x).value.tolist() == pytest.approx(expected, rel=1e-14)
    far = layer(torch.tensor([0.5, 2005.0, -1995.0])).value
    assert far[1:].tolist() == pytest.approx([1000.0, -1000.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_support_map_at_and_beyond_its_bounds(dtype):
    layer = SupportMap([(0.0, 0.1), (0.1, None), (None, 0.1)], [1.0, 1e5, 1e-5])
    inside = torch.tensor([0.05, 0.2, 0.0], dtype=dtype)
    for column, (bound, sign) in enumerate([(0.0, -1), (0.1, -1), (0.1, 1)]):
        x = inside.repeat(4, 1)
        x[0, column] = bound
        x[1, column] = bound * (1 + sign * 1e-6) if bound else -1e-30
        x[2, column] = sign * math.inf
        x[3, column] = math.nan
        x.requires_grad_()
        value, log_det = layer(x)
        assert torch.isfinite(value[0]).all()
        assert torch.isfinite(log_det[0])
        assert value[1:3, column].tolist() == [sign * math.inf] * 2
        assert log_det[1:3].tolist() == [-math.inf] * 2
        assert torch.isnan(value[3, column])
        (value[:3][torch.isfinite(value[:3])].sum() + log_det[0]).backward()
        assert torch.isfinite(x.grad[:3]).all()
    far = layer.inverse(torch.tensor([-1e3, -1e3, 1e3], dtype=dtype)).value
    assert torch.equal(far, torch.tensor([0.0, 0.1, 0.1], dtype=dtype))


def test_bad_supports_and_sizes_are_refused():
    makes = [
        lambda: SupportMap([(1, 0)]),
        lambda: SupportMap([(0, 1, 2)]),
        lambda: SupportMap([(0, 1)], [0.0]),
        lambda: SupportMap([(0, 1)], [1.0, 1.0]),
        lambda: Permutation([0, 0]),
        lambda: Permutation([]),
        lambda: LU(0),
        lambda: Rotation(0),
        lambda: ActNorm(0),
        lambda: Coupling(3, 2, mask="third"),
        lambda: Coupling(3, 2, mask=[True]),
        lambda: Coupling(0, 2),
        lambda: Independent(0, 2),
        lambda: Independent(2, 2, context=1, hidden=0),
        lambda: Independent(2, 2, context=1, dropout=1.0),
    ]
    for make in makes:
        with pytest.raises(OptionError):
            make()
