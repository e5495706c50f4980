"""Causal self-attention over pixels, or over the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, scaled_dot_product_attention

from rosenblatt.conditioners.causal_nets import causal_attention
from rosenblatt.conditioners.pixels import PixelConditioner, PixelSteps
from rosenblatt.core.errors import OptionError


class Transformer(PixelConditioner):
    """Theta of a pixel from blocks of causal self-attention over the pixels before it; see `PixelConditioner`.

        t_p = E x_{p-1} + e_p + U context,   h <- h + A(N h),   h <- h + W2 elu(W1 N h)   (`blocks` times)

    Token p carries the pixel before p (a start vector for the first), so that it may look at itself; `e_p` are learned
    places; N normalises the `hidden` numbers of one token, which mixes no places. `heads` divides `hidden`. A table's
    columns are pixels of one channel, (1, 1, columns): Levels are single numbers in the order of reading.
    A pass from pixel to pixel (sampling) keeps the keys and values of earlier tokens.
    Raises `OptionError` for sizes below 1, a `patch` that does not divide the sides, heads that do not divide `hidden`,
    or dropout outside [0, 1).
    References: Vaswani et al., Attention Is All You Need, NeurIPS 2017; Parmar et al., Image Transformer, ICML 2018.

    >>> Transformer((3, 2, 2), 5, hidden=8, heads=2)(torch.zeros(2, 12)).shape
    torch.Size([2, 12, 5])
    """

    def __init__(
        self,
        shape: Sequence[int],
        params: int,
        *,
        hidden: int = 64,
        heads: int = 4,
        blocks: int = 2,
        context: int = 0,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        super().__init__(shape, params, width=hidden, context=context, patch=patch)
        if blocks < 1:
            raise OptionError(f"blocks: {blocks} came, an integer >= 1 was expected.")
        if heads < 1 or hidden % heads:
            raise OptionError(f"heads: {heads} came, a divisor of hidden={hidden} was expected.")
        if not 0 <= dropout < 1:
            raise OptionError(f"dropout: {dropout} came, a share in [0, 1) was expected.")
        self.embed = nn.Linear(self.channels, hidden)
        self.begin = nn.Parameter(torch.zeros(hidden))
        self.places = nn.Parameter(0.5 * torch.randn(self.pixels, hidden))
        self.given = nn.Linear(context, hidden, bias=False) if context else None
        self.blocks = nn.ModuleList([_Block(hidden, heads, dropout) for _ in range(blocks)])
        self.finish = nn.LayerNorm(hidden)

    def states(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Run all tokens."""
        tokens = torch.cat([self.begin.expand(x.shape[0], 1, -1), self.embed(x[:, :-1])], dim=1) + self.places
        if self.given is not None and context is not None:
            tokens = tokens + self.given(context).unsqueeze(1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.finish(tokens)  # type: ignore[no-any-return]

    def steps(self, context: Tensor | None) -> PixelSteps:
        """Begin a pass that keeps keys and values."""
        return _Steps(self, context)


class _Block(nn.Module):
    """Attention and a network of each token, both behind a normalisation of that token."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.enter, self.leave = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.drop = nn.Dropout(dropout)
        with torch.no_grad():
            self.leave.weight.mul_(0.1)
            self.down.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Map all tokens (rows, tokens, hidden)."""
        query, key, value = self.split(x)
        return self.joined(x, causal_attention(query, key, value))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (rows, heads, tokens, hidden / heads)."""
        entered: Tensor = self.enter(self.before(x))
        parts: Tensor = entered.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return parts.unbind(0)

    def joined(self, x: Tensor, seen: Tensor) -> Tensor:
        """Add what attention saw, and what the network makes of that."""
        x = x + self.drop(self.leave(seen.transpose(1, 2).flatten(-2)))
        return x + self.drop(self.down(elu(self.up(self.between(x)))))  # type: ignore[no-any-return]


class _Steps:
    """A pass from token to token."""

    def __init__(self, net: Transformer, context: Tensor | None) -> None:
        self.net, self.context = net, context
        self.count = 0
        self.kept: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in net.blocks]

    def next(self, pixel: Tensor | None, rows: int) -> Tensor:
        """What the next pixel may know, given the `pixel` before it."""
        net = self.net
        token = net.begin.expand(rows, -1) if pixel is None else net.embed(pixel)
        token = (token + net.places[self.count]).unsqueeze(1)
        if net.given is not None and self.context is not None:
            token = token + net.given(self.context).unsqueeze(1)
        self.count += 1
        for block, (keys, values) in zip(net.blocks, self.kept, strict=True):
            query, key, value = block.split(token)  # type: ignore[operator]
            keys.append(key)
            values.append(value)
            seen = scaled_dot_product_attention(query, torch.cat(keys, dim=2), torch.cat(values, dim=2))
            token = block.joined(token, seen)  # type: ignore[operator]
        return net.finish(token).squeeze(1)  # type: ignore[no-any-return]
