"""Faults found by review: each test fails on the code as it was before its fault was cured."""

import errno
import math
import os

import pytest
import torch
from torch import nn
from train_stubs import Gaussian, Rows, fit, table

from rosenblatt.assembly import assemble
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core import registry
from rosenblatt.core.density import Density
from rosenblatt.core.errors import CheckpointError
from rosenblatt.core.types import Support
from rosenblatt.data import Table
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.layers.support import SupportMap
from rosenblatt.train import RunFolder, storage
from rosenblatt.train.session import Session


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stirred(module, seed=0):
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=1000 * seed + number, scale=0.5))
    return module


def influence(net, x, context):
    """Sizes of d theta / d x (of, by) and d theta / d context (of, by), summed over rows and parameters."""
    by_x, by_context = torch.func.jacrev(lambda a, b: net(a, b).sum(dim=0), argnums=(0, 1))(x, context)
    return by_x.abs().sum(dim=(1, 2)), by_context.abs().sum(dim=(1, 2))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("features", "hidden"), [(2, 8), (4, 24), (6, 3)])
def test_every_coordinate_depends_on_the_context(features, hidden, residual):
    order = torch.randperm(features, generator=torch.Generator().manual_seed(features)).tolist()
    net = stirred(Masked(features, 3, hidden=hidden, context=2, residual=residual, order=order, activation="tanh"))
    net = net.double()
    x, context = normal(16, features), normal(16, 2, seed=1)
    by_x, by_context = influence(net, x, context)
    assert (by_context[order[0]] > 0).all()
    assert (by_context > 0).all()
    allowed = net.position.unsqueeze(1) > net.position.unsqueeze(0)
    assert (by_x[~allowed] == 0.0).all()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            theta, walk = net(x, context), net.walk(context)
            for number, level in enumerate(net.levels):
                walked = walk.theta(number, x)
                torch.testing.assert_close(walked, theta.index_select(-2, level), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("hidden", [1, 2, 4, 8])
def test_the_last_coordinate_sees_all_others_through_few_hidden_units(hidden, context):
    net = stirred(Masked(10, 2, hidden=hidden, context=context, activation="tanh")).double()
    x = normal(16, 10)
    given = normal(16, context, seed=1) if context else None
    by_x = torch.func.jacrev(lambda row: net(row, given).sum(dim=0))(x).abs().sum(dim=(1, 2))
    assert (by_x[-1, :-1] > 0).all()
    assert (by_x.triu() == 0.0).all()


class Location(Density):
    """A Gaussian of variance 1 on [0, inf) of the first column; its mean is all there is to learn."""

    features, context = 1, 0

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(()))

    def log_prob(self, x, context=None):
        log_prob = -0.5 * (x - self.mean).square()
        return torch.where(x >= 0, log_prob, -torch.inf).squeeze(-1)

    def sample_and_log_prob(self, n, context=None, *, generator=None):
        raise NotImplementedError


@pytest.mark.parametrize("size", [1, 2, 4])
def test_batches_add_up_to_the_weighted_gradient(size):
    x = torch.arange(16.0).unsqueeze(-1) + 1
    weight = torch.tensor([9.0, 1.0] * 8)
    model, gradients = Location(), []
    model.mean.register_hook(gradients.append)
    fit(
        model=model,
        data=Rows(x, weight),
        batch_size=size,
        epochs=1,
        learning_rate=1e-12,  # so that every gradient is taken at the same mean
        weight_decay=0.0,
        validation_fraction=0.0,
    )
    expected = -(weight * x.squeeze(-1)).sum() / weight.sum()
    assert len(gradients) == 16 // size
    assert torch.stack(gradients).mean().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("make", ["stub", "flow"])
def test_rows_without_weight_do_not_count_wherever_they_lie(make):
    def fitted(data):
        torch.manual_seed(3)
        model = Location() if make == "stub" else supported_flow()
        _, report, _ = fit(model=model, data=data, batch_size=40, epochs=3, validation_fraction=0.25, patience=None)
        return report

    x = table(160, features=1).x.abs() + 0.1
    weight = torch.ones(160)
    weight[::5] = 0
    outside = x.clone()
    outside[::5] = -1.0
    inside, report = fitted(Rows(x, weight)), fitted(Rows(outside, weight))
    assert (report.skipped_steps, report.rolled_back, report.events) == (0, 0, [])
    for name in ("train", "validation"):
        ours, theirs = ([record[name] for record in r.history] for r in (report, inside))
        assert ours == pytest.approx(theirs, rel=1e-5)


def supported_flow():
    """A small flow on [0, inf), which gives minus infinity elsewhere."""
    return registry.build("nits", 1, options={"hidden": 8}, seed=0).after(SupportMap([(0, None)]))


@pytest.mark.parametrize("support", [(0.0, None), (0.0, 1.0), (None, 0.0), (-1.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_bound_of_zero_has_a_moderate_density(support, dtype, scale):
    if None not in support and scale != 1.0:
        support = tuple(scale * end for end in support)
    sign = 1 if support[0] == 0.0 else -1
    layer = SupportMap([support], [scale])
    eps = torch.finfo(dtype).eps
    value, log_det = layer(torch.zeros(1, dtype=dtype))
    assert 0 < log_det.item() + math.log(scale) < 60
    assert -60 < sign * value.item() < 0
    reach = torch.logspace(math.log10(eps), -0.01, 400, dtype=torch.float64)
    reach = torch.cat([reach.new_zeros(1), reach]) * scale
    reach[1] = eps * scale
    values = sign * layer((sign * reach).to(dtype).unsqueeze(-1)).value.squeeze(-1)
    assert (values.diff()[1:] > 0).all()
    assert values[1] >= values[0]


@pytest.mark.parametrize("support", [Support(0.0), Support(0.0, 1.0)])
def test_a_value_on_the_bound_does_not_spoil_the_scale(support):
    x = torch.sigmoid(normal(1000, 1))
    with_zero = x.clone()
    with_zero[0] = 0.0
    scales = []
    for values in (x, with_zero):
        flow = assemble("nits", Table(values, ("a",)), options={"hidden": 8}, supports={"a": support}, seed=0)
        scales.append(flow.units.map.steps[-1].scale.item())
    assert scales[0] < scales[1] < 2.5 * scales[0]
    log_prob = flow.log_prob(torch.zeros(1, 1, dtype=torch.float64))
    assert torch.isfinite(log_prob).all()
    assert log_prob.item() < 60


def checkpoint(run, step, value):
    run.save(step, {"weight": torch.full((50,), value)}, {"moment": torch.zeros(3)}, {"n": value}, best=True)


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_full_disk_spares_the_checkpoint_that_is_written_again(tmp_path, monkeypatch, failing):
    run = RunFolder.create(tmp_path / "run", {"model": "stub"})
    checkpoint(run, 5, 1.0)
    write, calls = storage.write_bytes, []

    def full(path, data, *, sync=True):
        calls.append(path)
        if len(calls) == failing:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data, sync=sync)

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint(run, 5, 2.0)
    monkeypatch.undo()
    _assert_holds(run, 5, 1.0)
    checkpoint(run, 5, 3.0)
    _assert_holds(run, 5, 3.0)


def test_a_failed_rename_spares_the_checkpoint_that_is_written_again(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", {"model": "stub"})
    checkpoint(run, 5, 1.0)
    rename = os.rename

    def refusing(source, target):
        if ".tmp-" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(storage.os, "rename", refusing)
    with pytest.raises(CheckpointError, match="Input/output"):
        checkpoint(run, 5, 2.0)
    monkeypatch.undo()
    _assert_holds(run, 5, 1.0)


def test_a_kill_between_the_renames_gives_the_earlier_checkpoint_back(tmp_path):
    run = RunFolder.create(tmp_path / "run", {"model": "stub"})
    checkpoint(run, 5, 1.0)
    (folder,) = run.path.glob("step-*")
    folder.rename(folder.with_name(folder.name + ".replaced"))
    with run.writing():
        pass
    _assert_holds(run, 5, 1.0)


def _assert_holds(run, step, value):
    again = RunFolder.open(run.path)
    assert again.steps() == [step]
    for which in ("latest", "best", step):
        loaded = again.load(which)
        assert (loaded.step, loaded.state["n"]) == (step, value)
        assert torch.equal(loaded.model["weight"], torch.full((50,), value))


def test_the_checkpoint_to_roll_back_to_is_kept(tmp_path):
    changes = {"keep_last": 1, "checkpoint_every": 5, "validate_every": 100, "max_steps": 7, "schedule": "constant"}
    _, report, run = fit(tmp_path / "run", **changes)
    progress = run.load("latest").state["progress"]
    assert (report.steps, report.best_step, progress["snapshot_step"]) == (7, 7, 5)
    assert run.steps() == [5, 7]
    assert run.load(5).train
    # A later snapshot takes its place: the folder does not grow.
    _, _, run = fit(tmp_path / "run", resume=True, **{**changes, "max_steps": 16})
    snapshot = run.load("latest").state["progress"]["snapshot_step"]
    assert snapshot == 15
    assert run.steps() == sorted({snapshot, 16, run.load("best").step})


def test_a_resumed_run_starts_with_the_same_snapshot(tmp_path, monkeypatch):
    seen = []
    start = Session.start

    def spy(session):
        step = start(session)
        if step is not None:
            seen.append({name: tensor.clone() for name, tensor in session.snapshot[1].items()})
        return step

    monkeypatch.setattr(Session, "start", spy)
    changes = {"keep_last": 1, "checkpoint_every": 5, "validate_every": 100, "schedule": "constant"}
    fit(tmp_path / "whole", model=Gaussian(dropout=0.0), **changes, max_steps=5)
    at_five = RunFolder.open(tmp_path / "whole").load(5).train
    fit(tmp_path / "run", model=Gaussian(dropout=0.0), **changes, max_steps=7)
    fit(tmp_path / "run", model=Gaussian(dropout=0.0), **changes, max_steps=7, resume=True)
    assert len(seen) == 1
    assert all(torch.equal(tensor, at_five[name]) for name, tensor in seen[0].items())


@pytest.mark.parametrize(("lower", "upper"), [(1e-3, 1e6), (-1e6, -1.0), (0.0, 1e30)])
@pytest.mark.parametrize("widths", [(16, 16, 1), (4, 1), (1, 1)])
def test_a_monotone_net_starts_on_wide_intervals(lower, upper, widths):
    net = MonotoneNet(widths, lower=lower, upper=upper)
    theta = net.start().double()
    assert torch.isfinite(theta).all()
    x = torch.linspace(lower, upper, 401, dtype=torch.float64)
    x[-1] = upper
    cdf = net.cdf(x, theta)
    assert cdf[[0, -1]].tolist() == [0.0, 1.0]
    assert (cdf.diff() >= 0).all()
    assert 0.3 < cdf[200].item() < 0.7
    assert torch.isfinite(net.log_prob(x[1:-1], theta)).all()
    u = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    assert (net.cdf(net.quantile(u, theta), theta) - u).abs().max() < 1e-9


@pytest.mark.parametrize("name", registry.names())
def test_a_seeded_build_touches_no_other_stream(name, monkeypatch):
    def touched(*args, **options):
        raise AssertionError("reseeds every accelerator")

    monkeypatch.setattr(torch, "manual_seed", touched)
    monkeypatch.setattr(torch.random, "manual_seed", touched)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched)
    monkeypatch.setattr(torch.cuda, "manual_seed", touched)
    before = torch.get_rng_state()
    first, second = (registry.build(name, 3, seed=5).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


@pytest.mark.parametrize("tails", ["linear", "none"])
@pytest.mark.parametrize("knot", [1, 2, 4, 5])
def test_the_log_slope_of_a_spline_has_a_one_sided_gradient_at_a_knot(tails, knot):
    spline = RationalQuadraticSpline(bins=6, tails=tails)
    theta = normal(spline.spec.size, seed=knot)
    shares = 6 * (1e-3 + (1 - 6e-3) * torch.softmax(theta[:6], dim=0))
    knots = -3 + torch.cat([shares.new_zeros(1), shares.cumsum(0)[:-1]])

    def gradient(x):
        point = x.clone().requires_grad_()
        return torch.autograd.grad(spline(point, theta).log_det, point)[0].item()

    at, left, right = (gradient(knots[knot] + shift) for shift in (0.0, -1e-10, 1e-10))
    assert left != pytest.approx(right, rel=1e-3)
    assert abs(left) > 1e-3
    assert abs(right) > 1e-3
    assert math.isfinite(at)
    assert at in (pytest.approx(left, rel=1e-6), pytest.approx(right, rel=1e-6))


@pytest.mark.parametrize("support", [(0.0, None), (None, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_lines_increase_where_softplus_would_jump(support, dtype):
    sign = 1 if support[0] == 0.0 else -1
    steps = torch.arange(-500, 501, dtype=dtype)
    for centre in (-20.0, 20.0):
        y = centre + steps * 16 * torch.finfo(dtype).eps
        x = SupportMap([support], [1.0]).inverse(y.unsqueeze(-1)).value.squeeze(-1)
        assert (x.diff() >= 0).all()
    y = torch.tensor([[sign * 20.0], [sign * 20.5]], dtype=torch.float64)
    exact = [sign * (abs(v) + math.log1p(math.exp(-abs(v)))) for v in y.flatten().tolist()]
    assert SupportMap([support], [1.0]).inverse(y).value.flatten().tolist() == pytest.approx(exact, rel=1e-15)
