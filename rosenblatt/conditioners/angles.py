"""What a network is shown of angles, so that its output is continuous where they begin again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from rosenblatt.core.errors import OptionError
from rosenblatt.nets import limited


class Shown:
    """The numbers that coordinates enter a network as: an angle as its cosine and sine, any other one as it is.

    `order` are the coordinates in the order they stand in, `angles` those of them that are angles in radians. Numbers
    [starts[i], starts[i + 1]) belong to the i-th in order. Raises `OptionError` for an angle that is no coordinate.

    >>> Shown([0, 1], angles=[1])(torch.tensor([3.0, 0.0]))
    tensor([3., 1., 0.])
    """

    def __init__(self, order: Sequence[int], angles: Iterable[int] = (), features: int | None = None) -> None:
        angles = list(angles)
        features = len(order) if features is None else features
        if not set(angles) <= set(range(features)):
            raise OptionError(f"angles: {angles} came, coordinates from 0 to {features - 1} were expected.")
        self.turns = [coordinate in angles for coordinate in order]
        self.starts = [0, *accumulate(2 if turns else 1 for turns in self.turns)]

    def __call__(self, x: Tensor) -> Tensor:
        """Numbers (*batch, starts[n]) of the first n coordinates `x` (*batch, n)."""
        x, turns = limited(x), self.turns[: x.shape[-1]]
        if not any(turns):
            return x
        if all(turns):
            return torch.stack([torch.cos(x), torch.sin(x)], dim=-1).flatten(-2)
        numbers: list[Tensor] = []
        for column, turns_around in zip(x.unbind(dim=-1), turns, strict=True):
            numbers.extend((torch.cos(column), torch.sin(column)) if turns_around else (column,))
        return torch.stack(numbers, dim=-1)
