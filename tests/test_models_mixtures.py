"""Mixtures of flows and folded bases: exact sums, gates, continuity, and gaps that a single flow does not make."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.bases import Mixture, Resampled, StandardNormal, StudentT
from rosenblatt.core import registry
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Likelihood
from rosenblatt.models.rad import Folded

FALSE_ALARM = 1e-6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def disturbed(module, size=0.7, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def test_a_mixture_is_its_weighted_sum_and_samples_it():
    mixture = Mixture([StandardNormal(1), StudentT(1, df=2.0), StandardNormal(1)]).double()
    with torch.no_grad():
        mixture.logits.copy_(torch.tensor([0.3, -0.2, -1.0]))
    weight = torch.softmax(mixture.logits, 0).detach().numpy()
    laws = [scipy.stats.norm(), scipy.stats.t(2), scipy.stats.norm()]
    x = torch.linspace(-30, 30, 41).double()
    expected = sum(w * law.pdf(x) for w, law in zip(weight, laws, strict=True))
    np.testing.assert_allclose(mixture.log_prob(x.unsqueeze(-1)).detach().exp(), expected, rtol=1e-12)
    drawn = mixture.sample(20_000, generator=torch.Generator().manual_seed(1)).detach().squeeze(-1)

    def cdf(t):
        return sum(w * law.cdf(t) for w, law in zip(weight, laws, strict=True))

    assert scipy.stats.kstest(drawn.numpy(), cdf).pvalue > FALSE_ALARM
    assert scipy.stats.kstest(drawn[:2000].numpy(), cdf).pvalue > FALSE_ALARM  # components come in no order


def test_a_gate_moves_the_weights_with_the_context():
    flow = disturbed(registry.build("flow_mixture", 2, 1, options={"components": 3, "hidden": 8}, seed=0).double(), 0.4)
    mixture, context = flow.base, normal(4, 1, seed=2)
    x = normal(4, 2, seed=3)
    weight = torch.exp(mixture.log_weights(context))
    assert torch.allclose(weight.sum(-1), torch.ones(4).double())
    assert (weight[0] - weight[1]).abs().max() > 1e-3
    z, log_det = flow.transform(x)
    total = sum(w * torch.exp(part.log_prob(z, context)) for w, part in zip(weight.T, mixture.parts, strict=True))
    assert torch.allclose(flow.log_prob(x, context), torch.log(total) + log_det, atol=1e-12)
    # The share of samples of each component is its weight.
    counts = torch.zeros(3)
    for number, part in enumerate(mixture.parts):
        original = part.sample
        part.sample = lambda n, c=None, *, generator=None, k=number, run=original: (
            counts.__setitem__(k, counts[k] + c.shape[0]) or run(n, c, generator=generator)
        )
    mixture.sample(8000, context[:1], generator=torch.Generator().manual_seed(4))
    expected = 8000 * weight[0].detach().numpy()
    assert counts.sum() == 8000
    assert scipy.stats.chisquare(counts.numpy(), expected, sum_check=False).pvalue > FALSE_ALARM


def test_a_mixture_claims_what_its_weakest_part_can_and_refuses_unlike_ones():
    assert Mixture([StandardNormal(2), Resampled(2, hidden=4, draws=16)]).likelihood is Likelihood.ESTIMATE
    for parts in ([], [StandardNormal(2), StandardNormal(3)], [Folded(2, context=1)]):
        with pytest.raises(OptionError, match="components"):
            Mixture(parts)


def test_far_rows_have_no_bad_gradient_in_a_mixture():
    mixture = Mixture([StandardNormal(2), StandardNormal(2)])
    x = torch.tensor([[0.0, 1.0], [1e30, 0.0], [math.inf, 0.0], [math.nan, 0.0]], requires_grad=True)
    log_prob = mixture.log_prob(x)
    assert log_prob[1:3].tolist() == [-math.inf] * 2
    assert math.isnan(log_prob[3].item())
    log_prob[0].backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(mixture.logits.grad).all()


@pytest.mark.parametrize("context", [0, 2])
def test_a_fold_is_the_sum_over_its_pieces_and_continuous(context):
    base = disturbed(Folded(2, context=context, hidden=8).double())
    c = normal(1, context, seed=6) if context else None
    stretch = 2 * torch.tanh(base.raw_stretch / 2)
    z = normal(50, 2, seed=7).abs()
    # What lies over z, with the map's slopes, makes p_Z(z) again: 4 p(z) for the folded normal.
    total = 0.0
    for first in (1.0, -1.0):
        for second in (1.0, -1.0):
            side = torch.tensor([first, second]).double()
            slope = torch.exp(side * stretch)
            total = (
                total
                + torch.exp(base.log_prob(side * z / slope, None if c is None else c.expand(50, -1))) / slope.prod()
            )
    assert torch.allclose(torch.log(total), StandardNormal(2).log_prob(z) + math.log(4), atol=1e-12)
    # Both sides of a fold agree on it.
    edge = normal(20, 2, seed=8)
    for column in range(2):
        left, right = edge.clone(), edge.clone()
        left[:, column], right[:, column] = -1e-10, 1e-10
        jump = base.log_prob(left, c) - base.log_prob(right, c)
        assert jump.abs().max() < 1e-8


def test_folded_samples_follow_the_density():
    base = disturbed(Folded(1, hidden=8).double())
    x = base.sample(20_000, generator=torch.Generator().manual_seed(9)).detach().squeeze(-1).numpy()
    grid = torch.linspace(-9, 9, 20_001).double().unsqueeze(-1)
    density = torch.exp(base.log_prob(grid)).detach().squeeze(-1).numpy()
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid[:, 0].numpy()))])
    assert abs(mass[-1] - 1) < 1e-6
    assert scipy.stats.kstest(x, lambda t: np.interp(t, grid[:, 0].numpy(), mass)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("name", ["rad", "flow_mixture"])
def test_two_far_clusters_come_apart(name):
    generator = torch.Generator().manual_seed(10)
    centre = 4 * (torch.rand(2000, 1, generator=generator) < 0.3).double() - 2
    rows = torch.cat([centre, torch.zeros(2000, 1)], dim=1) + 0.3 * normal(2000, 2, seed=11)
    options = {"transforms": 2, "hidden": 16, "blocks": 1}
    model = registry.build(name, 2, options=options, seed=1)
    rows = rows.float()
    model.initialise(rows)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    start = model.log_prob(rows).mean().item()
    for _ in range(150):
        batch = rows[torch.randint(0, 2000, (256,), generator=generator)]
        optimiser.zero_grad()
        (-model.log_prob(batch).mean()).backward()
        optimiser.step()
    truth = -2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.3)) + 0.7 * math.log(0.7) + 0.3 * math.log(0.3)
    assert truth - start > 0.8
    assert truth - model.log_prob(rows).mean().item() < 0.25
