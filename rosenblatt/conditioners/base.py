"""Networks that emit the parameters of an elementwise map, with a declared order of dependence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor, nn


class Walk(Protocol):
    """A pass through the levels of a conditioner, one level at a time, for sampling."""

    def theta(self, level: int, x: Tensor) -> Tensor:
        """Parameters (*batch, level size, params) of `level`; `x` must hold all earlier levels."""


class Conditioner(nn.Module, ABC):
    """Emits `theta` (*batch, features, params); coordinate i's theta sees only earlier levels.

    `levels` is a partition of the coordinates: those of level k depend on levels before k, and nothing else.
    """

    features: int
    params: int
    context: int

    @property
    @abstractmethod
    def levels(self) -> tuple[Tensor, ...]:
        """Indices of the coordinates of each level, on the device of the weights."""

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters (*batch, features, params) of every coordinate."""

    @abstractmethod
    def start_at(self, theta: Tensor) -> None:
        """Set the output so that every coordinate starts near `theta` (params,)."""

    def walk(self, context: Tensor | None = None) -> Walk:
        """Begin a level-by-level pass; the default recomputes `forward` at every level."""
        return _FullWalk(self, context)


class _FullWalk:
    def __init__(self, conditioner: Conditioner, context: Tensor | None) -> None:
        self.conditioner = conditioner
        self.context = context

    def theta(self, level: int, x: Tensor) -> Tensor:
        return self.conditioner(x, self.context).index_select(-2, self.conditioner.levels[level])  # type: ignore[no-any-return]
