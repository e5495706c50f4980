"""Importance sampling: what a proposal's draws are worth as draws of a target, with a diagnosis in words."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rosenblatt.core.density import Density, fresh_generator
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.bits import Estimate
from rosenblatt.inference.pareto import smooth_tail
from rosenblatt.inference.target import Target, checked

FEWEST_DRAWS = 25  # the tail of the weights is fitted to a fifth of them
ROWS_AT_ONCE = 8192
RELIABLE = 0.7  # largest k-hat at which smoothed weights can be trusted, whatever the number of draws


class ImportanceWarning(UserWarning):
    """The proposal misses part of the target, so that what its weights say cannot be trusted."""


@dataclass(frozen=True)
class ImportanceSample:
    """Draws of a proposal q, weighed by `w = p / q`.

    theta (n, features), log_weight (n,) = log p - log q in float64; smoothed (n,): log-weights that add up to one, the
        largest replaced by what a generalised Pareto tail fitted to them expects (Vehtari et al. 2024).
    log_integral: log of `int p`, from the plain weights, with its standard error (delta method).
    effective_size: `(sum w)^2 / sum w^2` of the plain weights; `efficiency` is its share of n.
    khat: shape of the fitted tail; weights have 1 / khat finite moments. Above `limit`, min(1 - 1 / log10 n, 0.7), the
        draws that would make averages reliable are more than can be afforded.
    """

    theta: Tensor = field(repr=False)
    log_weight: Tensor = field(repr=False)
    smoothed: Tensor = field(repr=False)
    log_integral: Estimate
    effective_size: float
    khat: float

    @property
    def efficiency(self) -> float:
        """Effective size as a share of the draws, in (0, 1]."""
        return self.effective_size / len(self.log_weight)

    @property
    def limit(self) -> float:
        """The k-hat up to which averages over so many draws are reliable."""
        return min(1 - 1 / math.log10(len(self.log_weight)), RELIABLE)

    @property
    def warning(self) -> str | None:
        """What is wrong, or None."""
        if self.khat <= self.limit:
            return None
        return (
            f"importance: k-hat {self.khat:.2f} is above {self.limit:.2f}: the proposal's tails are too light "
            "somewhere, so that rare draws of great weight are still to come, and averages and the log-integral may be "
            "off by far more than their standard errors; fit longer, with annealing, or a more flexible flow."
        )

    def __str__(self) -> str:
        """Report in one paragraph."""
        value, error = self.log_integral
        text = (
            f"log-integral {value:.4f} +- {error:.4f}, effective size {self.effective_size:.0f} of "
            f"{len(self.log_weight)} draws ({self.efficiency:.1%}), k-hat {self.khat:.2f}"
        )
        return text if self.warning is None else f"{text}\n{self.warning}"

    def mean(self, function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Average of `function(theta)` (n, *shape) over the target, by smoothed weights; without one, of theta."""
        values = self.theta if function is None else function(self.theta)
        if values.shape[:1] != self.log_weight.shape:
            raise DataError(f"function: shape {tuple(values.shape)} came, {len(self.log_weight)} rows were expected.")
        mean: Tensor = torch.tensordot(torch.exp(self.smoothed).to(values), values, dims=1)
        return mean

    def resample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` vectors, nearly of the target, from the weighed ones, by systematic resampling.

        Vectors repeat; more of them than `effective_size` add nothing.
        """
        generator = fresh_generator() if generator is None else generator
        share = torch.exp(self.smoothed)
        edges = (share / share.sum()).cumsum(dim=0)[:-1]
        start = torch.rand((), generator=generator, dtype=torch.float64)
        place = (torch.arange(n, dtype=torch.float64) + start) / n
        chosen = torch.searchsorted(edges.contiguous(), place, right=True)
        return self.theta[chosen[torch.randperm(n, generator=generator)]]

    def metropolis(self, *, generator: torch.Generator | None = None) -> tuple[Tensor, float]:
        """Run through the draws as proposals of an independence Metropolis chain: its states (n, features), acceptance.

        A draw is accepted with probability `min(1, w' / w)`, which leaves the target unchanged whatever q is
        (Tierney 1994); the chain starts at the first draw of positive weight.
        """
        generator = fresh_generator() if generator is None else generator
        log_u = torch.log(torch.rand(len(self.log_weight), generator=generator, dtype=torch.float64)).tolist()
        log_weight = self.log_weight.tolist()
        at = next(index for index, value in enumerate(log_weight) if value > -math.inf)
        visited, accepted = [], 0
        for proposed, value in enumerate(log_weight):
            if proposed > at and log_u[proposed] < value - log_weight[at]:
                at, accepted = proposed, accepted + 1
            visited.append(at)
        return self.theta[torch.tensor(visited)], accepted / max(len(visited) - 1, 1)


def importance_sample(
    target: Target, proposal: Density, n: int = 10_000, *, generator: torch.Generator | None = None
) -> ImportanceSample:
    """Weigh `n` draws of `proposal` by `target`, a function theta (rows, features) -> log p (rows,), p unnormalised.

    Warns with `ImportanceWarning` when the tail of the weights is too heavy. Raises `DataError` when the target returns
    NaN, +inf or -inf alone, `OptionError` for fewer than 25 draws.

    >>> from rosenblatt.bases import StandardNormal
    >>> sample = importance_sample(lambda theta: -0.7 * theta.square().sum(-1), StandardNormal(1), 4000,
    ...                            generator=torch.Generator().manual_seed(0))
    >>> round(sample.log_integral.value, 2), round(0.5 * math.log(math.pi / 0.7), 2)
    (0.75, 0.75)
    """
    if n < FEWEST_DRAWS:
        raise OptionError(f"n: {n} draws came, at least {FEWEST_DRAWS} were expected.")
    generator = fresh_generator() if generator is None else generator
    drawn, log_weights = [], []
    with torch.no_grad():
        for start in range(0, n, ROWS_AT_ONCE):
            theta, log_q = proposal.sample_and_log_prob(min(ROWS_AT_ONCE, n - start), generator=generator)
            drawn.append(theta)
            log_weights.append(checked(target, theta).double() - log_q.double())
    log_weight = torch.cat(log_weights).cpu()
    require_weights(log_weight)
    smoothed, khat = smooth_tail(log_weight)
    peak = log_weight.max()
    weight = torch.exp(log_weight - peak)
    mean = float(weight.mean())
    log_integral = Estimate(float(peak) + math.log(mean), float(weight.std()) / (mean * math.sqrt(n)))
    size = float(weight.sum().square() / weight.square().sum())
    sample = ImportanceSample(torch.cat(drawn).cpu(), log_weight, smoothed, log_integral, size, khat)
    if sample.warning is not None:
        warnings.warn(sample.warning, ImportanceWarning, stacklevel=3)
    return sample


def require_weights(log_weight: Tensor) -> None:
    """Raise `DataError` unless log p - log q are numbers below +inf, some of them above -inf."""
    bad = int((torch.isnan(log_weight) | torch.isposinf(log_weight)).sum())
    if bad:
        raise DataError(
            f"target: {bad} of {len(log_weight)} log-densities at draws of the proposal are NaN or +inf; return -inf "
            "where the density is zero, and give supports."
        )
    if not bool((log_weight > -torch.inf).any()):
        raise DataError("target: the log-density is -inf at every draw; the proposal lies where the target is zero.")
