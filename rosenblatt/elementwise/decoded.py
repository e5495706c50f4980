"""An elementwise map whose parameters were decoded once, as the root search wants it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Decoded:
    """The increasing function `value(x, *parts)`, one row of every part for each row of `x` (rows,).

    >>> import torch
    >>> doubled = Decoded(lambda x, factor: factor * x, (torch.tensor([2.0, 3.0]),))
    >>> doubled.select(torch.tensor([1]))(torch.tensor([5.0]))
    tensor([15.])
    """

    def __init__(self, value: Callable[..., Tensor], parts: tuple[Tensor, ...]) -> None:
        self.value = value
        self.parts = parts

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate at `x` (rows,)."""
        return self.value(x, *self.parts)

    def select(self, rows: Tensor) -> Decoded:
        """Keep only `rows`."""
        return Decoded(self.value, tuple(part[rows] for part in self.parts))
