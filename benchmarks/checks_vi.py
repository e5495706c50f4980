"""Checks of the method specifications that concern variational inference: exact targets, exact truths."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rosenblatt.inference import VariationalPosterior, fit_variational

FEATURES = 8
MEAN_FIELD_KL = 0.7139  # of the correlated Gaussian: its precision is scaled to have exactly this
DRAWS = 200_000


def correlated_precision(features: int = FEATURES, divergence: float = MEAN_FIELD_KL) -> Tensor:
    """Precision `P_ij = r^|i - j|` whose best independent Gaussian is `divergence` nats away, in float64.

    That optimum is `(1/2) (sum ln P_ii - ln det P)`, with ln det P = (features - 1) ln(1 - r^2) here.
    """
    r = math.sqrt(-math.expm1(-2 * divergence / (features - 1)))
    place = torch.arange(features, dtype=torch.float64)
    return r ** (place - place.unsqueeze(-1)).abs()


def mean_field_optimum(precision: Tensor) -> float:
    """`(1/2) (sum ln P_ii - ln det P)`, the KL of the best Gaussian with independent columns."""
    return 0.5 * float(torch.log(precision.diagonal()).sum() - torch.linalg.slogdet(precision).logabsdet)


def gaussian_target(precision: Tensor) -> Any:
    """Normalised log-density of N(0, P^-1)."""
    log_norm = 0.5 * float(torch.linalg.slogdet(precision).logabsdet) - 0.5 * len(precision) * math.log(2 * math.pi)

    def log_density(theta: Tensor) -> Tensor:
        return log_norm - 0.5 * ((theta @ precision.to(theta)) * theta).sum(dim=-1)

    return log_density


def banana(theta: Tensor) -> Tensor:
    """Log-density of `theta_1 ~ N(0, 1), theta_2 ~ N(theta_1^2, 1/4)`; log Z = 0."""
    first, second = theta.unbind(dim=-1)
    rest = second - first.square()
    return -0.5 * first.square() - 2 * rest.square() - math.log(math.pi)


def fit_gaussian(*, linear_steps: int) -> VariationalPosterior:
    """The mean field (`linear_steps=0`), or so many linear IAF steps, on the correlated Gaussian."""
    return fit_variational(
        gaussian_target(correlated_precision()),
        features=FEATURES,
        options={"transforms": linear_steps, "hidden": 0 if linear_steps else 1},
        steps=300,
        samples=32,
        learning_rate=4e-2,
    )


def fit_banana(transforms: int) -> VariationalPosterior:
    """IAF with so many steps on the banana."""
    return fit_variational(
        banana,
        features=2,
        options={"transforms": transforms, "hidden": 32, "blocks": 1},
        steps=800,
        samples=128,
        learning_rate=1e-2,
    )


def divergence(posterior: VariationalPosterior, generator: torch.Generator) -> float:
    """KL(q, p) in nats for a normalised target, over fresh draws."""
    with torch.no_grad():
        theta, log_q = posterior.flow.sample_and_log_prob(DRAWS, generator=generator)
        return float((log_q.double() - posterior.target(theta).double()).mean())


def run() -> list[dict[str, Any]]:
    """Run the checks of S13."""
    generator = torch.Generator().manual_seed(13)
    optimum = mean_field_optimum(correlated_precision())
    mean_field = divergence(fit_gaussian(linear_steps=0), generator)
    linear = divergence(fit_gaussian(linear_steps=1), generator)
    posterior = fit_banana(2)
    curved = divergence(posterior, generator)
    sample = posterior.importance(20_000, generator=generator)
    log_z, efficiency = abs(sample.log_integral.value), sample.efficiency

    def check(what: str, expected: str, measured: float, holds: bool) -> dict[str, Any]:
        return {"section": "S13", "check": what, "expected": expected, "measured": measured, "holds": holds}

    return [
        check("exact mean-field KL of the target, D=8", "0.7139", optimum, abs(optimum - MEAN_FIELD_KL) < 5e-5),
        check("mean-field KL, D=8 Gaussian", "0.7139 +- 0.01", mean_field, abs(mean_field - optimum) <= 0.01),
        check("KL of one linear IAF step, D=8 Gaussian", "< 0.002", linear, linear < 0.002),
        check("KL of a banana, IAF T=2", "< 0.01", curved, curved < 0.01),
        check("|log Z| of a banana by importance, IAF T=2", "< 0.005", log_z, log_z < 0.005),
        check("effective share of draws, banana, IAF T=2", "> 0.95", efficiency, efficiency > 0.95),
    ]
