"""The block-triangular network against its formula, autodiff and its own inverse."""

import math

import numpy as np
import pytest
import torch

from rosenblatt.core import roots
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.layers.block_autoregressive import LOG_SKIP_BOUND, LOG_WEIGHT_BOUND, BlockAutoregressive
from rosenblatt.models.bnaf import bnaf


def made(features=3, seed=0, size=0.5, **options):
    """A layer in float64 with weights that are not those of the start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = BlockAutoregressive(features, **options).double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(size * torch.randn_like(parameter))
    return layer


def data(*shape, seed=1, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(layer, x, context=None):
    """The same network with one dense matrix per layer, built entry by entry."""
    features, hidden = layer.features, x
    for number, block in enumerate(layer.layers):
        matrix = np.zeros((features * block.outputs, features * block.inputs))
        for row in range(len(matrix)):
            for column in range(matrix.shape[1]):
                i, u = divmod(row, block.outputs)
                j, v = divmod(column, block.inputs)
                if i == j:
                    raw = block.log_weight[i, u, v].item()
                    matrix[row, column] = math.exp(LOG_WEIGHT_BOUND * math.tanh(raw / LOG_WEIGHT_BOUND))
                elif i > j:
                    matrix[row, column] = block.below[row, column].item()
        hidden = matrix @ (hidden if number == 0 else np.tanh(hidden)) + block.bias.detach().numpy().reshape(-1)
        if number == 0 and context is not None:
            hidden = hidden + layer.context_in.weight.detach().numpy() @ context
    skip = LOG_SKIP_BOUND * np.tanh(layer.skip.detach().numpy() / LOG_SKIP_BOUND)
    if layer.gated:
        share = 1 / (1 + math.exp(-skip))
        return (1 - share) * x + share * hidden
    return np.exp(skip) * x + hidden


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_layer_is_its_formula(layers, gated):
    layer = made(units=3, layers=layers, gated=gated, context=2)
    x, context = data(5, 3), data(5, 2, seed=2)
    value = layer(x, context).value.detach().numpy()
    for row in range(5):
        np.testing.assert_allclose(value[row], by_hand(layer, x[row].numpy(), context[row].numpy()), rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"gated": True, "layers": 1}, {"layers": 4, "units": 2}])
def test_jacobian_is_triangular_and_its_determinant_exact(options):
    layer = made(4, **options)
    x = data(6, 4, scale=2)
    log_det = layer(x).log_det
    for row in range(6):
        jacobian = torch.func.jacrev(lambda one: layer(one).value)(x[row])
        assert (jacobian.triu(1) == 0).all()
        assert (jacobian.diagonal() > 0).all()
        assert (jacobian.tril(-1) != 0).any()
        assert torch.log(jacobian.diagonal()).sum().item() == pytest.approx(log_det[row].item(), abs=1e-11)


def test_slopes_far_below_the_range_of_floats_stay_exact():
    # Behind eight of the steepest layers the product of slopes leaves float64; its logarithm does not.
    layer = made(1, units=2, layers=8)
    with torch.no_grad():
        for block in layer.layers:
            block.log_weight.fill_(1e9)  # e^7 after squashing
    x = torch.tensor([[-3.0], [0.0], [2.0], [30.0]], dtype=torch.float64, requires_grad=True)
    mapped = layer(x)
    assert torch.isfinite(mapped.log_det).all()
    (grad,) = torch.autograd.grad(mapped.log_det.sum() + mapped.value.sum(), x)
    assert torch.isfinite(grad).all()
    line = LOG_SKIP_BOUND * math.tanh(layer.skip.item() / LOG_SKIP_BOUND)
    assert mapped.log_det[-1].item() == pytest.approx(line, abs=1e-15)


@pytest.mark.parametrize("gated", [False, True])
def test_the_map_is_onto_the_line(gated):
    layer = made(2, gated=gated)
    y = torch.tensor([[-1e4, 1e4], [1e4, -1e4], [60.0, 3.0]], dtype=torch.float64)
    x, log_det = layer.inverse(y)
    assert torch.isfinite(x).all()
    again = layer(x)
    assert torch.allclose(again.value, y, rtol=1e-11)
    assert torch.allclose(again.log_det, -log_det, atol=1e-9)


def test_inverse_has_derivatives_of_second_order():
    layer = made(2, units=2, layers=1, context=1)
    y, context = data(2, 2).requires_grad_(), data(2, 1, seed=3).requires_grad_()
    weight = layer.layers[0].log_weight

    def path(y, context, _):
        mapped = layer.inverse(y, context)
        return mapped.value, mapped.log_det

    assert torch.autograd.gradcheck(path, (y, context, weight))
    assert torch.autograd.gradgradcheck(path, (y, context, weight), fast_mode=True)


def test_rows_that_are_not_finite_stay_alone():
    layer = made(3).float()
    x = data(4, 3).float()
    whole = layer(x).value
    x[1, 0], x[2, 1] = math.inf, math.nan
    value = layer(x).value
    assert value[1, 0] == math.inf
    assert torch.isfinite(value[1, 1:]).all()
    assert torch.isnan(value[2]).any()
    assert torch.equal(value[[0, 3]], whole[[0, 3]])
    back = layer.inverse(value).value
    assert torch.isnan(back[2]).any()
    assert torch.allclose(back[[0, 3]], x[[0, 3]], atol=1e-4)


def test_weights_behind_the_mask_do_not_enter():
    layer, x = made(3), data(5, 3)
    before = layer(x)
    with torch.no_grad():
        for block in layer.layers:
            block.below.add_(100 * (1 - block.earlier))
    after = layer(x)
    assert torch.equal(before.value, after.value)
    assert torch.equal(layer.inverse(after.value).value, layer.inverse(before.value).value)


def test_a_search_that_fails_names_its_rows(monkeypatch):
    layer = made(2)
    y = layer(data(3, 2)).value.detach()
    monkeypatch.setattr(roots, "MAX_STEPS", 1)
    with pytest.raises(InverseError, match=r"coordinates \[0\]") as caught:
        layer.inverse(y)
    assert caught.value.rows == [0, 1, 2]


def test_the_start_is_a_moderate_bend():
    for gated in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = BlockAutoregressive(4, gated=gated).double()
        x = data(500, 4)
        jacobian_log = layer(x).log_det / 4
        assert jacobian_log.abs().max() < 0.7
        assert (layer(x).value - x).abs().max() < 2.0


@pytest.mark.parametrize("options", [{"features": 0}, {"units": 0}, {"layers": 0}])
def test_sizes_below_one_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        BlockAutoregressive(**{"features": 2, **options})


def test_no_transforms_are_refused():
    with pytest.raises(OptionError, match="transforms"):
        bnaf(2, transforms=0)
