"""A VAE of few latent numbers, whose true density and posterior are integrals on a grid."""

import math

import pytest
import torch
from sklearn.datasets import load_digits

from rosenblatt.assembly import assemble
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import names
from rosenblatt.core.types import Batch, Likelihood
from rosenblatt.data import Table
from rosenblatt.models.vae import vae
from rosenblatt.objectives import VariationalBound
from rosenblatt.testing.tables import disturbed, seeded
from rosenblatt.train import FitConfig, Fitter

ROWS = torch.tensor([[0.3, -0.5, 1.0], [2.0, 0.1, -1.0]], dtype=torch.float64)
CONTEXT = torch.tensor([[0.5, -1.0], [0.2, 0.9]], dtype=torch.float64)
CASES = {
    "gaussian": {},
    "iaf": {"transforms": 2},
    "flow_prior": {"prior": "maf", "prior_options": {"transforms": 2, "hidden": 8}},
    "context": {"context": 2},
    "bernoulli": {"decoder": "bernoulli"},
}


def made(name, **options):
    chosen = {"latent": 2, "hidden": 8, "blocks": 1, "samples": 64} | CASES[name] | options
    model = disturbed(seeded(lambda: vae(3, **chosen)), 0.05).double()
    disturbed(model.decoder, 0.2, seed=2)
    return model


def rows_of(name):
    x = (ROWS > 0).double() if name == "bernoulli" else ROWS
    return x, CONTEXT if name == "context" else None


def on_grid(model, x, context):
    """Latent points (cells, 2), log p(x, z) (cells, rows), and the log-area of a cell."""
    line = torch.linspace(-9, 9, 241, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    joint = []
    for row in range(len(x)):
        given = z if context is None else torch.cat([z, context[row].expand(len(z), -1)], dim=-1)
        joint.append(model.decoder.log_prob(x[row].expand(len(z), -1), given) + model.prior.log_prob(z))
    return z, torch.stack(joint, dim=-1).detach(), 2 * math.log(18 / 240)


@pytest.mark.parametrize("name", CASES)
def test_bounds_rise_to_the_integral(name):
    model = made(name, samples=4096)
    x, context = rows_of(name)
    _, joint, log_area = on_grid(model, x, context)
    exact = torch.logsumexp(joint, dim=0) + log_area
    with torch.no_grad():
        single = model.bound(
            x.repeat(4000, 1),
            None if context is None else context.repeat(4000, 1),
            generator=torch.Generator().manual_seed(1),
        ).reshape(4000, 2)
        sharp = model.log_prob(x, context)
    error = single.std(dim=0) / math.sqrt(4000)
    assert bool((single.mean(dim=0) < exact + 4.9 * error).all())
    assert bool((exact - single.mean(dim=0) > 0.01).any())  # an untrained q leaves a gap
    torch.testing.assert_close(sharp, exact, rtol=0, atol=0.03)


def test_the_gap_of_the_elbo_is_the_divergence_of_the_posterior():
    model = made("gaussian")
    x, _ = rows_of("gaussian")
    z, joint, log_area = on_grid(model, x, None)
    exact = torch.logsumexp(joint, dim=0) + log_area
    with torch.no_grad():
        code = model.encoder(x)
        log_q = torch.stack([model.posterior.log_prob(z, code[row].expand(len(z), -1)) for row in range(2)], dim=-1)
        divergence = (torch.exp(log_q) * (log_q - joint + exact)).sum(dim=0) * math.exp(log_area)
        elbo = model.bound(x.repeat(20_000, 1), generator=torch.Generator().manual_seed(3)).reshape(20_000, 2)
    error = elbo.std(dim=0) / math.sqrt(20_000)
    assert bool(((exact - elbo.mean(dim=0) - divergence).abs() < 4.9 * error + 1e-4).all())


@pytest.mark.parametrize("name", CASES)
def test_log_prob_is_a_function_of_the_row(name):
    model = made(name)
    x, context = rows_of(name)
    with torch.no_grad():
        first = model.log_prob(x, context)
        assert torch.equal(first, model.log_prob(x, context))
        alone = model.log_prob(x[1:], None if context is None else context[1:])
        many = model.log_prob(x.repeat(600, 1), None if context is None else context.repeat(600, 1))
        other_seed = made(name, seed=1).log_prob(x, context)
    torch.testing.assert_close(first[1:], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(many.reshape(600, 2), first.expand(600, 2), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(first, other_seed, atol=1e-6)
    assert model.likelihood is Likelihood.LOWER_BOUND
    assert model.log_prob(x.unsqueeze(1), None if context is None else context.unsqueeze(1)).shape == (2, 1)


@pytest.mark.parametrize("name", ["context", "bernoulli"])
def test_bad_rows_are_answered_and_reach_no_other(name):
    model = made(name)
    x, context = rows_of(name)
    bad = torch.cat([x, x, x])
    bad[2, 1], bad[3, 0] = math.nan, math.inf
    given = None if context is None else context.repeat(3, 1)
    bad.requires_grad_()
    found = model.log_prob(bad, given)
    torch.testing.assert_close(found[:2], model.log_prob(x, context))
    assert torch.isnan(found[2])
    assert found[3].item() == -math.inf
    (gradient,) = torch.autograd.grad(found[[0, 1, 4, 5]].sum(), bad)
    assert bool(torch.isfinite(gradient).all())
    if context is not None:
        given[4, 0] = math.inf
        assert torch.isnan(model.log_prob(bad, given)[4])
    else:
        assert model.log_prob(torch.full((1, 3), 0.5, dtype=torch.float64)).item() == -math.inf
    with pytest.raises(DataError, match="3 features"):
        model.log_prob(bad[:, :2], given)


@pytest.mark.parametrize("name", ["context", "bernoulli", "flow_prior"])
def test_samples_follow_the_integral(name):
    """Mean of 20,000 rows against the decoder's mean integrated over the prior on the grid."""
    model = made(name)
    x, context = rows_of(name)
    z, _, log_area = on_grid(model, x, context)
    given = None if context is None else context[:1]
    with torch.no_grad():
        drawn = model.sample(20_000, given, generator=torch.Generator().manual_seed(5)).reshape(-1, 3)
        joined = z if given is None else torch.cat([z, given.expand(len(z), -1)], dim=-1)
        mass = torch.exp(model.prior.log_prob(z) + log_area)
        if name == "bernoulli":
            mean = torch.sigmoid(model.decoder.net(joined))
        else:
            mean = model.decoder.transform.inverse(torch.zeros(len(z), 3, dtype=torch.float64), joined).value
        expected = (mass.unsqueeze(-1) * mean).sum(dim=0)
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-3)
    error = drawn.std(dim=0) / math.sqrt(len(drawn))
    assert bool(((drawn.mean(dim=0) - expected).abs() < 4.9 * error + 1e-3).all())
    rows, bound = model.sample_and_log_prob(5, given, generator=torch.Generator().manual_seed(6))
    assert rows.shape == ((5, 3) if given is None else (5, 1, 3))
    assert bound.shape == rows.shape[:-1]
    assert torch.equal(rows, model.sample(5, given, generator=torch.Generator().manual_seed(6)))


def test_objective_counts_training_calls_and_warms_up():
    model = made("gaussian", warmup=2).train()
    batch, generator = Batch(ROWS), torch.Generator()

    def losses(objective):
        return objective(model, batch, generator.manual_seed(1)).detach()

    found = [losses(model.objective) for _ in range(3)]
    parts = model.latent_bound(ROWS, samples=1, path_derivative=False, generator=generator.manual_seed(1))
    for weight, loss in zip((0.0, 0.5, 1.0), found, strict=True):
        torch.testing.assert_close(loss, (weight * parts.divergence - parts.fit).squeeze(0).detach())
    assert int(model.steps_seen) == 3
    assert "steps_seen" in model.state_dict()
    generous = losses(VariationalBound(free_bits=100.0))
    torch.testing.assert_close(generous, (100.0 - parts.fit).squeeze(0).detach())
    model.eval()
    torch.testing.assert_close(losses(VariationalBound(free_bits=100.0)), found[2])
    assert int(model.steps_seen) == 4


def test_it_learns_what_it_can_represent_exactly():
    """Rows of a factor model: x = w z + noise, whose log-likelihood is that of a Gaussian."""
    generator = torch.Generator().manual_seed(0)
    covariance = torch.outer(torch.tensor([0.9, -0.6, 0.3]), torch.tensor([0.9, -0.6, 0.3])) + torch.diag(
        torch.tensor([0.2, 0.5, 0.8])
    )
    law = torch.distributions.MultivariateNormal(torch.zeros(3), covariance)
    rows = torch.randn(4000, 3, generator=generator) @ law.scale_tril.T
    model = seeded(lambda: vae(3, latent=1, hidden=16, blocks=1, samples=256))
    config = FitConfig(max_steps=250, batch_size=256, learning_rate=1e-2, validation_fraction=0.0, patience=None)
    Fitter(config).fit(model, Table.from_any(rows.numpy()), model.objective)
    test = torch.randn(2000, 3, generator=generator) @ law.scale_tril.T
    with torch.no_grad():
        gap = law.log_prob(test) - model.log_prob(test)
    assert -0.02 < gap.mean().item() < 0.06


def test_digits_improve_and_more_samples_are_worth_more():
    """A smoke test on 64 binarised pixels; evidence for nothing but that the parts work together."""
    pixels = (load_digits().data > 7).astype("float32")
    train, test = Table.from_any(pixels[:1500]), torch.from_numpy(pixels[1500:])
    model = seeded(lambda: vae(64, latent=8, hidden=64, blocks=1, decoder="bernoulli", transforms=1, free_bits=0.5))
    generator = torch.Generator().manual_seed(2)

    def score(samples):
        with torch.no_grad():
            return model.bound(test, samples=samples, generator=generator).mean().item()

    before = score(1)
    config = FitConfig(max_steps=150, batch_size=128, learning_rate=5e-3, validation_fraction=0.0, patience=None)
    report = Fitter(config).fit(model, train, model.objective)
    assert before < -43
    assert score(1) > before + 12
    # On every row alike, so that the rows' own spread drops out; the error of the mean difference is below 0.01.
    with torch.no_grad():
        elbo = model.bound(test.repeat(40, 1), generator=generator).mean().item()
    assert score(200) > elbo + 0.05
    assert report.skipped_steps == 0
    with pytest.raises(DataError, match="binarise"):
        Fitter(config).fit(model, Table.from_any(pixels[:100] * 0.5), model.objective)


@pytest.mark.parametrize(
    "options",
    [
        {"latent": 0},
        {"decoder": "poisson"},
        {"transforms": -1},
        {"prior": "mog"},
        {"samples": 0},
        {"particles": 4, "free_bits": 1.0},
    ],
)
def test_options_that_make_no_model_are_refused(options):
    with pytest.raises(OptionError):
        vae(3, **options)


def test_tables_refuse_it():
    assert "vae" not in names()
    with pytest.raises(OptionError, match="unknown"):
        assemble("vae", Table.from_any(ROWS.numpy()))
