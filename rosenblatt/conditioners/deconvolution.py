"""A network that decodes the bins of a histogram from coarse to fine, for columns in any order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu

from rosenblatt.conditioners.base import Conditioner, Walk
from rosenblatt.core.errors import OptionError
from rosenblatt.nets import MLP

GROWTH = 4  # bins made of one by each stage
SLOPE = 0.2  # of the leaky rectifiers
LOG_VARIANCE_BOUND = 10.0


class Decoder(nn.Module):
    """From a code (rows, codes) to `bins` numbers (rows, bins) through stages that each make 4 bins of 1.

    A linear layer makes `bins / 4^S` bins of `channels[0]` channels, S the number of `channels`; each stage
    interpolates linearly to four times as many bins and convolves with a kernel of 3 bins, the last one to a single
    channel. So neighbouring bins share structure at every scale. Without channels a linear layer is all there is.
    Raises `OptionError` for bins that the stages cannot make.

    >>> Decoder(3, 64, [4, 8])(torch.zeros(5, 3)).shape
    torch.Size([5, 64])
    """

    def __init__(self, codes: int, bins: int, channels: Sequence[int] = (4, 32, 16)) -> None:
        super().__init__()
        size, stages = GROWTH ** len(channels), len(channels)
        if bins < 1 or bins % size or any(count < 1 for count in channels):
            raise OptionError(
                f"bins={bins}, channels={list(channels)}: the bins must be a multiple of {GROWTH}^{stages} = {size}, "
                "each stage making four of one, and all channels >= 1."
            )
        widths = [*channels, 1]
        self.shape = (widths[0], bins // size)
        self.first = nn.Linear(codes, widths[0] * (bins // size))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        )
        last = self.convolutions[-1] if stages else self.first
        with torch.no_grad():
            last.weight.mul_(1e-2)  # type: ignore[operator]
            last.bias.zero_()  # type: ignore[operator]

    def forward(self, code: Tensor) -> Tensor:
        """Decode each row."""
        hidden: Tensor = self.first(code).reshape(code.shape[0], *self.shape)
        for convolution in self.convolutions:
            finer = interpolate(leaky_relu(hidden, SLOPE), scale_factor=GROWTH, mode="linear", align_corners=False)
            hidden = convolution(finer)
        return hidden.flatten(1)


class Deconvolution(Conditioner):
    """Emits bins of any column given any other columns: the levels' order is one of many that the network knows.

    An encoder sees the columns that are known (others as 0), which these are, and the context; its code goes through a
    `Decoder` of the column asked for. `x` should be of about unit size after division by `scale`. With `latent` the
    code is normal around what the encoder says while training, `code = m + s e` (the noise is drawn as dropout's is),
    and m in eval mode.

    >>> Deconvolution(2, 16, channels=[4], hidden=8)(torch.zeros(5, 2)).shape
    torch.Size([5, 2, 16])
    """

    start: Tensor

    def __init__(
        self,
        features: int,
        params: int,
        *,
        context: int = 0,
        order: Sequence[int] | None = None,
        codes: int = 16,
        channels: Sequence[int] = (4, 32, 16),
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        latent: bool = False,
        scale: float = 1.0,
    ) -> None:
        order = list(range(features)) if order is None else list(order)
        if sorted(order) != list(range(features)):
            raise OptionError(f"order: {order} came, each of 0 to {features - 1} once was expected.")
        super().__init__([[column] for column in order], params, context)
        if codes < 1:
            raise OptionError(f"codes: {codes} came, an integer >= 1 was expected.")
        self.order_of_columns = order
        self.scale, self.latent = scale, latent
        emitted = 2 * codes if latent else codes
        self.encoder = MLP(2 * features + context, emitted, hidden=hidden, blocks=blocks, dropout=dropout)
        self.decoders = nn.ModuleList(Decoder(codes, params, channels) for _ in range(features))
        self.register_buffer("start", torch.zeros(params))

    def start_at(self, theta: Tensor) -> None:
        """Add `theta` to what the decoders emit."""
        with torch.no_grad():
            self.start.copy_(theta)

    def at(self, column: int, known: Sequence[int], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Parameters (*batch, params) of `column` given the `known` columns of `x`, in the order of the table.

        And the divergence of the code from a standard normal in nats, (*batch), 0 without a latent layer.
        """
        mask = torch.zeros(self.features, dtype=torch.bool, device=x.device)
        mask[list(known)] = True
        seen = [torch.where(mask, x / self.scale, 0.0), mask.to(x).expand(x.shape)]
        if context is not None:
            seen.append(context.to(x).expand(*x.shape[:-1], self.context))
        inputs = torch.cat(seen, dim=-1)
        code = self.encoder(inputs.reshape(-1, inputs.shape[-1]))
        divergence = torch.zeros_like(code[..., 0])
        if self.latent:
            mean, raw = code.chunk(2, dim=-1)
            code = mean
            if self.training:
                log_variance = LOG_VARIANCE_BOUND * torch.tanh(raw / LOG_VARIANCE_BOUND)
                code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
                divergence = 0.5 * (mean.square() + torch.exp(log_variance) - 1 - log_variance).sum(dim=-1)
        theta = self.start + self.decoders[column](code)
        return theta.reshape(*x.shape[:-1], self.params), divergence.reshape(x.shape[:-1])

    def parts(self, x: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """One column after the other, each by a pass of its own."""
        in_place = self.restore(x)
        for level in range(self.features):
            yield self._level(level, in_place, context).unsqueeze(-2)

    def walk(self, context: Tensor | None = None) -> Walk:
        """Each level is one pass for its column."""
        return _Walk(self, context)

    def _level(self, level: int, x: Tensor, context: Tensor | None) -> Tensor:
        return self.at(self.order_of_columns[level], self.order_of_columns[:level], x, context)[0]


class _Walk:
    def __init__(self, conditioner: Deconvolution, context: Tensor | None) -> None:
        self.conditioner = conditioner
        self.context = context

    def theta(self, level: int, x: Tensor) -> Tensor:
        return self.conditioner._level(level, x, self.context).unsqueeze(-2)
