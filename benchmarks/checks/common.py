"""A line of the table, and how a model is trained on fresh samples of a density that is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rosenblatt.core.density import Density, Flow
from rosenblatt.data import TOYS, Table
from rosenblatt.layers.scaling import Standardise
from rosenblatt.testing.tables import seeded
from rosenblatt.train import FitConfig, Fitter

BATCH = 512
TEST_ROWS = 100_000
PARABOLA, CHECKERBOARD = TOYS["parabola"], TOYS["checkerboard"]


@dataclass(frozen=True)
class Check:
    """One line: what was measured, what was expected of it, and whether that holds."""

    method: str
    what: str
    expected: str
    measured: float
    holds: bool


def near(value: float, centre: float, margin: float) -> bool:
    """Whether a number lies within a margin."""
    return bool(abs(value - centre) <= margin)  # that of NumPy cannot be written down


def trained(
    make: Callable[[], Flow], rows: Tensor, *, steps: int, learning_rate: float = 2e-3, standardise: bool = True
) -> Density:
    """A model fitted to rows that are each seen once, in the units of the rows, in eval mode."""
    location, scale = rows.mean(dim=0), rows.std(dim=0)
    if not standardise:
        location, scale = torch.zeros_like(location), torch.ones_like(scale)
    model = seeded(make)
    config = FitConfig(
        max_steps=steps, batch_size=BATCH, learning_rate=learning_rate, validation_fraction=0.0, patience=None
    )
    table = Table.from_any(((rows - location) / scale).float().numpy())
    Fitter(config, progress=False).fit(model, table)
    return model.after(Standardise(location.tolist(), scale.tolist())).eval()


def fresh_rows(toy: str, steps: int, seed: int = 0) -> Tensor:
    """As many rows as so many steps look at."""
    return TOYS[toy].sample(steps * BATCH, torch.Generator().manual_seed(seed))


def test_nats(model: Density, rows: Tensor) -> float:
    """Mean negative log-likelihood, computed in float64."""
    with torch.no_grad():
        scores = [model.double().log_prob(part) for part in rows.double().split(10_000)]
    return -torch.cat(scores).mean().item()


def gap(model: Density, toy: str) -> float:
    """Nats by which a model falls short of the density it was trained on; both are averaged over the same rows."""
    rows = TOYS[toy].sample(TEST_ROWS, torch.Generator().manual_seed(1))
    return test_nats(model, rows) + TOYS[toy].log_prob(rows).mean().item()
