"""Whole numbers with exact probabilities: the mass that a conditional CDF puts on the interval of each level.

    P(x) = prod_i [ F_i(u(x_i) | x_<i) - F_i(l(x_i) | x_<i) ]

The first level begins and the last one ends where F does, so that the masses of all levels add up to one. This is a
probability, no density: its logarithm in bits is what a perfect coder would need.
References: Salimans, Karpathy, Chen & Kingma, PixelCNN++, ICLR 2017 (the discretised mixture of logistics);
Li & Kluger, Neural Inverse Transform Sampler, ICML 2022 (a network for the CDF).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rosenblatt.core.allocator import keep_freed_memory
from rosenblatt.core.density import SCORE_NUMBERS, Density, fresh_generator
from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.precision import full_precision
from rosenblatt.core.types import Likelihood
from rosenblatt.elementwise.base import UnitElementwise
from rosenblatt.layers.conditional import Conditional

SPAN = 3.0  # the levels fill [-SPAN, SPAN], about as far as the CDF that training starts from


class Discretised(Density):
    """Rows of whole numbers 0 .. levels - 1 with exact probabilities, from a layer whose elementwise maps are CDFs.

    Level k stands at `y_k = 3 (2 k / (levels - 1) - 1)`, both for the CDF and for the conditioner, and owns the points
    nearer to it than to another level. `log_prob` is the exact log-probability in nats, without cancellation however
    far out, and -inf for a row with anything else than such numbers (NaN for one with NaN); integer tensors are taken
    as they are. `sample` draws level by level, by bisection over the levels: no root is searched for.
    `eval.bits.bits_per_dim` reports bits per dimension with a standard error.
    Raises `OptionError` unless the layer is made of CDFs, there are two levels, and a bounded support holds them all.

    >>> from rosenblatt.conditioners.independent import Independent
    >>> from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
    >>> model = Discretised(Conditional(LogisticMixture(2), Independent(1, 6)), levels=3)
    >>> round(model.log_prob(torch.tensor([[0], [1], [2]])).exp().sum().item(), 6)
    1.0
    """

    def __init__(self, layer: Conditional, levels: int = 256) -> None:
        super().__init__()
        elementwise = layer.elementwise
        if not isinstance(elementwise, UnitElementwise):
            raise OptionError(
                f"layer: its elementwise map {type(elementwise).__name__} is no CDF; choose NITS or a mixture."
            )
        if levels < 2:
            raise OptionError(f"levels: {levels} came, an integer >= 2 was expected.")
        self.layer, self.elementwise, self.levels = layer, elementwise, levels
        self.features, self.context = layer.conditioner.features, layer.conditioner.context
        self.half_width = SPAN / (levels - 1)
        domain, outermost = elementwise.domain, SPAN - self.half_width
        if not (domain.lower < -outermost and outermost < domain.upper):
            raise OptionError(
                f"interval: the levels need [{-outermost:g}, {outermost:g}], the CDF lives on [{domain.lower:g}, "
                f"{domain.upper:g}]; choose a wider interval."
            )
        keep_freed_memory()

    @property
    def likelihood(self) -> Likelihood:
        """Exact: no dequantisation, no bound."""
        return Likelihood.EXACT

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Exact log-probability of each row, in nats."""
        counts, whole, answer, context = self._checked(x, context)
        batch = counts.shape[:-1]
        if torch.is_grad_enabled() or not runs_eagerly() or math.prod(batch) * self.features <= SCORE_NUMBERS:
            log_prob = self._log_prob_of_levels(counts, context)
        else:
            rows = max(1, SCORE_NUMBERS // self.features)
            pieces = counts.reshape(-1, self.features).split(rows)
            given = [None] * len(pieces) if context is None else context.reshape(-1, self.context).split(rows)
            parts = [self._log_prob_of_levels(*piece) for piece in zip(pieces, given, strict=True)]
            log_prob = torch.cat(parts).reshape(batch)
        return torch.where(whole, log_prob, answer.to(log_prob))

    def log_prob_by_number(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-probability of each number given those before it, (*batch, features), in nats; a row's sum is `log_prob`.

        All numbers of a row with anything else than levels answer as `log_prob` does for the row.
        """
        counts, whole, answer, context = self._checked(x, context)
        log_prob = self.layer.conditioner.restore(torch.cat(list(self._masses(counts, context)), dim=-1))
        return torch.where(whole.unsqueeze(-1), log_prob, answer.to(log_prob).unsqueeze(-1))

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` rows (per context row) of whole numbers, as floats, and their exact log-probabilities."""
        batch = () if context is None else tuple(context.shape[:-1])
        like = next(self.parameters()) if context is None else context
        nothing = like.new_zeros(n, *batch, self.features)
        given = None if context is None else context.expand(n, *context.shape)
        return self.complete(nothing, 0, given, generator=generator)

    def complete(
        self, x: Tensor, known: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keep the first `known` numbers of each row, in the order of the levels, and draw the others given them.

        For an image that is the order of reading: its first rows of pixels. Returns whole rows (*batch, features), and
        the log-probability of what was drawn given what was known, (*batch). What `x` holds elsewhere is not looked at.
        Raises `DataError` for known numbers that are no levels, `OptionError` for `known` outside 0 .. features.
        """
        if not 0 <= known <= self.features:
            raise OptionError(f"known: {known} came, a number from 0 to {self.features} was expected.")
        conditioner = self.layer.conditioner
        kept = torch.zeros(self.features, dtype=torch.bool, device=x.device)
        kept[conditioner.order[:known]] = True
        counts, whole, _, context = self._checked(torch.where(kept, x, 0), context)
        if not bool(whole.all()):
            raise DataError(
                f"x: known numbers that are not whole and in 0 .. {self.levels - 1} came; check their bits."
            )
        batch = counts.shape[:-1]
        flat = counts.reshape(-1, self.features)
        given = None if context is None else context.reshape(-1, self.context)
        with torch.no_grad():
            columns, log_prob = self._drawn(flat, known, given, generator)
        drawn = columns.index_select(0, conditioner.position).t()
        return drawn.reshape(*batch, self.features), log_prob.reshape(batch)

    def log_masses(self, theta: Tensor) -> Tensor:
        """Log-probabilities (*batch, levels) of all levels for thetas (*batch, params): what a coder needs."""
        counts = torch.arange(self.levels, device=theta.device, dtype=theta.dtype)
        lower, upper = self._ends(counts.reshape(-1, *[1] * (theta.ndim - 1)))
        masses = self.elementwise.interval_log_prob(lower, upper, theta)
        return masses.movedim(0, -1)

    def _drawn(
        self, counts: Tensor, known: int, context: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Levels (features, rows) in level order, those from `known` on drawn, and the log-probability of these."""
        rows = len(counts)
        device = counts.device if generator is None else generator.device
        generator = fresh_generator(device) if generator is None else generator
        uniform = torch.rand(rows, self.features, dtype=torch.float64, generator=generator, device=device)
        noise = torch.logit(uniform).to(counts).t()
        conditioner = self.layer.conditioner
        columns = counts.t().index_select(0, conditioner.order)
        points = self.place(columns)
        log_prob = counts.new_zeros(rows)
        walk, start = conditioner.column_walk(context, rows), 0
        for number, size in enumerate(conditioner.sizes):
            cut = slice(start, start + size)
            theta = walk.theta(number, points)
            if start + size > known:
                drawn = self._level_of(noise[cut].t(), theta)
                fixed = torch.arange(start, start + size, device=drawn.device) < known
                drawn = torch.where(fixed, columns[cut].t(), drawn)
                mass = self.elementwise.interval_log_prob(*self._ends(drawn), theta)
                log_prob += torch.where(fixed, 0.0, mass).sum(dim=-1)
                columns[cut] = drawn.t()
                points[cut] = self.place(drawn).t()
            start += size
        return columns, log_prob

    def _level_of(self, noise: Tensor, theta: Tensor) -> Tensor:
        """The level whose interval holds the quantile at logits `noise`, by bisection: F is increasing."""
        first = torch.zeros_like(noise)
        last = torch.full_like(noise, self.levels - 1)
        for _ in range(math.ceil(math.log2(self.levels))):
            middle = torch.floor((first + last) / 2)
            beyond = noise > self.elementwise(self.upper_end(middle), theta).value
            open_ = first < last
            first = torch.where(open_ & beyond, middle + 1, first)
            last = torch.where(open_ & ~beyond, middle, last)
        return first

    def _log_prob_of_levels(self, counts: Tensor, context: Tensor | None) -> Tensor:
        parts = [mass.sum(dim=-1) for mass in self._masses(counts, context)]
        total: Tensor = sum(parts[1:], start=parts[0])
        return total

    def _masses(self, counts: Tensor, context: Tensor | None) -> Iterator[Tensor]:
        """Log-probabilities (*batch, some) of one number after the other, in level order."""
        conditioner = self.layer.conditioner
        counts = conditioner.arrange(counts)
        start = 0
        for theta in conditioner.parts(self.place(counts), context):
            stop = start + theta.shape[-2]
            with full_precision(counts):
                ends = self._ends(counts[..., start:stop])
                mass = self.elementwise.interval_log_prob(*ends, theta.to(counts.dtype))
            yield mass
            start = stop

    def place(self, counts: Tensor) -> Tensor:
        """Where levels stand."""
        return counts * (2 * self.half_width) - SPAN

    def upper_end(self, counts: Tensor) -> Tensor:
        """Upper ends of the intervals of levels; the next level begins at the very same number."""
        return (2 * counts + 1) * self.half_width - SPAN

    def _ends(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Both ends of the intervals of levels; the first and the last one reach to infinity."""
        lower = torch.where(counts <= 0, -torch.inf, self.upper_end(counts - 1))
        return lower, torch.where(counts >= self.levels - 1, torch.inf, self.upper_end(counts))

    def _checked(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Levels as floats, which rows are such, the answer for the others, and the context of as many rows."""
        if not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool):
            x = x.to(next(self.parameters()).dtype)
        self.check(x, context)
        whole = ((x >= 0) & (x < self.levels) & (x == x.floor())).all(dim=-1)
        unknown = torch.isnan(x).any(dim=-1)
        if context is not None:
            batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
            known = torch.isfinite(context).all(dim=-1)
            whole, unknown = whole & known, (unknown | ~known).expand(batch)
            x = x.expand(*batch, self.features)
            context = torch.where(known.unsqueeze(-1), context, 0.0).expand(*batch, self.context)
        counts = torch.where(whole.unsqueeze(-1), x, 0.0)
        return counts, whole, torch.where(unknown, torch.nan, -torch.inf), context
