"""Training by proper scores: losses and gradients are unbiased for those of the closed form, and find the truth."""

import math

import pytest
import scipy.stats
import torch

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.bases import StandardNormal
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.types import Batch
from rosenblatt.data import Table
from rosenblatt.elementwise.affine import Affine
from rosenblatt.layers.conditional import Conditional
from rosenblatt.objectives import CRPS, EnergyScore, PinballLoss, closed_crps
from rosenblatt.train import FitConfig, Fitter

SIGMAS = scipy.stats.norm.isf(0.5e-6)  # false alarm 1e-6, two-sided
ONE_FEATURE = {
    "crps by formula": CRPS(),
    "crps by draws": CRPS(4, closed=False),
    "energy": EnergyScore(draws=3),
    "pinball": PinballLoss(draws=3),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def affine_flow(features=1, context=1, seed=0):
    affine = Affine()
    conditioner = Masked(features, affine.spec.size, hidden=8, context=context)
    flow = Flow(Conditional(affine, conditioner), StandardNormal(features), context=context).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return flow


@pytest.mark.parametrize("name", ONE_FEATURE)
def test_loss_and_gradient_are_unbiased_for_the_closed_form(name):
    flow, rows, blocks = affine_flow(), 64, 64
    x, context = torch.tensor([[0.3]]).double().expand(rows, 1), torch.tensor([[-0.5]]).double().expand(rows, 1)
    weights = [part for part in flow.parameters() if part.requires_grad]
    truth = closed_crps(flow, x[:1], context[:1])
    expected = torch.cat([truth, *(part.flatten() for part in torch.autograd.grad(truth.sum(), weights))]).detach()
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(blocks):
        loss = ONE_FEATURE[name](flow, Batch(x, context), generator)
        assert loss.shape == (rows,)
        mean = loss.mean()
        parts = (part.flatten() for part in torch.autograd.grad(mean, weights))
        found.append(torch.cat([mean.reshape(1), *parts]).detach())
    found = torch.stack(found)
    error = found.std(dim=0) / math.sqrt(blocks)
    # Several numbers and a t law of 63 degrees: at twice the sigmas, together still below 1e-6.
    assert ((found.mean(dim=0) - expected).abs() <= 2 * SIGMAS * error + 1e-12).all()
    assert expected[1:].abs().max() > 0.05
    assert float(error[0]) < 0.03


def test_pinball_loss_at_given_levels():
    flow = affine_flow(context=0)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).unsqueeze(-1)
    law = scipy.stats.norm(*(float(part) for part in moments(flow)))
    expected = sum(max(a * e, (a - 1) * e) for a in (0.1, 0.5) for e in [float(x[1, 0]) - law.ppf(a)])
    found = PinballLoss([0.1, 0.5])(flow, Batch(x), torch.Generator()).detach()
    assert float(found[1]) == pytest.approx(expected, rel=1e-9)  # twice the mean of two


def moments(flow, context=None):
    with torch.no_grad():
        low, high = flow.transform.inverse(torch.tensor([[-1.0], [1.0]]).double(), context).value[:, 0]
    return (low + high) / 2, (high - low) / 2


@pytest.mark.parametrize("name", ONE_FEATURE)
def test_training_finds_the_true_conditional_law(name):
    flow, generator = affine_flow(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.03)
    steps = 250
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        context = normal(256, 1, seed=2 * step + 10).sign()
        x = 1.0 + 0.5 * context + (0.6 + 0.2 * context) * normal(256, 1, seed=2 * step + 11)
        optimiser.zero_grad()
        ONE_FEATURE[name](flow, Batch(x, context), generator).mean().backward()
        optimiser.step()
        scheduler.step()
    for sign in (-1.0, 1.0):
        mean, scale = moments(flow, torch.full((2, 1), sign, dtype=torch.float64))
        assert float(mean) == pytest.approx(1 + 0.5 * sign, abs=0.08)
        assert float(scale) == pytest.approx(0.6 + 0.2 * sign, abs=0.08)


def test_energy_score_teaches_the_correlation_and_the_fitter_takes_it():
    z = normal(2000, 2).float()
    x = torch.stack([z[:, 0], 0.8 * z[:, 0] + 0.6 * z[:, 1]], dim=-1)

    flow = build("maf", 2, options={"hidden": 16, "transforms": 1}, seed=0)
    config = FitConfig(epochs=25, batch_size=128, learning_rate=1e-2, seed=0)
    report = Fitter(config).fit(flow, Table(x, ["a", "b"]), EnergyScore())
    assert report.measure == "minus energy score"
    drawn = flow.sample(20_000, generator=torch.Generator().manual_seed(0)).detach().double()
    correlation = torch.corrcoef(drawn.T)[0, 1]
    assert float(correlation) == pytest.approx(0.8, abs=0.06)
    assert torch.allclose(drawn.std(dim=0), torch.ones(2).double(), atol=0.12)


def test_crps_of_several_features_is_their_sum():
    flow = affine_flow(features=2)
    batch = Batch(normal(3, 2), normal(3, 1, seed=1))
    drawn = flow.sample(5, batch.context, generator=torch.Generator().manual_seed(4))
    found = CRPS(5)(flow, batch, torch.Generator().manual_seed(4))
    near = (drawn - batch.x).abs().mean(dim=0)
    spread = (drawn.unsqueeze(0) - drawn.unsqueeze(1)).abs().sum(dim=(0, 1)) / (2 * 5 * 4)
    assert torch.allclose(found, (near - spread).sum(dim=-1))


def test_a_missing_outcome_spoils_its_own_loss_and_no_other():
    flow = affine_flow()
    x, context = normal(4, 1), normal(4, 1, seed=1)
    x[2] = math.nan
    for objective in ONE_FEATURE.values():
        loss = objective(flow, Batch(x, context), torch.Generator().manual_seed(0))
        assert torch.isnan(loss).tolist() == [False, False, True, False]


def test_options_that_make_no_loss():
    for options in ({"beta": 0.0}, {"beta": 2.0}, {"draws": 1}):
        with pytest.raises(OptionError):
            EnergyScore(**options)
    with pytest.raises(OptionError, match="draws"):
        CRPS(1)
    for levels in ([], [0.0], [0.5, 1.0]):
        with pytest.raises(OptionError, match="levels"):
            PinballLoss(levels)
    with pytest.raises(OptionError, match="one feature"):
        PinballLoss()(affine_flow(features=2), Batch(normal(3, 2), normal(3, 1)), torch.Generator())
