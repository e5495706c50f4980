"""Masked autoregressive networks: MADE (Germain et al. 2015) and its residual form (Durkan & Nash 2019).

Hidden units are sorted by degree, so every masked weight is block lower-triangular: its zeros are not computed, and a
sample is drawn in about the work of one pass, each level computing only the units that are new there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from rosenblatt.conditioners.angles import Shown
from rosenblatt.conditioners.base import ColumnWalk, Conditioner, Walk
from rosenblatt.conditioners.heads import Head
from rosenblatt.conditioners.masked_pass import Plan
from rosenblatt.conditioners.masked_walk import MaskedColumnWalk, MaskedWalk
from rosenblatt.conditioners.staircase import REACH_STEP, MaskedLinear
from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import OptionError
from rosenblatt.nets import ACTIVATIONS, activated, limited

# Parameters per row emitted at once. Where a coordinate takes many, a part is used while it is still in the cache;
# where it takes few, a longer part saves calls.
WIDE_PART, NARROW_PART = 2560, 4096


class Masked(Conditioner):
    """Autoregressive network: theta_i is a function of the coordinates before i in `order`, and of the context.

    Arguments: `hidden` units in each of `blocks` layers (residual: blocks of two masked layers and a skip), `order` a
    permutation of the coordinates (the first one conditioned on the context alone), `dropout` inside residual blocks or
    after hidden layers, `head` a cheaper way to many parameters, `angles` the coordinates that enter as cosine and
    sine. Levels: one coordinate each, in `order`; with `parts` (at most one per coordinate) so many runs of neighbours
    in `order`, of nearly equal length, and theta_i sees those before its own. 2 parts make a coupling, and the inverse
    takes one solve for each part.
    Raises `OptionError` for an order that is no permutation, sizes below 1 or angles that are no coordinates.
    References: Germain et al., MADE, ICML 2015; Durkan & Nash, Autoregressive Energy Machines, ICML 2019.
    """

    def __init__(
        self,
        features: int,
        params: int,
        *,
        hidden: int = 128,
        blocks: int = 2,
        context: int = 0,
        dropout: float = 0.0,
        residual: bool = True,
        order: Sequence[int] | None = None,
        activation: str = "relu",
        head: Head | None = None,
        parts: int | None = None,
        angles: Sequence[int] = (),
    ) -> None:
        sizes = {"features": features, "params": params, "hidden": hidden, "blocks": blocks}
        sizes["parts"] = features if parts is None else parts
        _check_sizes(sizes, dropout, activation)
        order = list(range(features)) if order is None else list(order)
        if sorted(order) != list(range(features)):
            raise OptionError(f"order: {order} came, a permutation of 0..{features - 1} was expected.")
        levels = min(sizes["parts"], features)
        self.starts = [level * features // levels for level in range(levels + 1)]  # of each level, and the end
        super().__init__([order[start:stop] for start, stop in pairwise(self.starts)], params, context)
        self.hidden, self.dropout, self.residual, self.activation = hidden, dropout, residual, activation

        # An input of degree d is of the d-th level; output d sees hidden degrees < d, that is <= d - 1.
        inputs = torch.arange(1, levels + 1).repeat_interleave(torch.tensor(self.sizes))
        self.shown = Shown(order, angles)
        degrees = _degrees(levels, hidden, lowest=0 if context else min(1, levels - 1))
        self.emitted = params if head is None else head.emitted
        outputs = (inputs - 1).repeat_interleave(self.emitted)
        self.cuts = [0, *(int((degrees <= d).sum()) for d in range(levels))]
        widths = torch.tensor(self.shown.starts).diff()
        self.first = MaskedLinear(inputs.repeat_interleave(widths), degrees)
        self.context_in = nn.Linear(context, hidden, bias=False) if context else None
        gains = [1.0, 1e-2] * blocks if residual else [1.0] * (blocks - 1)  # residual branches start near zero
        self.layers = nn.ModuleList(MaskedLinear(degrees, degrees, gain=gain) for gain in gains)
        self.last = MaskedLinear(degrees, outputs)
        self.last_parts = self.last.parts(self.emitted, WIDE_PART if self.last.exact else NARROW_PART)
        self.head = head

    def start_at(self, theta: Tensor) -> None:
        """Emit `theta` for every coordinate, disturbed by a hundredth of the usual output weights."""
        emitted = theta if self.head is None else self.head.start_at(theta)
        with torch.no_grad():
            self.last.weight.mul_(1e-2)
            self.last.bias.copy_(emitted.repeat(self.features))

    def parts(self, x: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """Parameters of neighbouring coordinates, all from one pass."""
        start = 0
        for numbers in self._outputs(self.shown(x), self._shift(context)):
            stop = start + numbers.shape[-1] // self.emitted
            yield self.parameters_of(numbers.reshape(*numbers.shape[:-1], stop - start, self.emitted), start, stop)
            start = stop

    def parameters_of(self, numbers: Tensor, start: int, stop: int) -> Tensor:
        """Parameters of coordinates [start, stop) in level order from the numbers the last layer emits for them."""
        return numbers if self.head is None else self.head(numbers, start, stop)

    def _shift(self, context: Tensor | None) -> Tensor | None:
        """What the context adds to the first hidden units."""
        if self.context_in is None or context is None:
            return None
        return self.context_in(limited(context))  # type: ignore[no-any-return]

    def _outputs(self, x: Tensor, shift: Tensor | None) -> Iterable[Tensor]:
        written_out = self.activation == "relu" and runs_eagerly() and not x.is_meta
        if not written_out or torch.is_autocast_enabled(x.device.type):
            return [self.last(self._last_hidden(x, shift))]
        batch = x.shape[:-1]
        layers = [self.first, *self.layers, self.last]
        plan = Plan(layers, self.last_parts, self.residual, self.dropout if self.training else 0.0)
        flat = None if shift is None else shift.expand(*batch, self.hidden).reshape(-1, self.hidden)
        return (part.reshape(*batch, part.shape[-1]) for part in plan.run(x.reshape(-1, x.shape[-1]), flat))

    def _last_hidden(self, x: Tensor, shift: Tensor | None) -> Tensor:
        """The hidden units that the last layer sees, by differentiable operations of any activation."""
        activation = ACTIVATIONS[self.activation]
        hidden: Tensor = self.first(x) if shift is None else self.first(x) + shift
        if self.residual:
            for before, after in zip(self.layers[::2], self.layers[1::2], strict=True):
                hidden = hidden + after(self.drop(activation(before(activation(hidden)))))
        else:
            for layer in self.layers:
                hidden = layer(self.drop(activation(hidden)))
        return activation(hidden)

    def activate(self, x: Tensor) -> Tensor:
        """Apply the activation, in place where no gradient needs `x`."""
        return activated(x, self.activation)

    def drop(self, x: Tensor) -> Tensor:
        """Apply dropout while training."""
        return dropout(x, self.dropout, self.training) if self.dropout else x

    def walk(self, context: Tensor | None = None) -> Walk:
        """Begin a pass in which each level computes only the hidden units that are new there."""
        return MaskedWalk(self, context)

    def column_walk(self, context: Tensor | None, rows: int) -> ColumnWalk:
        """Begin such a pass without gradients, in place."""
        if self.training and self.dropout:
            return super().column_walk(context, rows)
        return MaskedColumnWalk(self, context, rows)


def _degrees(levels: int, hidden: int, lowest: int) -> Tensor:
    """Ascending degrees of the hidden units; degree 0 sees the context alone, so that the first level can too."""
    span = max(1, levels - lowest)
    if hidden >= span:
        tile = REACH_STEP if hidden >= span * REACH_STEP else 1  # blocks on tiles where they are large enough
        counts = [hidden // span // tile * tile] * span
        for number in range((hidden - sum(counts)) // tile):
            counts[number] += tile
        counts[-1] += hidden - sum(counts)
        return torch.arange(lowest, lowest + span).repeat_interleave(torch.tensor(counts))
    # Spread, so that the last degree is there and no level goes unseen.
    return torch.linspace(levels - 1, lowest, hidden, dtype=torch.float64).round().long().flip(0)


def _check_sizes(sizes: dict[str, int], dropout: float, activation: str) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise OptionError(f"dropout: {dropout} came, a share in [0, 1) was expected.")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise OptionError(f"activation: '{activation}' came; choose one of {', '.join(ACTIVATIONS)}.")
