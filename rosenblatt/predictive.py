"""Predictions from a conditional density, row by row: quantiles, means and CDFs, exact where the model allows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rosenblatt.conditional import ConditionalDensity, GivenDensity
from rosenblatt.core.density import FactorisedDensity
from rosenblatt.ensemble import Ensemble
from rosenblatt.train.runtime import seeded_generator

DRAWS = 1024  # per row, where a prediction is made from draws
PAIRS_AT_ONCE = 32_768  # rows times levels or draws computed together
STREAM = 200  # of random numbers, that of no other part
# Trapezoids in the logit of the level: they converge exponentially, and what lies beyond +-18 has probability 3e-8.
LOGITS = torch.arange(-18, 18.25, 0.5, dtype=torch.float64)


class Predictive:
    """What a density predicts at given rows; no row's answer depends on another's.

    With one value and a base that has a CDF, quantiles are exact, `Q(u | g) = T^-1(F_base^-1(u), g)`, and the mean is
    their integral, `E[v | g] = integral_0^1 Q(u | g) du`, by 73 trapezoids in logit u. Otherwise both are those of
    `draws` draws of the same noise for every row, a scrambled Sobol net (Owen 1995) where the base has a CDF; its seed
    is fixed by `seed`, so that a prediction never changes. Quantiles are then marginal, value by value.

    Of an `Ensemble` the mean is that of the members' means, and of the draws each member makes as many, from points of
    the net that are its own. With several values it has no CDF, so its predictions come from draws.

    Shapes: given (rows, context), values (rows, features). Raises `InverseError` where an inverse does not converge.
    """

    def __init__(self, density: GivenDensity, *, seed: int = 0, draws: int = DRAWS) -> None:
        self.density = density
        self.seed = seed
        self.draws = draws

    @property
    def exact(self) -> bool:
        """Whether quantiles are exact: one value, and a base with a CDF."""
        return self.density.features == 1 and self.density.has_cdf

    def quantiles(self, given: Tensor, levels: Tensor) -> Tensor:
        """Quantiles at `levels` in (0, 1), shape (rows, features, levels)."""
        if self.exact:
            return self._exact_quantiles(given, levels.double()).unsqueeze(1)
        return self._of_draws(given, lambda drawn: torch.quantile(drawn, levels.double(), dim=0).movedim(0, -1))

    def mean(self, given: Tensor) -> Tensor:
        """Means, shape (rows, features)."""
        if not self.exact:
            return self._of_draws(given, lambda drawn: drawn.mean(dim=0))
        if isinstance(self.density, Ensemble):
            each = [Predictive(member, seed=self.seed).mean(given) for member in self.density.members]
            return torch.stack(each).mean(dim=0)
        level = torch.sigmoid(LOGITS)
        weight = level * torch.sigmoid(-LOGITS)
        return (self._exact_quantiles(given, level) @ (weight / weight.sum())).unsqueeze(1)

    def cdf(self, values: Tensor, given: Tensor) -> Tensor:
        """Rosenblatt transform (rows, features): with one value its CDF, with several that of each given those before.

        Raises `OptionError` when the base has no coordinate-wise CDF.
        """
        u = self.density.by_rows(self.density.to_uniform, values, given)
        return 1 - u if self.exact and len(given) and self._falls(given) else u

    def sample(self, given: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` values for each row, (n, rows, features)."""
        size = max(1, PAIRS_AT_ONCE // n)
        with torch.no_grad():
            parts = given.to(self.density.device).split(size)
            return torch.cat([self.density.sample(n, part, generator=generator).cpu() for part in parts], dim=1)

    def _exact_quantiles(self, given: Tensor, levels: Tensor) -> Tensor:
        if len(given) == 0:
            return torch.empty(0, len(levels), dtype=torch.float64)
        if self._falls(given):
            levels = 1 - levels
        return self._at_levels(given, levels)

    def _at_levels(self, given: Tensor, levels: Tensor) -> Tensor:
        density, parts = self.density, []
        with torch.no_grad():
            for part in given.to(density.device).split(max(1, PAIRS_AT_ONCE // len(levels))):
                u = levels.to(density.device).repeat(len(part)).unsqueeze(1)
                if isinstance(density, ConditionalDensity):  # whose rows are encoded once for all levels
                    context = density.encode(part).repeat_interleave(len(levels), dim=0)
                    quantiles = density.flow.from_uniform(u, context)
                else:
                    quantiles = density.from_uniform(u, part.repeat_interleave(len(levels), dim=0))
                parts.append(quantiles.reshape(len(part), -1).cpu())
        return torch.cat(parts)

    def _falls(self, given: Tensor) -> bool:
        """Whether the map of one value falls, which for continuous maps is so for all rows or for none."""
        low, high = self._at_levels(given[:1], torch.tensor([0.25, 0.75], dtype=torch.float64))[0]
        return bool(high < low)

    def _of_draws(self, given: Tensor, statistic: Callable[[Tensor], Tensor]) -> Tensor:
        """`statistic` of draws (draws, rows, features) for every row."""
        members = self._members()
        each = -(-self.draws // len(members))
        size = max(1, PAIRS_AT_ONCE // (each * len(members)))
        with torch.no_grad():
            noise = [self._noise(member, number, each, len(members)) for number, member in enumerate(members)]
            parts = []
            for part in given.to(self.density.device).split(size):
                drawn = [
                    self._common_draws(member, points, part, each, number)
                    for number, (member, points) in enumerate(zip(members, noise, strict=True))
                ]
                parts.append(statistic(torch.cat(drawn)).cpu())
            return torch.cat(parts)

    def _members(self) -> list[ConditionalDensity]:
        if isinstance(self.density, Ensemble):
            return self.density.members
        assert isinstance(self.density, ConditionalDensity)
        return [self.density]

    def _common_draws(
        self, member: ConditionalDensity, noise: Tensor | None, given: Tensor, draws: int, number: int
    ) -> Tensor:
        flow, context = member.flow, member.encode(given)
        if noise is None:  # it differs from row to row, from the same stream
            drawn = [
                flow.sample(draws, row, generator=seeded_generator(self.seed + number, STREAM, device=flow.device))
                for row in context.split(1)
            ]
            return torch.cat(drawn, dim=1)
        z = noise.to(flow.device, flow.units.follower.dtype)
        pairs = context.expand(draws, *context.shape).reshape(-1, context.shape[1])
        rows = z.repeat_interleave(len(context), dim=0)
        return flow.transform.inverse(rows, pairs).value.reshape(draws, len(context), flow.features)

    def _noise(self, member: ConditionalDensity, number: int, draws: int, members: int) -> Tensor | None:
        """Points (draws, features) of a member's base, the same for every row; None where the base has a context."""
        flow, seed = member.flow, self.seed + number
        if flow.base.context:
            return None
        if not isinstance(flow.base, FactorisedDensity) or flow.features > torch.quasirandom.SobolEngine.MAXDIM:
            return flow.base.sample(draws, generator=seeded_generator(seed, STREAM, device=flow.device))
        scramble = int(torch.randint(2**31, (), generator=seeded_generator(self.seed, STREAM)))
        net = torch.quasirandom.SobolEngine(flow.features, scramble=True, seed=scramble)
        # A run of the net's points is a net, which every n-th of them is not.
        points = net.draw(members * draws, dtype=torch.float64)[number * draws : (number + 1) * draws]
        # Points are multiples of 2^-30, of which the first may be 0; half a step further is inside the cube.
        return flow.base.quantile((points + 2.0**-31).to(flow.device))
