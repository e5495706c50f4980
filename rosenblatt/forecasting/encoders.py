"""Networks that read a window of lags: from a context row to what the flow of a step is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import OptionError


class Recurrent(nn.Module):
    """A gated recurrent unit over the lags, oldest first; its last state stands beside the rest of the row.

    Reference: Cho et al., Learning phrase representations using RNN encoder-decoder, EMNLP 2014; as a context of flows
    over series: Rasul et al., Multivariate probabilistic time series forecasting via conditioned normalizing flows,
    ICLR 2021. Shapes: (rows, lags * series + rest) to (rows, hidden + rest).
    """

    def __init__(self, lags: int, series: int, *, hidden: int = 32, layers: int = 1) -> None:
        super().__init__()
        self.tokens = lags, series
        self.net = nn.GRU(series, hidden, layers, batch_first=True)

    def forward(self, rows: Tensor) -> Tensor:
        """Read the lags one by one."""
        lags, rest = _apart(rows, self.tokens)
        _, last = self.net(lags)
        return torch.cat([last[-1], rest], dim=-1)


class Transformer(nn.Module):
    """A small causal transformer over the lags; what it makes of the newest stands beside the rest of the row.

    Reference: Vaswani et al., Attention is all you need, NeurIPS 2017. Learned positions, layer norm first, no dropout.
    Shapes: (rows, lags * series + rest) to (rows, hidden + rest).
    """

    def __init__(self, lags: int, series: int, *, hidden: int = 32, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        if hidden % heads:
            raise OptionError(
                f"encoder_options: hidden={hidden} is not divisible by heads={heads}; change one of them."
            )
        self.tokens = lags, series
        self.enter = nn.Linear(series, hidden)
        self.position = nn.Parameter(0.02 * torch.randn(lags, hidden))
        layer = nn.TransformerEncoderLayer(hidden, heads, 2 * hidden, 0.0, batch_first=True, norm_first=True)
        self.net = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.register_buffer("hidden_from", torch.ones(lags, lags, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Attend from each lag to those before it."""
        lags, rest = _apart(rows, self.tokens)
        read = self.net(self.enter(lags) + self.position, mask=self.hidden_from)
        return torch.cat([read[:, -1], rest], dim=-1)


# Each takes the number of lags and of series, then options of its own.
ENCODERS: Mapping[str, Callable[..., nn.Module] | None] = {
    "window": None,
    "recurrent": Recurrent,
    "transformer": Transformer,
}


def build_encoder(name: str, lags: int, series: int, options: Mapping[str, Any] | None, seed: int) -> nn.Module | None:
    """Build encoder `name` from a seed; None for "window", where the flow's own network reads the lags.

    Raises `OptionError` for an unknown name or option.

    >>> build_encoder("recurrent", 3, 2, {"hidden": 8}, 0)(torch.zeros(5, 3 * 2 + 1)).shape
    torch.Size([5, 9])
    """
    if name not in ENCODERS:
        raise OptionError(f"encoder: '{name}' came; choose one of {', '.join(ENCODERS)}.")
    make = ENCODERS[name]
    if make is None:
        if options:
            raise OptionError(f"encoder_options: {dict(options)} came, but 'window' has none; leave them out.")
        return None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return make(lags, series, **dict(options or {}))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"encoder_options: {dict(options or {})} does not suit '{name}' ({error}).") from None


def _apart(rows: Tensor, tokens: tuple[int, int]) -> tuple[Tensor, Tensor]:
    size = tokens[0] * tokens[1]
    return rows[:, :size].reshape(-1, *tokens), rows[:, size:]
