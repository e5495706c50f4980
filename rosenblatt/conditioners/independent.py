"""Coordinates that do not see one another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rosenblatt.conditioners.base import Conditioner
from rosenblatt.nets import MLP


class Independent(Conditioner):
    """One free theta for each coordinate; with `context`, a residual network of the context alone.

    All coordinates are one level. Raises `OptionError` for sizes below 1.

    >>> Independent(2, 3)(torch.zeros(5, 2)).shape
    torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        features: int,
        params: int,
        *,
        context: int = 0,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        residual: bool = True,
    ) -> None:
        super().__init__([list(range(features))], params, context)
        if context:
            self.net = MLP(context, features * params, hidden=hidden, blocks=blocks, dropout=dropout, residual=residual)
        else:
            self.free = nn.Parameter(torch.zeros(features, params))

    def start_at(self, theta: Tensor) -> None:
        """Start every coordinate at `theta`, exactly so without context."""
        if self.context:
            self.net.start_at(theta.repeat(self.features))
        else:
            with torch.no_grad():
                self.free.copy_(theta.expand_as(self.free))

    def parts(self, x: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """The free thetas (features, params), or those of each context."""
        yield self.thetas(context)

    def thetas(self, context: Tensor | None) -> Tensor:
        """Parameters (features, params), or (*batch, features, params) with a context: they need no `x`."""
        if not self.context:
            return self.free
        theta: Tensor = self.net(context)
        return theta.reshape(*theta.shape[:-1], self.features, self.params)
