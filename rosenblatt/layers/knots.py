"""Curves through knots that are fitted to rows, not trained: what a column's own quantiles say of it."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.core.errors import OptionError
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped


class KnotSpline(Transform):
    """An increasing curve of each column through fixed knots: rational-quadratic between them, straight beyond.

    With `t = (x - x_k) / w`, `s = h / w` in the bin of width w and height h, and slopes d at the ends of the bin,
    `y = y_k + h (s t^2 + d_k t (1 - t)) / (s + (d_k + d_{k+1} - 2 s) t (1 - t))`
    (Gregory & Delbourgo 1982). Smooth, onto the line, closed both ways, in float64; the identity until `through`
    sets the knots. Raises `OptionError` unless features and bins are >= 1.

    >>> spline = KnotSpline(1, bins=1)
    >>> spline.through(*(torch.tensor([row]) for row in ([0.0, 1.0], [0.0, 2.0], [4.0, 1.0])))
    >>> spline(torch.tensor([[-1.0], [1.0], [3.0]])).value.flatten()
    tensor([-4.,  2.,  4.])
    """

    x: Tensor
    y: Tensor
    slope: Tensor

    def __init__(self, features: int, bins: int = 24) -> None:
        super().__init__()
        for name, value in {"features": features, "bins": bins}.items():
            if value < 1:
                raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
        self.bins = bins
        knots = torch.linspace(-1.0, 1.0, bins + 1).repeat(features, 1)
        self.register_buffer("x", knots)
        self.register_buffer("y", knots.clone())
        self.register_buffer("slope", torch.ones(features, bins + 1))

    def through(self, x: Tensor, y: Tensor, slope: Tensor) -> None:
        """Set the knots and the slopes there, each (features, bins + 1).

        Raises `OptionError` unless, rounded to the dtype of the buffers, x and y increase and slopes are positive.
        """
        for buffer, values in ((self.x, x), (self.y, y), (self.slope, slope)):
            buffer.copy_(values)
        increasing = (self.x.diff() > 0).all() & (self.y.diff() > 0).all() & (self.slope > 0).all()
        if not bool(increasing & torch.isfinite(self.slope).all()):
            raise OptionError(
                "knots: x, y must increase and slopes be positive and finite; merge knots that are equal."
            )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Follow the curves."""
        value, log_slope = self.by_column(x)
        return Mapped(value, log_slope.sum(dim=-1))

    def by_column(self, x: Tensor) -> Mapped:
        """Follow the curves, with the log-derivative of each."""
        wide = x.double()
        near = torch.minimum(torch.maximum(wide, self.x[:, 0].double()), self.x[:, -1].double())
        x0, y0, width, height, left, right = self._bins(self.x, near)
        secant, t = height / width, (near - x0) / width
        spread = t * (1 - t)
        below = secant + (left + right - 2 * secant) * spread
        y = y0 + height * (secant * t.square() + left * spread) / below
        steep = right * t.square() + 2 * secant * spread + left * (1 - t).square()
        log_slope = 2 * torch.log(secant / below) + torch.log(steep)
        beyond = wide - near  # 0 inside, and the slope of the end outside
        y = y + self._end_slope(beyond) * beyond
        return Mapped(y.to(x.dtype), log_slope.to(x.dtype))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Solve the quadratic of the bin, by the root that does not cancel."""
        wide = y.double()
        near = torch.minimum(torch.maximum(wide, self.y[:, 0].double()), self.y[:, -1].double())
        x0, y0, width, height, left, right = self._bins(self.y, near)
        secant, rise = height / width, near - y0
        bend = rise * (left + right - 2 * secant)
        a, b, c = height * (secant - left) + bend, height * left - bend, -secant * rise
        t = 2 * c / (-b - torch.sqrt(b.square() - 4 * a * c))
        spread = t * (1 - t)
        below = secant + (left + right - 2 * secant) * spread
        steep = right * t.square() + 2 * secant * spread + left * (1 - t).square()
        log_slope = 2 * torch.log(secant / below) + torch.log(steep)
        beyond = wide - near
        x = x0 + width * t + beyond / self._end_slope(beyond)
        return Mapped(x.to(y.dtype), -log_slope.sum(dim=-1).to(y.dtype))

    def _bins(self, axis: Tensor, point: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Corner, size and end slopes of the bin of each point; a NaN is in the first bin."""
        number = (point.unsqueeze(-1) >= axis[:, 1:-1].double()).sum(dim=-1)
        columns = torch.arange(len(axis), device=axis.device) * (self.bins + 1)
        place = number + columns
        low, high = (
            [table.double().flatten()[at] for table in (self.x, self.y, self.slope)] for at in (place, place + 1)
        )
        return low[0], low[1], high[0] - low[0], high[1] - low[1], low[2], high[2]

    def _end_slope(self, beyond: Tensor) -> Tensor:
        return torch.where(beyond < 0, self.slope[:, 0].double(), self.slope[:, -1].double())


def weighted_quantiles(rows: Tensor, share: Tensor, levels: Tensor) -> Tensor:
    """Quantiles (features, levels) of `rows` (rows, features) that weigh `share` (rows,), which sums to one.

    The i-th smallest value is taken for the quantile of the weight below it and half of its own, and what lies between
    is interpolated. All float64.
    """
    ordered, index = rows.t().sort(dim=-1)
    weight = share[index]
    middle = weight.cumsum(dim=-1) - 0.5 * weight
    wanted = levels.expand(len(ordered), -1).contiguous()
    above = torch.searchsorted(middle.contiguous(), wanted).clamp(1, max(ordered.shape[-1] - 1, 1))
    above = above.clamp(max=ordered.shape[-1] - 1)
    below = (above - 1).clamp(min=0)
    low, high = middle.gather(-1, below), middle.gather(-1, above)
    part = ((wanted - low) / torch.where(high > low, high - low, 1.0)).clamp(0.0, 1.0)
    return torch.lerp(ordered.gather(-1, below), ordered.gather(-1, above), part)


def log_averaged_slopes(x: Tensor, y: Tensor) -> Tensor:
    """Slopes at the inner knots: geometric means of the secants on both sides, (features, bins - 1)."""
    secants = y.diff() / x.diff()
    return torch.sqrt(secants[:, :-1] * secants[:, 1:])
