"""Posterior draws from a likelihood and a prior: a crowd of slice samplers that starts from weighted prior draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from rosenblatt.core.density import Density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.inference.simulation import prior_support, vector_prior
from rosenblatt.preparation import DataWarning
from rosenblatt.train.runtime import isolated

MOST_CHAINS = 1000
JITTER = 1e-3  # of the prior's spread: chains that start at one point must not stay there
STEPS_OUT = 8  # of an interval before it is cut
MOST_CUTS = 100  # by then the interval has shrunk to the point it started from
THIN = 10  # moves between draws of one chain
MOST_MEMORY = 0.2


@dataclass(frozen=True)
class PosteriorDraws:
    """Draws of a posterior and how far to trust them.

    values: (n, parameters).
    memory: per parameter, correlation over all chains of where each was half-way through the warmup and after it, near
        0 once they have forgotten where they began. Modes between which chains do not pass keep it high; the shares of
        these are then as good as the weighted prior draws the chains began with.
    effective_prior_draws: how many of those counted, `(sum w)^2 / sum w^2`.
    """

    values: Tensor
    memory: Tensor
    effective_prior_draws: float


def sample_posterior(
    likelihood: Density,
    prior: Distribution,
    x: Tensor,
    n: int,
    *,
    prior_draws: int = 20_000,
    warmup: int = 60,
    seed: int = 0,
) -> PosteriorDraws:
    """Draw `n` parameters from `p(theta | x)`, in proportion to `likelihood.log_prob(x, theta)` and `prior`.

    `x` is one observation (numbers,) or several of the same parameters (rows, numbers), whose likelihoods multiply.
    Up to 1,000 chains start from prior draws resampled by their likelihood. A move is a Metropolis jump by the
    difference of two chains of the other half of the crowd (ter Braak 2006), then a slice update along a line (Neal
    2003): by turns in a random direction of the prior's size, and along such a difference, which fits any scale and
    correlation (Karamanis & Beutler 2021). Nothing needs tuning, and bounds of the prior are kept. Raises `DataError`
    where no prior draw has a finite likelihood, `OptionError` for sizes below 1; a `DataWarning` comes with a memory
    above 0.2 that chance does not explain.

    >>> class Noise(Density):
    ...     features = context = 1
    ...     def log_prob(self, x, context=None):
    ...         return torch.distributions.Normal(context, 1.0).log_prob(x).sum(-1)
    ...     def sample_and_log_prob(self, n, context=None, *, generator=None): ...
    >>> prior = torch.distributions.Uniform(torch.zeros(1), torch.ones(1))
    >>> draws = sample_posterior(Noise(), prior, torch.tensor([9.0]), 50, warmup=10)
    >>> draws.values.shape, 0.8 < float(draws.values.mean()) < 1
    (torch.Size([50, 1]), True)
    """
    if n < 1 or prior_draws < 1 or warmup < 2:
        raise OptionError(f"n={n}, prior_draws={prior_draws}, warmup={warmup}: at least 1, 1 and 2 were expected.")
    prior = vector_prior(prior)
    target = _Target(likelihood, prior, x)
    chains = 2 * math.ceil(min(n, MOST_CHAINS) / 2)
    chains = max(chains, 4 * target.features, 20)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        with isolated(torch.device("cpu"), seed, None):
            candidates = prior.sample((prior_draws,)).double()
        weight = target.likelihood_of(candidates)
        if not bool((weight > -torch.inf).any()):
            raise DataError(f"x: none of {prior_draws} prior draws makes it possible; is it from this simulator?")
        share = torch.softmax(weight, dim=0)
        chosen = torch.multinomial(share, chains, replacement=True, generator=draw)
        spread = candidates.std(dim=0) if prior_draws > 1 else torch.ones(target.features, dtype=torch.float64)
        crowd = _Crowd(target, candidates[chosen], spread, draw)
        midway = crowd.move(warmup // 2)
        values = [crowd.move(warmup - warmup // 2)]
        memory = _correlation(midway, values[0])
        while len(values) * chains < n:
            values.append(crowd.move(THIN))
    _warn_of(memory, chains)
    drawn = torch.cat(values)
    order = torch.randperm(len(drawn), generator=draw)[:n]
    return PosteriorDraws(drawn[order], memory, float(1 / share.square().sum()))


def _warn_of(memory: Tensor, chains: int) -> None:
    if bool((memory > MOST_MEMORY + 5 / math.sqrt(chains)).any()):
        warnings.warn(
            f"memory: {float(memory.max()):.2f} came, above {MOST_MEMORY}: chains remember where they began; raise "
            "warmup, or prior_draws where there are modes between which they do not pass.",
            DataWarning,
            stacklevel=3,
        )


class _Target:
    """Log-likelihood plus log-prior of rows of parameters, -inf outside the prior's support."""

    def __init__(self, likelihood: Density, prior: Distribution, x: Tensor) -> None:
        self.likelihood, self.prior = likelihood, prior
        self.x = torch.as_tensor(x)
        self.x = self.x if self.x.ndim > 1 else self.x.unsqueeze(0)
        self.features = prior.event_shape[0]
        ends = prior_support(prior)
        self.lower = torch.tensor([end.lower for end in ends], dtype=torch.float64)
        self.upper = torch.tensor([end.upper for end in ends], dtype=torch.float64)

    def likelihood_of(self, theta: Tensor) -> Tensor:
        """Log-likelihood of all of x, (rows,); -inf where it is not a number."""
        total = torch.zeros(len(theta), dtype=torch.float64)
        for row in self.x.double():
            total += self.likelihood.log_prob(row.expand(len(theta), -1), theta).double().cpu()
        return torch.where(torch.isnan(total), -torch.inf, total)

    def __call__(self, theta: Tensor) -> Tensor:
        """Log-density up to a constant."""
        inside = ((theta > self.lower) & (theta < self.upper)).all(dim=-1)
        value = torch.full((len(theta),), -torch.inf, dtype=torch.float64)
        if bool(inside.any()):
            possible = theta[inside]
            kind = torch.get_default_dtype()
            value[inside] = self.likelihood_of(possible) + self.prior.log_prob(possible.to(kind)).double()
        return value


class _Crowd:
    """Chains in two halves, each moved by what the other shows."""

    def __init__(
        self, target: Callable[[Tensor], Tensor], start: Tensor, spread: Tensor, draw: torch.Generator
    ) -> None:
        self.target, self.spread, self.draw = target, spread, draw
        self.theta = start + JITTER * spread * self._normal(start.shape)
        self.log_p = target(self.theta)
        lost = self.log_p == -torch.inf
        self.theta[lost], self.log_p[lost] = start[lost], target(start[lost]) if bool(lost.any()) else 0.0
        self.moves = 0

    def move(self, times: int) -> Tensor:
        """Move every chain so many times; returns where they are then."""
        for _ in range(times):
            self._move()
        return self.theta.clone()

    def _move(self) -> None:
        half = len(self.theta) // 2
        for own, other in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
            theta, log_p = self._jump(self.theta[own], self.log_p[own], self._differences(self.theta[other]))
            if self.moves % 2:
                direction = 0.5 * self.spread * self._normal(theta.shape)
            else:
                direction = 1.7 * self._differences(self.theta[other])
            self.theta[own], self.log_p[own] = self._along(theta, log_p, direction)
        self.moves += 1

    def _differences(self, others: Tensor) -> Tensor:
        """Of two different chains each, as many as there are chains."""
        first = torch.randint(len(others), (len(others),), generator=self.draw)
        step = torch.randint(1, len(others), (len(others),), generator=self.draw)
        return others[first] - others[(first + step) % len(others)]

    def _jump(self, theta: Tensor, log_p: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """A Metropolis step as long as two chains are apart, which passes between modes of like shape."""
        value = self.target(theta + step)
        accepted = value - log_p > self._uniform(len(theta)).log()
        return torch.where(accepted.unsqueeze(1), theta + step, theta), torch.where(accepted, value, log_p)

    def _along(self, theta: Tensor, log_p: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """A slice update of each row along its direction."""
        rows = len(theta)
        level = log_p + self._uniform(rows).log()
        left = -self._uniform(rows)
        right = left + 1
        steps_left = (self._uniform(rows) * STEPS_OUT).floor()
        self._step_out(theta, direction, level, left, -steps_left)
        self._step_out(theta, direction, level, right, STEPS_OUT - 1 - steps_left)
        moved, moved_log_p = theta.clone(), log_p.clone()
        waiting = torch.arange(rows)
        for _ in range(MOST_CUTS):
            place = left[waiting] + self._uniform(len(waiting)) * (right - left)[waiting]
            candidate = theta[waiting] + place.unsqueeze(1) * direction[waiting]
            value = self.target(candidate)
            accepted = value > level[waiting]
            moved[waiting[accepted]], moved_log_p[waiting[accepted]] = candidate[accepted], value[accepted]
            left[waiting] = torch.where(place < 0, place, left[waiting])
            right[waiting] = torch.where(place < 0, right[waiting], place)
            waiting = waiting[~accepted]
            if not len(waiting):
                break
        return moved, moved_log_p

    def _step_out(self, theta: Tensor, direction: Tensor, level: Tensor, end: Tensor, steps: Tensor) -> None:
        """Move `end` outwards in whole steps while it is above the level and steps are left; in place."""
        going = (steps != 0).nonzero().squeeze(1)
        taken = 0
        while len(going):
            above = self.target(theta[going] + end[going].unsqueeze(1) * direction[going]) > level[going]
            going = going[above]
            end[going] += steps[going].sign()
            taken += 1
            going = going[steps[going].abs() > taken]

    def _normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.draw, dtype=torch.float64)

    def _uniform(self, rows: int) -> Tensor:
        return torch.rand(rows, generator=self.draw, dtype=torch.float64)


def _correlation(before: Tensor, after: Tensor) -> Tensor:
    """Correlation of two samples (rows, parameters), per parameter."""
    before, after = before - before.mean(dim=0), after - after.mean(dim=0)
    correlation: Tensor = (before * after).sum(dim=0) / (before.norm(dim=0) * after.norm(dim=0))
    return correlation
