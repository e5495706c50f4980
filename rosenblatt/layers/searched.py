"""Layers whose inverse is a Newton search in all coordinates at once."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from rosenblatt.core.newton import Smooth, find_vectors
from rosenblatt.core.precision import full_precision
from rosenblatt.core.types import Mapped
from rosenblatt.layers.planar import Residual

Run = TypeVar("Run")
Run_co = TypeVar("Run_co", covariant=True)


class Placed(Smooth, Protocol[Run_co]):
    """A map with its parameters in place, that can also leave behind what its determinant is made of."""

    def run(self, x: Tensor) -> Run_co:
        """Evaluate at `x` (*batch, features)."""


class Searched(Residual, Generic[Run]):
    """A layer that says what its map is at given parameters; the inverse follows, and raises `InverseError`."""

    @abstractmethod
    def placed(self, theta: Tensor, dtype: torch.dtype) -> Placed[Run]:
        """The map at parameters `theta` (params,) or (*batch, params), in `dtype`."""

    @abstractmethod
    def mapped(self, run: Run) -> Mapped:
        """Value and log-determinant of one evaluation."""

    def bend(self, x: Tensor, theta: Tensor) -> Mapped:
        """Evaluate."""
        with full_precision(x):
            return self.mapped(self.placed(theta, x.dtype).run(x))

    def straighten(self, y: Tensor, theta: Tensor) -> Mapped:
        """Search in float64."""
        with full_precision(y):
            rows = y.double().reshape(-1, y.shape[-1])
            if theta.ndim > 1:
                theta = theta.expand(*y.shape[:-1], theta.shape[-1]).reshape(len(rows), theta.shape[-1])
            placed = self.placed(theta, torch.float64)
            x = find_vectors(placed, rows)
            log_det = -self.mapped(placed.run(x)).log_det
        return Mapped(x.reshape(y.shape).to(y.dtype), log_det.reshape(y.shape[:-1]).to(y.dtype))
