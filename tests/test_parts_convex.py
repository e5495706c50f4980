"""Convex potential layers: gradient, Hessian, estimates of the log-determinant, and the inverse."""

import itertools
import math

import numpy as np
import pytest
import torch
from searched_layers import answers_rows_that_are_not_finite

import rosenblatt.models  # noqa: F401 - enters every model in the registry
from rosenblatt.core import newton
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.types import Likelihood
from rosenblatt.layers.convex import EXACT_FEATURES, ConvexGradient
from rosenblatt.layers.traces import log_det_by_lanczos
from rosenblatt.testing.measures import mapped_value, row_jacobian


def data(*shape, seed=1, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_of(features=3, scale=0.5, factor=1.0, **options):
    layer = ConvexGradient(features, **({"hidden": 8, "depth": 3} | options)).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            parameter.mul_(factor)
    return layer


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("depth", [1, 3])
def test_value_and_jacobian_are_gradient_and_hessian_of_the_potential(depth, context):
    layer = layer_of(depth=depth, context=context).eval()
    x, c = data(6, 3, scale=2).requires_grad_(), data(6, context, seed=2) if context else None
    (gradient,) = torch.autograd.grad(layer.potential(x, c).sum(), x)
    value, log_det = layer(x, c)
    assert (value - gradient).abs().max() <= 1e-12
    hessian = row_jacobian(mapped_value(layer, c), x)
    run = layer.placed(layer._theta(x, c), torch.float64).run(x)
    assert (run.jacobian() - hessian).abs().max() <= 1e-12
    assert (log_det - torch.logdet(hessian)).abs().max() <= 1e-11
    vector = data(6, 3, seed=3)
    assert (run.times(vector) - torch.einsum("rij,rj->ri", hessian, vector)).abs().max() <= 1e-12


def test_the_potential_is_its_formula():
    layer, x = layer_of(depth=2).eval(), data(5, 3)
    b1, b2, slope, alpha, output = np.split(layer.conditioner.free.detach().numpy()[0], [8, 16, 19, 20])
    (v1, v2), w = (part.detach().numpy() for part in layer.across), layer.raw_weights[0].detach().numpy()
    rows = x.numpy()
    h = np.logaddexp(0, rows @ v1.T + b1)
    h = np.logaddexp(0, h @ (np.logaddexp(0, w) / 8).T + rows @ v2.T + b2)
    expected = np.exp(3 * np.tanh(alpha / 3)) / 2 * (rows**2).sum(axis=1) + rows @ slope
    expected = expected + h @ (np.exp(7 * np.tanh(output / 7)) / 8)
    np.testing.assert_allclose(layer.potential(x).detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 10.0, 100.0])
def test_the_map_is_strongly_monotone_whatever_the_weights(factor):
    layer = layer_of(factor=factor).eval()
    x, other = data(300, 3, scale=2), data(300, 3, scale=2, seed=2)
    alpha = layer.placed(layer._theta(x, None), torch.float64).alpha.item()
    rise = ((layer(x).value - layer(other).value) * (x - other)).sum(dim=-1) / (x - other).square().sum(dim=-1)
    assert math.exp(-3) <= alpha <= math.exp(3)
    assert rise.min() >= alpha * (1 - 1e-9)
    hessian = row_jacobian(mapped_value(layer, None), x)
    assert (hessian - hessian.mT).abs().max() <= 1e-12 * hessian.abs().max()
    assert torch.linalg.eigvalsh(hessian).min() >= alpha * (1 - 1e-6)


def test_a_layer_starts_near_the_identity():
    layer, x = ConvexGradient(3).double().eval(), data(200, 3)
    value, log_det = layer(x)
    assert (value - x).abs().max() <= 0.5
    assert log_det.abs().max() <= 0.5


def rows_refused(layer, value):
    try:
        with torch.no_grad():
            layer.inverse(value)
    except InverseError as error:
        return error.rows
    return []


@pytest.mark.parametrize("factor", [1.0, 10.0, 100.0])
def test_rows_come_back_whatever_the_weights(factor):
    layer = layer_of(features=5, factor=factor).eval()
    x = torch.cat([data(80, 5, scale=4), data(20, 5, scale=1e4)])
    value, log_det = (part.detach() for part in layer(x))
    failed = rows_refused(layer, value)
    # Potentials nearly without curvature but at their edges may be too much for the search, which must say so.
    assert len(failed) <= (0.02 * len(x) if factor == 100 else 0)
    keep = [row for row in range(len(x)) if row not in failed]
    x, value, log_det = x[keep], value[keep], log_det[keep]
    with torch.no_grad():
        back, back_log_det = layer.inverse(value)
    # Large weights spread y over many decades, and the flattest direction takes digits of the largest number.
    flattest = torch.linalg.matrix_norm(torch.linalg.inv(row_jacobian(mapped_value(layer, None), x)), 2)
    limit = 1e-13 * (1 + x.abs().amax(dim=-1)) + 1e-14 * flattest * value.abs().amax(dim=-1)
    assert factor > 1 or limit.max() <= 1e-8
    assert ((back - x).norm(dim=-1) <= limit).all()
    # A unit may bend within 1 / factor, so the determinant there changes with the last digits of x.
    assert (log_det + back_log_det).abs().max() <= 1e-7 * factor


def test_float32_weights_are_inverted_in_float64():
    layer, x = layer_of().float().eval(), data(50, 3).float()
    back = layer.inverse(layer(x).value).value
    assert back.dtype == torch.float32
    assert (back - x).abs().max() <= 1e-5


def positive(levels):
    """A matrix with these eigenvalues, and its logarithm."""
    rotation, levels = torch.linalg.qr(data(len(levels), len(levels))).Q, torch.tensor(levels, dtype=torch.float64)
    return rotation * levels @ rotation.mT, rotation * torch.log(levels) @ rotation.mT


@pytest.mark.parametrize(
    ("levels", "steps"),
    [([0.1, 1.0, 3.0, 40.0], 4), ([0.1, 1.0, 3.0, 40.0], 9), ([0.5, 7.0, 7.0, 0.5], 2), ([0.5, 7.0, 7.0, 0.5], 4)],
)
def test_lanczos_is_the_quadratic_form_of_the_logarithm_once_its_space_is_closed(levels, steps):
    (matrix, log), probe = positive(levels), data(6, 4, seed=2)
    matrix.requires_grad_()
    found = log_det_by_lanczos(lambda v: v @ matrix.mT, probe, steps)
    expected = torch.einsum("ri,ij,rj->r", probe, log, probe)
    assert (found - expected).abs().max() <= 1e-11
    (gradient,) = torch.autograd.grad(found.sum(), matrix)
    solved = torch.linalg.solve(matrix.detach(), probe.mT)
    assert (gradient - solved @ probe).abs().max() <= 1e-10


def test_few_lanczos_steps_are_a_gauss_quadrature_whose_error_falls():
    (matrix, log), probe = positive([float(level) for level in range(1, 41)]), data(5, 40, seed=2)
    exact = torch.einsum("ri,ij,rj->r", probe, log, probe)
    # The logarithm's even derivatives are negative, so a Gauss rule never falls short of the integral.
    errors = [log_det_by_lanczos(lambda v: v @ matrix, probe, steps) - exact for steps in (2, 4, 8, 16)]
    assert all((error > 0).all() for error in errors[:3])
    assert all((later.abs() < 0.3 * earlier.abs()).all() for earlier, later in itertools.pairwise(errors))


def test_the_estimate_and_its_gradient_have_the_exact_means():
    layer, features = layer_of(4, scale=1.0), 4
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=features)), dtype=torch.float64)
    x = data(1, features).requires_grad_()
    wanted = [*layer.parameters(), x]
    spread = x.expand(len(signs), -1)
    run = layer.placed(layer._theta(spread, None), torch.float64).run(spread)
    found = log_det_by_lanczos(run.times, signs, features)
    assert found.std() > 1e-3
    exact = layer.eval()(x).log_det
    assert found.mean().item() == pytest.approx(exact.item(), abs=1e-11)  # the mean over all signs has no noise
    for estimate, expected in zip(
        torch.autograd.grad(found.mean(), wanted), torch.autograd.grad(exact.sum(), wanted), strict=True
    ):
        assert (estimate - expected).abs().max() <= 1e-10


def test_training_draws_probes_of_its_own_and_says_that_it_estimates():
    layer, x = layer_of(log_det="estimate", steps=2), data(20, 3)
    assert layer.train().likelihood is Likelihood.ESTIMATE
    saved = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state = torch.get_rng_state()
    first, second = layer(x), layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.value, second.value)
    assert (first.log_det != second.log_det).any()
    layer.load_state_dict(saved)
    assert torch.equal(layer(x).log_det, first.log_det)
    assert layer.eval().likelihood is Likelihood.EXACT
    assert torch.equal(layer(x).log_det, layer(x).log_det)
    assert ConvexGradient(EXACT_FEATURES).train().likelihood is Likelihood.EXACT
    assert ConvexGradient(EXACT_FEATURES + 1).train().likelihood is Likelihood.ESTIMATE


def test_rows_that_are_not_finite_get_their_answer_and_stay_alone():
    answers_rows_that_are_not_finite(layer_of().eval(), data(4, 3))


def test_an_inverse_that_does_not_converge_raises_with_its_rows(monkeypatch):
    layer = layer_of(scale=1.0).eval()
    y = layer(data(4, 3)).value.detach()
    monkeypatch.setattr(newton, "MAX_STEPS", 1)
    with pytest.raises(InverseError) as caught:
        layer.inverse(y)
    assert caught.value.rows == [0, 1, 2, 3]
    monkeypatch.undo()
    with torch.no_grad():
        layer.across[0][0, 0] = math.nan
    with pytest.raises(InverseError, match="4 rows"):
        layer.inverse(y)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"log_det": "unbiased"}, "log_det"),
        ({"steps": 0}, "steps"),
        ({"depth": 0}, "depth"),
        ({"hidden": 0}, "hidden"),
        ({"transforms": 0}, "transforms"),
    ],
)
def test_options_that_make_no_model_are_refused(options, named):
    with pytest.raises(OptionError, match=f"^{named}: "):
        build("cp_flow", 2, options=options)


def correlated(rows, seed):
    covariance = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.0, -0.1], [0.3, -0.1, 1.0]])
    truth = torch.distributions.MultivariateNormal(torch.tensor([1.0, -2.0, 3.0]), covariance)
    noise = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return noise @ torch.linalg.cholesky(covariance).mT + truth.loc, truth


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cp_flow", {"transforms": 1, "hidden": 32}),
        ("cp_flow", {"transforms": 1, "hidden": 32, "log_det": "estimate", "steps": 3}),
        ("residual_flow", {"transforms": 3, "hidden": 32, "log_det": "unbiased"}),
        ("residual_flow", {"transforms": 3, "hidden": 16, "dense": True}),
    ],
)
def test_a_correlated_gaussian_is_learned_to_its_entropy(name, options):
    x, truth = correlated(8000, seed=0)
    flow = build(name, 3, options=options, seed=0)
    flow.initialise(x)
    optimiser = torch.optim.Adam(flow.train().parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 150)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        optimiser.zero_grad()
        (-flow.log_prob(x[torch.randint(len(x), (256,), generator=generator)]).mean()).backward()
        optimiser.step()
        schedule.step()
    test, _ = correlated(8000, seed=2)
    with torch.no_grad():
        gap = truth.log_prob(test) - flow.eval().log_prob(test)
    assert gap.mean() <= 0.02
    assert gap.mean() >= -4 * gap.std() / len(gap) ** 0.5
