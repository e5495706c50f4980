"""Bounds by sampling against closed forms: values, gradients in the mean, and where their noise must vanish."""

import math

import pytest
import torch

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import build
from rosenblatt.layers.scaling import ActNorm
from rosenblatt.objectives.bounds import (
    VariationalBound,
    bound_by_sampling,
    draw,
    free_bits,
    importance_bound,
    linear_warmup,
    reweigh_path,
)


def gaussian(mean, log_scale):
    """q = N(mean, exp(2 log_scale)) in one column, its two weights trainable."""
    layer = ActNorm(1).double()
    with torch.no_grad():
        layer.shift.fill_(mean)
        layer.log_scale.fill_(-log_scale)
    return Flow(layer, StandardNormal(1).double())


def standard(theta):
    return -0.5 * theta.square().sum(dim=-1) - 0.5 * math.log(2 * math.pi) * theta.shape[-1]


def gradients(q, draws, bounds=1, **options):
    """Gradients (draws, weights), each of the mean of some bounds."""
    generator = torch.Generator().manual_seed(4)
    weights = list(q.parameters())
    found = []
    for _ in range(draws):
        bound = bound_by_sampling(q, standard, bounds=bounds, generator=generator, **options).mean()
        found.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(bound, weights)]))
    return torch.stack(found)


def within_error(found, expected):
    """Whether a mean over rows meets what is expected, at a false alarm of 1e-6."""
    error = found.std(dim=0) / math.sqrt(len(found))
    return bool(((found.mean(dim=0) - expected).abs() < 4.9 * error + 1e-12).all())


@pytest.mark.parametrize("path_derivative", [True, False])
def test_elbo_and_its_gradient_meet_the_closed_form(path_derivative):
    mean, log_scale = 0.7, -0.3
    q = gaussian(mean, log_scale)
    variance = math.exp(2 * log_scale)
    exact = log_scale + 0.5 - 0.5 * (variance + mean**2)  # minus KL(q, standard normal)
    bound = bound_by_sampling(
        q, standard, bounds=20_000, path_derivative=path_derivative, generator=torch.Generator().manual_seed(0)
    )
    assert within_error(bound.detach().unsqueeze(-1), torch.tensor([exact], dtype=torch.float64))
    # Of the bound in the shift and in minus the log-scale; the layer squashes the latter by tanh.
    squash = 1 - math.tanh(log_scale / 7) ** 2
    scaled = 7 * math.tanh(log_scale / 7)
    expected = torch.tensor([-mean, (math.exp(2 * scaled) - 1) * squash], dtype=torch.float64)
    assert within_error(gradients(q, 200, 50, path_derivative=path_derivative), expected)


def test_path_derivative_has_no_noise_where_q_is_exact():
    q = gaussian(0.0, 0.0)
    assert gradients(q, 50, path_derivative=True).abs().max() < 1e-12
    assert gradients(q, 50, path_derivative=False).std(dim=0).max() > 0.5
    assert gradients(q, 50, path_derivative=True, particles=5).abs().max() < 1e-12


def test_path_derivative_is_that_of_the_drawn_rows_also_for_an_inverse_flow():
    flow = build("iaf", 3, 2, options={"transforms": 2, "hidden": 8, "blocks": 1}, seed=0).double().eval()
    context = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    plain = draw(flow, 5, context, path_derivative=False, generator=torch.Generator().manual_seed(1))
    path = draw(flow, 5, context, path_derivative=True, generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain.value, path.value)
    torch.testing.assert_close(plain.log_prob, path.log_prob, rtol=1e-9, atol=1e-9)
    # The gradient along the drawn rows, by hand: d log q / d z with all else fixed, carried back through z.
    z = path.value.detach().requires_grad_()
    (along,) = torch.autograd.grad(flow.log_prob(z, context.detach()).sum(), z)
    weight = flow.transform.steps[0].transform.conditioner.last.weight
    (expected,) = torch.autograd.grad((plain.value * along).sum(), weight, retain_graph=True)
    (found,) = torch.autograd.grad(path.log_prob.sum(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_importance_bound_rises_to_the_integral():
    """Its target integrates to e^0.4; for many particles the gap is var(w) / 2K, w being p / (Z q)."""
    q = gaussian(0.3, 0.2)
    generator = torch.Generator().manual_seed(2)

    def mean_bound(particles, bounds):
        with torch.no_grad():
            found = bound_by_sampling(
                q, lambda z: standard(z) + 0.4, bounds=bounds, particles=particles, generator=generator
            )
        return found.mean().item(), (found.std() / math.sqrt(bounds)).item()

    means = {k: mean_bound(k, 200_000 // k) for k in (1, 2, 8, 64)}
    assert means[1][0] < means[2][0] < means[8][0] < means[64][0]
    # E w^2 = int p^2 / q for two normals: variance s^2 = e^0.4, mean 0.3.
    s2, m = math.exp(2 * 7 * math.tanh(0.2 / 7)), 0.3
    second = s2 / math.sqrt(2 * s2 - 1) * math.exp(m * m / (2 * s2 - 1))
    assert abs(means[64][0] - (0.4 - (second - 1) / 128)) < 4.9 * means[64][1] + 2e-4
    assert importance_bound(torch.tensor([[0.0], [-torch.inf]])).item() == pytest.approx(-math.log(2))


def test_doubly_reparameterised_gradient_has_the_same_mean_and_less_noise():
    q = gaussian(0.8, 0.4)
    plain = gradients(q, 300, 40, particles=8, path_derivative=False)
    doubly = gradients(q, 300, 40, particles=8, path_derivative=True)
    assert within_error(doubly - plain, torch.zeros(2, dtype=torch.float64))
    assert bool((doubly.var(dim=0) < 0.5 * plain.var(dim=0)).all())


def test_reweighing_touches_the_path_alone():
    z = torch.tensor([[1.0], [2.0]], requires_grad=True)
    slope = torch.tensor(3.0, requires_grad=True)
    path = z * 1.0
    log_weight = (slope * path).squeeze(-1)
    reweigh_path(path, log_weight.unsqueeze(-1))
    importance_bound(log_weight.unsqueeze(-1)).sum().backward()
    share = torch.softmax(log_weight.detach(), dim=0)
    torch.testing.assert_close(slope.grad, (share * z.detach().squeeze(-1)).sum())
    torch.testing.assert_close(z.grad.squeeze(-1), share.square() * slope.detach())


def test_temperature_scales_the_target_alone():
    q = gaussian(0.5, 0.0)
    made = [
        bound_by_sampling(q, standard, bounds=4, temperature=t, generator=torch.Generator().manual_seed(1))
        for t in (0.0, 0.5, 1.0)
    ]
    torch.testing.assert_close(made[1], (made[0] + made[2]) / 2)


def test_free_bits_hold_the_mean_of_a_batch_at_the_floor():
    divergence = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)
    cost = free_bits(divergence, 0.5)
    assert cost.mean().item() == pytest.approx(0.5 + 3.0)
    cost.sum().backward()
    assert divergence.grad.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert torch.isnan(free_bits(torch.tensor([[math.nan], [1.0]]), 0.5)).any()


def test_warmup_is_a_line():
    assert [linear_warmup(step, 10, 0.01) for step in (0, 5, 10, 20)] == pytest.approx([0.01, 0.505, 1.0, 1.0])
    assert linear_warmup(0, 0) == 1.0


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": 2, "free_bits": 0.5}, {"warmup": -1}])
def test_options_that_make_no_bound_are_refused(options):
    with pytest.raises(OptionError, match="samples"):
        VariationalBound(**options)
