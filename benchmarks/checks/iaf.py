"""S13: variational inference with inverse autoregressive flows, on targets whose optimum is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.checks.common import Check
from rosenblatt.inference import VariationalPosterior, fit_variational

METHOD = "S13 IAF"
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


def gaussian_target(precision: Tensor) -> Callable[[Tensor], Tensor]:
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


def checks() -> Iterator[Check]:
    """A Gaussian with dependent columns, then a bent one."""
    generator = torch.Generator().manual_seed(13)
    optimum = mean_field_optimum(correlated_precision())
    what = "best independent Gaussian for the target of 8 columns, exact KL"
    yield Check(METHOD, what, "0.7139", optimum, abs(optimum - MEAN_FIELD_KL) < 5e-5)
    found = divergence(fit_gaussian(linear_steps=0), generator)
    yield Check(METHOD, "mean field on it, KL", "0.7139 +- 0.01", found, abs(found - optimum) <= 0.01)
    found = divergence(fit_gaussian(linear_steps=1), generator)
    yield Check(METHOD, "one linear IAF step on it, KL", "< 0.002", found, found < 0.002)
    posterior = fit_banana(2)
    found = divergence(posterior, generator)
    yield Check(METHOD, "banana, IAF of 2 steps, KL", "< 0.01", found, found < 0.01)
    sample = posterior.importance(20_000, generator=generator)
    found = abs(sample.log_integral.value)
    yield Check(METHOD, "banana, |log Z| by importance sampling", "< 0.005", found, found < 0.005)
    yield Check(METHOD, "banana, effective share of the draws", "> 0.95", sample.efficiency, sample.efficiency > 0.95)
