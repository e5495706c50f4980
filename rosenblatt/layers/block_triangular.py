"""A linear map that lets groups of coordinates see earlier groups, and never later ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rosenblatt.core.errors import OptionError
from rosenblatt.layers.linear import LU


class BlockLU(LU):
    """Linear map `y = L U x + bias` whose matrix is zero above the blocks of consecutive groups of `sizes`.

    L is any unit lower triangular matrix and U an upper triangular one that is zero between groups, so that `L U` is
    any LU matrix within a group and free below it: `[[W1, 0], [W2, W3]]` for two groups. Its inverse has the same
    zeros, so a coordinate never receives a later group in either direction. `log_det` and bounds are those of `LU`;
    starts as the identity (Laszkiewicz, Lederer & Fischer 2022). Raises `OptionError` unless every size is >= 1.

    >>> BlockLU([1, 2])(torch.tensor([1.0, 2.0, 3.0])).value.tolist()
    [1.0, 2.0, 3.0]
    """

    within: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes or min(sizes) < 1:
            raise OptionError(f"sizes: {list(sizes)} came, one or more integers >= 1 were expected.")
        super().__init__(sum(sizes))
        group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(list(sizes)))
        self.register_buffer("within", group.unsqueeze(-1) == group, persistent=False)

    def _triangles(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        lower, upper, log_diagonal = super()._triangles(dtype)
        return lower, torch.where(self.within, upper, 0.0), log_diagonal
