"""Causal networks of images: shifted convolutions, gated blocks, attention, and the channels of one pixel.

Two streams carry what a pixel may see. The *vertical* one at row i knows image rows before i; the *horizontal* one at
(i, j) knows these and the pixels left of j in row i. Windows reach only up and to the left, so that no weight has to be
masked, and weights are normalised one by one, never by statistics of an image. Each stream is a U-net of gated
residual blocks: `h + a s(b)` with `a, b` from two convolutions of `[elu(h), elu(-h)]`.

A network runs in a `Mode`: all places at once, or row by row and pixel by pixel from what is kept of earlier ones.
References: van den Oord et al., Conditional Image Generation with PixelCNN Decoders, NeurIPS 2016 (the two streams);
Salimans et al., PixelCNN++, ICLR 2017 (blocks, U-net); Salimans & Kingma, Weight Normalization, NeurIPS 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, elu, linear, pad, pixel_shuffle, scaled_dot_product_attention

from rosenblatt.core.eager import runs_eagerly

# `[elu(x), elu(-x)]` of normal numbers has mean square 0.645; this gain makes a random combination of unit variance.
GAIN = 0.645**-0.5
# Of the numbers of a direction at the start. Their common size does not matter to the map, but to how far a step of
# Adam, which is as long for every number, turns the direction; from 1 the usual rates take thousands of steps.
START = 0.05


def both_signs(x: Tensor) -> Tensor:
    """`[elu(x), elu(-x)]`: twice the channels (axis 1), so that no unit is without a slope."""
    return elu(torch.cat([x, -x], dim=1))


class Normed(nn.Module):
    """Weights `gain v / |v|` for each output, with a bias (Salimans & Kingma 2016)."""

    def __init__(self, outputs: int, *inputs: int, gain: float) -> None:
        super().__init__()
        self.direction = nn.Parameter(START * torch.randn(outputs, *inputs))
        self.gain = nn.Parameter(torch.full((outputs,), gain))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> Tensor:
        """The weights themselves."""
        flat = self.direction.flatten(1)
        scale = self.gain / torch.linalg.vector_norm(flat, dim=1)
        weight: Tensor = (flat * scale.unsqueeze(1)).view_as(self.direction)
        return weight


@dataclass(frozen=True)
class Window:
    """Rows i - top .. i - bottom and columns j - left .. j + right around (i, j)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.top - self.bottom + 1, self.left + self.right + 1

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """What to put around an image, as `pad` takes it; negative numbers cut."""
        return self.left, self.right, self.top, -self.bottom


ABOVE = Window(1, 0, 1, 1)  # of the vertical stream, whose row i knows no pixel of row i
LEFT = Window(1, 0, 1, 0)  # of the horizontal stream
TWO_ROWS_ABOVE, ROW_ABOVE, COLUMN_LEFT = Window(2, 1, 1, 1), Window(1, 1, 1, 1), Window(1, 0, 1, -1)  # of the image


class Convolution(Normed):
    """A convolution that sees a `window`, with a stride in both directions."""

    def __init__(self, inputs: int, outputs: int, window: Window, *, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__(outputs, inputs, *window.size, gain=gain)
        self.window, self.stride = window, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, inputs, H, W) to (rows, outputs, H / stride, W / stride), rounded up."""
        return conv2d(pad(x, self.window.padding), self.weight(), self.bias, self.stride)


class Pointwise(Normed):
    """The same linear map at every place."""

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0) -> None:
        super().__init__(outputs, inputs, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        """Map (rows, inputs, ...) to (rows, outputs, ...)."""
        return mixed(x, self.weight(), self.bias)


def mixed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map of axis 1, whatever axes follow."""
    if x.ndim == 2:
        return linear(x, weight, bias)
    if x.ndim == 4:
        return conv2d(x, weight[:, :, None, None], bias)
    return torch.matmul(weight, x) + bias.unsqueeze(1)


class Grow(Pointwise):
    """Twice the rows and columns: each place becomes four, by a linear map for each."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 4 * width)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (rows, width, H, W) to (rows, width, *size); `size` cuts a last row or column."""
        grown = pixel_shuffle(super().forward(x), 2)
        return grown if size is None else grown[..., : size[0], : size[1]]


class Mode(Protocol):
    """How a network is run: at all places at once, or at the next one."""

    depth: int  # stages that have something to compute

    def convolve(self, conv: Convolution, x: Tensor) -> Tensor:
        """Apply a convolution."""

    def remember(self, conv: Convolution, x: Tensor) -> None:
        """Keep what a convolution with a stride will look at from its next place."""

    def mix(self, layer: Pointwise, x: Tensor) -> Tensor:
        """Apply a linear map of channels."""

    def grow(self, layer: Grow, x: Tensor, stage: int) -> Tensor:
        """Bring what a coarser stage knows to `stage`."""

    def attend(self, layer: Attention, x: Tensor) -> Tensor:
        """Apply attention."""


class Whole:
    """All places at once; `sizes` are rows and columns of each stage."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes, self.depth = sizes, len(sizes)

    def convolve(self, conv: Convolution, x: Tensor) -> Tensor:
        """Apply a convolution."""
        return conv(x)  # type: ignore[no-any-return]

    def remember(self, conv: Convolution, x: Tensor) -> None:
        """Nothing has to be kept."""

    def mix(self, layer: Pointwise, x: Tensor) -> Tensor:
        """Apply a linear map of channels."""
        return layer(x)  # type: ignore[no-any-return]

    def grow(self, layer: Grow, x: Tensor, stage: int) -> Tensor:
        """Bring what a coarser stage knows to `stage`."""
        return layer(x, self.sizes[stage])  # type: ignore[no-any-return]

    def attend(self, layer: Attention, x: Tensor) -> Tensor:
        """Apply attention."""
        return layer(x)  # type: ignore[no-any-return]


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`softmax(q k' / sqrt(d)) v` (rows, heads, places, d), each place over itself and those before it."""
    if runs_eagerly():
        return scaled_dot_product_attention(query, key, value, is_causal=True)
    later = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).triu(1)
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(later, -torch.inf), dim=-1) @ value


class Attention(nn.Module):
    """`h + W softmax(q k' / sqrt(d)) v` over this place and those before it, in the order of reading.

    What a place of the horizontal stream knows, all later ones may know, so a place looks at itself too; `heads`
    divides `width`.
    Reference: Chen et al., PixelSNAIL, ICML 2018.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.enter = Pointwise(2 * width, 3 * width, gain=GAIN)
        self.leave = Pointwise(width, width, gain=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within (rows, width, H, W)."""
        query, key, value = self.split(self.enter(both_signs(x)))
        seen = causal_attention(query, key, value)
        return x + self.leave(seen.transpose(2, 3).reshape(x.shape))  # type: ignore[no-any-return]

    def split(self, entered: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (rows, heads, places, width / heads) of (rows, 3 width, ...)."""
        places = entered.flatten(2) if entered.ndim > 2 else entered.unsqueeze(-1)
        parts: Tensor = places.unflatten(1, (3, self.heads, -1)).transpose(3, 4)
        return parts.unbind(1)


class GatedBlock(nn.Module):
    """`h + a s(b)`, `[a, b] = C2 drop(f(C1 f(h) + S f(beside) + U context))`, `f(h) = [elu(h), elu(-h)]`."""

    def __init__(self, width: int, window: Window, *, beside: int, context: int, dropout: float) -> None:
        super().__init__()
        self.first = Convolution(2 * width, width, window, gain=GAIN)
        self.side = Pointwise(2 * beside, width, gain=GAIN) if beside else None
        self.context = nn.Linear(context, width, bias=False) if context else None
        self.drop = nn.Dropout(dropout)
        self.second = Convolution(2 * width, 2 * width, window, gain=0.1 * GAIN)

    def forward(self, x: Tensor, beside: Tensor | None, context: Tensor | None, mode: Mode) -> Tensor:
        """Run the block on (rows, width, ...)."""
        hidden = mode.convolve(self.first, both_signs(x))
        if self.side is not None and beside is not None:
            hidden = hidden + mode.mix(self.side, both_signs(beside))
        if self.context is not None and context is not None:
            given = self.context(context)
            hidden = hidden + given.reshape(*given.shape, *[1] * (x.ndim - 2))
        gated, gate = mode.convolve(self.second, self.drop(both_signs(hidden))).chunk(2, dim=1)
        return x + gated * torch.sigmoid(gate)


@dataclass
class Trace:
    """What the blocks of a stream put out, by stage: on the way down (after what entered) and on the way up."""

    downs: list[list[Tensor]]
    ups: list[list[Tensor]]

    @staticmethod
    def empty(stages: int) -> Trace:
        """Nothing yet."""
        return Trace([[] for _ in range(stages)], [[] for _ in range(stages)])


class Stream(nn.Module):
    """A causal U-net: `blocks` blocks a stage on the way down, the same and short-cuts from them on the way up."""

    def __init__(
        self, width: int, window: Window, *, blocks: int, stages: int, horizontal: bool, heads: int, **options: Any
    ) -> None:
        super().__init__()
        beside = width if horizontal else 0
        self.stages = stages

        def some(count: int, beside: int) -> nn.ModuleList:
            return nn.ModuleList([GatedBlock(width, window, beside=beside, **options) for _ in range(count)])

        self.down = nn.ModuleList([some(blocks, beside) for _ in range(stages)])
        counts = [blocks + 1] * (stages - 1) + [blocks]
        self.up = nn.ModuleList([some(count, width + beside) for count in counts])
        self.halve = nn.ModuleList([Convolution(width, width, window, stride=2) for _ in range(stages - 1)])
        self.grow = nn.ModuleList([Grow(width) for _ in range(stages - 1)])
        self.attention = Attention(width, heads) if heads else None

    def forward(
        self, x: Tensor, context: Tensor | None, mode: Mode, trace: Trace, beside: Trace | None = None
    ) -> Tensor:
        """Run from what entered to the end, `beside` a stream that ran before; `trace` keeps what the blocks put out.

        With fewer stages than all (`mode.depth`) it goes up again from what the deeper ones had put out before.
        """
        for stage in range(mode.depth):
            entered = x if stage == 0 else mode.convolve(self.halve[stage - 1], x)  # type: ignore[arg-type]
            outputs = [entered]
            blocks: nn.ModuleList = self.down[stage]  # type: ignore[assignment]
            for number, block in enumerate(blocks, start=1):
                side = None if beside is None else beside.downs[stage][number]
                outputs.append(block(outputs[-1], side, context, mode))
            if stage == self.stages - 1 and self.attention is not None:
                outputs[-1] = mode.attend(self.attention, outputs[-1])
            trace.downs[stage], x = outputs, outputs[-1]
        if mode.depth < self.stages:
            mode.remember(self.halve[mode.depth - 1], x)  # type: ignore[arg-type]
        for stage in reversed(range(mode.depth)):
            skips = list(trace.downs[stage])
            if stage == self.stages - 1:
                x = skips.pop()
            else:
                x = mode.grow(self.grow[stage], trace.ups[stage + 1][-1], stage)  # type: ignore[arg-type]
            outputs = []
            blocks = self.up[stage]  # type: ignore[assignment]
            for number, block in enumerate(blocks):
                side = skips.pop() if beside is None else torch.cat([beside.ups[stage][number], skips.pop()], dim=1)
                x = block(x, side, context, mode)
                outputs.append(x)
            trace.ups[stage] = outputs
        return x
