"""Masked autoregressive networks: MADE (Germain et al. 2015) and its residual form (Durkan & Nash 2019).

Hidden units are sorted by degree, so every masked weight is block lower-triangular and a sample can be drawn in about
the work of one pass: at each level only the units that are new there are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from rosenblatt.conditioners.base import Conditioner
from rosenblatt.core.errors import OptionError
from rosenblatt.nets import INPUT_LIMIT

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "silu": nn.functional.silu, "elu": nn.functional.elu}


class MaskedLinear(nn.Linear):
    """A linear map whose output j sees input i only where `in_degrees[i] <= out_degrees[j]`.

    Both degree lists ascend, so row j sees its first `reach[j]` inputs: a staircase. The rows are computed in a few
    groups, each over the inputs that its last row sees, which leaves out almost half of the zeros.
    """

    GROUPS = 8
    mask: Tensor

    def __init__(self, in_degrees: Tensor, out_degrees: Tensor) -> None:
        super().__init__(len(in_degrees), len(out_degrees))
        mask = in_degrees.unsqueeze(0) <= out_degrees.unsqueeze(1)
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)
        self.reach: list[int] = mask.sum(dim=1).tolist()
        self.groups = self._grouped_rows()

    def _grouped_rows(self) -> list[int]:
        """Sizes of row groups that end where the reach changes, at most `GROUPS` of them."""
        ends = [row for row in range(1, len(self.reach)) if self.reach[row] != self.reach[row - 1]]
        ends.append(len(self.reach))
        count = min(self.GROUPS, len(ends))
        chosen = [ends[(number + 1) * len(ends) // count - 1] for number in range(count)]
        return [stop - start for start, stop in zip([0, *chosen[:-1]], chosen, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the masked weights."""
        outputs, start = [], 0
        for weight, bias in zip(self.weight.split(self.groups), self.bias.split(self.groups), strict=True):
            stop = start + len(weight)
            reach = self.reach[stop - 1]
            visible = weight[:, :reach]
            if self.reach[start] != reach:
                visible = visible * self.mask[start:stop, :reach]
            outputs.append(linear(x[..., :reach], visible, bias))
            start = stop
        return torch.cat(outputs, dim=-1)

    def initialise(self, gain: float = 1.0) -> None:
        """Draw weights of variance 2 gain^2 / (visible inputs), row by row, and zero the bias."""
        with torch.no_grad():
            visible = self.mask.sum(dim=1, keepdim=True).clamp(min=1)
            self.weight.normal_().mul_(gain * (2.0 / visible).sqrt())
            self.bias.zero_()

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Outputs [start, stop), which must share one reach, from the inputs they see."""
        reach = self.reach[start]
        return linear(x[..., :reach], self.weight[start:stop, :reach], self.bias[start:stop])


class Masked(Conditioner):
    """Autoregressive network: theta_i is a function of the coordinates before i in `order`, and of the context.

    Arguments: `hidden` units in each of `blocks` layers (residual: blocks of two masked layers and a skip), `order` a
    permutation of the coordinates (the first one conditioned on the context alone), `dropout` inside residual blocks or
    after hidden layers. Levels: one coordinate each, in `order`.
    Raises `OptionError` for an order that is no permutation or sizes below 1.
    References: Germain et al., MADE, ICML 2015; Durkan & Nash, Autoregressive Energy Machines, ICML 2019.
    """

    order: Tensor
    position: Tensor

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
    ) -> None:
        super().__init__()
        sizes = {"features": features, "params": params, "hidden": hidden, "blocks": blocks}
        _check_sizes(sizes, dropout, activation)
        order = list(range(features)) if order is None else list(order)
        if sorted(order) != list(range(features)):
            raise OptionError(f"order: {order} came, a permutation of 0..{features - 1} was expected.")
        self.features, self.params, self.context, self.hidden = features, params, context, hidden
        self.dropout, self.residual, self.activation = dropout, residual, activation
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("position", torch.argsort(torch.tensor(order)), persistent=False)

        # An input of degree d is the d-th in order; output d sees hidden degrees < d, that is <= d - 1.
        inputs = torch.arange(1, features + 1)
        # Degree 0 sees the context alone, so that the first coordinate depends on it too.
        lowest = 0 if context else min(1, features - 1)
        span = max(1, features - lowest)
        if hidden >= span:
            degrees = (torch.arange(hidden) % span + lowest).sort().values
        else:  # spread, so that the last degree is there and no coordinate goes unseen
            degrees = torch.linspace(features - 1, lowest, hidden, dtype=torch.float64).round().long().flip(0)
        outputs = (inputs - 1).repeat_interleave(params)
        self.cuts = [0, *(int((degrees <= d).sum()) for d in range(features))]
        self.first = MaskedLinear(inputs, degrees)
        self.context_in = nn.Linear(context, hidden, bias=False) if context else None
        count = 2 * blocks if residual else blocks - 1
        self.layers = nn.ModuleList(MaskedLinear(degrees, degrees) for _ in range(count))
        self.last = MaskedLinear(degrees, outputs)
        self._initialise()

    def _initialise(self) -> None:
        """Scale each row by what its mask lets through; residual branches start near zero."""
        for number, layer in enumerate([self.first, *self.layers, self.last]):
            closes_branch = self.residual and 0 < number <= len(self.layers) and number % 2 == 0
            layer.initialise(gain=1e-2 if closes_branch else 1.0)

    def start_at(self, theta: Tensor) -> None:
        """Emit `theta` for every coordinate, disturbed by a hundredth of the usual output weights."""
        with torch.no_grad():
            self.last.weight.mul_(1e-2)
            self.last.bias.copy_(theta.repeat(self.features))

    @property
    def levels(self) -> tuple[Tensor, ...]:
        """One coordinate per level, in `order`."""
        return tuple(self.order.unsqueeze(-1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters (*batch, features, params) of every coordinate in one pass."""
        x = x.index_select(-1, self.order).clamp(-INPUT_LIMIT, INPUT_LIMIT)
        hidden = self.first(x)
        if self.context_in is not None and context is not None:
            hidden = hidden + self.context_in(context.clamp(-INPUT_LIMIT, INPUT_LIMIT))
        activation = ACTIVATIONS[self.activation]
        if self.residual:
            for before, after in zip(self.layers[::2], self.layers[1::2], strict=True):
                branch = activation(before(activation(hidden)))
                hidden = hidden + after(self.drop(branch))
        else:
            for layer in self.layers:
                hidden = layer(self.drop(activation(hidden)))
        theta: Tensor = self.last(activation(hidden))
        grouped: Tensor = theta.reshape(*theta.shape[:-1], self.features, self.params)
        return grouped.index_select(-2, self.position)

    def drop(self, x: Tensor) -> Tensor:
        """Apply dropout while training."""
        return dropout(x, self.dropout, self.training) if self.dropout else x

    def walk(self, context: Tensor | None = None) -> _MaskedWalk:
        """Begin a pass in which each level computes only the hidden units that are new there."""
        return _MaskedWalk(self, context)


class _MaskedWalk:
    """What each masked layer has been fed by the levels passed so far."""

    def __init__(self, net: Masked, context: Tensor | None) -> None:
        self.net = net
        self.context = context
        self.fed: list[Tensor | None] = [None] * (len(net.layers) + 1)

    def theta(self, level: int, x: Tensor) -> Tensor:
        """Parameters of the coordinate of `level`, from the coordinates filled before it."""
        net = self.net
        # Units of degree `level` are new: they see exactly the coordinates filled so far.
        start, stop = net.cuts[level], net.cuts[level + 1]
        if stop > start:
            self._grow(x.index_select(-1, net.order[:level]), start, stop)
        fed = self.fed[-1]
        seen = x[..., :0] if fed is None else fed[..., :stop]
        return net.last.rows(seen, level * net.params, (level + 1) * net.params).unsqueeze(-2)

    def _grow(self, x: Tensor, start: int, stop: int) -> None:
        net, activation = self.net, ACTIVATIONS[self.net.activation]
        hidden = net.first.rows(x.clamp(-INPUT_LIMIT, INPUT_LIMIT), start, stop)
        if net.context_in is not None and self.context is not None:
            context = self.context.clamp(-INPUT_LIMIT, INPUT_LIMIT)
            hidden = hidden + linear(context, net.context_in.weight[start:stop])
        if net.residual:
            for number in range(0, len(net.layers), 2):
                branch = activation(self._through(number, activation(hidden), start, stop))
                hidden = hidden + self._through(number + 1, net.drop(branch), start, stop)
        else:
            for number in range(len(net.layers)):
                hidden = self._through(number, net.drop(activation(hidden)), start, stop)
        self._feed(-1, activation(hidden), start)

    def _through(self, number: int, entering: Tensor, start: int, stop: int) -> Tensor:
        """Feed the new units of one masked layer and return its new outputs."""
        fed = self._feed(number, entering, start)
        return cast(MaskedLinear, self.net.layers[number]).rows(fed, start, stop)

    def _feed(self, number: int, entering: Tensor, start: int) -> Tensor:
        """Append to what a layer has been fed: in place where no gradient needs the past."""
        fed = self.fed[number]
        if torch.is_grad_enabled():
            fed = entering if fed is None else torch.cat([fed[..., :start], entering], dim=-1)
        else:
            if fed is None:
                fed = entering.new_empty(*entering.shape[:-1], self.net.hidden)
            fed[..., start : start + entering.shape[-1]] = entering
        self.fed[number] = fed
        return fed


def _check_sizes(sizes: dict[str, int], dropout: float, activation: str) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise OptionError(f"dropout: {dropout} came, a share in [0, 1) was expected.")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise OptionError(f"activation: '{activation}' came; choose one of {', '.join(ACTIVATIONS)}.")
