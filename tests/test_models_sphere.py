"""Flows on spheres: charts, rotations, continuity at the poles, and mass with respect to area."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

import rosenblatt.models  # noqa: F401
from rosenblatt import FlowDensity
from rosenblatt.bases import Box
from rosenblatt.conditioners.fading import Fading, axis_distance
from rosenblatt.conditioners.independent import Independent
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Identity
from rosenblatt.layers.sphere import OnSphere, SphereRotation, from_chart, from_degrees, to_chart, to_degrees
from rosenblatt.layers.staged import Staged
from rosenblatt.testing.tables import disturbed, seeded

PI = math.pi


def on_sphere(count, dimensions, seed=0):
    """Uniform unit vectors of S^dimensions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dimensions + 1, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def made(dimensions, size=0.3, **options):
    options = {"hidden": 16, "transforms": 2, "bins": 5, **options}
    return OnSphere(disturbed(build("sphere", dimensions, options=options, seed=0), size).double())


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5])
def test_charts_go_back_and_forth_and_keep_areas(dimensions):
    x = on_sphere(300, dimensions)
    chart = to_chart(x)
    assert (from_chart(chart) - x).abs().max() <= 1e-10
    assert (to_chart(from_chart(chart)) - chart).abs().max() <= 1e-10
    for place, k in enumerate(range(dimensions, 1, -1)):
        latitude = x[:, k] / x[:, : k + 1].norm(dim=-1)
        below = scipy.special.betainc(k / 2, k / 2, (1 + latitude.numpy()) / 2)  # share of S^k in the cap
        assert ((chart[:, place] + 1) / 2).numpy() == pytest.approx(below, abs=1e-12)


def test_poles_and_axes_have_charts_and_finite_gradients():
    for dimensions in (2, 3):
        x = torch.cat([torch.eye(dimensions + 1), -torch.eye(dimensions + 1)]).double().requires_grad_()
        chart = to_chart(x)
        assert (from_chart(chart) - x).abs().max() <= 1e-9
        (grad,) = torch.autograd.grad(chart.sum(), x)
        assert torch.isfinite(grad).all()


def test_degrees_become_vectors():
    places = torch.tensor([[0.0, 0.0], [0.0, 90.0], [90.0, 0.0], [30.0, -60.0]], dtype=torch.float64)
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [3**0.5 / 4, -0.75, 0.5]]
    x = from_degrees(places)
    assert (x - torch.tensor(expected, dtype=torch.float64)).abs().max() <= 1e-15
    assert (to_degrees(x)[[0, 1, 3]] - places[[0, 1, 3]]).abs().max() <= 1e-12
    height, longitude = to_chart(x).unbind(-1)
    assert (height - torch.sin(torch.deg2rad(places[:, 0]))).abs().max() <= 1e-15
    assert (longitude[[0, 1, 3]] - torch.deg2rad(places[[0, 1, 3], 1])).abs().max() <= 1e-15


def test_a_rotation_of_the_chart_is_one_of_the_sphere():
    rotation = seeded(SphereRotation).double()
    matrix = rotation.matrix
    assert (matrix @ matrix.t() - torch.eye(3)).abs().max() <= 1e-14
    assert torch.linalg.det(matrix).item() == pytest.approx(1)
    x = on_sphere(200, 2)
    chart = to_chart(x)
    value, log_det = rotation(chart)
    assert (from_chart(value) - x @ matrix.t()).abs().max() <= 1e-12
    assert (log_det == 0).all()
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda c: rotation(c).value, row) for row in chart[:40]])
    assert (torch.linalg.det(jacobian).abs() - 1).abs().max() <= 1e-9
    assert (from_chart(rotation.inverse(value).value) - x).abs().max() <= 1e-12


def test_a_rotation_has_finite_gradients_at_poles_and_nothing_outside():
    rotation = SphereRotation()
    with torch.no_grad():
        rotation.quaternion.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    x = torch.tensor([[1.0, 0.5], [-1.0, PI], [1 - 1e-7, 0.0], [0.0, -PI], [1.5, 0.2], [0.2, 4.0], [-1e10, 1e10]])
    x.requires_grad_()
    value, log_det = rotation(x)
    assert (log_det[:4] == 0).all()
    assert (log_det[4:] == -math.inf).all()
    assert value[4, 0] == value[5, 1] == math.inf
    total = torch.where(torch.isfinite(value), value, 0.0).sum()
    for grad in torch.autograd.grad(total, (x, rotation.quaternion)):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("options", [{}, {"circle": "moebius", "components": 3}, {"rotations": False}])
def test_the_density_is_continuous_at_the_poles_and_across_the_seam(options):
    density = made(2, **options)
    x = on_sphere(200, 2)
    with torch.no_grad():
        assert density.log_prob(x).std() > 0.3
        turn = torch.linspace(-PI, PI, 40, dtype=torch.float64)
        for pole in (1.0, -1.0):
            ring = torch.stack([1e-7 * torch.cos(turn), 1e-7 * torch.sin(turn), torch.full_like(turn, pole)], dim=-1)
            at_pole = density.log_prob(torch.tensor([0.0, 0.0, pole], dtype=torch.float64))
            assert (density.log_prob(ring) - at_pole).abs().max() <= 1e-4
        height = torch.linspace(-0.99, 0.99, 50, dtype=torch.float64)
        flat = torch.sqrt(1 - height.square())
        sides = [torch.stack([-flat, side * torch.ones_like(flat), height], dim=-1) for side in (1e-10, -1e-10)]
        assert (density.log_prob(sides[0]) - density.log_prob(sides[1])).abs().max() <= 1e-5


def test_the_density_on_the_three_sphere_is_continuous_at_its_poles():
    density = made(3)
    ring = torch.cat([1e-7 * on_sphere(60, 2), torch.ones(60, 1).double()], dim=-1)
    inner = torch.cat([1e-7 * on_sphere(60, 1), torch.tensor([[0.6, 0.8]]).double().expand(60, 2)], dim=-1)
    with torch.no_grad():
        assert density.log_prob(ring).std() <= 1e-4
        assert density.log_prob(inner).std() <= 1e-4
        assert density.log_prob(on_sphere(60, 3)).std() > 0.1


def test_mass_by_area_on_spheres_by_quadrature_about_another_axis():
    nodes, weights = (torch.tensor(part) for part in np.polynomial.legendre.leggauss(150))
    angle = 2 * PI * torch.arange(300, dtype=torch.float64) / 300
    height, turn = torch.meshgrid(nodes, angle, indexing="ij")
    flat = torch.sqrt(1 - height.square())
    x = torch.stack([height, flat * torch.cos(turn), flat * torch.sin(turn)], dim=-1)
    with torch.no_grad():
        p = torch.exp(made(2, 0.2).log_prob(x))
    assert (p.mean(dim=1) @ weights * 2 * PI).item() == pytest.approx(1, abs=2e-3)
    # The three-sphere by colatitude t with weight sin^2 t, about its first axis.
    nodes, weights = (torch.tensor(part) for part in np.polynomial.legendre.leggauss(40))
    colatitude = PI / 2 * (nodes + 1)
    level, height, turn = torch.meshgrid(colatitude, nodes, angle[::8], indexing="ij")
    flat = torch.sqrt(1 - height.square())
    z = torch.stack([height, flat * torch.cos(turn), flat * torch.sin(turn)], dim=-1)
    x = torch.cat([torch.cos(level).unsqueeze(-1), torch.sin(level).unsqueeze(-1) * z], dim=-1)
    with torch.no_grad():
        p = torch.exp(made(3, 0.1).log_prob(x))
    inner = p.mean(dim=-1) @ weights * 2 * PI
    assert (PI / 2 * (weights * torch.sin(colatitude).square() * inner).sum()).item() == pytest.approx(1, abs=5e-3)


def test_uniform_densities_are_one_over_the_area():
    for dimensions, area in ((1, 2 * PI), (2, 4 * PI), (3, 2 * PI**2), (4, 8 * PI**2 / 3)):
        uniform = OnSphere(Flow(Identity(), Box(dimensions, bound=[1.0] * (dimensions - 1) + [PI])))
        assert torch.exp(uniform.log_prob(on_sphere(5, dimensions))).tolist() == pytest.approx([1 / area] * 5)


def test_turning_the_first_rotation_turns_the_density():
    density, turned = made(2), made(2)
    quarter = torch.tensor([math.cos(0.7), 0.0, math.sin(0.7), 0.0], dtype=torch.float64)  # 1.4 about the y axis
    with torch.no_grad():
        w, *v = turned.flow.transform.steps[0].quaternion.unbind()
        a, b = torch.stack(v), quarter[1:]
        real = (w * quarter[0] - a @ b).unsqueeze(0)
        imaginary = w * b + quarter[0] * a + torch.linalg.cross(a, b)
        turned.flow.transform.steps[0].quaternion.copy_(torch.cat([real, imaginary]))
        rotation = SphereRotation().double()
        rotation.quaternion.copy_(quarter)
        x = on_sphere(100, 2)
        assert (turned.log_prob(x) - density.log_prob(x @ rotation.matrix.t())).abs().max() <= 1e-9
        assert (turned.log_prob(x) - density.log_prob(x)).abs().max() > 0.1


def test_samples_are_unit_vectors_with_their_density():
    for dimensions in (1, 2, 3):
        density = made(dimensions, circle="moebius", components=3)
        x, log_prob = density.sample_and_log_prob(500, generator=torch.Generator().manual_seed(1))
        assert x.shape == (500, dimensions + 1)
        assert (x.norm(dim=-1) - 1).abs().max() <= 1e-12
        assert (density.log_prob(x) - log_prob).abs().max() <= 1e-6
    mixed = made(2).float().log_prob(on_sphere(50, 2).float())
    assert torch.allclose(mixed.double(), made(2).log_prob(on_sphere(50, 2)), atol=1e-3)


def test_sampling_does_not_read_memory_that_nothing_has_written():
    flow = made(4).flow
    z = flow.base.sample(50, generator=torch.Generator().manual_seed(2)).double()
    expected = flow.transform.inverse(z).value.detach()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        with torch.no_grad():
            found = flow.transform.inverse(z).value
    finally:
        torch.use_deterministic_algorithms(False)
    assert (found - expected).abs().max() <= 1e-9


def test_rows_that_are_no_unit_vectors_are_refused():
    density = made(2)
    rows = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(DataError, match=r"rows \[1\].*unit"):
        density.log_prob(rows)
    rows[1, 1] = math.nan
    log_prob = density.log_prob(rows).detach()
    assert math.isfinite(log_prob[0])
    assert math.isnan(log_prob[1])
    with pytest.raises(OptionError, match="circle"):
        build("sphere", 2, options={"circle": "square"})
    with pytest.raises(OptionError, match="first"):
        Staged(Identity(), Identity(), first=0)
    with pytest.raises(OptionError, match="heights"):
        Fading(Independent(2, 3))


def test_axis_distances_are_roots_with_finite_slopes():
    height = torch.tensor([0.0, 0.6, 1 - 1e-14, 1.0, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    distance = axis_distance(height)
    assert distance[[0, 1, 3, 4, 5]].tolist() == pytest.approx([1.0, 0.8, 0, 0, 0], abs=1e-15)
    (grad,) = torch.autograd.grad(distance.sum(), height)
    assert torch.isfinite(grad).all()
    assert grad[1].item() == pytest.approx(-0.75)


def test_a_fit_of_latitudes_and_longitudes_recovers_a_von_mises_fisher():
    truth = scipy.stats.vonmises_fisher([-0.6, 0.0, 0.8], 8.0)  # 37 degrees from the pole, on the seam
    drawn = torch.tensor(truth.rvs(6000, random_state=np.random.default_rng(0)))
    places = to_chart(drawn)
    columns = torch.stack([places[:, 0], torch.rad2deg(places[:, 1])], dim=-1).numpy()
    options = {"hidden": 16, "transforms": 2, "bins": 6}
    fit = {"epochs": 30, "batch_size": 1000, "learning_rate": 0.02, "random_state": 0}
    model = FlowDensity("sphere", model_options=options, support=[(-1, 1), (-180, 180)], **fit).fit(columns)
    density = OnSphere(model.model_.model)
    nodes, weights = (torch.tensor(part) for part in np.polynomial.legendre.leggauss(120))
    height, turn = torch.meshgrid(nodes, 2 * PI * torch.arange(120).double() / 120 - PI, indexing="ij")
    x = from_chart(torch.stack([height, turn], dim=-1))
    log_truth = torch.tensor(truth.logpdf(x.numpy()))
    with torch.no_grad():
        gap = torch.exp(log_truth) * (log_truth - density.log_prob(x))
    kullback = (gap.mean(dim=1) @ weights * 2 * PI).item()
    assert 0 <= kullback < 0.02
    in_degrees = model.score_samples(torch.stack([height, torch.rad2deg(turn)], dim=-1).reshape(-1, 2)[::97].numpy())
    by_area = density.log_prob(x.reshape(-1, 3)[::97]).detach().numpy()
    assert in_degrees == pytest.approx(by_area + math.log(PI / 180), abs=1e-6)
