"""The certified Newton search of the monotone net, against the logarithmic form of the same map."""

import math

import pytest
import torch

from rosenblatt.conditioners.masked import _degrees
from rosenblatt.core.allocator import keep_freed_memory
from rosenblatt.elementwise.base import ROOT_TOLERANCE, Elementwise
from rosenblatt.elementwise.monotone_inverse import solve
from rosenblatt.elementwise.monotone_logs import LogNet
from rosenblatt.elementwise.monotone_net import MonotoneNet

NETS = {
    "line": MonotoneNet((16, 16, 1)),
    "interval": MonotoneNet((8, 8, 1), lower=-2.0, upper=5.0),
    "mixture": MonotoneNet((5, 1), epsilon=0.0),
    "deep": MonotoneNet((8, 8, 8, 1), lower=0.0, upper=1.0),
}


def targets_and_thetas(net, rows, scale, dtype, reach=12.0):
    generator = torch.Generator().manual_seed(3)
    theta = net.start() + scale * torch.randn(rows, net.spec.size, generator=generator)
    y = reach * (2 * torch.rand(rows, generator=generator, dtype=torch.float64) - 1)
    return y.to(dtype), theta.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_what_is_called_sure_meets_the_tolerance(net, scale, dtype):
    y, theta = targets_and_thetas(net, 700, scale, dtype)
    tolerance = ROOT_TOLERANCE[dtype]
    found = solve(net.plan, y, theta, tolerance)
    exact = LogNet.decode(net.plan, theta.double())(found.x)
    # The oracle rounds too: by an ulp of x along the slope, and by a few eps in its own sums.
    rounding = 64 * torch.finfo(torch.float64).eps * (1 + found.x.abs() * found.log_slope.exp() + y.double().abs())
    error = (exact - y.double()).abs() - rounding
    assert (error[found.sure] <= tolerance * (1 + y[found.sure].double().abs())).all()
    if scale <= 1 and dtype == torch.float32:  # in float64 most are left to the careful search
        assert found.sure.double().mean() > 0.9


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_inverse_is_that_of_the_bracketed_search(net, scale):
    y, theta = targets_and_thetas(net, 300, scale, torch.float64, reach=30.0)
    fast, slow = net.inverse(y, theta), Elementwise.inverse(net, y, theta)
    slope = (-slow.log_det).exp()
    allowed = 1e-12 * (1 + y.abs()) / slope + 16 * torch.finfo(torch.float64).eps * (1 + slow.value.abs())
    assert ((fast.value - slow.value).abs() <= allowed).all()


def test_digits_of_a_row_do_not_depend_on_the_others():
    net = NETS["line"]
    y, theta = targets_and_thetas(net, 500, 1.0, torch.float32)
    whole = net.inverse(y, theta)
    for spoiled in (0, 17, 499):
        other = y.clone()
        other[spoiled] = math.nan
        found = net.inverse(other, theta)
        rest = torch.arange(500) != spoiled
        assert torch.equal(found.value[rest], whole.value[rest])
        assert torch.equal(found.log_det[rest], whole.log_det[rest])
        assert found.value[spoiled].isnan()


def test_ends_and_what_is_no_number():
    net = NETS["interval"]
    theta = net.start().expand(4, -1).clone()
    theta[3, 0] = math.nan
    found = net.inverse(torch.tensor([-math.inf, math.inf, math.nan, 0.5]), theta).value
    assert found[:2].tolist() == [-2.0, 5.0]
    assert found[2:].isnan().all()


@pytest.mark.parametrize(("features", "hidden"), [(6, 256), (6, 128), (3, 33), (43, 256), (8, 1024), (2, 8), (9, 4)])
@pytest.mark.parametrize("lowest", [0, 1])
def test_every_degree_has_hidden_units_in_blocks_that_fall_on_tiles(features, hidden, lowest):
    degrees = _degrees(features, hidden, lowest)
    assert len(degrees) == hidden
    assert degrees.tolist() == sorted(degrees.tolist())
    assert degrees[-1] == features - 1
    span = features - lowest
    if hidden >= span:
        counts = torch.bincount(degrees - lowest)
        assert len(counts) == span
        assert counts.min() >= 1
        if hidden >= 16 * span:
            assert (counts[:-1] % 16 == 0).all()


def test_a_users_own_settings_of_the_allocator_are_left(monkeypatch):
    class Loaded:
        calls = 0

        def mallopt(self, *_):
            Loaded.calls += 1

    monkeypatch.setattr("ctypes.CDLL", lambda _: Loaded())
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    keep_freed_memory.__wrapped__()
    assert Loaded.calls == 0
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    keep_freed_memory.__wrapped__()
    assert Loaded.calls == 2
