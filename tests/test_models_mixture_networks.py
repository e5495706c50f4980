"""Mixture density and kernel mixture networks against scipy's Gaussians and against what they must recover."""

import numpy as np
import pytest
import torch
from scipy import stats

from rosenblatt.conditional import fit_conditional
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import build
from rosenblatt.data import Table
from rosenblatt.testing.tables import disturbed, rows_like_data
from rosenblatt.train import FitConfig


def gaussians_of(model, context):
    """Weights, means and covariances that a mixture emits for one context, by plain linear algebra."""
    parts = model.transform.conditioner.source(context)
    slopes = torch.exp(7 * torch.tanh(parts.raw_slopes / 7))
    weights = torch.softmax(parts.logits, dim=-1).detach().numpy()
    means, covariances = [], []
    for k in range(len(weights)):
        lower = torch.eye(model.features).double()
        if parts.regression is not None:
            lower = lower + parts.regression[..., k]
        root = torch.diag(slopes[:, k]) @ lower
        means.append(parts.locations[:, k].detach().numpy())
        covariances.append(torch.linalg.inv(root.mT @ root).detach().numpy())
    return weights, means, covariances


@pytest.mark.parametrize(
    ("name", "options"),
    [("mdn", {"components": 3}), ("mdn", {"components": 3, "covariance": "diagonal"}), ("kmn", {"centres": 4})],
)
def test_the_density_is_the_mixture_that_scipy_computes(name, options):
    model = disturbed(build(name, 3, 2, options={**options, "hidden": 8}, seed=0), 0.3).double()
    x, context = rows_like_data(20, 3), rows_like_data(20, 2, seed=3)
    found = model.log_prob(x, context).detach().numpy()
    by_columns = (model.transform(x, context).log_det + model.base.log_prob(model.transform(x, context).value)).detach()
    for row, (value, given) in enumerate(zip(x, context, strict=True)):
        weights, means, covariances = gaussians_of(model, given)
        density = sum(
            w * stats.multivariate_normal(m, s).pdf(value.numpy())
            for w, m, s in zip(weights, means, covariances, strict=True)
        )
        assert found[row] == pytest.approx(np.log(density), abs=1e-9)
    np.testing.assert_allclose(by_columns.numpy(), found, atol=1e-9)


def test_the_rosenblatt_transform_is_the_conditional_cdf():
    model = disturbed(build("mdn", 2, options={"components": 2}, seed=1), 0.4).double()
    weights, means, covariances = gaussians_of(model, None)
    x = torch.tensor([0.3, -0.8], dtype=torch.float64)
    joint, below = 0.0, 0.0
    for w, m, s in zip(weights, means, covariances, strict=True):
        share = w * stats.norm(m[0], np.sqrt(s[0, 0])).pdf(x[0].item())
        mean = m[1] + s[1, 0] / s[0, 0] * (x[0].item() - m[0])
        spread = np.sqrt(s[1, 1] - s[1, 0] ** 2 / s[0, 0])
        joint, below = joint + share, below + share * stats.norm(mean, spread).cdf(x[1].item())
    assert model.to_uniform(x)[1].item() == pytest.approx(below / joint, abs=1e-12)


def test_off_diagonal_covariances_are_learned_from_a_context():
    # y | c ~ N(0, [[1, c], [c, 1]]): a diagonal mixture would lose -log(1 - c^2) / 2 nats, most at |c| near 1.
    generator = torch.Generator().manual_seed(0)
    context = 0.95 * torch.sign(torch.randn(3000, 1, generator=generator)).double()
    z = torch.randn(3000, 2, generator=generator).double()
    y = torch.cat([z[:, :1], context * z[:, :1] + (1 - context.square()).sqrt() * z[:, 1:]], dim=1)
    config = FitConfig(epochs=30, batch_size=256, learning_rate=3e-3, validation_fraction=0.1)
    options = {"components": 1, "hidden": 16, "blocks": 1}
    model = fit_conditional("mdn", Table(y, ["a", "b"]), context, options=options, config=config)
    truth = -0.5 * z.square().sum(dim=1) - np.log(2 * np.pi) - 0.5 * torch.log(1 - 0.95**2 * torch.ones(1).double())
    # The loss of the best fit is about p / 2n = 0.002; the diagonal one would lose 1.16.
    assert (truth - model.log_prob(y, context)).mean().item() < 0.03


def test_kernels_stand_at_training_rows_and_repeat():
    rows = rows_like_data(500, 2).float()
    models = [build("kmn", 2, options={"centres": 20}, seed=seed) for seed in (0, 1)]
    for model in models:
        model.initialise(rows)
    first, second = (model.transform.conditioner.source.centres for model in models)
    assert torch.equal(first, second)
    assert torch.cdist(first.double(), rows.double()).amin(dim=1).max() < 1e-6
    assert len(torch.unique(first, dim=0)) == 20


def test_kernels_avoid_rows_of_no_weight_and_survive_ties():
    rows = torch.arange(10.0).unsqueeze(-1)
    model = build("kmn", 1, options={"centres": 30}, seed=0)
    model.initialise(rows, weight=(rows[:, 0] >= 5).float())
    centres = model.transform.conditioner.source.centres
    assert set(centres.flatten().tolist()) == {5.0, 6.0, 7.0, 8.0, 9.0}
    model.initialise(torch.ones(3, 1))
    assert torch.isfinite(model.log_prob(rows)).all()


def test_kernel_weights_follow_the_context():
    # Two far points, chosen by the sign of the context: the entropy of the noise is all that is left.
    generator = torch.Generator().manual_seed(2)
    context = torch.randn(2000, 1, generator=generator).double()
    noise = torch.randn(2000, 1, generator=generator).double()
    y = 5 * torch.sign(context) + 0.5 * noise
    config = FitConfig(epochs=30, batch_size=256, learning_rate=3e-3, validation_fraction=0.1)
    options = {"centres": 20, "hidden": 32, "blocks": 1}
    model = fit_conditional("kmn", Table(y, ["y"]), context, options=options, config=config)
    truth = -0.5 * noise.square()[:, 0] - np.log(0.5 * np.sqrt(2 * np.pi))
    # A model that ignored the context would lose log 2.
    assert (truth - model.log_prob(y, context)).mean().item() < 0.1


@pytest.mark.parametrize(
    ("name", "options"),
    [("mdn", {"components": 0}), ("mdn", {"covariance": "round"}), ("kmn", {"centres": 0}), ("kmn", {"scales": 0})],
)
def test_sizes_that_make_no_model_are_refused(name, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        build(name, 2, options=options)
