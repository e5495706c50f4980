"""Variational inference and its diagnosis against integrals that are known."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.checks import iaf
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, FitDiverged, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Compose
from rosenblatt.inference import LogJoint, fit_variational
from rosenblatt.inference.mode import find_mode
from rosenblatt.layers.support import SupportMap

MEAN_FIELD = {"transforms": 0}
LINEAR = {"transforms": 1, "hidden": 0}


def normal(theta):
    return -0.5 * theta.square().sum(dim=-1)


@pytest.mark.filterwarnings("ignore::rosenblatt.inference.ImportanceWarning")
def test_checks_of_the_specification_hold():
    found = list(iaf.checks())
    assert len(found) == 6
    assert [check.what for check in found if not check.holds] == []


def test_the_correlated_target_is_what_it_says():
    precision = iaf.correlated_precision(5, 0.3)
    assert iaf.mean_field_optimum(precision) == pytest.approx(0.3, abs=1e-12)
    law = torch.distributions.MultivariateNormal(torch.zeros(5).double(), precision_matrix=precision)
    theta = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(iaf.gaussian_target(precision)(theta), law.log_prob(theta))


@pytest.mark.filterwarnings("ignore::rosenblatt.inference.ImportanceWarning")
def test_supports_bring_their_jacobian():
    """Gamma(3), and Beta(2, 5) on (-1, 3): integrals Gamma(3) and 4^6 B(2, 5)."""

    def target(theta):
        rate, share = theta.unbind(dim=-1)
        return 2 * torch.log(rate) - rate + torch.log(share + 1) + 4 * torch.log(3 - share)

    posterior = fit_variational(
        target,
        features=2,
        supports=[(0, None), (-1, 3)],
        options={"transforms": 2, "hidden": 16, "blocks": 1},
        steps=250,
        learning_rate=3e-2,
        path_derivative=False,
    )
    exact = math.lgamma(3) + 6 * math.log(4) + math.lgamma(2) + math.lgamma(5) - math.lgamma(7)
    assert posterior.elbo.value < exact + 4.9 * posterior.elbo.standard_error
    assert posterior.elbo.value == pytest.approx(exact, abs=0.02)
    sample = posterior.importance(4000)
    assert abs(sample.log_integral.value - exact) < 4.9 * sample.log_integral.standard_error + 1e-4
    theta = posterior.sample(4000, generator=torch.Generator().manual_seed(1))
    assert bool((theta[:, 0] > 0).all())
    assert bool(((theta[:, 1] > -1) & (theta[:, 1] < 3)).all())
    mean = sample.mean()
    assert mean[0].item() == pytest.approx(3.0, abs=0.15)
    assert mean[1].item() == pytest.approx(4 * 2 / 7 - 1, abs=0.05)
    assert posterior.log_prob(torch.tensor([[-1.0, 0.0]])).item() == -math.inf


@pytest.mark.filterwarnings("ignore::rosenblatt.inference.ImportanceWarning")
def test_one_seed_is_one_result_and_touches_no_other_stream():
    before = torch.get_rng_state()
    fits = [fit_variational(normal, features=2, options=LINEAR, steps=20, samples=8, seed=s) for s in (3, 3, 4)]
    assert torch.equal(before, torch.get_rng_state())
    theta = torch.tensor([[0.3, -0.2]])
    assert fits[0].elbo == fits[1].elbo
    assert torch.equal(fits[0].log_prob(theta), fits[1].log_prob(theta))
    assert fits[0].elbo != fits[2].elbo
    assert fits[0].importance(100).log_integral == fits[1].importance(100).log_integral
    assert [record["step"] for record in fits[0].history] == list(range(1, 21))


def test_location_and_scale_reach_a_far_and_narrow_posterior():
    def target(theta):
        return normal((theta - torch.tensor([500.0, -2e-3])) / torch.tensor([20.0, 1e-3]))

    posterior = fit_variational(
        target,
        features=2,
        options=MEAN_FIELD,
        location=[490.0, 0.0],
        scale=[10.0, 2e-3],
        steps=300,
        samples=16,
        learning_rate=5e-2,
    )
    exact = math.log(2 * math.pi * 20.0 * 1e-3)
    assert posterior.elbo.value == pytest.approx(exact, abs=5e-3)


def test_the_mode_is_found_in_any_units():
    """A regression in raw units, whose posterior is Gaussian: intercept 500 +- 47, slope 2e-3 +- 9e-5, correlated."""
    x = torch.linspace(2e5, 8e5, 40, dtype=torch.float64)
    noise = 100 * torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], dim=-1)
    y = 500 + 2e-3 * x + noise

    def target(theta):
        return -0.5 * ((y - theta @ design.T) / 100).square().sum(dim=-1)

    precision = design.T @ design / 100**2
    mean = torch.linalg.solve(precision, design.T @ y / 100**2)
    posterior = fit_variational(
        target,
        features=2,
        options=LINEAR,
        location="mode",
        steps=400,
        learning_rate=5e-2,
        samples=32,
        dtype=torch.float64,
    )
    exact = target(mean) + math.log(2 * math.pi) - 0.5 * torch.linalg.slogdet(precision).logabsdet
    assert posterior.elbo.value == pytest.approx(exact.item(), abs=2e-3)
    scaling = posterior.flow.transform.steps[0]
    assert scaling.location.tolist() == pytest.approx(mean.tolist(), rel=1e-2)
    assert scaling.scale.tolist() == pytest.approx((1 / precision.diagonal().sqrt()).tolist(), rel=1e-5)


def test_the_mode_is_that_of_the_line_behind_the_supports():
    """Gamma(3) in x: with the Jacobian of x = log(1 + e^y) the density of y is x^2 e^-x s(y), whose mode is a root."""

    def target(theta):
        return (2 * torch.log(theta) - theta).sum(dim=-1)

    location, scale = find_mode(target, SupportMap([(0, None)]), 1, torch.float64)
    line = torch.linspace(-5, 10, 1_500_001, dtype=torch.float64)
    x = torch.nn.functional.softplus(line)
    log_density = 2 * torch.log(x) - x + torch.nn.functional.logsigmoid(line)
    top = int(log_density.argmax())
    assert location[0] == pytest.approx(line[top].item(), abs=1e-4)
    width = 1000
    curvature = (log_density[top + width] - 2 * log_density[top] + log_density[top - width]) / (1e-5 * width) ** 2
    assert scale[0] == pytest.approx((-curvature).item() ** -0.5, rel=1e-4)
    assert find_mode(lambda t: -t[:, 0].square() + 0 * t[:, 1], Compose([]), 2, torch.float64)[1][1] == 1.0
    with pytest.raises(DataError, match="search for a mode"):
        find_mode(lambda t: -math.inf + t.sum(dim=-1), Compose([]), 2, torch.float64)


@pytest.mark.parametrize("particles", [1, 8])
def test_more_particles_tighten_the_bound_that_is_climbed(particles):
    """A Student-t target, which no Gaussian is: the bound of the last steps lies below its integral, 0."""

    def target(theta):
        return torch.distributions.StudentT(3.0).log_prob(theta).sum(dim=-1)

    posterior = fit_variational(
        target, features=1, options=MEAN_FIELD, steps=200, samples=64, particles=particles, learning_rate=2e-2
    )
    last = sum(record["bound"] for record in posterior.history[-20:]) / 20
    low, high = {1: (-0.08, -0.03), 8: (-0.03, 0.0)}[particles]
    assert low < last < high


def test_annealing_keeps_both_modes():
    """Two normals at -3 and 3: a flow annealed from a nearly flat target covers both, and finds log 2."""

    def target(theta):
        x = theta.squeeze(-1)
        law = torch.distributions.Normal(0.0, 1.0)
        return torch.logaddexp(law.log_prob(x - 3), law.log_prob(x + 3))

    flow = {"features": 1, "options": {"transforms": 1, "bins": 8, "hidden": 8, "coupling": True}}
    posterior = fit_variational(target, "nsf", **flow, scale=[3.0], annealing=0.5, steps=300, learning_rate=3e-2)
    share = (posterior.sample(4000, generator=torch.Generator().manual_seed(0)) > 0).float().mean().item()
    assert 0.4 < share < 0.6
    # A lost mode would cost log 2.
    assert math.log(2) - 0.1 < posterior.elbo.value < math.log(2) + 4.9 * posterior.elbo.standard_error


def test_a_flow_of_ones_own_is_trained_in_place():
    flow = build("realnvp", 2, options={"transforms": 2, "hidden": 8}, seed=0)
    theta = torch.tensor([[0.5, 0.5]])
    before = flow.log_prob(theta)
    posterior = fit_variational(lambda t: normal(t - 0.5), flow, steps=30, samples=16)
    assert posterior.flow is flow
    assert isinstance(posterior.flow, Flow)
    assert posterior.log_prob(theta).item() > before.item()
    assert not flow.training
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_a_flow_on_a_box_reaches_all_of_the_support():
    """Angles in degrees, log p = 2 cos(x): the integral is 360 I_0(2)."""

    def target(theta):
        return 2 * torch.cos(torch.deg2rad(theta)).sum(dim=-1)

    torus = {"features": 1, "flow": "torus", "options": {"transforms": 1, "hidden": 4, "bins": 8}}
    posterior = fit_variational(target, **torus, supports=[(0, 360)], steps=200, learning_rate=3e-2)
    assert posterior.elbo.value == pytest.approx(math.log(360 * 2.2795853), abs=0.02)
    assert float(posterior.log_prob(torch.tensor([[0.5]])).detach()) > math.log(1 / 360)
    with pytest.raises(OptionError, match="box of its own"):
        fit_variational(target, **torus, scale=[2.0])


@pytest.mark.parametrize(
    ("flow", "options"),
    [
        ("ffjord", {"hidden": 4, "layers": 1, "steps": 1}),
        ("maf", {"hidden": 4, "transforms": 1, "batch_norm": True}),
    ],
)
def test_what_is_exact_in_eval_mode_is_taken(flow, options):
    posterior = fit_variational(normal, flow, features=2, options=options, steps=5, samples=8)
    assert abs(posterior.elbo.value - math.log(2 * math.pi)) < 0.1


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("normal", "target: str came, a function"),
        (lambda t: 1.0, "target: float came back"),
        (lambda t: -0.5 * t.square(), r"target: shape \(64, 2\) came back"),
        (lambda t: normal(t).sum(), r"target: shape \(\) came back"),
        (lambda t: normal(t).long(), "target: dtype torch.int64"),
        (lambda t: normal(t) * math.nan, "not a finite number at all 64"),
        (lambda t: normal(t) - math.inf, "-inf at all 64 starting points"),
        (lambda t: normal(t).detach(), "no gradient in theta"),
        (lambda t: (0.0 * t).sum(dim=-1).sqrt() + normal(t), "gradient is not finite"),
    ],
)
def test_targets_that_cannot_work_are_named(target, words):
    with pytest.raises((DataError, OptionError), match=words):
        fit_variational(target, features=2, options=MEAN_FIELD, steps=5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "features: nothing came"),
        ({"features": 2, "flow": "gaussian"}, "no weights to train"),
        ({"features": 2, "flow": "gausian"}, "unknown"),
        ({"features": 3, "flow": build("maf", 2, options={"hidden": 8})}, "3 features and no context were expected"),
        ({"flow": build("maf", 2, 1, options={"hidden": 8})}, "1 context columns came"),
        ({"flow": build("maf", 2, options={"hidden": 8}), "options": {"hidden": 8}}, "options"),
        ({"features": 2, "supports": [(0, None)]}, "supports: 1 came"),
        ({"features": 2, "scale": [1.0]}, "scale: 1 came"),
        ({"features": 2, "location": "mean"}, "location: 'mean' came"),
        ({"features": 2, "steps": 0}, "steps: 0 came"),
        ({"features": 2, "samples": 2.5}, "samples"),
        ({"features": 2, "learning_rate": 0.0}, "learning_rate"),
        ({"features": 2, "annealing": 1.5}, "annealing"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_options_that_cannot_work_are_named(options, words):
    with pytest.raises(OptionError, match=words):
        fit_variational(normal, **options)


def test_a_target_that_stops_being_finite_is_reported():
    calls = []

    def target(theta):
        calls.append(1)
        return normal(theta) * (math.nan if len(calls) > 10 else 1.0)

    with pytest.raises(FitDiverged, match="8 of 8 log-densities not finite, 20 steps in a row"):
        fit_variational(target, features=2, options=MEAN_FIELD, steps=100, samples=8)


def test_a_step_with_a_bad_row_is_left_out_and_counted():
    def target(theta):
        return torch.where(theta[:, 0] > 1.5, torch.nan, normal(theta))

    posterior = fit_variational(
        lambda t: torch.where(t[:, 0] < -2.2, -torch.inf, normal(t)),
        features=1,
        options=MEAN_FIELD,
        steps=50,
        samples=8,
    )
    assert 0 < posterior.history[-1]["skipped"] < 50
    with pytest.raises(DataError, match="NaN"):
        fit_variational(target, features=1, options=MEAN_FIELD, steps=5, samples=4)


Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])  # Rubin (1981): effects of coaching in eight schools
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(p):
    """Normalised log-joint: mu ~ N(0, 5), tau ~ half-Cauchy(5), eta ~ N(0, 1), y ~ N(mu + tau eta, sigma)."""
    normal_ = torch.distributions.Normal
    prior = normal_(0.0, 5.0).log_prob(p["mu"]) + normal_(0.0, 1.0).log_prob(p["eta"]).sum()
    prior = prior + math.log(2 / (5 * math.pi)) - torch.log1p((p["tau"] / 5).square())
    return prior + normal_(p["mu"] + p["tau"] * p["eta"], SIGMA).log_prob(Y).sum()


def eight_schools_integral():
    """The same with eta integrated out in closed form, on a grid over mu and t = tau / (1 + tau)."""
    t = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500
    tau = (t / (1 - t)).unsqueeze(-1)
    mu = torch.linspace(-40, 40, 801, dtype=torch.float64)
    total = torch.distributions.Normal(0.0, 5.0).log_prob(mu) + math.log(2 / (5 * math.pi))
    total = total - torch.log1p((tau / 5).square()) + 2 * torch.log1p(tau)
    for y, sigma in zip(Y.tolist(), SIGMA.tolist(), strict=True):
        total = total + torch.distributions.Normal(mu, torch.sqrt(sigma**2 + tau.square())).log_prob(torch.tensor(y))
    return float(torch.logsumexp(total.flatten(), dim=0)) + math.log(0.1 / 1500)


@pytest.fixture(scope="module")
def schools():
    joint = LogJoint(eight_schools, {"mu": (), "tau": (), "eta": (8,)}, supports={"tau": (0, None)})
    return joint, fit_variational(
        joint,
        options={"transforms": 2, "hidden": 16, "blocks": 1},
        steps=400,
        learning_rate=2e-2,
        path_derivative=False,
    )


def test_eight_schools_against_quadrature(schools):
    _, posterior = schools
    exact = eight_schools_integral()
    assert exact - 0.15 < posterior.elbo.value < exact + 4.9 * posterior.elbo.standard_error
    sample = posterior.importance(10_000)
    assert abs(sample.log_integral.value - exact) < 4.9 * sample.log_integral.standard_error
    assert sample.efficiency > 0.6
    assert sample.khat < 0.7


def test_eight_schools_against_reference_draws(schools):
    """Means and spreads of the published reference posterior (10,000 draws of the same model)."""
    folder = Path(os.environ.get("ROSENBLATT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    file = folder / "posteriordb_draws.npz"
    if not file.is_file():
        pytest.skip(f"{file.name} is in neither ROSENBLATT_DATA nor ../shared/data")
    reference = torch.from_numpy(np.load(file)["eight_schools__eight_schools_noncentered"])
    joint, posterior = schools
    sample = posterior.importance(20_000)

    def columns(theta):
        p = joint.unpack(theta.double())
        effects = p["mu"].unsqueeze(-1) + p["tau"].unsqueeze(-1) * p["eta"]
        return torch.cat([effects, p["mu"].unsqueeze(-1), p["tau"].unsqueeze(-1)], dim=-1)

    spread = reference.std(dim=0)
    mean = sample.mean(columns)
    # Standard errors: reference chains and weighed draws are worth at least 5000 draws each.
    assert bool(((mean - reference.mean(dim=0)).abs() < 4.9 * spread * math.sqrt(2 / 5000)).all())
    variance = sample.mean(lambda theta: (columns(theta) - mean).square())
    assert bool(((variance.sqrt() / spread - 1).abs() < 0.1).all())
