"""Batch normalisation: statistics of all training rows wherever the density is used, of the batch in training."""

import math

import pytest
import torch
from test_train_resume import StopAt, assert_same_run
from torch.nn.functional import batch_norm
from train_stubs import Rows, fit

from rosenblatt.assembly import assemble
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Batch, Likelihood, Support
from rosenblatt.data import Table
from rosenblatt.layers.batch_norm import EPSILON, BatchNorm
from rosenblatt.layers.sphere import OnSphere, to_chart
from rosenblatt.layers.surjection import Dequantised, row_noise
from rosenblatt.models.maf import maf
from rosenblatt.models.realnvp import realnvp
from rosenblatt.train import FitConfig, Fitter


def data(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stirred(module, size=0.3):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def small(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return maf(2, transforms=2, hidden=8, blocks=1, batch_norm=True, **options)


def bent(rows=400):
    z = data(rows, 2).float()
    return torch.stack([z[:, 0] + 3, z[:, 0] ** 2 - 5 + 0.3 * z[:, 1]], dim=-1)


def norms(flow):
    return [(number, step) for number, step in enumerate(flow.transform.steps) if isinstance(step, BatchNorm)]


def assert_whole_set_statistics(flow, x):
    """Each layer keeps mean and biased variance of what the steps before it make of all rows at once."""
    assert norms(flow)
    with torch.no_grad():
        for number, layer in norms(flow):
            reached = x
            for step in flow.transform.steps[:number]:
                reached = step(reached).value
            assert torch.allclose(layer.mean, reached.mean(dim=0), rtol=1e-5, atol=1e-6)
            assert torch.allclose(layer.variance, reached.var(dim=0, correction=0) + EPSILON, rtol=1e-5)


def test_training_mode_is_batch_normalisation_with_gradients_through_the_statistics():
    layer = stirred(BatchNorm(3)).double().train()
    x = (data(7, 3) * torch.tensor([1.0, 5.0, 0.01]) + 2).requires_grad_()
    scale = torch.exp(7 * torch.tanh(layer.log_scale / 7))
    expected = batch_norm(x, None, None, scale, layer.shift, training=True, eps=EPSILON)
    value, log_det = layer(x)
    assert torch.allclose(value, expected, atol=1e-12)
    variance = x.var(dim=0, correction=0) + EPSILON
    assert torch.allclose(log_det, (torch.log(scale) - 0.5 * torch.log(variance)).sum().expand(7))
    weight = data(7, 3, seed=2)
    ours, theirs = (torch.autograd.grad((v * weight).sum(), x, retain_graph=True)[0] for v in (value, expected))
    assert torch.allclose(ours, theirs, atol=1e-10)
    # The log-determinant moves with the rows too: a constant shift leaves it, a stretch does not.
    (grad,) = torch.autograd.grad(log_det[0], x)
    assert torch.allclose(grad, -(x - x.mean(dim=0)) / (7 * variance), atol=1e-10)


def test_eval_mode_is_a_map_of_rows_with_the_jacobian_it_reports():
    layer = stirred(BatchNorm(3)).double().eval()
    layer.refresh([data(50, 3) * 4 + 1])
    x = data(2, 5, 3)
    value, log_det = layer(x)
    jacobian = torch.func.jacrev(lambda row: layer(row).value)(x[0, 0])
    assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(log_det[0, 0].item(), abs=1e-12)
    assert torch.equal(layer(x[0, 0]).value, value[0, 0])
    for mode in (True, False):  # the way back uses what is stored, in training too
        back, back_log_det = layer.train(mode).inverse(value)
        assert torch.allclose(back, x, atol=1e-12)
        assert torch.allclose(back_log_det, -log_det)


def test_statistics_of_parts_are_those_of_the_whole_also_far_from_zero():
    x = data(1001, 2) * torch.tensor([1.0, 1e-3]) + torch.tensor([1e6, -3.0])
    layer = BatchNorm(2).double()
    layer.refresh(x.split([1, 0, 500, 3, 497]))
    assert torch.allclose(layer.mean, x.mean(dim=0), rtol=1e-14)
    assert torch.allclose(layer.variance, x.var(dim=0, correction=0) + EPSILON, rtol=1e-10)


def test_a_single_row_in_training_takes_the_stored_statistics():
    layer = BatchNorm(2).double()
    layer.initialise(data(40, 2) * 3)
    x = data(1, 2)
    assert torch.equal(layer.train()(x).value, layer.eval()(x).value)


def test_rows_without_statistics_are_refused():
    layer = BatchNorm(1)
    for rows in ([], [torch.zeros(0, 1)], [torch.tensor([[1.0], [math.nan]])]):
        with pytest.raises(DataError, match="at least one"):
            layer.refresh(rows)
    with pytest.raises(OptionError, match="features"):
        BatchNorm(0)


def test_training_gives_an_estimate_and_says_so():
    flow = small()
    assert flow.train().likelihood is Likelihood.ESTIMATE
    assert flow.eval().likelihood is Likelihood.EXACT


@pytest.mark.parametrize("components", [0, 3])
def test_it_follows_every_affine_layer(components):
    kinds = [type(step).__name__ for step in small(components=components).transform.steps]
    assert kinds == ["Conditional", "BatchNorm"] * 2 + ["Conditional"] * bool(components)
    assert len(norms(realnvp(2, transforms=3, hidden=8, batch_norm=True))) == 3


def test_refreshing_a_flow_goes_layer_by_layer():
    flow, x = stirred(small(context=1)).double().eval(), bent().double()
    context = data(len(x), 1, seed=4)
    flow.refresh(Batch(a, b) for a, b in zip(x.split(150), context.split(150), strict=True))
    for number, layer in norms(flow):
        reached = x
        for step in flow.transform.steps[:number]:
            reached = step(reached, context).value
        assert torch.allclose(layer.mean, reached.mean(dim=0), atol=1e-12)
        assert torch.allclose(layer.variance, reached.var(dim=0, correction=0) + EPSILON, rtol=1e-12)


def test_a_flow_without_statistics_reads_no_batch():
    def never():
        raise AssertionError("read")
        yield

    maf(2, transforms=1, hidden=8).refresh(never())


def test_rows_outside_their_support_do_not_count_behind_units():
    table = Table.from_any({"a": [0.5, 1.0, 2.0, 4.0, 3.0]})
    options = {"transforms": 1, "hidden": 8, "batch_norm": True}
    flow = assemble("maf", table, options=options, supports={"a": Support(0.0)}).eval()
    rows = table.values.double()
    flow.refresh([Batch(rows), Batch(torch.tensor([[-7.0]], dtype=torch.float64))])
    spoiled = [layer.mean.clone() for _, layer in norms(flow.model)]
    flow.refresh([Batch(rows)])
    for (_, layer), mean in zip(norms(flow.model), spoiled, strict=True):
        assert torch.equal(layer.mean, mean)
        assert layer.mean.abs().max() > 0


def test_densities_around_a_flow_hand_the_rows_on():
    counts = torch.arange(40.0).reshape(20, 2) % 7
    model = Dequantised(stirred(small()), 7).eval()
    model.refresh([Batch(counts[:15]), Batch(counts[15:])])
    assert_whole_set_statistics(model.density, 2 / 7 * (counts + row_noise(counts)[0].float()) - 1)
    directions = torch.nn.functional.normalize(data(30, 3).float(), dim=-1)
    sphere = OnSphere(stirred(small())).eval()
    sphere.refresh([Batch(directions)])
    assert_whole_set_statistics(sphere.flow, to_chart(directions))


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_fit_leaves_the_statistics_of_its_best_weights(ema_decay):
    train, held_out = Rows(bent()), Rows(bent(200) + 0.1)
    flow = small()
    config = FitConfig(epochs=3, batch_size=32, learning_rate=0.02, ema_decay=ema_decay, patience=None)
    report = Fitter(config, progress=False).fit(flow, train, validation=held_out)
    assert not flow.training
    assert_whole_set_statistics(flow, train.x)
    with torch.no_grad():
        assert flow.log_prob(held_out.x).mean().item() == pytest.approx(report.best_validation, abs=1e-5)


def test_stopped_before_the_first_validation_the_statistics_are_right(tmp_path):
    train, flow = Rows(bent()), small()
    _, report, _ = fit(model=flow, data=train, objective=StopAt(3), validation_fraction=0.0, path=tmp_path / "run")
    assert (report.stopped, report.best_step) == ("interrupted", None)
    assert_whole_set_statistics(flow, train.x)


def test_a_resumed_run_is_bit_identical(tmp_path):
    changes = {"epochs": 2, "batch_size": 57, "ema_decay": 0.9}  # 360 rows of 400: the last batches are short
    fit(tmp_path / "a", model=small(), data=Rows(bent()), **changes)
    for stop, resume in ((4, False), (3, True), (100, True)):
        fit(tmp_path / "b", model=small(), data=Rows(bent()), objective=StopAt(stop), resume=resume, **changes)
    assert_same_run(tmp_path / "b", tmp_path / "a")
