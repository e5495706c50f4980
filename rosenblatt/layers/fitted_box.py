"""The range of each column, from training rows, carried onto a fixed box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped
from rosenblatt.layers.linear import require_features


class FittedBox(Transform):
    """`y = bound (x - middle) / reach` of each column, so that its range with `margin` on either side is the box.

    `initialise` takes the range from rows of positive weight, and widens it by `margin` times its length at both ends;
    with `box=(lower, upper)` every column has that range instead, whatever the rows. Until then [-bound, bound] is left
    as it is. Affine, so rows outside the range are mapped too. Raises `OptionError` unless margin >= 0 and lower <
    upper.

    >>> layer = FittedBox(1, bound=2.0, margin=0.0)
    >>> layer.initialise(torch.tensor([[0.0], [10.0]]))
    >>> layer(torch.tensor([10.0])).value.item()
    2.0
    """

    middle: Tensor
    reach: Tensor

    def __init__(
        self, features: int, *, bound: float = 1.0, margin: float = 0.05, box: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        require_features(features)
        if not 0 <= margin < float("inf"):
            raise OptionError(f"margin: {margin} came, a number >= 0 was expected.")
        if box is not None and not (len(box) == 2 and box[0] < box[1]):
            raise OptionError(f"box: {list(box)} came, two numbers [lower, upper] in order were expected.")
        self.bound, self.margin, self.fixed = bound, margin, box is not None
        lower, upper = (-bound, bound) if box is None else box
        self.register_buffer("middle", torch.full((features,), 0.5 * (lower + upper)))
        self.register_buffer("reach", torch.full((features,), 0.5 * (upper - lower)))

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Take the range of the rows; a column that is constant gets a box of half a unit on either side.

        Raises `DataError` when no row counts, or one is not finite.
        """
        if self.fixed:
            return
        with torch.no_grad():
            rows = x.detach().reshape(-1, len(self.middle))
            rows = rows if weight is None else rows[weight.reshape(-1) > 0]
            if len(rows) == 0 or not bool(torch.isfinite(rows).all()):
                raise DataError(f"x: {len(rows)} rows came, at least one and finite numbers were expected.")
            low, high = rows.amin(dim=0).double(), rows.amax(dim=0).double()
            half = (0.5 + self.margin) * (high - low)
            self.middle.copy_(0.5 * (low + high))
            self.reach.copy_(torch.where(half > 0, half, 0.5))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Onto the box."""
        log_det = (self.bound / self.reach).log().sum()
        return Mapped((x - self.middle) * (self.bound / self.reach), log_det.expand(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Back to the range."""
        log_det = (self.reach / self.bound).log().sum()
        return Mapped(y * (self.reach / self.bound) + self.middle, log_det.expand(y.shape[:-1]))
