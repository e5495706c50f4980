"""Cheaper ways from a network's units to many parameters per coordinate.

A plain masked network emits every parameter from every hidden unit that a coordinate may see. Where a coordinate takes
hundreds of numbers, that last layer is most of the weights and most of the time; a head lets the network emit fewer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import OptionError


class Head(nn.Module, ABC):
    """Turns `emitted` numbers per coordinate into its `params` parameters."""

    emitted: int

    @abstractmethod
    def forward(self, numbers: Tensor, start: int, stop: int) -> Tensor:
        """Parameters (*batch, some, params) of coordinates [start, stop), in level order, from their numbers."""

    @abstractmethod
    def start_at(self, theta: Tensor) -> Tensor:
        """Start every coordinate at `theta` (params,) where the network emits the result (emitted,)."""


class LowRank(Head):
    """`theta_i = b_i + E_i^T z_i` with `rank` numbers z_i from the network and a matrix E_i (rank, params) of its own.

    Raises `OptionError` unless 1 <= rank.

    >>> LowRank(features=3, params=320, rank=16)(torch.zeros(5, 3, 16), 0, 3).shape
    torch.Size([5, 3, 320])
    """

    def __init__(self, features: int, params: int, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise OptionError(f"rank: {rank} came, an integer >= 1 was expected.")
        self.emitted = rank
        self.matrix = nn.Parameter(torch.randn(features, rank, params) * rank**-0.5)
        self.bias = nn.Parameter(torch.zeros(features, params))

    def forward(self, numbers: Tensor, start: int, stop: int) -> Tensor:
        """Multiply each coordinate's numbers by its matrix."""
        flat = numbers.reshape(-1, *numbers.shape[-2:]).transpose(0, 1)
        theta = torch.baddbmm(self.bias[start:stop].unsqueeze(1), flat, self.matrix[start:stop])
        return theta.transpose(0, 1).reshape(*numbers.shape[:-1], theta.shape[-1])

    def start_at(self, theta: Tensor) -> Tensor:
        """Put theta into the bias."""
        with torch.no_grad():
            self.bias.copy_(theta.expand_as(self.bias))
        return theta.new_zeros(self.emitted)


class PartlyFree(Head):
    """Parameters [first, last) of each coordinate are weights of their own, the same for every row.

    Raises `OptionError` unless 0 <= first < last <= params and something is left to emit.

    >>> PartlyFree(features=3, params=10, first=2, last=8).emitted
    4
    """

    def __init__(self, features: int, params: int, first: int, last: int) -> None:
        super().__init__()
        if not 0 <= first < last <= params or last - first == params:
            raise OptionError(f"first={first}, last={last}: a part of the {params} parameters was expected.")
        self.emitted, self.first, self.last = params - (last - first), first, last
        self.free = nn.Parameter(torch.zeros(features, last - first))

    def forward(self, numbers: Tensor, start: int, stop: int) -> Tensor:
        """Insert the free parameters."""
        free = self.free[start:stop].expand(*numbers.shape[:-1], -1)
        return torch.cat([numbers[..., : self.first], free, numbers[..., self.first :]], dim=-1)

    def start_at(self, theta: Tensor) -> Tensor:
        """Set the free parameters; the network emits the others."""
        with torch.no_grad():
            self.free.copy_(theta[self.first : self.last].expand_as(self.free))
        return torch.cat([theta[: self.first], theta[self.last :]])
