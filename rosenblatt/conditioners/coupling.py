"""Coupling: one part of the coordinates conditions the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rosenblatt.conditioners.angles import Shown
from rosenblatt.conditioners.base import ColumnWalk, Conditioner, Walk
from rosenblatt.conditioners.independent import Independent
from rosenblatt.core.errors import OptionError
from rosenblatt.nets import MLP


class TwoParts(Conditioner):
    """Two levels (one if either part is empty): thetas of the second part depend on the first, and these are free.

    A subclass says how both are made; `first_size` is the number of coordinates of the first part.
    """

    def __init__(self, first: Sequence[int], features: int, params: int, context: int) -> None:
        chosen = set(first)
        second = [i for i in range(features) if i not in chosen]
        if not first or not second:
            first, second = list(range(features)), []
        super().__init__([first, second] if second else [first], params, context)
        self.first_size = len(first)

    @abstractmethod
    def first_part(self, context: Tensor | None) -> Tensor:
        """Thetas (first size, params) of the first part, or those of each row of `context`."""

    @abstractmethod
    def second_part(self, seen: Tensor, context: Tensor | None) -> Tensor:
        """Thetas (*batch, rest, params) of the second part from the first (*batch, first size)."""

    def parts(self, x: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """The thetas of the first part, then those of the second."""
        yield self.first_part(context)
        if len(self.sizes) > 1:
            yield self.second_part(x[..., : self.first_size], context)

    def walk(self, context: Tensor | None = None) -> Walk:
        """Begin a pass that evaluates each part once."""
        return _CouplingWalk(self, context)

    def column_walk(self, context: Tensor | None, rows: int) -> ColumnWalk:
        """Begin such a pass over columns."""
        return _CouplingColumns(self, context)


class Coupling(TwoParts):
    """Theta of the second part is a residual network of the first part; the first part has free thetas of its own.

    `mask` says which coordinates are the first part: "half" (the first half, rounded up), "even" (0, 2, ..), "odd"
    (1, 3, ..) or a list of booleans. Two levels; one if either part is empty (as for a single feature), and then all
    thetas are free. Context enters both parts; coordinates listed in `angles` enter as cosine and sine. Raises
    `OptionError` for another mask, sizes below 1 or angles that are no coordinates.
    References: Dinh et al., Density estimation using Real NVP, ICLR 2017; free first part as in Durkan et al. 2019.

    >>> [level.tolist() for level in Coupling(3, 2, mask="even").levels]
    [[0, 2], [1]]
    """

    def __init__(
        self,
        features: int,
        params: int,
        *,
        mask: str | Sequence[bool] = "half",
        hidden: int = 128,
        blocks: int = 2,
        context: int = 0,
        dropout: float = 0.0,
        residual: bool = True,
        angles: Sequence[int] = (),
    ) -> None:
        super().__init__(_first_part(features, mask), features, params, context)
        net: dict[str, Any] = {"hidden": hidden, "blocks": blocks, "dropout": dropout, "residual": residual}
        self.free = Independent(self.first_size, params, context=context, **net)
        first, rest = self.order[: self.first_size].tolist(), features - self.first_size
        self.shown = Shown(first, angles, features)
        self.net = MLP(self.shown.starts[-1] + context, rest * params, **net) if rest else None

    def start_at(self, theta: Tensor) -> None:
        """Start every coordinate at `theta`; the network's last weights are a hundredth of the usual."""
        self.free.start_at(theta)
        if self.net is not None:
            self.net.start_at(theta.repeat(self.features - self.first_size))

    def first_part(self, context: Tensor | None) -> Tensor:
        """Free thetas, or those of the context."""
        return self.free.thetas(context)

    def second_part(self, seen: Tensor, context: Tensor | None) -> Tensor:
        """Run the network."""
        seen = self.shown(seen)
        if self.context and context is not None:
            seen = torch.cat([seen, context], dim=-1)
        theta: Tensor = self.net(seen)  # type: ignore[misc]  # only called when there is a second part
        return theta.reshape(*theta.shape[:-1], self.features - self.first_size, self.params)


class _CouplingWalk:
    def __init__(self, conditioner: TwoParts, context: Tensor | None) -> None:
        self.conditioner = conditioner
        self.context = context

    def theta(self, level: int, x: Tensor) -> Tensor:
        if level == 0:
            theta = self.conditioner.first_part(self.context)
            return theta.expand(*x.shape[:-1], *theta.shape[-2:])
        seen = self.conditioner.arrange(x)[..., : self.conditioner.first_size]
        return self.conditioner.second_part(seen, self.context)


class _CouplingColumns:
    def __init__(self, conditioner: TwoParts, context: Tensor | None) -> None:
        self.conditioner = conditioner
        self.context = context

    def theta(self, level: int, x: Tensor) -> Tensor:
        if level == 0:
            return self.conditioner.first_part(self.context)
        return self.conditioner.second_part(x[: self.conditioner.first_size].t(), self.context)


def _first_part(features: int, mask: str | Sequence[bool]) -> list[int]:
    if features < 1:
        raise OptionError(f"features: {features} came, an integer >= 1 was expected.")
    if mask == "half":
        return list(range((features + 1) // 2))
    if mask == "even":
        return list(range(0, features, 2))
    if mask == "odd":
        return list(range(1, features, 2))
    if isinstance(mask, str) or len(mask) != features or any(value not in (0, 1) for value in mask):
        raise OptionError(f"mask: {mask!r} came, 'half', 'even', 'odd' or a list of {features} booleans was expected.")
    return [i for i, value in enumerate(mask) if value]
