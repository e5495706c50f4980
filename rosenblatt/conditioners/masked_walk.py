"""Sampling passes of a masked network: each hidden unit is computed once, at the level where it is new."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from rosenblatt.conditioners.staircase import MaskedLinear
from rosenblatt.nets import ACTIVATIONS, INPUT_LIMIT, limited

if TYPE_CHECKING:
    from rosenblatt.conditioners.masked import Masked

BLOCK_UNITS = 48  # hidden units whose sums over all earlier units are taken in one product
BLOCK_NUMBERS = 384  # likewise for the numbers emitted


class MaskedWalk:
    """A differentiable pass, level by level."""

    def __init__(self, net: Masked, context: Tensor | None) -> None:
        self.net = net
        self.context = context
        self.fed: list[Tensor | None] = [None] * (len(net.layers) + 1)

    def theta(self, level: int, x: Tensor) -> Tensor:
        """Parameters of the coordinates of `level`, from the levels filled before it."""
        net = self.net
        # Units of degree `level` are new: they see exactly the coordinates filled so far.
        start, stop = net.cuts[level], net.cuts[level + 1]
        if stop > start:
            self._grow(x.index_select(-1, net.order[: net.starts[level]]), start, stop)
        fed = self.fed[-1]
        seen = x[..., :0] if fed is None else fed[..., :stop]
        begin, end = net.starts[level], net.starts[level + 1]
        numbers = net.last.rows(seen, begin * net.emitted, end * net.emitted)
        return net.parameters_of(numbers.unflatten(-1, (end - begin, net.emitted)), begin, end)

    def _grow(self, x: Tensor, start: int, stop: int) -> None:
        net = self.net
        hidden = net.first.rows(net.shown(x), start, stop)
        if net.context_in is not None and self.context is not None:
            context = limited(self.context)
            hidden = hidden + linear(context, net.context_in.weight[start:stop])
        if net.residual:
            for number in range(0, len(net.layers), 2):
                branch = net.activate(self._through(number, net.activate(hidden.clone()), start, stop))
                hidden = hidden + self._through(number + 1, net.drop(branch), start, stop)
        else:
            for number in range(len(net.layers)):
                hidden = self._through(number, net.drop(net.activate(hidden)), start, stop)
        self._feed(-1, net.activate(hidden), start)

    def _through(self, number: int, entering: Tensor, start: int, stop: int) -> Tensor:
        """Feed the new units of one masked layer and return its new outputs."""
        fed = self._feed(number, entering, start)
        return cast(MaskedLinear, self.net.layers[number]).rows(fed, start, stop)

    def _feed(self, number: int, entering: Tensor, start: int) -> Tensor:
        fed = self.fed[number]
        self.fed[number] = fed = entering if fed is None else torch.cat([fed[..., :start], entering], dim=-1)
        return fed


class MaskedColumnWalk:
    """A pass without gradients over (units, rows) buffers.

    A level is a handful of narrow products over the units that are new since its block began; what came before the
    block enters all of its units in one wide product, which is what the matrix library is fast at.
    """

    def __init__(self, net: Masked, context: Tensor | None, rows: int) -> None:
        self.net = net
        like = net.last.weight
        self.inputs = like.new_empty(net.shown.starts[-1], rows)
        layers = [net.first, *(cast(MaskedLinear, layer) for layer in net.layers)]
        self.sums = [_Sums(layer, like.new_empty(net.hidden, rows)) for layer in layers]
        emits = net.last.bias.new_empty(len(net.last.bias), rows) if net.emitted <= BLOCK_NUMBERS // 8 else None
        self.last = _Sums(net.last, emits) if emits is not None else None
        # Activated units as each masked layer sees them; a plain layer's own sums, activated in place.
        self.fed = [like.new_empty(net.hidden, rows) for _ in net.layers[::2]] if net.residual else []
        self.top = like.new_empty(net.hidden, rows) if net.residual else self.sums[-1].values
        self.shift: Tensor | None = None
        if net.context_in is not None and context is not None:
            self.shift = net.context_in.weight @ limited(context).t()
        self.block_ends = _block_ends(net.cuts, [start * net.emitted for start in net.starts])
        self.base = 0  # level at which the present block began

    def theta(self, level: int, x: Tensor) -> Tensor:
        """Parameters (rows, level size, params) of the coordinates of `level`."""
        net, emitted, starts = self.net, self.net.emitted, self.net.starts
        start, stop = net.cuts[level], net.cuts[level + 1]
        if level:
            for place in range(starts[level - 1], starts[level]):
                self._show(place, x[place])
        if level in self.block_ends:
            self._open(level, self.block_ends[level])
        if stop > start:
            self._grow(level, start, stop)
        begin, end = starts[level] * emitted, starts[level + 1] * emitted
        if self.last is not None:
            out = self.last.add(self.top, (begin, end), (net.cuts[self.base], stop))
        else:
            weight = net.last.weight[begin:end, :stop]
            out = torch.addmm(net.last.bias[begin:end].unsqueeze(-1), weight, self.top[:stop])
        numbers = out.t().unflatten(-1, (net.sizes[level], emitted))
        return net.parameters_of(numbers, starts[level], starts[level + 1])

    def _show(self, place: int, column: Tensor) -> None:
        """Let the coordinate at `place` in order enter."""
        rows = self.inputs[self.net.shown.starts[place] : self.net.shown.starts[place + 1]]
        torch.clamp(column, -INPUT_LIMIT, INPUT_LIMIT, out=rows[0])
        if len(rows) == 2:
            torch.sin(rows[0], out=rows[1])
            torch.cos_(rows[0])

    def _open(self, level: int, end: int) -> None:
        """Begin the block of levels up to `end`: give its units the sums over everything that came before."""
        net = self.net
        self.base = level
        known = start = net.cuts[level]  # units before the block are known, those from there on are its own
        stop = net.cuts[end]
        self.sums[0].open(self.inputs, (start, stop), net.shown.starts[net.starts[level]])
        if self.shift is not None:
            self.sums[0].values[start:stop] += self.shift[start:stop]
        for number, sums in enumerate(self.sums[1:]):
            sums.open(self._entering(number), (start, stop), known)
        if self.last is not None:
            self.last.open(self.top, (net.starts[level] * net.emitted, net.starts[end] * net.emitted), known)

    def _entering(self, number: int) -> Tensor:
        """What masked layer `number` is fed: activated units (hidden, rows)."""
        if not self.net.residual:
            return self.sums[number].values
        return self.fed[number // 2] if number % 2 == 0 else self.sums[number].values

    def _grow(self, level: int, start: int, stop: int) -> None:
        net, new = self.net, (start, stop)
        since = net.cuts[self.base]
        entered = net.shown.starts[net.starts[self.base]], net.shown.starts[net.starts[level]]
        hidden = self.sums[0].add(self.inputs, new, entered)
        if net.residual:
            for number in range(0, len(net.layers), 2):
                fed = self.fed[number // 2]
                _activate_into(net, hidden, fed[start:stop])
                branch = self.sums[number + 1].add(fed, new, (since, stop))
                net.activate(branch)
                hidden += self.sums[number + 2].add(self.sums[number + 1].values, new, (since, stop))
            _activate_into(net, hidden, self.top[start:stop])
            return
        for number in range(len(net.layers)):
            _activate_into(net, hidden, hidden)
            hidden = self.sums[number + 1].add(self.sums[number].values, new, (since, stop))
        _activate_into(net, hidden, hidden)


class _Sums:
    """The outputs (units, rows) of a masked layer as they add up."""

    def __init__(self, layer: MaskedLinear, values: Tensor) -> None:
        self.values = values
        self.weight = layer.weight
        self.bias = layer.bias.unsqueeze(-1)

    def open(self, fed: Tensor, rows: tuple[int, int], known: int) -> None:
        """Start `rows` from the bias and the first `known` inputs."""
        start, stop = rows
        if start < stop:
            weight = self.weight[start:stop, :known]
            torch.addmm(self.bias[start:stop], weight, fed[:known], out=self.values[start:stop])

    def add(self, fed: Tensor, rows: tuple[int, int], inputs: tuple[int, int]) -> Tensor:
        """Add what `inputs` contribute to `rows`, and return them."""
        (start, stop), (since, until) = rows, inputs
        values = self.values[start:stop]
        if since < until:
            values.addmm_(self.weight[start:stop, since:until], fed[since:until])
        return values


def _block_ends(cuts: list[int], numbers: list[int]) -> dict[int, int]:
    """Level at which each block ends, by the level at which it begins; units and numbers emitted before each level."""
    ends: dict[int, int] = {}
    start, levels = 0, len(cuts) - 1
    for level in range(1, levels + 1):
        if (
            level == levels
            or cuts[level] - cuts[start] >= BLOCK_UNITS
            or numbers[level] - numbers[start] >= BLOCK_NUMBERS
        ):
            ends[start] = level
            start = level
    return ends


def _activate_into(net: Masked, x: Tensor, out: Tensor) -> None:
    """Write the activation of `x` to `out`, which may be `x` itself."""
    if net.activation == "relu":
        torch.relu_(out if out is x else out.copy_(x))
    else:
        out.copy_(ACTIVATIONS[net.activation](x))
