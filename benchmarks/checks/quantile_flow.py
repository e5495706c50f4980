"""S9: quantile flows, trained by CRPS, against laws that are known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from benchmarks.checks.common import Check, fresh_rows, gap, near, trained
from rosenblatt.conditional import ConditionalDensity, fit_conditional
from rosenblatt.core.types import Batch
from rosenblatt.data import TOYS, Table
from rosenblatt.eval import energy_distance
from rosenblatt.models.quantile_flow import quantile_flow
from rosenblatt.objectives.quantile import QuantileScore
from rosenblatt.objectives.rules import crps_from_quantiles
from rosenblatt.train import FitConfig

METHOD = "S9 AQF"
BATCH = 512
STEPS, TEST_ROWS, PIT_ROWS, LEVELS, SAMPLES = 3000, 5000, 20_000, 200, 8000
SPREAD = 0.3  # of each mode


def checks() -> Iterator[Check]:
    """(a) to (c) of the specification."""
    yield from identity()
    yield from bimodal()
    yield from parabola()


def identity() -> Iterator[Check]:
    """Both scores of the standard normal at one outcome against its closed CRPS."""
    outcome = 0.7
    rest = 2 * stats.norm.pdf(outcome) - 1 / np.sqrt(np.pi)
    closed = outcome * (2 * stats.norm.cdf(outcome) - 1) + rest
    model = quantile_flow(1, family="affine", hidden=8).eval()
    layer = model.transform.steps[0]  # type: ignore[union-attr,index]
    with torch.no_grad():
        layer.conditioner.last.weight.zero_()
        layer.conditioner.last.bias.zero_()
        for direction in ("quantile", "cdf"):
            batch = Batch(torch.full((2000, 1), outcome))
            found = QuantileScore(64, direction)(model, batch, torch.Generator().manual_seed(0)).mean().item()
            what = f"(a) loss of N(0, 1) at {outcome}, direction {direction}"
            yield Check(METHOD, what, f"{closed:.4f} +- 0.5 %", found, near(found, closed, 0.005 * closed))


def bimodal_rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`y | x = +-2 x + 0.3 n`, x uniform on (0, 1)."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, generator=draw, dtype=torch.float64)
    sign = 2.0 * torch.randint(0, 2, (count, 1), generator=draw) - 1
    return x, 2 * x * sign + SPREAD * torch.randn(count, 1, generator=draw, dtype=torch.float64)


def bimodal() -> Iterator[Check]:
    """CRPS between that of the true law and of the best Gaussian, calibrated, no crossing."""
    x, y = bimodal_rows(STEPS * BATCH, 0)
    config = FitConfig(
        max_steps=STEPS, batch_size=BATCH, learning_rate=2e-3, validation_fraction=0.0, patience=None, seed=0
    )
    options = {"hidden": 64}
    model = fit_conditional("quantile_flow", Table(y, ["y"]), x, options=options, config=config)
    x, y = bimodal_rows(TEST_ROWS, 1)
    learned = crps(quantiles(model, x), y)
    truth = crps(true_quantiles(x), y)
    gaussian = best_gaussian(x, y)
    yield Check(
        METHOD,
        f"(b) bimodal regression: CRPS over the true model's ({truth:.4f})",
        "<= 1.025",
        learned / truth,
        learned <= 1.025 * truth,
    )
    yield Check(
        METHOD,
        f"(b) bimodal regression: CRPS over the best Gaussian's ({gaussian:.4f})",
        "<= 0.96",
        learned / gaussian,
        learned <= 0.96 * gaussian,
    )
    with torch.no_grad():
        u = model.to_uniform(*reversed(bimodal_rows(PIT_ROWS, 2)))
    distance = float(stats.kstest(u.flatten().numpy(), "uniform").statistic)
    yield Check(METHOD, "(b) bimodal regression: KS distance of the PIT", "< 0.03", distance, distance < 0.03)
    falls = int((quantiles(model, x[:500]).diff(dim=0) <= 0).sum())
    yield Check(METHOD, f"(b) crossings among {LEVELS} quantiles of 500 rows", "0", falls, falls == 0)


def midpoints() -> Tensor:
    """Levels of equal steps."""
    return (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS


def quantiles(model: ConditionalDensity, x: Tensor) -> Tensor:
    """Exact quantiles (levels, rows, 1) of a model."""
    u = midpoints().reshape(-1, 1, 1).expand(LEVELS, len(x), 1)
    given = model.encode(x).expand(LEVELS, -1, -1)
    with torch.no_grad():
        parts = [model.flow.from_uniform(*part) for part in zip(u.split(40), given.split(40), strict=True)]
    return torch.cat(parts)


def true_quantiles(x: Tensor) -> Tensor:
    """Those of the two modes, by bisection."""
    low, high = torch.full((LEVELS, len(x), 1), -5.0).double(), torch.full((LEVELS, len(x), 1), 5.0).double()
    for _ in range(40):
        middle = (low + high) / 2
        cdf = sum(torch.special.ndtr((middle + side * 2 * x) / SPREAD) for side in (-1, 1)) / 2
        below = cdf < midpoints().reshape(-1, 1, 1)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


def best_gaussian(x: Tensor, y: Tensor) -> float:
    """Least CRPS of a Gaussian with the true mean and spread times one factor."""
    spread = (4 * x.square() + SPREAD**2).sqrt()
    z = torch.special.ndtri(midpoints()).reshape(-1, 1, 1)
    return min(crps(factor * spread * z, y) for factor in (0.9, 1.0, 1.1))


def crps(found: Tensor, y: Tensor) -> float:
    """Mean CRPS of quantiles at the midpoints."""
    return crps_from_quantiles(midpoints(), found, y).mean().item()


def parabola() -> Iterator[Check]:
    """Samples run freely, column after column."""
    rows = fresh_rows("parabola", 2500)
    model = trained(lambda: quantile_flow(2, hidden=64), rows, steps=2500)
    location, scale = rows.mean(dim=0), rows.std(dim=0)
    test = (TOYS["parabola"].sample(SAMPLES, torch.Generator().manual_seed(2)) - location) / scale
    with torch.no_grad():
        drawn = (model.sample(SAMPLES, generator=torch.Generator().manual_seed(3)).double() - location) / scale
    found = energy_distance(drawn, test)
    normal = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    matched = normal @ torch.linalg.cholesky(test.T.cov()).T + test.mean(dim=0)
    gaussian = energy_distance(matched, test).value
    what = f"(c) parabola, own samples: energy distance (s.e. {found.standard_error:.4f}; Gaussian {gaussian:.4f})"
    yield Check(METHOD, what, "< 0.003", found.value, found.value < 0.003)
    nats = gap(model, "parabola")
    yield Check(METHOD, "(c) parabola, its exact density: gap, nats", "< 0.553 (one Gaussian)", nats, 0 <= nats < 0.553)
