"""S16: the deconvolutional density network on its toys at their published number of rows, and against an MDN."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.checks.common import Check
from rosenblatt.conditional import ConditionalDensity, fit_conditional
from rosenblatt.data import Table
from rosenblatt.data.conditional_toys import CONDITIONAL_TOYS
from rosenblatt.layers.orders import OrderAverage
from rosenblatt.train import FitConfig

METHOD = "S16 DDN"
ROWS, TEST_ROWS = 2000, 20_000
PUBLISHED = ("squares", "half_gaussian", "gaussian_stick", "elastic_ring")


def checks() -> Iterator[Check]:
    """Four toys in two columns, one in one column, the mass, the orders, and the mixture density network."""
    models, nats = {}, {}
    for name in PUBLISHED:
        models[name], nats[name] = fitted("ddn", name, ROWS, {"even": True})
        loss = truth(name) - nats[name]
        what = f"{name}, {ROWS} rows: nats below the truth ({truth(name):.4f}) on test rows"
        yield Check(METHOD, what, "< 0.30", loss, loss < 0.30)
    yield mass(models["squares"])
    yield orders(models["squares"])
    _, mixture = fitted("mdn", "squares", ROWS, {"components": 5})
    lead = nats["squares"] - mixture
    yield Check(METHOD, "squares: nats above an MDN of 5 full Gaussians", "> 0.05", lead, lead > 0.05)
    _, found = fitted("ddn", "heteroscedastic", 5000, {"even": True})
    loss = truth("heteroscedastic") - found
    what = f"heteroscedastic Gaussian, 5000 rows: nats below the truth ({truth('heteroscedastic'):.4f})"
    yield Check(METHOD, what, "< 0.05", loss, loss < 0.05)


def rows(name: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs (x, y) of a toy."""
    return CONDITIONAL_TOYS[name].sample(count, torch.Generator().manual_seed(seed))


def truth(name: str) -> float:
    """Mean log-density of the test rows under the toy itself, in nats."""
    x, y = rows(name, TEST_ROWS, 1)
    return CONDITIONAL_TOYS[name].log_prob(y, x).mean().item()


def fitted(
    model: str, name: str, count: int, options: dict[str, Any] | None = None
) -> tuple[ConditionalDensity, float]:
    """A model fitted to rows of a toy (a tenth of them held out), and its mean test log-density in nats."""
    x, y = rows(name, count, 0)
    config = FitConfig(epochs=60 if count <= ROWS else 40, batch_size=256, learning_rate=2e-3, patience=None)
    table = Table(y, [f"y{column}" for column in range(y.shape[1])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on the edges of supports
        density = fit_conditional(model, table, x, options=options, config=config)
    x, y = rows(name, TEST_ROWS, 1)
    with torch.no_grad():
        scores = [density.log_prob(*part) for part in zip(y.split(5000), x.split(5000), strict=True)]
    return density, torch.cat(scores).mean().item()


def mass(density: ConditionalDensity) -> Check:
    """The box of a trained model, cell by cell, in each order, against what its tails leave."""
    average = density.flow.base
    assert isinstance(average, OrderAverage)
    bins, width = average.elementwise.bins, average.elementwise.width
    middles = (torch.arange(bins, dtype=torch.float64) + 0.5) * width - average.elementwise.bound
    y = torch.cartesian_prod(middles, middles)
    given = density.encode(torch.tensor([[0.3]], dtype=torch.float64))
    with torch.no_grad():
        parts = [torch.exp(average.log_probs(part, given)).sum(dim=0) for part in y.split(4096)]
    total = torch.stack(parts).sum(dim=0) * width**2
    outside = 1 - (1 - 2 * average.elementwise.tail) ** 2
    error = (total + outside - 1).abs().max().item()
    return Check(METHOD, "squares: total mass minus 1, largest of the orders", "< 1e-5", error, error < 1e-5)


def orders(density: ConditionalDensity) -> Check:
    """The mean over orders against the orders one by one, on test rows."""
    average = density.flow.base
    assert isinstance(average, OrderAverage)
    x, y = rows("squares", 5000, 1)
    with torch.no_grad():
        each = average.log_probs(density.flow.transform(y).value, density.encode(x))
        lead = average.log_prob(density.flow.transform(y).value, density.encode(x)).mean() - each.mean()
    what = "squares: mean over orders above the orders one by one, nats"
    return Check(METHOD, what, ">= 0", lead.item(), lead.item() >= 0)
