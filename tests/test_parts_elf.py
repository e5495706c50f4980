"""Exact-Lipschitz maps: their constants against brute force, their inverses by repetition and by search."""

import numpy as np
import pytest
import torch

import rosenblatt.models  # noqa: F401 - enters every model in the registry
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import build
from rosenblatt.data import TOYS
from rosenblatt.data.table import Table
from rosenblatt.elementwise.elf import ACTIVATIONS, ExactLipschitz, relu_constant, shrunk, smooth_constant
from rosenblatt.eval import paired_difference
from rosenblatt.train import FitConfig, Fitter


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slopes_at(inner, offset, outer, x):
    """Slope of every ReLU network (nets, units) at its own points (nets, points), unit by unit."""
    active = inner[:, None] * x[:, :, None] + offset[:, None] > 0
    return (outer[:, None] * inner[:, None] * active).sum(-1)


@pytest.mark.parametrize("units", [1, 2, 7, 64])
def test_constant_of_a_relu_network_is_what_brute_force_finds(units):
    inner, offset, outer = (normal(1000, units, seed=seed) for seed in range(3))
    found = relu_constant(inner, offset, outer).numpy()
    inner, offset, outer = (part.numpy() for part in (inner, offset, outer))
    grid = np.linspace(-8, 8, 200 if units == 64 else 2000) * np.ones((1000, 1))
    coarse = np.abs(slopes_at(inner, offset, outer, grid)).max(1)
    assert (coarse <= found + 1e-12 * (1 + found)).all()
    # Every piece has its own point: halfway between neighbouring breakpoints, and beyond the outermost.
    ends = np.sort(-offset / inner, axis=1)
    places = np.concatenate([ends[:, :1] - 1, (ends[:, 1:] + ends[:, :-1]) / 2, ends[:, -1:] + 1], axis=1)
    exact = np.abs(slopes_at(inner, offset, outer, places)).max(1)
    np.testing.assert_allclose(found, np.maximum(exact, coarse), rtol=1e-10)


def test_constant_is_much_below_the_usual_bounds():
    inner, offset, outer = (normal(200, 64, seed=seed) for seed in range(3))
    exact = relu_constant(inner, offset, outer)
    summed = (inner * outer).abs().sum(dim=-1)
    norms = inner.norm(dim=-1) * outer.norm(dim=-1)
    assert (exact <= summed).all()
    assert (summed / exact).mean() > 3
    assert (norms / exact).mean() > 5


def test_a_unit_that_never_switches_changes_no_slope():
    inner, offset, outer = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([5.0, 0.25, -9.0])
    assert relu_constant(inner, offset, outer).item() == 0.25


@pytest.mark.parametrize("unit", ["tanh", "softplus"])
def test_smooth_bound_holds_and_is_attained(unit):
    derivative = ACTIVATIONS[unit][1]
    inner, offset, outer = (normal(1000, 6, seed=seed) for seed in range(3))
    x = torch.linspace(-10, 10, 1001, dtype=torch.float64).unsqueeze(-1)
    slopes = ((outer * inner).unsqueeze(1) * derivative(inner.unsqueeze(1) * x + offset.unsqueeze(1))).sum(dim=-1)
    bound = smooth_constant(inner, outer)
    assert (slopes.abs().amax(dim=-1) <= bound * (1 + 1e-12)).all()
    assert (bound <= (inner * outer).abs().sum(dim=-1)).all()
    # Steep together where the others are flat: falling units of tanh far away, of softplus turned off.
    inner, outer = torch.tensor([1.0, 2.0, 1.0]).double(), torch.tensor([1.0, 1.0, -2.0]).double()
    offset = torch.tensor([0.0, 0.0, -40.0]).double()
    at = torch.tensor(0.0 if unit == "tanh" else 20.0).double()
    attained = (outer * inner * derivative(inner * at + offset)).sum()
    assert attained.item() == pytest.approx(smooth_constant(inner, outer).item(), abs=1e-8)


def test_shrinking_leaves_small_networks_alone_and_keeps_large_ones_below_the_limit():
    outer = normal(5, 3)
    constant = torch.tensor([0.0, 1e-4, 1.0, 1e6, 1e12]).double()
    result = shrunk(outer, constant, 0.9)
    assert torch.equal(result[0], outer[0])
    assert torch.allclose(result[1], outer[1], rtol=1e-7)
    ratio = result[:, 0] / outer[:, 0]
    assert (constant * ratio < 0.9 * (1 + 1e-15)).all()
    assert (constant * ratio)[3:].tolist() == pytest.approx([0.9, 0.9], rel=1e-9)


@pytest.mark.parametrize("unit", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slope_stays_within_the_constant_for_wild_weights(unit, dtype):
    for scale in (1.0, 5.0, 50.0, 1e6, 1e30):
        elf = ExactLipschitz(64, unit=unit, lipschitz=0.99)
        theta = normal(50, elf.spec.size, scale=scale, seed=3).to(dtype)
        theta[:, 0] = 0
        constant = elf.constant(theta)
        assert (constant <= 0.99 * (1 + 1e-3 if dtype == torch.float32 else 1 + 1e-12)).all()
        x = torch.linspace(-9, 9, 401).to(dtype)
        mapped = elf(x.expand(50, -1), theta.unsqueeze(1))
        size = torch.exp(mapped.log_det.double()) - 1
        assert (size.abs() <= 0.995).all()
        assert torch.isfinite(mapped.value).all()


def test_units_that_cancel_leave_no_slope_beyond_the_constant_between_rounded_breakpoints():
    elf = ExactLipschitz(2, unit="relu", lipschitz=0.99)
    inner, outer = torch.tensor([[0.3, 0.9], [9.0, -3.0]], dtype=torch.float64)  # products 2.7 and -2.7
    offset = 7.1 * inner  # the same breakpoint but for rounding
    raw = [10 * torch.atanh(part / 10) for part in (outer, inner)]
    theta = torch.cat([torch.zeros(1).double(), *raw, offset]).unsqueeze(0)
    x = torch.tensor([-7.1 - 1.5e-14], dtype=torch.float64)
    for _ in range(40):
        log_det = elf(x, theta).log_det
        assert torch.isfinite(log_det).all()
        assert torch.exp(log_det).item() >= 0.01 - 1e-12
        x = torch.nextafter(x, torch.tensor([0.0]).double())


def test_repetition_converges_to_what_the_search_finds():
    elf = ExactLipschitz(16, lipschitz=0.97)
    theta = elf.start().double() + normal(500, elf.spec.size, seed=4, scale=2.0)
    y = normal(500, seed=5, scale=3.0)
    found = elf.inverse(y, theta).value
    x = y.clone()
    errors = []
    for _ in range(100):
        x = x + (y - elf(x, theta).value)  # y - shift - g(x)
        errors.append((x - found).abs().max().item())
    assert errors[-1] < 1e-4
    assert errors[-1] < errors[19] < errors[4]


@pytest.mark.parametrize("unit", list(ACTIVATIONS))
@pytest.mark.parametrize("scale", [1.0, 3.0, 50.0])
def test_round_trip_up_to_a_thousand(unit, scale):
    elf = ExactLipschitz(8, unit=unit)
    theta = elf.start().double() + normal(400, elf.spec.size, seed=6, scale=scale)
    x = torch.cat([torch.linspace(-1e3, 1e3, 201).double(), normal(199, seed=7)])
    y = elf(x, theta).value
    back = elf.inverse(y, theta)
    assert ((back.value - x).abs() <= 1e-9 * (1 + x.abs())).all()
    # A bisection of my own, in a bracket that the constant alone promises.
    reach = (elf(torch.zeros(400).double(), theta).value - y).abs() / (1 - elf.lipschitz)
    low, high = -reach, reach
    for _ in range(80):
        middle = (low + high) / 2
        below = elf(middle, theta).value < y
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    assert ((back.value - low).abs() <= 1e-9 * (1 + x.abs())).all()


def test_bounded_units_move_a_point_by_no_more_than_their_weights():
    elf = ExactLipschitz(8)
    theta = normal(100, elf.spec.size, seed=8, scale=3.0)
    x = normal(100, seed=9, scale=100.0)
    moved = (elf(x, theta).value - x - theta[:, 0]).abs()
    raw = 10 * torch.tanh(elf.spec.split(theta)["outer"] / 10)
    assert (moved <= raw.abs().sum(dim=-1)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExactLipschitz(0), "units: 0"),
        (lambda: ExactLipschitz(unit="elu"), "unit: 'elu'"),
        (lambda: ExactLipschitz(lipschitz=1.0), "lipschitz: 1.0"),
        (lambda: ExactLipschitz(lipschitz=0.0), "lipschitz: 0.0"),
        (lambda: build("elf", 2, options={"transforms": 0}), "transforms: 0"),
        (lambda: build("elf", 2, options={"unit": "sine"}), "unit: 'sine'"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.slow
def test_four_layers_learn_the_parabola():
    toy = TOYS["parabola"]
    x = toy.sample(20_000, torch.Generator().manual_seed(0))
    model = build("elf", 2, options={"transforms": 4, "hidden": 64}, seed=0)
    model.initialise(x.float())
    Fitter(FitConfig(max_steps=2000, epochs=10_000, learning_rate=2e-3, seed=0, patience=None)).fit(
        model, Table.from_any(x.float())
    )
    test = toy.sample(10_000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        gap = paired_difference(toy.log_prob(test), model.log_prob(test.float()))
    assert -4 * gap.standard_error < gap.value < 0.03
