"""Coordinates that do not see one another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rosenblatt.conditioners.base import Conditioner
from rosenblatt.core.errors import OptionError
from rosenblatt.nets import ResidualMLP


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
    ) -> None:
        super().__init__()
        if features < 1 or params < 1 or context < 0:
            raise OptionError(
                f"features={features}, params={params}, context={context}: "
                "features and params must be >= 1, context >= 0."
            )
        self.features, self.params, self.context = features, params, context
        self.register_buffer("coordinates", torch.arange(features), persistent=False)
        if context:
            self.net = ResidualMLP(context, features * params, hidden=hidden, blocks=blocks, dropout=dropout)
        else:
            self.free = nn.Parameter(torch.zeros(features, params))

    @property
    def levels(self) -> tuple[Tensor, ...]:
        """One level that holds every coordinate."""
        return (self.get_buffer("coordinates"),)

    def start_at(self, theta: Tensor) -> None:
        """Start every coordinate at `theta`, exactly so without context."""
        if self.context:
            self.net.start_at(theta.repeat(self.features))
        else:
            with torch.no_grad():
                self.free.copy_(theta.expand_as(self.free))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters (*batch, features, params); `x` gives only the batch shape."""
        if self.context:
            theta: Tensor = self.net(context)
            return theta.reshape(*theta.shape[:-1], self.features, self.params)
        return self.free.expand(*x.shape[:-1], self.features, self.params)
