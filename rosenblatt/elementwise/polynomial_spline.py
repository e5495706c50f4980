"""Monotone polynomial splines of degree 1, 2 and 3, with closed or searched inverse."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import REAL, Mapped, ParamSpec
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.spline import SMALLEST_BIN, SMALLEST_SLOPE

NAMES = {"linear": 1, "quadratic": 2, "cubic": 3}


class PolynomialSpline(Elementwise):
    """Monotone spline of polynomials on [-bound, bound], the identity outside.

    In a bin of width w, height h, secant slope s = h / w and end slopes d0, d1, with p = (x - x0) / w and q = 1 - p:
    `y = y0 + h p + w p q ((d0 - s) q - (d1 - s) p)`,
    `dy/dx = d0 q^2 + 2 (3 s - d0 - d1) p q + d1 p^2`.

    `degree=1` (Müller et al. 2019): bins of one width, heights a softmax, d0 = d1 = s. The slope jumps at every knot
    and at the ends of the box. bins parameters; closed inverse.
    `degree=2` (Müller et al. 2019; with tails as in Durkan et al. 2019): widths a softmax, knot slopes a softmax
    scaled so that the bins fill the box, 1 at its ends; s = (d0 + d1) / 2. 2 bins - 1 parameters; closed inverse.
    `degree=3` (Durkan et al. 2019, Cubic-Spline Flows): widths and heights a softmax, slopes by Steffen (1990):
    `d = min(2 s_left, 2 s_right, (s_left w_right + s_right w_left) / (w_left + w_right))`. At the ends of the box
    `d = min(1, 3 s)`, so the slope jumps there only where the outermost bin is flatter than 1/3. 2 bins parameters;
    the inverse is a root search.

    Widths, heights and slopes have a floor of 1e-3, as published. theta = 0 is the identity. What is evaluated is
    `y - x`, in float64. Raises `OptionError` for another degree, bins outside 3..500 or bound <= 0.

    >>> spline = PolynomialSpline(degree=2, bins=4)
    >>> spline(torch.tensor([2.5, 7.0]), torch.zeros(2, spline.spec.size)).value
    tensor([2.5000, 7.0000])
    """

    domain = REAL

    def __init__(self, degree: int = 2, bins: int = 8, bound: float = 3.0) -> None:
        super().__init__()
        if degree not in (1, 2, 3):
            raise OptionError(f"degree: {degree} came, 1, 2 or 3 was expected.")
        if not 3 <= bins <= 500:
            raise OptionError(f"bins: {bins} came, 3 to 500 were expected.")
        if not 0 < bound < math.inf:
            raise OptionError(f"bound: {bound} came, a positive number was expected.")
        self.degree = degree
        self.bins = bins
        self.bound = bound
        self.spare = 2 * bound * (1 - bins * SMALLEST_BIN)  # what the smallest bins leave of the box
        shapes = {
            1: {"heights": (bins,)},
            2: {"widths": (bins,), "slopes": (bins - 1,)},
            3: {"widths": (bins,), "heights": (bins,)},
        }
        self.spec = ParamSpec(**shapes[degree])

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Evaluate the spline; closed, no search beyond that for the bin."""
        return self._evaluate(x, self._decode(theta.double()))

    def bind(self, theta: Tensor) -> _BoundSpline:
        """Decode once for a root search."""
        return _BoundSpline(self, self._decode(theta.double()))

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Solve the bin's equation; the log-derivative is that of the map at the `x` returned."""
        if self.degree == 3:
            return super().inverse(y, theta)
        table = self._decode(theta.double())
        x = self._solve(y, table)
        return Mapped(x, -self._evaluate(x, table).log_det)

    def _evaluate(self, x: Tensor, table: Tensor) -> Mapped:
        point = x.clamp(-self.bound, self.bound).double()
        x0, x1, low, high, first, mean, last = _look_up(point, table, table[..., 0, 1:])
        width = x1 - x0
        p, q = (point - x0) / width, (x1 - point) / width
        bump = width * p * q * ((first - mean) * q - (last - mean) * p)
        value = point + (torch.lerp(low, high, p) + bump)
        middle = 3 * mean - first - last
        slope = torch.lerp(torch.lerp(first, middle, p), torch.lerp(middle, last, p), p)
        inside = x.abs() < self.bound
        log_det = torch.log(slope).to(x.dtype)
        return Mapped(torch.where(inside, value.to(x.dtype), x), torch.where(inside, log_det, 0.0))

    def _solve(self, y: Tensor, table: Tensor) -> Tensor:
        """Invert degree 1 or 2.

        With f = (y - y0) / h, the slope at the solution is `r = sqrt(d0^2 + f (d1^2 - d0^2))` and
        `p = f (d0 + d1) / (d0 + r)`: no subtraction of what is nearly equal.
        """
        point = y.clamp(-self.bound, self.bound).double()
        knots = table[..., 0, 1:] + table[..., 2, 1:]
        x0, x1, low, high, first, _, last = _look_up(point, table, knots)
        y0, y1 = x0 + low, x1 + high
        share = (point - y0) / (y1 - y0)
        slope = torch.lerp(first.square(), last.square(), share).sqrt()
        x = torch.lerp(x0, x1, share * (first + last) / (first + slope)).to(y.dtype)
        return torch.where(y.abs() < self.bound, x, y)

    def _decode(self, theta: Tensor) -> Tensor:
        """Of each bin: x at both ends, y - x at both ends, first, mean and last slope (*batch, 7, bins)."""
        parts = self.spec.split(theta)
        # The last entry counts from the upper end of the box, so that both ends are exact.
        least = 2 * self.bound * SMALLEST_BIN
        offsets = theta.new_tensor([*(k * least - self.bound for k in range(self.bins)), self.bound])
        across = _share_below(parts["widths"] if self.degree > 1 else theta.new_zeros(self.bins))
        x = offsets + self.spare * across
        width = x.diff(dim=-1)
        if self.degree == 2:
            excess = _slope_excess(width, parts["slopes"])
            area = width * (0.5 * (excess[..., :-1] + excess[..., 1:]))
            shift = pad(area.cumsum(dim=-1)[..., :-1], (1, 1))
        else:
            shift = self.spare * (_share_below(parts["heights"]) - across)
        secant = (width + shift.diff(dim=-1)) / width
        first = mean = last = secant
        if self.degree == 2:
            first, last = 1 + excess[..., :-1], 1 + excess[..., 1:]
            mean = 0.5 * (first + last)
        elif self.degree == 3:
            slopes = _steffen(width, secant)
            first, last = slopes[..., :-1], slopes[..., 1:]
        columns = (x[..., :-1], x[..., 1:], shift[..., :-1], shift[..., 1:], first, mean, last)
        return torch.stack(torch.broadcast_tensors(*columns), dim=-2)


class _BoundSpline:
    """Values only, of splines decoded for each row."""

    def __init__(self, spline: PolynomialSpline, table: Tensor) -> None:
        self.spline = spline
        self.table = table

    def __call__(self, x: Tensor) -> Tensor:
        return self.spline._evaluate(x, self.table).value

    def select(self, rows: Tensor) -> _BoundSpline:
        return _BoundSpline(self.spline, self.table[rows])


def _look_up(point: Tensor, table: Tensor, inner: Tensor) -> tuple[Tensor, ...]:
    """The entries of the bin of each point, of which `inner` are the knots between bins; a NaN is in the first."""
    bin_ = (point.unsqueeze(-1) >= inner).sum(dim=-1)
    rows = table.shape[-2]
    place = bin_[..., None, None].expand(*bin_.shape, rows, 1)
    return table.expand(*bin_.shape, *table.shape[-2:]).gather(-1, place).squeeze(-1).unbind(dim=-1)


def _share_below(raw: Tensor) -> Tensor:
    """Sum of the softmax of `raw` (*batch, bins) below each knot, (*batch, bins + 1); that of the last less 1."""
    powers = torch.exp(raw - raw.amax(dim=-1, keepdim=True).detach())
    sums = powers.cumsum(dim=-1)
    return pad(sums[..., :-1] / sums[..., -1:], (1, 1))


def _slope_excess(width: Tensor, raw: Tensor) -> Tensor:
    """Slopes less 1 at all knots, 0 at both ends, such that the bins are as high as they are wide in all."""
    powers = torch.exp(raw - raw.amax(dim=-1, keepdim=True).detach())
    weight = 0.5 * (width[..., :-1] + width[..., 1:])
    area, total = (powers * weight).sum(dim=-1, keepdim=True), weight.sum(dim=-1, keepdim=True)
    return pad((1 - SMALLEST_SLOPE) * (powers * total - area) / area, (1, 1))


def _steffen(width: Tensor, secant: Tensor) -> Tensor:
    """Slopes at the knots that keep every cubic increasing."""
    w0, w1, s0, s1 = width[..., :-1], width[..., 1:], secant[..., :-1], secant[..., 1:]
    parabola = (s0 * w1 + s1 * w0) / (w0 + w1)
    inner = torch.minimum(2 * torch.minimum(s0, s1), parabola)
    outer = (3 * secant).clamp(max=1.0)
    return torch.cat([outer[..., :1], inner, outer[..., -1:]], dim=-1)
