"""Flows of angles: continuous around the torus, and in the units of a table."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

import rosenblatt.models  # noqa: F401
from rosenblatt import FlowDensity
from rosenblatt.assembly import assemble
from rosenblatt.conditioners.angles import Shown
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.types import Support
from rosenblatt.data import Table
from rosenblatt.layers.support import SupportMap
from rosenblatt.testing.tables import disturbed, seeded

PI = math.pi
KINDS = {
    "spline": {"circle": "spline", "bins": 5},
    "moebius": {"circle": "moebius", "components": 3},
    "coupling": {"circle": "spline", "bins": 5, "coupling": True},
}


def made(kind, features=3, size=0.3):
    options = {"hidden": 16, "transforms": 2, **KINDS[kind]}
    return disturbed(build("torus", features, options=options, seed=0), size).double()


def uniform(rows, features, seed=0):
    draw = torch.rand(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return PI * (2 * draw - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_is_continuous_across_every_seam(kind):
    flow = made(kind)
    x = uniform(200, 3)
    spread = flow.log_prob(x).std()
    assert spread > 0.3
    for column in range(3):
        low, high, near = x.clone(), x.clone(), x.clone()
        low[:, column], high[:, column], near[:, column] = -PI, PI, PI - 1e-9
        with torch.no_grad():
            at_low, at_high, before = flow.log_prob(low), flow.log_prob(high), flow.log_prob(near)
        assert (at_low - at_high).abs().max() <= 1e-9
        assert (before - at_high).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_mass_on_the_torus_by_the_trapezoidal_rule(kind):
    flow = made(kind, 2, 0.1)
    nodes = -PI + 2 * PI * torch.arange(300, dtype=torch.float64) / 300
    with torch.no_grad():
        density = torch.exp(flow.log_prob(torch.cartesian_prod(nodes, nodes)))
    assert density.mean().item() * (2 * PI) ** 2 == pytest.approx(1, abs=1e-4 if kind == "moebius" else 1e-3)


def test_angles_outside_one_turn_have_no_density():
    flow = made("spline", 2)
    assert flow.log_prob(torch.tensor([[0.1, PI + 1e-9], [-3.2, 0.0]]).double()).tolist() == [-math.inf] * 2


def test_an_angle_enters_as_cosine_and_sine():
    shown = Shown([2, 0, 1], angles=[0])
    x = torch.tensor([[3.0, 0.5, -2.0]], dtype=torch.float64)
    assert shown(x).tolist() == [[3.0, math.cos(0.5), math.sin(0.5), -2.0]]
    assert shown.starts == [0, 1, 3, 4]
    with pytest.raises(OptionError, match="angles"):
        Masked(2, 3, angles=[2])


def test_a_column_walk_shows_angles_like_a_pass():
    net = disturbed(seeded(lambda: Masked(4, 3, hidden=24, order=[2, 0, 3, 1], angles=[0, 3]))).double()
    x = uniform(7, 4, seed=3)
    whole = net(x)
    walk, columns = net.column_walk(None, 7), net.arrange(x).t().contiguous()
    with torch.no_grad():
        for level, coordinate in enumerate([2, 0, 3, 1]):
            assert (walk.theta(level, columns).squeeze(1) - whole[:, coordinate]).abs().max() <= 1e-12


def test_intervals_are_carried_straight():
    straight = SupportMap([(-180, 180), (0, 1)], onto=[Support(-PI, PI), Support(-1, 1)])
    x = torch.tensor([[90.0, 0.25], [-180.0, 1.0], [180.5, 0.5]], dtype=torch.float64)
    value, log_det = straight(x)
    assert value[:2].flatten().tolist() == pytest.approx([PI / 2, -0.5, -PI, 1.0], abs=1e-15)
    assert value[2, 0] == math.inf
    assert log_det[:2].tolist() == pytest.approx([math.log(PI / 180 * 2)] * 2)
    assert log_det[2] == -math.inf
    assert (straight.inverse(value[:2]).value - x[:2]).abs().max() <= 1e-13
    with pytest.raises(OptionError, match="bounded"):
        SupportMap([(0, None)], onto=[Support(-1, 1)])


def test_a_table_in_degrees_and_one_in_radians_have_the_same_density():
    radians = uniform(300, 2, seed=1)
    tables = [
        Table.from_any({"phi": rows[:, 0].numpy(), "psi": rows[:, 1].numpy()})
        for rows in (radians, radians * 180 / PI + 180)
    ]
    supports = {"phi": Support(0, 360), "psi": Support(0, 360)}
    options = {"hidden": 8, "bins": 4}
    plain = assemble("torus", tables[0], options=options, seed=3).double()
    turned = assemble("torus", tables[1], options=options, supports=supports, seed=3).double()
    difference = plain.log_prob(tables[0].values.double()) - turned.log_prob(tables[1].values.double())
    assert (difference - 2 * math.log(180 / PI)).abs().max() <= 1e-5
    assert turned.log_prob(torch.tensor([[360.5, 10.0]]).double()).item() == -math.inf
    with pytest.raises(DataError, match=r"phi.*degrees"):
        assemble("torus", tables[1])
    with pytest.raises(OptionError, match="psi"):
        assemble("torus", tables[0], supports={"psi": Support(lower=-4.0)})


def test_a_fit_in_degrees_finds_von_mises_angles(tmp_path):
    kappa, centre = 4.0, 170.0  # the peak stands on the seam
    drawn = scipy.stats.vonmises(kappa).rvs((3000, 1), random_state=np.random.RandomState(0))
    degrees = (np.rad2deg(drawn) + centre + 180) % 360 - 180
    options = {"hidden": 8, "bins": 8, "transforms": 1}
    density = FlowDensity(
        "torus",
        model_options=options,
        support=[(-180, 180)],
        epochs=40,
        batch_size=500,
        learning_rate=0.05,
        random_state=0,
    ).fit(degrees)
    grid = np.linspace(-180, 180, 721)[:, None]
    truth = scipy.stats.vonmises(kappa, loc=np.deg2rad(centre)).logpdf(np.deg2rad(grid[:, 0])) + math.log(PI / 180)
    found = density.score_samples(grid)
    assert found[0] == pytest.approx(found[-1], abs=1e-9)
    kullback = np.trapezoid(np.exp(truth) * (truth - found), grid[:, 0])
    assert 0 <= kullback < 0.02
    density.save(tmp_path / "run")
    again = FlowDensity.load(tmp_path / "run")
    assert np.array_equal(again.score_samples(grid), found)
    assert list(again.support.values()) == [[-180.0, 180.0]]
    drawn = again.sample(200, random_state=1)
    assert np.abs(drawn).max() <= 180
