"""Energy flows: the scores of draws against closed forms, and what training by them learns."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from scipy import stats

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.types import Batch, Likelihood
from rosenblatt.data import Table
from rosenblatt.estimators import FlowDensity
from rosenblatt.eval import energy_distance
from rosenblatt.models.energy_flow import EnergyFlow, energy_flow
from rosenblatt.models.vae import vae
from rosenblatt.nets import DenselyConnected
from rosenblatt.objectives.rules import energy_score
from rosenblatt.objectives.two_sample import TwoSampleScore, kernel_score, norm_factor, sliced_energy_score
from rosenblatt.testing import audit
from rosenblatt.testing.tables import seeded
from rosenblatt.train import FitConfig, Fitter

QUICK = {"epochs": 1000, "learning_rate": 5e-3, "validation_fraction": 0.0, "patience": None, "seed": 0}


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
def test_the_norm_is_the_mean_of_its_projections(features, beta):
    directions = np.random.default_rng(0).normal(size=(400_000, features))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    x = np.arange(1.0, features + 1)
    along = np.abs(directions @ x) ** beta
    expected = np.linalg.norm(x) ** beta
    error = norm_factor(features, beta) * along.std() / math.sqrt(len(along))
    assert abs(norm_factor(features, beta) * along.mean() - expected) < 5.5 * error + 1e-9
    assert error < 0.005 * expected
    if beta == 1:
        closed = math.sqrt(math.pi) * scipy.special.gamma((features + 1) / 2) / scipy.special.gamma(features / 2)
        assert norm_factor(features) == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_sliced_score_is_the_energy_score_in_the_mean(beta):
    samples = torch.randn(3, 4, 3, generator=draw(1), dtype=torch.float64)
    y = torch.randn(4, 3, generator=draw(2), dtype=torch.float64)
    found = torch.stack(
        [sliced_energy_score(samples, y, beta, projections=500, generator=draw(seed)) for seed in range(100)]
    )
    gap = found.mean(dim=0) - energy_score(samples, y, beta)
    assert (gap.abs() < 6 * found.std(dim=0) / 10).all()


def test_the_kernel_score_of_a_gaussian_is_closed():
    # E k(X, X') and E k(X, y) of N(0, 1) with a kernel of width h are Gaussian integrals.
    count, width = 2000, 0.7
    samples = torch.randn(count, 1, 1, generator=draw(3), dtype=torch.float64)
    y = torch.tensor([[1.3]], dtype=torch.float64)
    within = width / math.sqrt(width**2 + 2)
    across = width / math.sqrt(width**2 + 1) * math.exp(-(1.3**2) / (2 * (width**2 + 1)))
    parts = torch.stack([kernel_score(part, y, [width]) for part in samples.split(20)])
    error = parts.std() / 10
    assert abs(parts.mean() - (0.5 * (within + 1) - across)) < 5.5 * error
    two = kernel_score(samples, y, [width, 2.0]) * 2
    assert two.item() == pytest.approx((kernel_score(samples, y, [width]) + kernel_score(samples, y, [2.0])).item())


@pytest.mark.parametrize("score", ["energy", "sliced", "kernel"])
def test_the_loss_of_the_true_sampler_is_the_least(score):
    """Any other law than the truth is worse by half its distance from it."""
    objective = TwoSampleScore(score, draws=2)

    def loss(shift, scale):
        flow = energy_flow(2, parts=2, hidden=8)
        flow.scaling.initialised.fill_(True)
        for net in flow.nets:
            torch.nn.init.zeros_(net.last.weight)
            net.last.bias.data.fill_(shift)
        flow.nets[0].last.weight.data[:, 0] = scale - 1  # the dense net sees its noise last too
        x = torch.randn(10_000, 2, generator=draw(5))
        with torch.no_grad():
            found = objective(flow.eval(), Batch(x), draw(6))
        return found.mean().item(), found.std().item() / 100

    best, error = loss(0.0, 1.0)
    for shift, scale in ((0.3, 1.0), (0.0, 1.5), (0.0, 0.5)):
        assert loss(shift, scale)[0] > best + 4 * error
    if score != "kernel":  # two standard normals, each scored by itself
        assert best == pytest.approx(2 / math.sqrt(math.pi), abs=6 * error)


@pytest.mark.parametrize("score", ["energy", "sliced", "kernel"])
def test_training_comes_near_a_law_that_no_gaussian_is(score):
    def ring(rows, seed):
        angle = torch.randint(0, 4, (rows,), generator=draw(seed)) * (math.pi / 2)
        centre = 10 + 4 * torch.stack([angle.cos(), angle.sin()], dim=-1)
        return centre + 0.4 * torch.randn(rows, 2, generator=draw(seed + 100))

    model = seeded(lambda: energy_flow(2, parts=2, hidden=48, blocks=2, score=score))
    report = Fitter(FitConfig(max_steps=300, batch_size=256, **QUICK), progress=False).fit(
        model, Table.from_any(ring(20_000, 0).numpy())
    )
    assert report.measure == f"minus {score} score in standard units"
    with torch.no_grad():
        drawn = model.sample(2000, generator=draw(9)).double()
    test = ring(2000, 1).double()
    gaussian = (
        test.mean(dim=0) + torch.randn(2000, 2, generator=draw(8)).double() @ torch.linalg.cholesky(test.T.cov()).T
    )
    assert energy_distance(drawn, test).value < 0.5 * energy_distance(gaussian, test).value


def test_a_block_is_drawn_given_the_blocks_before_and_the_context():
    x0 = torch.randn(20_000, 1, generator=draw(0))
    given = torch.rand(20_000, 1, generator=draw(1))
    rows = torch.cat([x0, 2 * x0 + given + 0.1 * torch.randn(20_000, 1, generator=draw(2))], dim=-1)
    model = seeded(lambda: energy_flow(2, context=1, parts=2, hidden=32, blocks=2))

    class Pairs:
        def __len__(self):
            return len(rows)

        def batches(self, size, generator, start=0):
            for at in torch.randperm(len(rows), generator=generator).split(size)[start:]:
                yield Batch(rows[at], given[at])

        def ordered_batches(self, size):
            yield from (Batch(r, g) for r, g in zip(rows.split(size), given.split(size), strict=True))

        def rows(self, limit=None):
            return Batch(rows[:limit], given[:limit])

    Fitter(FitConfig(max_steps=300, batch_size=256, **QUICK), progress=False).fit(model, Pairs())
    with torch.no_grad():
        drawn = model.sample(4000, torch.tensor([[0.1], [0.9]]), generator=draw(3))
    centre = (drawn[..., 1] - 2 * drawn[..., 0]).mean(dim=0)
    assert (centre - torch.tensor([0.1, 0.9])).abs().max() < 0.15
    assert drawn[..., 0].std() == pytest.approx(1, abs=0.1)


def test_sizes_of_blocks_and_networks():
    model = energy_flow(7, parts=3, hidden=8)
    assert model.sizes == (2, 2, 3)
    assert [net.last.out_features for net in model.nets] == [2, 2, 3]
    assert energy_flow(2, parts=5, hidden=8).sizes == (1, 1)
    assert model.likelihood is Likelihood.NONE
    dense = DenselyConnected(3, 1, hidden=4, blocks=3)
    assert [layer.in_features for layer in dense.layers] == [3, 7, 11]
    for options, named in (
        ({"parts": 0}, "parts"),
        ({"network": "cnn"}, "network"),
        ({"score": "l2"}, "score"),
        ({"beta": 2.0}, "beta"),
        ({"draws": 1}, "draws"),
        ({"bandwidths": []}, "bandwidths"),
        ({"hidden": 0}, "hidden"),
    ):
        with pytest.raises(OptionError, match=named):
            energy_flow(2, **options)
    with pytest.raises(OptionError, match="sizes"):
        EnergyFlow([1, 2], [])


def test_a_start_is_standard_noise_in_the_units_of_the_rows():
    model = build("energy_flow", 2, options={"hidden": 16}, seed=0)
    rows = 50 + 1e-3 * torch.randn(1000, 2, generator=draw())
    model.initialise(rows)
    with torch.no_grad():
        drawn = model.sample(2000, generator=draw(1))
    p_value = stats.kstest(((drawn - 50) / 1e-3)[:, 0].numpy(), "norm").pvalue
    assert p_value > 1e-6
    with pytest.raises(DataError, match="constant"):
        energy_flow(1, hidden=8).initialise(torch.ones(5, 1))


def test_table_estimators_say_that_there_is_no_density_and_what_to_do():
    with pytest.raises(OptionError, match=r"no density at all \(none\).*Fitter"):
        FlowDensity("energy_flow").fit(np.random.default_rng(0).normal(size=(20, 2)))


def test_the_audit_says_that_there_is_no_density():
    report = audit(energy_flow(2, hidden=8), torch.randn(50, 2, generator=draw()))
    assert not report.passed
    assert [row.measured for row in report.rows] == ["none"]
    assert "no density" in str(report)
    with pytest.raises(OptionError, match="VAE came"):
        audit(vae(2, latent=1, hidden=8), torch.zeros(5, 2))
