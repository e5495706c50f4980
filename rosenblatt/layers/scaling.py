"""Shift and scale whole columns: by fixed numbers, or by what the first rows show."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.laws import Law
from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped

LOG_SCALE_BOUND = 7.0


class Standardise(Transform):
    """Fixed standardiser `y = (x - location) / scale`, `log_det = -sum_i log scale_i`.

    Computed in the wider dtype of `x` and the saved buffers, and returned in that of `x`; the location is subtracted
    first, so a column far from 0 keeps its digits. Raises `OptionError` unless every scale is positive.

    >>> Standardise([1.0], [2.0])(torch.tensor([5.0])).value
    tensor([2.])
    """

    location: Tensor
    scale: Tensor

    def __init__(self, location: Tensor | Sequence[float], scale: Tensor | Sequence[float]) -> None:
        super().__init__()
        location, scale = _vector(location), _vector(scale)
        if location.shape != scale.shape or location.ndim != 1:
            raise OptionError(
                f"location, scale: shapes {tuple(location.shape)} and {tuple(scale.shape)} came, "
                "one number per column was expected of both."
            )
        bad = (~(torch.isfinite(location) & torch.isfinite(scale) & (scale > 0))).nonzero().squeeze(-1)
        if bad.numel():
            raise OptionError(
                f"scale: columns {bad.tolist()} have no positive finite scale or no finite location; "
                "drop constant columns."
            )
        self.register_buffer("location", location)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Subtract, then divide."""
        value = ((x - self.location) / self.scale).to(x.dtype)
        return Mapped(value, -self._log_scale(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Multiply, then add."""
        value = (y * self.scale + self.location).to(y.dtype)
        return Mapped(value, self._log_scale(y))

    def closed_law(self, law: Law, context: Tensor | None = None) -> Law | None:
        """Multiply, then add, for one column."""
        return law.moved(self.location[0], self.scale[0]) if len(self.scale) == 1 else None

    def _log_scale(self, x: Tensor) -> Tensor:
        return torch.log(self.scale).sum().to(x.dtype).expand(x.shape[:-1])


class ActNorm(Transform):
    """Trainable shift and scale of each column that starts by standardising the first rows it is shown.

    `y = (x - location - shift) exp(s)`, `log_det = sum_i s_i`, with location and the start of s from `initialise` and
    the trained part of s smoothly bounded to [-7, 7] (Kingma & Dhariwal 2018). The identity until `initialise`.
    Raises `OptionError` unless features >= 1.

    >>> layer = ActNorm(1)
    >>> layer.initialise(torch.tensor([[1.0], [3.0]]))
    >>> layer(torch.tensor([3.0])).value.item()
    1.0
    """

    initialised: Tensor
    location: Tensor
    start_log_scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        if features < 1:
            raise OptionError(f"features: {features} came, an integer >= 1 was expected.")
        self.shift = nn.Parameter(torch.zeros(features))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.register_buffer("location", torch.zeros(features))
        self.register_buffer("start_log_scale", torch.zeros(features))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Standardise the rows `x` (rows, features), weighted by `weight` (rows,); only the first call counts.

        Raises `DataError` when a column is constant.
        """
        if bool(self.initialised):
            return
        with torch.no_grad():
            rows = x.reshape(-1, x.shape[-1]).double()
            share = torch.ones(len(rows), 1).to(rows) if weight is None else weight.reshape(-1, 1).double()
            share = share / share.sum()
            location = (share * rows).sum(dim=0)
            scale = (share * (rows - location).square()).sum(dim=0).sqrt()
            bad = (~(torch.isfinite(scale) & (scale > 0))).nonzero().squeeze(-1)
            if bad.numel():
                raise DataError(f"x: columns {bad.tolist()} are constant or not finite; drop them.")
            self.location.copy_(location)
            self.start_log_scale.copy_(-torch.log(scale))
            self.initialised.fill_(True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Shift, then scale."""
        log_scale = self._log_scale()
        value = (x - self.location - self.shift) * torch.exp(log_scale)
        return Mapped(value, log_scale.sum().expand(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Unscale, then unshift."""
        log_scale = self._log_scale()
        value = y * torch.exp(-log_scale) + self.shift + self.location
        return Mapped(value, -log_scale.sum().expand(y.shape[:-1]))

    def closed_law(self, law: Law, context: Tensor | None = None) -> Law | None:
        """Unscale, then unshift, for one column."""
        if len(self.shift) != 1:
            return None
        return law.moved((self.shift.double() + self.location)[0], torch.exp(-self._log_scale().double())[0])

    def _log_scale(self) -> Tensor:
        return self.start_log_scale + soft_bound(self.log_scale, LOG_SCALE_BOUND)


def _vector(values: Tensor | Sequence[float]) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().clone()
    return torch.tensor([float(value) for value in values])
