"""The written-out pass of a masked network against plain differentiable operations."""

import pytest
import torch
from torch.nn.functional import linear

from rosenblatt.conditioners import staircase
from rosenblatt.conditioners.masked import Masked
from rosenblatt.conditioners.staircase import MaskedLinear
from rosenblatt.core.density import MOST_SCORE_ROWS
from rosenblatt.core.registry import build
from rosenblatt.testing.tables import disturbed, rows_like_data, seeded

SIZES = [
    {"features": 6, "params": 3, "hidden": 200},  # few wide degrees
    {"features": 40, "params": 2, "hidden": 130},  # many narrow ones
    {"features": 5, "params": 80, "hidden": 64},  # exact groups
    {"features": 30, "params": 70, "hidden": 16},  # fewer units than coordinates, several parts
    {"features": 90, "params": 47, "hidden": 20},  # several parts of narrow groups
    {"features": 1, "params": 4, "hidden": 8},
]


def made(sizes, **options):
    return disturbed(seeded(lambda: Masked(**sizes, **options))).double()


def plainly(net, x, context=None):
    """The same network as one masked linear map after the other."""

    def through(layer, units):
        return linear(units, layer.weight * layer.mask, layer.bias)

    hidden = through(net.first, net.arrange(x))
    if context is not None:
        hidden = hidden + net.context_in(context)
    if net.residual:
        for before, after in zip(net.layers[::2], net.layers[1::2], strict=True):
            hidden = hidden + through(after, torch.relu(through(before, torch.relu(hidden))))
    else:
        for layer in net.layers:
            hidden = through(layer, torch.relu(hidden))
    theta = through(net.last, torch.relu(hidden)).reshape(*x.shape[:-1], net.features, net.params)
    return theta.index_select(-2, net.position)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.fixture(params=[1, 1 << 40], ids=["cut", "whole"])
def blocks(request, monkeypatch):
    """Cut every product as far as it goes, and not at all."""
    monkeypatch.setitem(staircase.SMALLEST_PRODUCT, "cpu", request.param)


@pytest.mark.parametrize("inputs", [1, 6, 47, 63, 256, 512, 1024])
@pytest.mark.parametrize("levels", [1, 5, 50])
def test_groups_cover_every_row_once_and_reach_what_it_sees(inputs, levels):
    for rows in (1, 63, 64, 138, 600, 1024, 1168, 1173, 1449):
        in_degrees = (torch.arange(inputs) * levels) // inputs
        out_degrees = (torch.arange(rows) * levels) // rows
        layer = MaskedLinear(in_degrees, out_degrees)
        for groups in (layer.groups, *(layer.groups_for(batch, layer.groups) for batch in (1, 512, 10_000))):
            assert [row for start, stop, _ in groups for row in range(start, stop)] == list(range(rows))
            assert all(max(layer.reach[start:stop]) <= reach <= inputs for start, stop, reach in groups)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("context", [0, 2])
def test_values_and_gradients_are_those_of_plain_masked_maps(sizes, residual, context):
    net = made(sizes, residual=residual, context=context, blocks=3)
    x = rows_like_data(33, sizes["features"]).requires_grad_()
    given = rows_like_data(33, context, seed=5).requires_grad_() if context else None
    inputs = [x, *([given] if context else []), *net.parameters()]
    expected = plainly(net, x, given)
    weigh = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = net(x, given)
    close(found, expected)
    for one, other in zip(
        torch.autograd.grad((found * weigh).sum(), inputs),
        torch.autograd.grad((expected * weigh).sum(), inputs),
        strict=True,
    ):
        close(one, other)
    with torch.no_grad():
        close(net(x, given), expected)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("residual", [True, False])
def test_second_derivatives(residual):
    net = made({"features": 4, "params": 2, "hidden": 9}, residual=residual, context=1)
    x, given = rows_like_data(5, 4), rows_like_data(5, 1, seed=3)
    inputs = [tensor.requires_grad_() for tensor in (x, given)] + list(net.parameters())

    def curvature(output):
        slopes = torch.autograd.grad(output.pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in slopes), inputs)

    for one, other in zip(curvature(net(x, given)), curvature(plainly(net, x, given)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_the_weights_the_pass_ran_with():
    net = made({"features": 5, "params": 2, "hidden": 70})
    other = {name: (tensor * 1.5).detach().requires_grad_() for name, tensor in net.named_parameters()}
    x = rows_like_data(8, 5)
    loss = torch.func.functional_call(net, other, (x,)).square().sum()  # the modules hold their own weights again
    found = torch.autograd.grad(loss, list(other.values()))
    net.load_state_dict(other, strict=True)
    expected = torch.autograd.grad(plainly(net, x).square().sum(), list(net.parameters()))
    for one, two in zip(found, expected, strict=True):
        close(one, two)


@pytest.mark.usefixtures("blocks")
def test_weights_behind_the_mask_change_nothing():
    net = made({"features": 30, "params": 2, "hidden": 100})
    x = rows_like_data(9, 30)
    with torch.no_grad():
        before, sample = net(x), net.column_walk(None, 9)
        for layer in net.modules():
            if isinstance(layer, MaskedLinear):
                layer.weight += 7.0 * (1 - layer.mask)
        assert torch.equal(net(x), before)
        for level in range(30):
            close(sample.theta(level, x.t()).squeeze(1), before[:, level])


@pytest.mark.parametrize("residual", [True, False])
def test_gradients_follow_the_units_that_dropout_kept(residual):
    net = made({"features": 6, "params": 2, "hidden": 90}, residual=residual, blocks=2, dropout=0.4).train()
    x, parameters = rows_like_data(7, 6), list(net.parameters())

    def loss():
        torch.manual_seed(0)
        return net(x).square().sum()

    with torch.random.fork_rng(devices=[]):
        at_start = loss()
        gradients = torch.autograd.grad(at_start, parameters)
        assert float(at_start.detach()) != float(net.eval()(x).square().sum().detach())
        net.train()
        step = 1e-9
        with torch.no_grad():
            torch._foreach_add_(parameters, list(gradients), alpha=step)
            rise = float((loss() - at_start.detach()) / step)
    assert rise == pytest.approx(float(sum(gradient.square().sum() for gradient in gradients)), rel=1e-4)


def test_dropout_keeps_the_mean_of_what_the_next_layer_sees():
    net = made({"features": 3, "params": 1, "hidden": 50}, residual=True, blocks=1, dropout=0.3)
    with torch.no_grad():
        net.last.weight.zero_()
        net.last.weight[:, 0] = 1.0  # theta_i is the first unit's residual stream, which is kept positive here
        net.first.bias[0] = 100.0
        x = rows_like_data(1, 3)
        expected = net.eval()(x)[0, 1:, 0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drawn = net.train()(x.expand(20_000, 3))[:, 1:, 0]
    error = 4.9 * drawn.std(dim=0) / 20_000**0.5  # 1e-6 two-sided
    assert drawn.std(dim=0).min() > 0
    assert ((drawn.mean(dim=0) - expected).abs() <= error).all()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_column_walk_emits_the_thetas_of_one_pass(sizes, residual):
    order = list(range(sizes["features"]))[::-1]
    net = made(sizes, residual=residual, context=2, order=order)
    x, given = rows_like_data(11, sizes["features"]), rows_like_data(11, 2, seed=4)
    with torch.no_grad():
        whole, walk = net(x, given), net.column_walk(given, 11)
        columns = torch.full((sizes["features"], 11), torch.nan, dtype=torch.float64)
        for level, coordinate in enumerate(order):
            close(walk.theta(level, columns).squeeze(1), whole[:, coordinate])
            columns[level] = x[:, coordinate]


@pytest.mark.parametrize("name", ["nits", "maf", "nsf"])
def test_scores_and_samples_without_gradients_equal_those_with(name):
    flow = disturbed(build(name, 3, 1, options={"hidden": 16}, seed=0)).double()
    x, context = rows_like_data(MOST_SCORE_ROWS + 3, 3), rows_like_data(MOST_SCORE_ROWS + 3, 1, seed=2)
    with_tape = flow.log_prob(x, context)
    z = rows_like_data(50, 3, seed=8)
    taped = flow.transform.inverse(z, context[:50])
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x, context), with_tape, rtol=1e-10, atol=1e-10)
        plain = flow.transform.inverse(z, context[:50])
    torch.testing.assert_close(plain.value, taped.value, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(plain.log_det, taped.log_det, rtol=1e-8, atol=1e-8)
