"""Coupling of images: one part of the pixels or channels conditions the other through a convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rosenblatt.conditioners.coupling import TwoParts
from rosenblatt.conditioners.independent import Independent
from rosenblatt.core.errors import OptionError
from rosenblatt.nets import ConvNet

MASKS = ("channels", "channels_turned", "checkerboard", "checkerboard_turned")


class ConvCoupling(TwoParts):
    """Theta of the second part is a convolutional network of the first; vectors hold images (C, H, W) in that order.

    `mask` says what the first part is: "channels" (the first half of them, rounded up), "channels_turned" (the others),
    "checkerboard" (pixels with even row + column) or "checkerboard_turned". The first part has free thetas of its own,
    one for each channel; without `free` its thetas stay as they start, whatever the context, which makes it pass
    unchanged through a map that starts as the identity. If either part is empty, all thetas are free: one for each
    channel. Context enters both parts, as planes of one number each; with `spatial` it is an image itself,
    (planes, H, W) in a row, and the first part's thetas are a convolutional network of it.
    Raises `OptionError` for another mask, sizes below 1, or a spatial context that is no image.
    References: Dinh et al., Density estimation using Real NVP, ICLR 2017; Kingma & Dhariwal, Glow, NeurIPS 2018.

    >>> [level.tolist() for level in ConvCoupling((1, 2, 2), 2, mask="checkerboard").levels]
    [[0, 3], [1, 2]]
    """

    fixed: Tensor
    place: Tensor
    first_channel: Tensor
    first_index: Tensor
    second_index: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        params: int,
        *,
        mask: str = "channels",
        hidden: int = 32,
        blocks: int = 2,
        context: int = 0,
        spatial: bool = False,
        dropout: float = 0.0,
        residual: bool = True,
        free: bool = True,
    ) -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise OptionError(f"shape: {list(shape)} came, [channels, height, width] >= 1 were expected.")
        channels, height, width = shape
        features, pixels = channels * height * width, height * width
        if spatial and (context == 0 or context % pixels):
            raise OptionError(f"context: {context} came, a multiple of {height} x {width} numbers was expected.")
        first = _first_part(channels, height, width, mask)
        super().__init__(first, features, params, context)
        self.size, self.spatial = (height, width), spatial
        first, second = self.order[: self.first_size].tolist(), self.order[self.first_size :].tolist()
        # Planes that hold anything of a part are the network's inputs or outputs; each part is looked up in them.
        inputs, outputs = (sorted({i // pixels for i in part}) for part in (first, second))
        rank = {coordinate: position for position, coordinate in enumerate(first)}
        place = [rank.get(c * pixels + p, self.first_size) for c in inputs for p in range(pixels)]
        self.register_buffer("place", torch.tensor(place), persistent=False)
        self._register_index("first_index", first, inputs, pixels)
        self._register_index("second_index", second, outputs, pixels)
        self.register_buffer("first_channel", self.first_index // pixels, persistent=False)
        net: dict[str, Any] = {"hidden": hidden, "blocks": blocks, "dropout": dropout, "residual": residual}
        planes = context // pixels if spatial else context
        self.free: Independent | ConvNet | None = None
        if not free and second:
            self.register_buffer("fixed", torch.zeros(params), persistent=False)  # a start is the same in every run
        elif spatial:
            self.free = ConvNet(planes, len(inputs) * params, side=self.size, **net)
        else:
            self.free = Independent(len(inputs), params, context=context, **net)
        self.net = ConvNet(len(inputs) + planes, len(outputs) * params, side=self.size, **net) if second else None

    def start_at(self, theta: Tensor) -> None:
        """Start every coordinate at `theta`; the networks' last weights are a hundredth of the usual."""
        if self.free is None:
            self.fixed.copy_(theta)
        elif isinstance(self.free, Independent):
            self.free.start_at(theta)
        else:
            self.free.start_at(theta.repeat(self.free.last.out_channels // self.params))
        if self.net is not None:
            self.net.start_at(theta.repeat(self.net.last.out_channels // self.params))

    def first_part(self, context: Tensor | None) -> Tensor:
        """Free thetas of the channels, or those of the context; or the start, for every coordinate."""
        if self.free is None:
            return self.fixed.expand(self.first_size, -1)
        if isinstance(self.free, Independent):
            return self.free.thetas(context).index_select(-2, self.first_channel)
        assert context is not None
        return self._thetas(self.free, [context], self.first_index)

    def second_part(self, seen: Tensor, context: Tensor | None) -> Tensor:
        """Run the network on the planes that hold the first part, zero elsewhere, and those of the context."""
        planes = torch.cat([seen, seen.new_zeros(*seen.shape[:-1], 1)], dim=-1).index_select(-1, self.place)
        given = [planes]
        if self.context and context is not None:
            pixels = self.size[0] * self.size[1]
            given.append(context if self.spatial else context.repeat_interleave(pixels, dim=-1))
        assert self.net is not None
        return self._thetas(self.net, given, self.second_index)

    def _thetas(self, net: ConvNet, planes: list[Tensor], index: Tensor) -> Tensor:
        """Thetas (*batch, some, params) of the coordinates at `index` of a network's output."""
        joined = torch.cat(planes, dim=-1) if len(planes) > 1 else planes[0]
        batch, pixels = joined.shape[:-1], self.size[0] * self.size[1]
        emitted = net(joined.reshape(-1, joined.shape[-1] // pixels, *self.size))
        by_pixel = (
            emitted.unflatten(1, (-1, self.params)).flatten(-2).mT.flatten(1, 2)
        )  # (rows, planes * pixels, params)
        return by_pixel.index_select(-2, index).reshape(*batch, len(index), self.params)  # type: ignore[no-any-return]

    def _register_index(self, name: str, part: list[int], planes: list[int], pixels: int) -> None:
        """Remember where the coordinates of a part are in the planes that hold it."""
        position = {plane: number for number, plane in enumerate(planes)}
        index = [position[i // pixels] * pixels + i % pixels for i in part]
        self.register_buffer(name, torch.tensor(index, dtype=torch.long), persistent=False)


def _first_part(channels: int, height: int, width: int, mask: str) -> list[int]:
    if mask not in MASKS:
        raise OptionError(f"mask: '{mask}' came; choose one of {', '.join(MASKS)}.")
    index = torch.arange(channels * height * width).reshape(channels, height, width)
    if mask.startswith("channels"):
        chosen = (torch.arange(channels) < (channels + 1) // 2)[:, None, None].expand_as(index)
    else:
        chosen = ((torch.arange(height).unsqueeze(-1) + torch.arange(width)) % 2 == 0).expand_as(index)
    return index[chosen != mask.endswith("_turned")].tolist()
