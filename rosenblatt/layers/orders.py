"""One network for every order of the columns: a density in one order, or averaged over several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rosenblatt.bases.simple import noise
from rosenblatt.conditioners.deconvolution import Deconvolution
from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Likelihood
from rosenblatt.elementwise.base import UnitElementwise


class OrderAverage(Density):
    """The equal mixture of one autoregressive network read in several `orders` of the columns.

    `p(x | c) = (1/K) sum_k prod_i p(x_i | x_j before i in order k, c)`: exact, a mixture of K densities. What two
    orders share (a column given the same set of others) is computed once. Samples take an order at random for each row.
    There is no Rosenblatt transform of a mixture of orders, unless there is a single one.

    While training with a latent layer, the log-density is `beta` times the divergence of each code less, and no more
    than an estimate (`likelihood` says so). Raises `OptionError` for no order.

    Reference: Uria, Murray & Larochelle, A Deep and Tractable Density Estimator, ICML 2014, for averaging over orders.
    """

    def __init__(
        self,
        elementwise: UnitElementwise,
        network: Deconvolution,
        orders: Sequence[Sequence[int]],
        *,
        beta: float = 0.0,
    ) -> None:
        super().__init__()
        if not orders:
            raise OptionError("orders: none came, at least one was expected.")
        self.elementwise, self.network = elementwise, network
        self.orders = [list(order) for order in orders]
        self.beta = beta
        self.features, self.context = network.features, network.context

    @property
    def likelihood(self) -> Likelihood:
        """Exact, but for the noise of a latent layer in training."""
        return Likelihood.ESTIMATE if self.training and self.network.latent else Likelihood.EXACT

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats; -inf for a row with an infinity, NaN for a row with NaN."""
        each = self.log_probs(x, context)
        impossible = torch.isneginf(each).all(dim=-1)
        average = torch.logsumexp(torch.where(impossible.unsqueeze(-1), 0.0, each), dim=-1) - math.log(len(self.orders))
        return torch.where(impossible, -torch.inf, average)

    def log_probs(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in each order, (*batch, orders)."""
        self.check(x, context)
        size = x.detach().abs().amax(dim=-1)
        if context is not None:
            known = torch.isfinite(context).all(dim=-1)
            size, batch = torch.where(known, size, torch.nan), torch.broadcast_shapes(size.shape, known.shape)
            x, context = x.expand(*batch, -1), torch.where(torch.isfinite(context), context, 0.0)
        finite = (size < torch.inf).unsqueeze(-1)
        x = torch.where(finite, x, 0.0)
        terms: dict[tuple[int, frozenset[int]], Tensor] = {}
        each = []
        for order in self.orders:
            total = torch.zeros_like(x[..., 0])
            for place, column in enumerate(order):
                key = (column, frozenset(order[:place]))
                if key not in terms:
                    terms[key] = self._term(column, sorted(order[:place]), x, context)
                total = total + terms[key]
            each.append(total)
        return torch.where(finite, torch.stack(each, dim=-1), -size.unsqueeze(-1))

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw an order for each row, then column by column in it; differentiable except in the order."""
        batch = () if context is None else tuple(context.shape[:-1])
        rows = n * math.prod(batch)
        home = self.network.start
        spread = None if context is None else context.expand(n, *batch, self.context).reshape(rows, self.context)
        uniform, _ = noise((rows, self.features + 1), home.device, generator)
        levels = uniform()
        chosen = (levels[:, 0] * len(self.orders)).long()
        places, drawn = [], []
        for number, order in enumerate(self.orders):
            place = (chosen == number).nonzero().squeeze(-1)
            given = None if spread is None else spread[place]
            drawn.append(self._from_uniform(order, torch.logit(levels[place, 1:]), given, home.dtype))
            places.append(place)
        x = torch.cat(drawn)[torch.cat(places).argsort()].reshape(n, *batch, self.features)
        return x, self.log_prob(x, None if context is None else context.expand(n, *context.shape))

    def _term(self, column: int, known: list[int], x: Tensor, context: Tensor | None) -> Tensor:
        theta, divergence = self.network.at(column, known, x, context)
        log_prob = self.elementwise.log_prob(x[..., column], theta)
        return log_prob - self.beta * divergence if self.beta and self.training else log_prob

    def _from_uniform(self, order: list[int], y: Tensor, context: Tensor | None, dtype: torch.dtype) -> Tensor:
        x = torch.zeros(y.shape, dtype=dtype, device=y.device)
        for place, column in enumerate(order):
            theta, _ = self.network.at(column, order[:place], x, context)
            found = self.elementwise.inverse(y[:, column], theta).value.to(dtype)
            x = x.index_copy(-1, torch.tensor([column], device=x.device), found.unsqueeze(-1))
        return x
