"""Bits whose probabilities a network of the context emits: a decoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.core.density import Density, fresh_generator
from rosenblatt.nets import MLP


class Bits(Density):
    """Independent bits, `log P(x) = sum_i x_i log s(l_i) + (1 - x_i) log s(-l_i)` with logits l from the context.

    -inf for a row with other values than 0 and 1. Raises `OptionError` for sizes that make no network.

    >>> bits = Bits(2, 1, hidden=4, blocks=1)
    >>> both = torch.exp(bits.log_prob(torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.ones(1)))
    >>> round(both.sum().item(), 6)
    1.0
    """

    def __init__(self, features: int, context: int, *, hidden: int, blocks: int) -> None:
        super().__init__()
        self.features, self.context = features, context
        self.net = MLP(context, features, hidden=hidden, blocks=blocks)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-probability of each row, in nats."""
        self.check(x, context)
        logit = self.net(context)
        log_prob = logsigmoid(torch.where(x == 1, logit, -logit)).sum(dim=-1)
        bits = ((x == 0) | (x == 1)).all(dim=-1)
        unknown = torch.isnan(x).any(dim=-1)
        return torch.where(bits, log_prob, torch.where(unknown, torch.nan, -torch.inf))

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw bits; no gradient passes them."""
        probability = torch.sigmoid(self.net(context))
        generator = fresh_generator(probability.device) if generator is None else generator
        shape = (n, *probability.shape)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
        x = (uniform.to(probability.device) < probability.double()).to(probability.dtype)
        return x, self.log_prob(x, None if context is None else context.expand(n, *context.shape))
