"""A recurrent network along the coordinates: what is known of the earlier ones is one state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rosenblatt.conditioners.base import Conditioner, Walk
from rosenblatt.core.errors import OptionError
from rosenblatt.nets import limited


class Recurrent(Conditioner):
    """`theta_i = V s_{i-1} + b_i` with `s_i = GRU(s_{i-1}, x_i)`: one cell and one V for all coordinates.

    `r, u = s(W x_i + a_i + U s_{i-1})`, `n = tanh(W' x_i + a'_i + r * U' s_{i-1})`, `s_i = u s_{i-1} + (1 - u) n`: the
    number of weights grows with the coordinates only by the biases a_i and b_i. `hidden` is the length of the state,
    which starts at 0, or with `context` at the tanh of a linear map of it. `order` is a permutation of the coordinates.
    Levels: one coordinate each. A pass takes one step after the other, `features` of them in both directions.
    Raises `OptionError` for an order that is no permutation or sizes below 1.
    References: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014; as a conditioner:
    Oliva et al., Transformation Autoregressive Networks, ICML 2018.

    >>> Recurrent(3, 2, hidden=8)(torch.zeros(5, 3)).shape
    torch.Size([5, 3, 2])
    """

    def __init__(
        self, features: int, params: int, *, hidden: int = 32, context: int = 0, order: Sequence[int] | None = None
    ) -> None:
        order = list(range(features)) if order is None else list(order)
        if hidden < 1:
            raise OptionError(f"hidden: {hidden} came, an integer >= 1 was expected.")
        if sorted(order) != list(range(features)):
            raise OptionError(f"order: {order} came, a permutation of 0..{features - 1} was expected.")
        super().__init__([[coordinate] for coordinate in order], params, context)
        self.hidden = hidden
        self.entering = nn.Parameter(torch.randn(3 * hidden))
        self.offsets = nn.Parameter(0.5 * torch.randn(features, 3 * hidden))
        self.recurring = nn.Parameter(torch.randn(3 * hidden, hidden) / hidden**0.5)
        self.context_in = nn.Linear(context, hidden) if context else None
        self.last = nn.Parameter(torch.randn(params, hidden) / hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(features, params))

    def start_at(self, theta: Tensor) -> None:
        """Emit `theta` for every coordinate, disturbed by a hundredth of the usual output weights."""
        with torch.no_grad():
            self.last.mul_(1e-2)
            self.bias.copy_(theta.expand_as(self.bias))

    def parts(self, x: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """All parameters, from the states before each coordinate."""
        states = [self.first_state(x, context)]
        for place in range(self.features - 1):
            states.append(self.next_state(states[-1], x[..., place], place))
        yield linear(torch.stack(states, dim=-2), self.last) + self.bias

    def walk(self, context: Tensor | None = None) -> Walk:
        """Begin a pass that carries the state along."""
        return _RecurrentWalk(self, context)

    def first_state(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The state (*batch, hidden) before any coordinate of `x` (*batch, features)."""
        if self.context_in is None or context is None:
            return x.new_zeros(*x.shape[:-1], self.hidden)
        state: Tensor = torch.tanh(self.context_in(limited(context)))
        return state.expand(*x.shape[:-1], self.hidden)

    def next_state(self, state: Tensor, x: Tensor, place: int) -> Tensor:
        """The state after the coordinate at `place` in the order, `x` (*batch)."""
        fed = limited(x).unsqueeze(-1) * self.entering + self.offsets[place]
        recalled = linear(state, self.recurring)
        gates = torch.sigmoid((fed + recalled)[..., : 2 * self.hidden])
        reset, keep = gates.split(self.hidden, dim=-1)
        fresh = torch.tanh(fed[..., 2 * self.hidden :] + reset * recalled[..., 2 * self.hidden :])
        return torch.lerp(fresh, state, keep)


class _RecurrentWalk:
    def __init__(self, net: Recurrent, context: Tensor | None) -> None:
        self.net, self.context = net, context
        self.state: Tensor | None = None

    def theta(self, level: int, x: Tensor) -> Tensor:
        """Parameters of the coordinate of `level`; levels come one after the other."""
        if self.state is None:
            self.state = self.net.first_state(x, self.context)
        else:
            before = x.index_select(-1, self.net.order[level - 1 : level]).squeeze(-1)
            self.state = self.net.next_state(self.state, before, level - 1)
        return (linear(self.state, self.net.last) + self.net.bias[level]).unsqueeze(-2)
