"""A whole increasing network per coordinate, and all of them one network: weights in triangular blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid

from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.logspace import log_matvec, soft_bound
from rosenblatt.core.precision import full_precision
from rosenblatt.core.roots import attach_gradient, find_root
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import REAL, Mapped
from rosenblatt.elementwise.base import ROOT_TOLERANCE
from rosenblatt.elementwise.closed import log_cosh
from rosenblatt.elementwise.decoded import Decoded
from rosenblatt.nets import limited

LOG_WEIGHT_BOUND = 7.0
LOG_SKIP_BOUND = 5.0  # a layer stretches what it contracts least by e^5 on the way back
START_REACH = 2.0  # first units start with their bends spread over [-2, 2]


class BlockAutoregressive(Transform):
    """`y_i = a_i x_i + c N_i(x_1, .., x_i)`, N a tanh network whose weights are triangular in blocks of coordinates.

    Every coordinate owns `units` units in each of `layers` hidden layers. A weight between units of one coordinate is
    `exp(w)` with w smoothly bounded to [-7, 7], one from an earlier coordinate is any number, one from a later
    coordinate is zero. So N_i increases in x_i, and `d N_i / d x_i` is the product of the positive blocks and the
    slopes of the tanh between them, carried as logarithms: `log_det = sum_i log(a_i + c dN_i/dx_i)`, exact.

    A network that ends behind a tanh is bounded, and would map the line onto an interval: the density would lose what
    the base has outside. The term `a_i x_i`, with a_i > 0, makes the map onto. By default c = 1 and a_i is a number of
    each coordinate, log a_i smoothly bounded to [-5, 5]; with `gated`, c = s(g) and a_i = 1 - c for one gate g, bounded
    alike (as published, where the last layer goes without).

    `context` columns enter the first layer of every coordinate. The inverse finds one coordinate after the other, each
    by a root search in one number, and raises `InverseError` where one fails. Inputs of N saturate at +-1e6.
    Raises `OptionError` for sizes below 1.
    Reference: De Cao, Titov & Aziz, Block Neural Autoregressive Flow, UAI 2019.

    >>> layer = BlockAutoregressive(2, units=3)
    >>> x = torch.tensor([1.0, -2.0])
    >>> torch.allclose(layer.inverse(layer(x).value).value, x, atol=1e-5)
    True
    """

    def __init__(
        self, features: int, *, units: int = 8, layers: int = 2, context: int = 0, gated: bool = False
    ) -> None:
        super().__init__()
        for name, size in {"features": features, "units": units, "layers": layers}.items():
            if size < 1:
                raise OptionError(f"{name}: {size} came, an integer >= 1 was expected.")
        self.features, self.units, self.gated = features, units, gated
        widths = [1, *[units] * layers, 1]
        self.layers = nn.ModuleList(_BlockLinear(features, *pair) for pair in pairwise(widths))
        self.context_in = nn.Linear(context, features * units, bias=False) if context else None
        self.skip = nn.Parameter(torch.zeros(()) if gated else torch.full((features,), math.log(0.5)))
        self._spread(gated)

    def _spread(self, gated: bool) -> None:
        """Let the units of a coordinate bend at different places, and the whole start with a slope near 1."""
        first, *_, last = self._blocks
        with torch.no_grad():
            first.log_weight.zero_()
            first.bias.copy_(torch.linspace(-START_REACH, START_REACH, self.units).expand(self.features, -1))
            last.below.mul_(1e-2)
            last.bias.zero_()
            if gated:
                last.log_weight.add_(math.log(2))

    @property
    def _blocks(self) -> list[_BlockLinear]:
        return list(self.layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Run all coordinates through the network at once."""
        with full_precision(x):  # it would round the values, not their slopes
            rows = x.reshape(-1, self.features).t()
            hidden, log_slope, shift = limited(rows).unsqueeze(1), None, self._shift(x, context)
            for block in self._blocks:
                if log_slope is not None:
                    hidden, log_slope = _bend(hidden, log_slope)
                hidden, log_slope = _through(block.log_weights(), hidden, block.from_earlier(hidden) + shift, log_slope)
                shift = 0.0
            assert log_slope is not None
            log_skip, log_gain = self._shares()
            value, log_det = _joined(rows, (hidden.squeeze(1), log_slope.squeeze(1)), log_skip.unsqueeze(-1), log_gain)
        return Mapped(value.t().reshape(x.shape), log_det.sum(dim=0).reshape(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Find one coordinate after the other, each given those before it."""
        with full_precision(y):
            targets = y.reshape(-1, self.features).t()
            shift = self._shift(y, context)
            log_skip, log_gain = self._shares()
            known: list[list[Tensor]] = [[] for _ in self.layers]  # what each layer is fed by the coordinates found
            found, log_dets = [], []
            for number, target in enumerate(targets):
                shifts = [block.of_one(number, fed) for block, fed in zip(self._blocks, known, strict=True)]
                if isinstance(shift, Tensor):
                    shifts[0] = shifts[0] + shift[number]
                own = _Own(
                    [shifts[0].expand(-1, len(target)), *(part.expand(-1, len(target)) for part in shifts[1:])],
                    [block.log_weights()[number] for block in self._blocks],
                    log_skip[number],
                    log_gain,
                )
                x = self._solve(number, target, own)
                value, log_slope, fed = own.run(x)
                for layer, entering in zip(known, fed, strict=True):
                    layer.append(entering)
                found.append(x)
                log_dets.append(-log_slope)
            value = torch.stack(found, dim=-1).reshape(y.shape)
        return Mapped(value, torch.stack(log_dets).sum(dim=0).reshape(y.shape[:-1]))

    def _solve(self, number: int, y: Tensor, own: _Own) -> Tensor:
        """The x with y = f(x) for one coordinate, differentiable in y and in all that shapes f."""
        with torch.no_grad():
            wide = own.double()
            parts = tuple(shift.t() for shift in wide.shifts)  # row by row, as the search selects them

            def value(x: Tensor, *shifts: Tensor) -> Tensor:
                return wide.with_shifts([shift.t() for shift in shifts]).run(x)[0]

            target = y.detach().double()
            usable = torch.stack([torch.isfinite(part).all(dim=-1) for part in parts]).all(dim=0)
            target = torch.where(usable, target, torch.nan)
            try:
                root = find_root(Decoded(value, parts), target, REAL, tolerance=ROOT_TOLERANCE[y.dtype])
            except InverseError as error:
                raise InverseError(f"{error.reason} at coordinates [{number}]", error.rows) from None
        return attach_gradient(
            root.to(y.dtype), y, own.packed(), lambda x, theta: Mapped(*own.unpacked(theta).run(x)[:2])
        )

    def _shift(self, x: Tensor, context: Tensor | None) -> Tensor | float:
        """What the context adds to the first units, (features, units, rows)."""
        if self.context_in is None or context is None:
            return 0.0
        rows = limited(context).expand(*x.shape[:-1], -1).reshape(-1, context.shape[-1])
        return linear(rows, self.context_in.weight).t().reshape(self.features, self.units, -1)

    def _shares(self) -> tuple[Tensor, Tensor]:
        """log a (features,) and log c."""
        bounded = soft_bound(self.skip, LOG_SKIP_BOUND)
        if self.gated:
            return logsigmoid(-bounded).expand(self.features), logsigmoid(bounded)
        return bounded, bounded.new_zeros(())


class _BlockLinear(nn.Module):
    """From `inputs` to `outputs` units of every coordinate: positive weights inside one, free ones from earlier ones.

    The positive weights into a unit start with the sum one.
    """

    earlier: Tensor

    def __init__(self, features: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.log_weight = nn.Parameter(torch.log_softmax(torch.randn(features, outputs, inputs), dim=-1))
        self.below = nn.Parameter(torch.randn(features * outputs, features * inputs) / (features * inputs) ** 0.5)
        self.bias = nn.Parameter(0.5 * torch.randn(features, outputs))
        coordinate = torch.arange(features)
        rows, columns = coordinate.repeat_interleave(outputs), coordinate.repeat_interleave(inputs)
        mask = (rows.unsqueeze(-1) > columns).to(self.below.dtype)
        self.register_buffer("earlier", mask, persistent=False)

    def log_weights(self) -> Tensor:
        """Logarithms of the weights inside each coordinate, (features, outputs, inputs)."""
        return soft_bound(self.log_weight, LOG_WEIGHT_BOUND)

    def from_earlier(self, hidden: Tensor) -> Tensor:
        """What earlier coordinates of `hidden` (features, inputs, rows) and the bias add: (features, outputs, rows)."""
        features, _, rows = hidden.shape
        added = (self.below * self.earlier) @ hidden.reshape(features * self.inputs, rows)
        return added.reshape(features, self.outputs, rows) + self.bias.unsqueeze(-1)

    def of_one(self, number: int, fed: Sequence[Tensor]) -> Tensor:
        """The same for one coordinate, from the units (inputs, rows) of each one before it; without any, one row."""
        bias = self.bias[number].unsqueeze(-1)
        if not fed:
            return bias
        rows = slice(number * self.outputs, (number + 1) * self.outputs)
        return self.below[rows, : number * self.inputs] @ torch.cat(list(fed)) + bias


class _Own(NamedTuple):
    """The increasing function of one coordinate, given those before it."""

    shifts: list[Tensor]  # (outputs, rows) of each layer
    log_weights: list[Tensor]  # (outputs, inputs) of each layer
    log_skip: Tensor
    log_gain: Tensor

    def run(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Value and log-slope at `x` (rows,), and what each layer was fed."""
        hidden, log_slope, fed = limited(x).unsqueeze(0), None, []
        for log_weight, shift in zip(self.log_weights, self.shifts, strict=True):
            if log_slope is not None:
                hidden, log_slope = _bend(hidden, log_slope)
            fed.append(hidden)
            hidden, log_slope = _through(log_weight, hidden, shift, log_slope)
        assert log_slope is not None
        value, log_slope = _joined(x, (hidden.squeeze(0), log_slope.squeeze(0)), self.log_skip, self.log_gain)
        return value, log_slope, fed

    def with_shifts(self, shifts: list[Tensor]) -> _Own:
        """Another choice of rows."""
        return self._replace(shifts=shifts)

    def packed(self) -> Tensor:
        """All numbers as one vector."""
        return torch.cat([part.reshape(-1) for part in (*self.shifts, *self.log_weights, self.log_skip, self.log_gain)])

    def unpacked(self, vector: Tensor) -> _Own:
        """The function of this shape with the numbers of `vector`."""
        shapes = [part.shape for part in (*self.shifts, *self.log_weights, self.log_skip, self.log_gain)]
        pieces = vector.split([shape.numel() for shape in shapes])
        parts = [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        layers = len(self.shifts)
        return _Own(parts[:layers], parts[layers : 2 * layers], *parts[2 * layers :])

    def double(self) -> _Own:
        """All in float64, without gradients."""
        return self.unpacked(self.packed().detach().double())


def _through(log_weight: Tensor, hidden: Tensor, shift: Tensor, log_slope: Tensor | None) -> tuple[Tensor, Tensor]:
    """A layer's sums (*b, outputs, rows), and the logarithms of their slopes in the coordinate that owns them."""
    weight = torch.exp(log_weight)
    sums = weight @ hidden + shift
    slopes = log_weight.expand_as(sums) if log_slope is None else log_matvec(weight, log_slope)
    return sums, slopes


def _bend(sums: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
    """Take the tanh, whose slope is 1 / cosh^2."""
    return torch.tanh(sums), log_slope - 2 * log_cosh(sums)


def _joined(x: Tensor, net: tuple[Tensor, Tensor], log_skip: Tensor, log_gain: Tensor) -> tuple[Tensor, Tensor]:
    """Add the line to the net, and the slopes."""
    value, log_slope = net
    return torch.exp(log_skip) * x + torch.exp(log_gain) * value, torch.logaddexp(log_skip, log_gain + log_slope)
