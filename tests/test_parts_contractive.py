"""Contractive residual layers: the bound, the Jacobian, the estimates of the log-determinant, and the inverse."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from searched_layers import answers_rows_that_are_not_finite

import rosenblatt.models  # noqa: F401 - enters every model in the registry
from rosenblatt.assembly import assemble
from rosenblatt.core import newton
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.types import Likelihood
from rosenblatt.data import Table
from rosenblatt.layers.contraction import UNITS, bounded_norm
from rosenblatt.layers.residual import EXACT_FEATURES, Contractive
from rosenblatt.layers.traces import Probes, log_det_by_series, roulette
from rosenblatt.testing.measures import mapped_value, row_jacobian

FALSE_ALARM = 1e-6
KINDS = {
    "lipswish": {},
    "tanh": {"unit": "tanh", "depth": 3},
    "dense": {"dense": True, "depth": 3},
}


def data(*shape, seed=1, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_of(kind="lipswish", features=3, scale=0.5, factor=1.0, **options):
    layer = Contractive(features, hidden=8, **(KINDS[kind] | options)).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            parameter.mul_(factor)
    return layer


def jacobians(layer, x, context=None):
    """Jacobian of every row by autodiff."""
    return row_jacobian(mapped_value(layer, context), x).detach()


def mean_is(found, expected, what):
    """Whether independent `found` (draws, ...) have the mean `expected`, at a false alarm of 1e-6 for all of them."""
    error = found.std(dim=0) / len(found) ** 0.5
    limit = stats.t.isf(FALSE_ALARM / 2 / max(1, expected.numel()), len(found) - 1)
    assert bool(((found.mean(dim=0) - expected).abs() <= limit * error + 1e-12).all()), what


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6, 1e18])
def test_a_bounded_matrix_is_the_matrix_over_its_smoothed_norm(shape, size):
    weight = data(*shape, scale=size)
    norm = np.linalg.svd(weight.numpy(), compute_uv=False)[0]
    expected = weight.numpy() / np.exp(np.logaddexp(0, 8 * np.log(norm / 0.9)) / 8)
    found = bounded_norm(weight, 0.9).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert np.linalg.svd(found, compute_uv=False)[0] <= 0.9 * (1 + 1e-14)


def test_a_zero_matrix_stays_zero_and_has_a_gradient():
    weight = torch.zeros(3, 4, requires_grad=True)
    bounded_norm(weight, 0.5).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3, 4))


@pytest.mark.parametrize("unit", UNITS)
def test_units_have_the_slope_they_say_and_none_above_one(unit):
    z = torch.linspace(-30, 30, 20_001, dtype=torch.float64, requires_grad=True)
    for steepness in (math.exp(-2), 1.0, math.exp(2)):
        value, slope = UNITS[unit](z, torch.tensor(steepness, dtype=torch.float64))
        (expected,) = torch.autograd.grad(value.sum(), z)
        assert (slope - expected).abs().max() <= 1e-14
        assert 0.99 <= slope.max() <= 1


@pytest.mark.parametrize("factor", [1.0, 10.0, 1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_no_weights_break_the_lipschitz_bound(kind, factor):
    for lipschitz in (0.5, 0.97):
        layer = layer_of(kind, factor=factor, lipschitz=lipschitz)
        # Both narrow and wide, for large weights have their steep places near the origin.
        x = torch.cat([data(200, 3, scale=3), data(200, 3, scale=1 / factor)])
        slopes = torch.linalg.matrix_norm(jacobians(layer, x) - torch.eye(3), 2)
        assert slopes.max() <= lipschitz + 1e-12
        moved = (layer(x).value - x).detach()
        pairs = (moved[:200] - moved[200:]).norm(dim=-1) / (x[:200] - x[200:]).norm(dim=-1)
        assert pairs.max() <= lipschitz


@pytest.mark.parametrize("kind", KINDS)
def test_the_lipschitz_bound_holds_after_every_training_step(kind):
    layer = layer_of(kind, lipschitz=0.9).float()
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    x = data(64, 3).float()
    largest = 0.0
    for _ in range(30):
        optimiser.zero_grad()
        value, log_det = layer(x)
        (10 * value.square().sum(dim=-1) - log_det).mean().backward()  # asks for a stronger contraction than allowed
        optimiser.step()
        slopes = torch.linalg.matrix_norm(jacobians(layer, x) - torch.eye(3), 2)
        largest = max(largest, float(slopes.max()))
    assert 0.6 <= largest <= 0.9 + 1e-6


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_jacobian_products_and_determinant_are_those_of_autodiff(kind, context):
    layer = layer_of(kind, context=context).eval()
    x, c = data(6, 3), data(6, context, seed=2) if context else None
    theta = layer._theta(x, c)
    run = layer.placed(theta, torch.float64).run(x)
    expected, vector = jacobians(layer, x, c), data(6, 3, seed=3)
    assert (run.jacobian() - expected).abs().max() <= 1e-12
    pulled = torch.einsum("ri,rij->rj", vector, expected - torch.eye(3))
    assert (run.pull(vector) - pulled).abs().max() <= 1e-12
    assert (layer(x, c).log_det - torch.logdet(expected)).abs().max() <= 1e-12


def test_the_network_is_its_formula():
    layer = layer_of("tanh").eval()
    net, x = layer.net, data(5, 3)
    b1, b2, b3, b4 = np.split(layer.conditioner.free.detach().numpy()[0], [8, 16, 24])

    def scaled(weight, bound):
        weight = weight.detach().numpy()
        return weight / (1 + (np.linalg.norm(weight, 2) / bound) ** 8) ** (1 / 8)

    h = x.numpy()
    for weight, bias in zip(net.weights, (b1, b2, b3), strict=True):
        h = np.tanh(h @ scaled(weight, 1).T + bias)
    expected = x.numpy() + h @ scaled(net.last, 0.97).T + b4
    np.testing.assert_allclose(layer(x).value.detach().numpy(), expected, rtol=1e-12)


def test_beyond_the_saturation_of_the_inputs_nothing_moves():
    layer = layer_of().eval()
    x = torch.tensor([[1e30, 1.0, -1e30], [1e7, 1e7, -1e7]], dtype=torch.float64)
    assert (layer.placed(layer._theta(x, None), torch.float64).run(x).jacobian()[1] - torch.eye(3)).abs().max() == 0
    assert torch.isfinite(layer(x).log_det).all()
    assert (jacobians(layer, x[:1])[0, :, 0] - torch.eye(3)[0]).abs().max() == 0


@pytest.mark.parametrize("survival", [0.5, 0.8])
def test_roulette_weighs_every_term_to_one(survival):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.zeros(20_000, 6, dtype=torch.float64)
    for row in drawn:
        weights = roulette(generator, 2, survival)[:6]
        row[: len(weights)] = torch.tensor(weights, dtype=torch.float64)
    assert (drawn[:, :2] == 1).all()
    assert (drawn[:, 2] == 0).any()
    mean_is(drawn[:, 2:], torch.ones(4, dtype=torch.float64), "weights of later terms")


def all_signs(features):
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=features)), dtype=torch.float64)


@pytest.mark.parametrize("terms", [1, 2, 5, 8])
def test_the_truncated_series_is_its_traces_and_within_the_geometric_bound(terms):
    lipschitz, features = 0.7, 4
    layer = layer_of(features=features, lipschitz=lipschitz, scale=2.0)
    x, probes = data(1, features), all_signs(features)
    theta = layer._theta(x, None)
    run = layer.placed(theta, torch.float64).run(x.expand(len(probes), -1))
    found = log_det_by_series(run.pull, probes, [1.0] * terms).mean()
    jacobian = jacobians(layer, x)[0] - torch.eye(features)
    powers = [torch.linalg.matrix_power(jacobian, number).trace() for number in range(1, terms + 1)]
    series = sum((-1) ** number / (number + 1) * trace for number, trace in enumerate(powers))
    assert found.item() == pytest.approx(series.item(), abs=1e-12)  # the mean over all signs has no noise
    left_out = -math.log(1 - lipschitz) - sum(lipschitz**number / number for number in range(1, terms + 1))
    bias = abs(found.item() - torch.logdet(jacobian + torch.eye(features)).item())
    assert 0 < bias <= features * left_out
    # The gradient is that of the series too.
    weight = layer.net.last
    (gradient,) = torch.autograd.grad(found, weight)
    exact = layer.placed(theta, torch.float64).run(x).jacobian()[0] - torch.eye(features)
    powers = [torch.linalg.matrix_power(exact, number).trace() for number in range(1, terms + 1)]
    series = sum((-1) ** number / (number + 1) * trace for number, trace in enumerate(powers))
    (expected,) = torch.autograd.grad(series, weight)
    assert (gradient - expected).abs().max() <= 1e-11


def test_the_unbiased_estimate_and_its_gradient_have_the_exact_means():
    layer = layer_of("lipswish", lipschitz=0.6, log_det="unbiased", terms=1, survival=0.5, scale=1.0)
    x = data(1, 3).expand(64, 3).clone().requires_grad_()
    wanted = [layer.net.last, layer.net.weights[0], layer.conditioner.free, x]

    def gradients(log_det):
        parts = torch.autograd.grad(log_det.mean(), wanted)
        return torch.cat([*(part.flatten() for part in parts[:-1]), parts[-1].sum(dim=0)])

    exact = layer.eval()(x).log_det
    expected = gradients(exact)
    layer.train()
    values, slopes = [], []
    for _ in range(400):
        log_det = layer(x).log_det
        values.append(log_det.mean().detach())
        slopes.append(gradients(log_det))
    assert torch.stack(values).std() > 0
    mean_is(torch.stack(values), exact[0].detach(), "log_det")
    mean_is(torch.stack(slopes), expected, "gradient")


def test_training_estimates_and_scores_agree_in_the_mean():
    options = {"transforms": 3, "hidden": 8, "lipschitz": 0.6, "log_det": "unbiased"}
    flow = build("residual_flow", 3, options=options, seed=0).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(data(*parameter.shape, seed=4, scale=0.3))
        x = data(200, 3)
        exact = flow.eval().log_prob(x).mean()
        flow.train()
        estimates = torch.stack([flow.log_prob(x).mean() for _ in range(300)])
    assert (estimates != exact).all()
    mean_is(estimates, exact, "log_prob")


def test_likelihood_says_when_the_number_is_an_estimate():
    for log_det, claimed in (
        ("exact", Likelihood.EXACT),
        ("unbiased", Likelihood.ESTIMATE),
        ("truncated", Likelihood.ESTIMATE),
        ("auto", Likelihood.EXACT),
    ):
        flow = build("residual_flow", 3, options={"transforms": 1, "hidden": 4, "log_det": log_det})
        assert flow.train().likelihood is claimed
        assert flow.eval().likelihood is Likelihood.EXACT
    assert Contractive(EXACT_FEATURES).train().likelihood is Likelihood.EXACT
    assert Contractive(EXACT_FEATURES + 1).train().likelihood is Likelihood.ESTIMATE


def test_a_model_that_trains_on_estimates_fits_tables():
    table = Table.from_any(data(50, 2).float())
    flow = assemble("residual_flow", table, options={"transforms": 1, "hidden": 4, "log_det": "unbiased"}, seed=0)
    assert flow.train().likelihood is Likelihood.ESTIMATE
    assert flow.eval().likelihood is Likelihood.EXACT


def test_probes_repeat_from_their_buffers_and_leave_the_global_state_alone():
    layer, x = layer_of(log_det="unbiased").train(), data(10, 3)
    layer(x)
    saved = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state = torch.get_rng_state()
    second, third = layer(x).log_det, layer(x).log_det
    assert torch.equal(torch.get_rng_state(), state)
    assert (second != third).any()
    other = layer_of(log_det="unbiased").train()
    other.load_state_dict(saved)
    assert torch.equal(other(x).log_det, second)
    draws = int(other.probes.draws)
    other.eval()(x)
    assert int(other.probes.draws) == draws
    assert Probes().seed != Probes().seed


@pytest.mark.parametrize("factor", [1.0, 10.0, 1e3])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_back_whatever_the_weights(kind, factor):
    layer = layer_of(kind, features=5, factor=factor, lipschitz=0.99).eval()
    x = data(300, 5, scale=4)
    value, log_det = layer(x)
    with torch.no_grad():
        back, back_log_det = layer.inverse(value)
    assert (layer(back).value - value).abs().max() <= 1e-12 * (1 + value.abs().max())
    assert (back - x).abs().max() <= 1e-8
    assert (log_det + back_log_det).abs().max() <= 1e-7 * factor


def test_float32_weights_are_inverted_in_float64():
    layer = layer_of().float().eval()
    x = data(50, 3).float()
    value = layer(x).value
    back = layer.inverse(value).value
    assert back.dtype == torch.float32
    assert (back - x).abs().max() <= 1e-5


def test_rows_that_are_not_finite_get_their_answer_and_stay_alone():
    answers_rows_that_are_not_finite(layer_of().eval(), data(4, 3))


def test_an_inverse_that_does_not_converge_raises_with_its_rows(monkeypatch):
    layer = layer_of(scale=1.0).eval()
    y = layer(torch.cat([data(3, 3), torch.zeros(1, 3)])).value.detach()
    monkeypatch.setattr(newton, "MAX_STEPS", 1)
    with pytest.raises(InverseError) as caught:
        layer.inverse(y)
    assert caught.value.rows == [0, 1, 2, 3]
    monkeypatch.undo()
    with torch.no_grad():
        layer.conditioner.free[0, 0] = math.nan
    with pytest.raises(InverseError, match="4 rows"):
        layer.inverse(y)


def test_weights_that_are_no_numbers_make_densities_that_are_none():
    layer = layer_of().eval()
    with torch.no_grad():
        layer.net.weights[0][0, 0] = math.nan
    assert torch.isnan(layer(data(2, 3)).value).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lipschitz": 1.0}, "lipschitz"),
        ({"lipschitz": 0.0}, "lipschitz"),
        ({"unit": "relu"}, "unit"),
        ({"log_det": "biased"}, "log_det"),
        ({"terms": 0}, "terms"),
        ({"survival": 1.0}, "survival"),
        ({"depth": 0}, "depth"),
        ({"hidden": 0}, "hidden"),
        ({"transforms": 0}, "transforms"),
    ],
)
def test_options_that_make_no_model_are_refused(options, named):
    with pytest.raises(OptionError, match=f"^{named}: "):
        build("residual_flow", 2, options=options)
