"""Networks that emit the parameters of an elementwise map, with a declared order of dependence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import OptionError


class Walk(Protocol):
    """A pass through the levels of a conditioner, one level at a time, for sampling."""

    def theta(self, level: int, x: Tensor) -> Tensor:
        """Parameters (*batch, level size, params) of `level`; `x` (*batch, features) must hold all earlier levels."""


class ColumnWalk(Protocol):
    """A walk without gradients over `x` (features, rows), whose rows are the coordinates in level order."""

    def theta(self, level: int, x: Tensor) -> Tensor:
        """Parameters (rows, level size, params) of `level`, perhaps without rows; `x` must hold all earlier levels."""


class Conditioner(nn.Module, ABC):
    """Emits `theta` (*batch, features, params); coordinate i's theta sees only earlier levels.

    `levels` is a partition of the coordinates: those of level k depend on levels before k, and nothing else. Inside,
    coordinates stand in level order: `order` is all levels one after the other, `position` its inverse.
    """

    features: int
    params: int
    context: int
    order: Tensor
    position: Tensor

    def __init__(self, levels: Sequence[Sequence[int]], params: int, context: int) -> None:
        super().__init__()
        order = [coordinate for level in levels for coordinate in level]
        if params < 1 or context < 0 or not order:
            raise OptionError(
                f"features={len(order)}, params={params}, context={context}: "
                "features and params must be >= 1, context >= 0."
            )
        self.features, self.params, self.context = len(order), params, context
        self.sizes = [len(level) for level in levels]
        self.in_order = order == sorted(order)
        self.turned = order == sorted(order, reverse=True)
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("position", torch.argsort(torch.tensor(order)), persistent=False)

    @property
    def levels(self) -> tuple[Tensor, ...]:
        """Indices of the coordinates of each level, on the device of the weights."""
        levels: tuple[Tensor, ...] = self.order.split(self.sizes)
        return levels

    @abstractmethod
    def parts(self, x: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """Emit parameters of neighbouring coordinates, (*batch, some, params), from `x` in level order.

        Parameters that no row influences may come as (some, params).
        """

    @abstractmethod
    def start_at(self, theta: Tensor) -> None:
        """Set the output so that every coordinate starts near `theta` (params,)."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters (*batch, features, params) of every coordinate."""
        parts = [part.expand(*x.shape[:-1], *part.shape[-2:]) for part in self.parts(self.arrange(x), context)]
        theta = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
        return theta if self.in_order else theta.index_select(-2, self.position)

    def arrange(self, x: Tensor) -> Tensor:
        """Put coordinates (last axis) into level order."""
        return self._reordered(x, self.order)

    def restore(self, x: Tensor) -> Tensor:
        """Put coordinates (last axis) from level order back in place."""
        return self._reordered(x, self.position)

    def _reordered(self, x: Tensor, order: Tensor) -> Tensor:
        if self.in_order:
            return x
        return x.flip(-1) if self.turned else x.index_select(-1, order)

    def walk(self, context: Tensor | None = None) -> Walk:
        """Begin a level-by-level pass; the default recomputes `forward` at every level."""
        return _FullWalk(self, context)

    def column_walk(self, context: Tensor | None, rows: int) -> ColumnWalk:
        """Begin a level-by-level pass without gradients for `rows` rows, `context` (rows, context)."""
        return _Columns(self, self.walk(context))


class _FullWalk:
    def __init__(self, conditioner: Conditioner, context: Tensor | None) -> None:
        self.conditioner = conditioner
        self.context = context

    def theta(self, level: int, x: Tensor) -> Tensor:
        return self.conditioner(x, self.context).index_select(-2, self.conditioner.levels[level])  # type: ignore[no-any-return]


class _Columns:
    """Any walk as a column walk."""

    def __init__(self, conditioner: Conditioner, walk: Walk) -> None:
        self.conditioner = conditioner
        self.walk = walk

    def theta(self, level: int, x: Tensor) -> Tensor:
        return self.walk.theta(level, self.conditioner.restore(x.t()))
