"""Gated causal convolutions over images, with coarser stages and attention: the network of PixelCNN++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rosenblatt.conditioners.causal_nets import (
    ABOVE,
    COLUMN_LEFT,
    LEFT,
    ROW_ABOVE,
    TWO_ROWS_ABOVE,
    Convolution,
    Stream,
    Trace,
    Whole,
)
from rosenblatt.conditioners.pixelcnn_steps import Steps
from rosenblatt.conditioners.pixels import PixelConditioner, PixelSteps
from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import OptionError

PLACE = 3  # planes that say where a pixel is: ones (beyond the border they are zero), its row, its column


class PixelCNN(PixelConditioner):
    """Theta of a pixel from a two-stream causal U-net of the pixels before it; see `PixelConditioner` for its channels.

    `filters` is the width of both streams, `blocks` the gated blocks a stage in each direction, `stages` how many
    resolutions there are, each half the one before (sides are rounded up, so that any size will do). `heads` > 0 puts
    causal attention with so many heads where the network is coarsest. `context` enters every block. `patch` x
    `patch` pixels count as one pixel of more channels.
    Weights are normalised, activations never: nothing mixes places, and the Jacobian against the order is exactly 0.
    A pass from pixel to pixel (sampling) computes every activation once.
    Raises `OptionError` for sizes below 1, a `patch` that does not divide the sides, heads that do not divide
    `filters`, or dropout outside [0, 1).
    Reference: Salimans, Karpathy, Chen & Kingma, PixelCNN++, ICLR 2017. Published sizes: 160 filters, 5 blocks,
    3 stages, dropout 0.5.

    >>> PixelCNN((3, 4, 4), 5, filters=8, stages=2)(torch.zeros(2, 48)).shape
    torch.Size([2, 48, 5])
    """

    place: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        params: int,
        *,
        filters: int = 32,
        blocks: int = 1,
        stages: int = 1,
        heads: int = 0,
        context: int = 0,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        super().__init__(shape, params, width=filters, context=context, patch=patch)
        for name, value, least in (("blocks", blocks, 1), ("stages", stages, 1), ("heads", heads, 0)):
            if value < least:
                raise OptionError(f"{name}: {value} came, an integer >= {least} was expected.")
        if heads and filters % heads:
            raise OptionError(f"heads: {heads} came, a divisor of filters={filters} was expected.")
        if not 0 <= dropout < 1:
            raise OptionError(f"dropout: {dropout} came, a share in [0, 1) was expected.")
        self.stage_sizes = [(self.height, self.columns)]
        for _ in range(stages - 1):
            tall, wide = self.stage_sizes[-1]
            self.stage_sizes.append(((tall + 1) // 2, (wide + 1) // 2))
        down, across = torch.meshgrid(_spread(self.height), _spread(self.columns), indexing="ij")
        self.register_buffer("place", torch.stack([torch.ones_like(down), down, across]), persistent=False)
        inputs = self.channels + PLACE
        self.first_above = Convolution(inputs, filters, TWO_ROWS_ABOVE)
        self.first_row = Convolution(inputs, filters, ROW_ABOVE)
        self.first_left = Convolution(inputs, filters, COLUMN_LEFT)
        options: dict[str, Any] = {"blocks": blocks, "stages": stages, "context": context, "dropout": dropout}
        self.vertical = Stream(filters, ABOVE, horizontal=False, heads=0, **options)
        self.horizontal = Stream(filters, LEFT, horizontal=True, heads=heads, **options)

    def states(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Run both streams."""
        image = x.transpose(1, 2).unflatten(2, (self.height, self.columns))
        planes = torch.cat([image, self.place.expand(x.shape[0], *self.place.shape)], dim=1)
        if runs_eagerly():
            planes = planes.contiguous(memory_format=torch.channels_last)  # convolutions are several times faster
        mode, stages = Whole(self.stage_sizes), len(self.stage_sizes)
        above = Trace.empty(stages)
        self.vertical(self.first_above(planes), context, mode, above)
        entering = self.first_row(planes) + self.first_left(planes)
        states: Tensor = self.horizontal(entering, context, mode, Trace.empty(stages), above)
        return states.flatten(2).transpose(1, 2)

    def steps(self, context: Tensor | None) -> PixelSteps:
        """Begin a pass that keeps the rows and pixels that later ones look at."""
        return Steps(self, context)


def _spread(count: int) -> Tensor:
    """Places from -1 to 1; 0 for a single one."""
    return torch.linspace(-1, 1, count) if count > 1 else torch.zeros(1)
