"""The two-stream network from pixel to pixel: each row of the vertical stream and each pixel of the other once.

What a convolution will look at again is kept: one row for the vertical stream, one row and the pixel to the left for
the horizontal one. A coarser stage has something new only at every second row and column of the stage above it.
Reference: Ramachandran et al., Fast Generation for Convolutional Autoregressive Models, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, pad, scaled_dot_product_attention

from rosenblatt.conditioners.causal_nets import (
    Attention,
    Convolution,
    Grow,
    Normed,
    Pointwise,
    Trace,
    both_signs,
    mixed,
)

if TYPE_CHECKING:
    from rosenblatt.conditioners.pixelcnn import PixelCNN


class _Places:
    """What both modes share: weights computed once, and which stages have something new."""

    def __init__(self, stages: int) -> None:
        self.stages, self.depth = stages, stages
        self.weights: dict[Normed, Tensor] = {}
        self.grown: dict[tuple[Grow, int], Tensor] = {}

    def weight(self, layer: Normed) -> Tensor:
        """The weights of a layer."""
        if layer not in self.weights:
            self.weights[layer] = layer.weight()
        return self.weights[layer]

    def fresh_stages(self, *places: int) -> int:
        """How many stages have something new at a row, or at a row and a column."""
        place = 0
        for one in places:
            place |= one
        return next((stage + 1 for stage in range(self.stages - 1) if place >> stage & 1), self.stages)

    def mix(self, layer: Pointwise, x: Tensor) -> Tensor:
        """Apply a linear map of channels."""
        return mixed(x, self.weight(layer), layer.bias)

    def four_places(self, layer: Grow, x: Tensor, stage: int, column: int) -> Tensor:
        """What a coarse place becomes, (rows, width, 2, 2, ...): computed where it is new, else looked up."""
        if self.depth > stage + 1:
            self.grown[layer, column] = self.mix(layer, x).unflatten(1, (-1, 2, 2))
        return self.grown[layer, column]


class _Rows(_Places):
    """The vertical stream at its next row; tensors are (rows, channels, columns)."""

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__(len(sizes))
        self.widths = [width for _, width in sizes]
        self.before: dict[Convolution, Tensor] = {}
        self.row = 0

    def begin(self, row: int) -> None:
        """Go to a row."""
        self.row, self.depth = row, self.fresh_stages(row)

    def convolve(self, conv: Convolution, x: Tensor) -> Tensor:
        """Look at the row before and at this one."""
        before = self.before.get(conv)
        self.remember(conv, x)
        return self.seen(conv, [torch.zeros_like(x) if before is None else before, x])

    def remember(self, conv: Convolution, x: Tensor) -> None:
        """Keep a row."""
        self.before[conv] = x

    def seen(self, conv: Convolution, rows: Sequence[Tensor]) -> Tensor:
        """Apply a convolution to the rows of its window."""
        window = pad(torch.stack(list(rows), dim=2), (conv.window.left, conv.window.right))
        return conv2d(window, self.weight(conv), conv.bias, conv.stride).squeeze(2)

    def grow(self, layer: Grow, x: Tensor, stage: int) -> Tensor:
        """Spread a coarser row over the columns of a finer one."""
        own = self.four_places(layer, x, stage, 0)[:, :, self.row >> stage & 1]
        return own.transpose(2, 3).flatten(2)[..., : self.widths[stage]]

    def attend(self, layer: Attention, x: Tensor) -> Tensor:
        """Leave everything: the vertical stream has no attention."""
        return x


class _Cells(_Places):
    """The horizontal stream at its next pixel; tensors are (rows, channels)."""

    def __init__(self, stages: int) -> None:
        super().__init__(stages)
        self.kept: dict[Convolution, tuple[int, list[Tensor], list[Tensor]]] = {}
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.row = self.column = 0

    def begin(self, row: int, column: int) -> None:
        """Go to a pixel."""
        self.row, self.column, self.depth = row, column, self.fresh_stages(row, column)

    def weight(self, layer: Normed) -> Tensor:
        """The weights of a layer; of a convolution for the channels of all places in its window side by side."""
        if layer not in self.weights:
            weight = layer.weight()
            self.weights[layer] = weight.permute(0, 2, 3, 1).flatten(1) if isinstance(layer, Convolution) else weight
        return self.weights[layer]

    def convolve(self, conv: Convolution, x: Tensor) -> Tensor:
        """Look at this place, the one to the left, and the two above them."""
        self.remember(conv, x)
        _, above, here = self.kept[conv]
        none, place = torch.zeros_like(x), len(here) - 1
        cells = [
            (row[column] if column >= 0 and row else none) for row in (above, here) for column in (place - 1, place)
        ]
        return linear(torch.cat(cells, dim=1), self.weight(conv), conv.bias)

    def remember(self, conv: Convolution, x: Tensor) -> None:
        """Keep a place, in the row that it belongs to."""
        row, above, here = self.kept.get(conv, (self.row, [], []))
        if row != self.row:
            above, here = here, []
        here.append(x)
        self.kept[conv] = (self.row, above, here)

    def grow(self, layer: Grow, x: Tensor, stage: int) -> Tensor:
        """Take this pixel from the four that a coarser place becomes."""
        row, column = self.row >> stage, self.column >> stage
        return self.four_places(layer, x, stage, column >> 1)[:, :, row & 1, column & 1]

    def attend(self, layer: Attention, x: Tensor) -> Tensor:
        """Attend to this place and those before it."""
        query, key, value = layer.split(self.mix(layer.enter, both_signs(x)))
        self.keys.append(key)
        self.values.append(value)
        seen = scaled_dot_product_attention(query, torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2))
        return x + self.mix(layer.leave, seen.flatten(1))


class Steps:
    """A pass of a `PixelCNN` from pixel to pixel."""

    def __init__(self, net: PixelCNN, context: Tensor | None) -> None:
        self.net, self.context = net, context
        stages = len(net.stage_sizes)
        self.rows, self.cells = _Rows(net.stage_sizes), _Cells(stages)
        self.above, self.trace = Trace.empty(stages), Trace.empty(stages)
        self.image: list[list[Tensor]] = [[]]  # the rows of planes that are looked at, the last two of them finished
        self.row_entering = net.place  # of the present row, from the one above it
        self.count = 0

    def next(self, pixel: Tensor | None, rows: int) -> Tensor:
        """What the next pixel may know, given the `pixel` before it."""
        net = self.net
        row, column = divmod(self.count, net.columns)
        if pixel is not None:
            place = net.place.flatten(1)[:, self.count - 1].to(pixel).expand(rows, -1)
            self.image[-1].append(torch.cat([pixel, place], dim=1))
        none = net.first_left.bias.new_zeros(rows, net.channels + len(net.place))
        if column == 0:
            self._begin_row(row, none)
        self.count += 1
        self.cells.begin(row, column)
        left = [(line[column - 1] if column and line else none) for line in self.image[-2:]]
        entering = self.row_entering[:, :, column] + linear(
            torch.cat(left, dim=1), self.cells.weight(net.first_left), net.first_left.bias
        )
        state: Tensor = net.horizontal(entering, self.context, self.cells, self.trace, self._beside(column))
        return state

    def _begin_row(self, row: int, none: Tensor) -> None:
        """Run the vertical stream for a row, from the image rows above it."""
        net = self.net
        if row:
            self.image = [*self.image[-2:], []]
        else:
            self.image = [[], [], []]
        nothing = none.unsqueeze(2).expand(-1, -1, net.columns)
        lines = [torch.stack(line, dim=2) if line else nothing for line in self.image[:2]]
        self.rows.begin(row)
        entering = self.rows.seen(net.first_above, lines)
        self.row_entering = self.rows.seen(net.first_row, lines[1:])
        net.vertical(entering, self.context, self.rows, self.above)

    def _beside(self, column: int) -> Trace:
        """What the vertical stream puts out in this column, for the stages that have something new."""
        cut = Trace.empty(len(self.above.downs))
        for stage in range(self.cells.depth):
            place = column >> stage
            cut.downs[stage] = [x[:, :, place] for x in self.above.downs[stage]]
            cut.ups[stage] = [x[:, :, place] for x in self.above.ups[stage]]
        return cut
