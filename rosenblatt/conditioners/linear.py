"""The autoregressive network without hidden units: parameters linear in the coordinates before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rosenblatt.conditioners.base import Conditioner, Walk
from rosenblatt.conditioners.staircase import MaskedLinear
from rosenblatt.core.errors import OptionError
from rosenblatt.nets import limited


class LinearMasked(Conditioner):
    """`theta_i = W_i x_<i + V_i context + b_i`, x_<i being the coordinates before i in `order`.

    Shifts that are linear make a Gaussian with full covariance of an affine layer. Levels: one coordinate each.
    Raises `OptionError` for an order that is no permutation or sizes below 1.

    >>> LinearMasked(3, 2)(torch.zeros(5, 3)).shape
    torch.Size([5, 3, 2])
    """

    def __init__(self, features: int, params: int, *, context: int = 0, order: Sequence[int] | None = None) -> None:
        order = list(range(features)) if order is None else list(order)
        if sorted(order) != list(range(features)):
            raise OptionError(f"order: {order} came, a permutation of 0..{features - 1} was expected.")
        super().__init__([[coordinate] for coordinate in order], params, context)
        inputs = torch.arange(1, features + 1)
        self.linear = MaskedLinear(inputs, (inputs - 1).repeat_interleave(params))
        self.context_in = nn.Linear(context, features * params, bias=False) if context else None

    def start_at(self, theta: Tensor) -> None:
        """Emit `theta` for every coordinate, disturbed by a hundredth of the usual weights."""
        with torch.no_grad():
            self.linear.weight.mul_(1e-2)
            self.linear.bias.copy_(theta.repeat(self.features))
            if self.context_in is not None:
                self.context_in.weight.mul_(1e-2)

    def parts(self, x: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """All parameters at once."""
        theta = self.linear(limited(x))
        if self.context_in is not None and context is not None:
            theta = theta + self.context_in(limited(context))
        yield theta.reshape(*theta.shape[:-1], self.features, self.params)

    def walk(self, context: Tensor | None = None) -> Walk:
        """Begin a pass in which each level computes its own parameters alone."""
        return _LinearWalk(self, context)


class _LinearWalk:
    def __init__(self, conditioner: LinearMasked, context: Tensor | None) -> None:
        self.conditioner = conditioner
        shift = None
        if conditioner.context_in is not None and context is not None:
            shift = conditioner.context_in(limited(context))
        self.shift = shift

    def theta(self, level: int, x: Tensor) -> Tensor:
        start, stop = level * self.conditioner.params, (level + 1) * self.conditioner.params
        before = x.index_select(-1, self.conditioner.order[:level])
        theta = self.conditioner.linear.rows(limited(before), start, stop)
        if self.shift is not None:
            theta = theta + self.shift[..., start:stop]
        return theta.unsqueeze(-2)
