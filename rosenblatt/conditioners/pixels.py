"""Conditioners of images: pixel after pixel in the order of reading, channel after channel within a pixel."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rosenblatt.conditioners.base import ColumnWalk, Conditioner, Walk
from rosenblatt.conditioners.causal_nets import GAIN, Pointwise, both_signs
from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import OptionError
from rosenblatt.core.precision import full_precision
from rosenblatt.nets import limited

NUMBERS_AT_ONCE = 1 << 23  # of theta, emitted together where no gradient is taken


class PixelSteps(Protocol):
    """A pass of a network from pixel to pixel."""

    def next(self, pixel: Tensor | None, rows: int) -> Tensor:
        """What the next pixel may know, (rows, width), given the `pixel` (rows, channels) before it (first: None)."""


class PixelConditioner(Conditioner):
    """Theta of channel c of pixel p is a function of all earlier pixels and of the channels before c of pixel p.

    A vector holds an image (C, H, W) in that order; levels hold one number each, pixel by pixel, all channels of a
    pixel one after the other. A subclass says what a pixel knows of the pixels before it; the head adds the channels:

        theta_pc = O_c f(W_c f(h_p) + V_c x_p,<c + b_c) + o_c,   f(h) = [elu(h), elu(-h)]

    With `patch` s a pixel is a square of s x s pixels and has s^2 times the channels, pixel by pixel in the order of
    reading: the network has a place for each square, and a pass from place to place s^2 times fewer steps.
    Raises `OptionError` for sizes below 1, or a `patch` that does not divide the sides.
    """

    def __init__(self, shape: Sequence[int], params: int, *, width: int, context: int, patch: int = 1) -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise OptionError(f"shape: {list(shape)} came, [channels, height, width] >= 1 were expected.")
        if width < 1:
            raise OptionError(f"filters: {width} came, an integer >= 1 was expected.")
        if patch < 1 or shape[1] % patch or shape[2] % patch:
            raise OptionError(f"patch: {patch} came, a divisor of the sides {list(shape[1:])} was expected.")
        places = torch.arange(math.prod(shape), device="cpu").reshape(tuple(shape))
        patches = places.unfold(1, patch, patch).unfold(2, patch, patch).permute(1, 2, 3, 4, 0)
        height, columns = patches.shape[:2]
        pixels, channels = height * columns, patch * patch * shape[0]
        super().__init__([[place] for place in patches.flatten().tolist()], params, context)
        self.channels, self.height, self.columns, self.pixels, self.width = channels, height, columns, pixels, width
        self.enter = Pointwise(2 * width, channels * width, gain=GAIN)
        self.earlier = nn.Parameter(torch.randn(channels, width, channels) * channels**-0.5)
        self.last = nn.Parameter(torch.randn(channels, 2 * width, params) * (2 * width) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(channels, params))

    @abstractmethod
    def states(self, x: Tensor, context: Tensor | None) -> Tensor:
        """What each pixel may know of those before it, (rows, pixels, width), from `x` (rows, pixels, channels)."""

    @abstractmethod
    def steps(self, context: Tensor | None) -> PixelSteps:
        """Begin a pass from pixel to pixel, `context` (rows, context)."""

    def start_at(self, theta: Tensor) -> None:
        """Start every coordinate at `theta`; the last weights are a hundredth of the usual."""
        with torch.no_grad():
            self.last.mul_(1e-2)
            self.bias.copy_(theta.expand_as(self.bias))

    def parts(self, x: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """Parameters of a number of pixels after the other."""
        batch = x.shape[:-1]
        pixels = limited(x).reshape(-1, self.pixels, self.channels)
        given = None if context is None else limited(context).expand(*batch, -1).reshape(-1, self.context)
        states = self.states(pixels, given)
        step = self.pixels
        if not torch.is_grad_enabled() and runs_eagerly():
            step = max(1, NUMBERS_AT_ONCE // max(1, len(pixels) * self.channels * self.params))
        for start in range(0, self.pixels, step):
            cut = slice(start, start + step)
            seen = pixels[:, cut]
            with full_precision(x):  # eight bits would not tell neighbouring levels apart
                theta = self.emit(states[:, cut].flatten(0, 1).to(x.dtype), seen.flatten(0, 1))
            yield theta.reshape(*batch, seen.shape[1] * self.channels, self.params)

    def emit(self, states: Tensor, pixels: Tensor) -> Tensor:
        """Thetas (n, channels, params) from what n pixels know (n, width) and their channels (n, channels)."""
        hidden = self.enter(both_signs(states)).unflatten(1, (self.channels, self.width))
        if self.channels == 1:
            return (linear(both_signs(hidden[:, 0]), self.last[0].t()) + self.bias).unsqueeze(1)
        before = torch.ones(self.channels, self.channels, device=states.device, dtype=states.dtype).tril(-1)
        hidden = hidden + torch.einsum("nd,cwd->ncw", pixels, self.earlier * before.unsqueeze(1))
        units = both_signs(hidden.transpose(1, 2)).permute(2, 0, 1)  # (channels, n, 2 width)
        return torch.bmm(units, self.last).transpose(0, 1) + self.bias

    def emit_one(self, channel: int, hidden: Tensor, pixel: Sequence[Tensor]) -> Tensor:
        """Theta (rows, 1, params) of one channel, from what enters the head and the channels before it, (rows,)."""
        own = hidden[:, channel]
        if channel:
            own = own + linear(torch.stack(list(pixel[:channel]), dim=1), self.earlier[channel, :, :channel])
        return linear(both_signs(own), self.last[channel].t(), self.bias[channel]).unsqueeze(1)

    def walk(self, context: Tensor | None = None) -> Walk:
        """Begin a pass that computes each pixel's state once; levels come one after the other."""
        return _PixelWalk(self, context)

    def column_walk(self, context: Tensor | None, rows: int) -> ColumnWalk:
        """Begin such a pass over columns."""
        return _PixelColumns(self, context)


class _Pixels:
    """The pass itself, fed with one number of every row after the other."""

    def __init__(self, net: PixelConditioner, context: Tensor | None) -> None:
        self.net = net
        self.steps = net.steps(None if context is None else limited(context))
        self.pixel: list[Tensor] = []
        self.hidden: Tensor | None = None
        self.level = 0

    def theta(self, level: int, before: Tensor | None, rows: int) -> Tensor:
        """Theta (rows, 1, params) of the next level, given the number `before` it."""
        if level != self.level:
            raise OptionError(f"level: {level} came, {self.level} was expected; levels come one after the other.")
        self.level += 1
        if before is not None:
            self.pixel.append(limited(before))
        channel = level % self.net.channels
        if channel == 0:
            finished = torch.stack(self.pixel, dim=1) if self.pixel else None
            state = self.steps.next(finished, rows)
            self.hidden = self.net.enter(both_signs(state)).unflatten(1, (self.net.channels, self.net.width))
            self.pixel = []
        assert self.hidden is not None
        return self.net.emit_one(channel, self.hidden, self.pixel)


class _PixelWalk:
    def __init__(self, net: PixelConditioner, context: Tensor | None) -> None:
        self.net, self.context = net, context
        self.pixels: _Pixels | None = None

    def theta(self, level: int, x: Tensor) -> Tensor:
        batch = x.shape[:-1]
        if self.pixels is None:
            given = self.context
            given = None if given is None else given.expand(*batch, -1).reshape(-1, given.shape[-1])
            self.pixels = _Pixels(self.net, given)
        before = x.index_select(-1, self.net.order[level - 1 : level]).reshape(-1) if level else None
        return self.pixels.theta(level, before, batch.numel()).reshape(*batch, 1, self.net.params)


class _PixelColumns:
    def __init__(self, net: PixelConditioner, context: Tensor | None) -> None:
        self.pixels = _Pixels(net, context)

    def theta(self, level: int, x: Tensor) -> Tensor:
        return self.pixels.theta(level, x[level - 1] if level else None, x.shape[1])
