"""The small vocabulary that every part shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.errors import OptionError


class Mapped(NamedTuple):
    """A mapped point and the log-derivative of the map that was run.

    `log_det` belongs to the direction called. Whole-vector transforms sum it over the event
    (shape `*batch`); elementwise maps keep it per coordinate (shape of `value`).
    """

    value: Tensor
    log_det: Tensor


class Likelihood(Enum):
    """What the number returned by `log_prob` is, the strongest claim first."""

    EXACT = "exact"
    ESTIMATE = "estimate"
    LOWER_BOUND = "lower bound"
    NONE = "none"

    @staticmethod
    def weakest(*claims: Likelihood) -> Likelihood:
        """What a number made of several parts can claim; EXACT without parts."""
        order = list(Likelihood)
        return max(claims, key=order.index, default=Likelihood.EXACT)


class Batch(NamedTuple):
    """Rows handed to an objective: `x` (rows, features), optional `context` and row `weight` (rows,)."""

    x: Tensor
    context: Tensor | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class Support:
    """An interval of the real line, `lower < upper`, either end possibly infinite."""

    lower: float = -math.inf
    upper: float = math.inf

    def __post_init__(self) -> None:
        """Refuse an empty interval."""
        if not self.lower < self.upper:
            raise OptionError(
                f"support: lower={self.lower} must be below upper={self.upper}; give two distinct ends in order."
            )

    @property
    def bounded(self) -> bool:
        """Whether both ends are finite."""
        return math.isfinite(self.lower) and math.isfinite(self.upper)

    @property
    def whole_line(self) -> bool:
        """Whether neither end is finite."""
        return math.isinf(self.lower) and math.isinf(self.upper)


REAL = Support()


class ParamSpec:
    """Names and shapes of the parameters of an elementwise map, packed in one vector.

    >>> spec = ParamSpec(shift=(), scale=())
    >>> spec.size
    2
    """

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.shapes: Mapping[str, tuple[int, ...]] = dict(shapes)
        self.sizes = [math.prod(shape) for shape in shapes.values()]
        self.size = sum(self.sizes)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """Cut `theta` (*batch, size) into named parts of shape (*batch, *shape)."""
        if theta.shape[-1] != self.size:
            raise OptionError(
                f"theta: {theta.shape[-1]} numbers came, {self.size} were expected ({dict(self.shapes)})."
            )
        parts = torch.split(theta, self.sizes, dim=-1)
        lead = theta.shape[:-1]
        return {
            name: part.reshape((*lead, *shape)) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def join(self, **parts: Tensor) -> Tensor:
        """Pack named parts back into one vector; the inverse of `split`."""
        flat = []
        for name, shape in self.shapes.items():
            part = parts[name]
            lead = part.shape[: part.ndim - len(shape)]
            flat.append(part.reshape(*lead, math.prod(shape)))
        return torch.cat(flat, dim=-1)
