"""Monotone rational-quadratic splines: the map of neural spline flows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.types import REAL, Mapped, ParamSpec, Support
from rosenblatt.elementwise.base import Elementwise

SMALLEST_BIN = 1e-3  # width and height of a bin as a share of the box, as published
# Derivatives at the knots. The floor is the published one, the ceiling what the published softplus reaches in
# practice: more would make the middle of a bin so flat that a float32 value cannot be mapped back.
SMALLEST_SLOPE, LARGEST_SLOPE = 1e-3, 30.0


class _Bin(NamedTuple):
    """The bin of each point: its ends on both axes, and the derivatives at them."""

    x0: Tensor
    x1: Tensor
    y0: Tensor
    y1: Tensor
    d0: Tensor
    d1: Tensor


class RationalQuadraticSpline(Elementwise):
    """Monotone rational-quadratic spline on the box [-bound, bound] (Durkan et al. 2019).

    In a bin of width w, height h, secant slope s = h / w and end derivatives d0, d1 (Gregory & Delbourgo 1982),
    with p = (x - x0) / w and q = 1 - p:
    `y = y0 + h (s p^2 + d0 p q) / (s + (d0 + d1 - 2 s) p q)`,
    `dy/dx = s^2 (d1 p^2 + 2 s p q + d0 q^2) / (s + (d0 + d1 - 2 s) p q)^2`.

    Widths and heights are a softmax with a floor of 1e-3 of the box. Derivatives are the exponential of a
    smooth squash onto [log 1e-3, log 30], exactly 1 at theta = 0 where the published softplus is only nearly
    so. theta = 0 is the identity. Within a bin the arithmetic is float64: a float32 map stays monotone.

    `tails="linear"`: the identity outside, with slope exactly 1 at both ends; 3 bins - 1 parameters.
    `tails="none"`: a map of the box onto itself, `log_det = -inf` outside; 3 bins + 1 parameters; `inverse`
    raises `InverseError` outside the box.

    Raises `OptionError` for other tails, bins outside 2..500 or bound <= 0.

    >>> spline = RationalQuadraticSpline(bins=4)
    >>> spline(torch.tensor([3.0, 7.0]), torch.ones(2, spline.spec.size)).value
    tensor([3., 7.])
    """

    def __init__(self, bins: int = 8, bound: float = 3.0, tails: str = "linear") -> None:
        super().__init__()
        if not 2 <= bins <= 500:
            raise OptionError(f"bins: {bins} came, 2 to 500 were expected.")
        if not 0 < bound < math.inf:
            raise OptionError(f"bound: {bound} came, a positive number was expected.")
        if tails not in ("linear", "none"):
            raise OptionError(f"tails: '{tails}' came, 'linear' or 'none' was expected.")
        self.bins = bins
        self.bound = bound
        self.tails = tails
        self.domain = REAL if tails == "linear" else Support(-bound, bound)
        slopes = bins - 1 if tails == "linear" else bins + 1
        self.spec = ParamSpec(widths=(bins,), heights=(bins,), slopes=(slopes,))

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Evaluate the spline; closed, no search beyond that for the bin."""
        inside = x.abs() <= self.bound
        # Clamped before anything is computed, so that no point outside has a wild gradient.
        here = x.clamp(-self.bound, self.bound)
        bin_ = self._bin(here, theta, axis=0)
        width = bin_.x1 - bin_.x0
        slope = (bin_.y1 - bin_.y0) / width
        left, right = here - bin_.x0, bin_.x1 - here
        # Measured from the nearer knot, so that rounding never steps over the knot.
        low = left < right
        offset = torch.where(low, left, -right)
        near, far = torch.where(low, bin_.d0, bin_.d1), torch.where(low, bin_.d1, bin_.d0)
        p = torch.where(low, left, right) / width
        q = 1 - p
        ratio, log_det = _slope_terms(p, q, slope, near, far)
        value = torch.where(low, bin_.y0, bin_.y1) + offset * ratio * (slope * p + near * q)
        return self._outside(x, inside, value.to(x.dtype), log_det.to(x.dtype))

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Solve the quadratic of the bin in a form whose terms are all positive.

        Raises `InverseError` outside the box when there are no tails.
        """
        inside = y.abs() <= self.bound
        if self.tails == "none":
            _raise_outside(~inside & ~torch.isnan(y), self.bound)
        here = y.clamp(-self.bound, self.bound)
        bin_ = self._bin(here, theta, axis=1)
        width, height = bin_.x1 - bin_.x0, bin_.y1 - bin_.y0
        slope = height / width
        phi, psi = (here - bin_.y0) / height, (bin_.y1 - here) / height
        # With r = (d0 psi - d1 phi) / s the published discriminant is r^2 + 4 phi psi, and the root
        # is p : q = 2 phi : t (r > 0) or t : 2 psi (r < 0) with t = |r| + sqrt(r^2 + 4 phi psi).
        r = (bin_.d0 * psi - bin_.d1 * phi) / slope
        t = r.abs() + torch.sqrt(r.square() + 4 * phi * psi)
        rising = r > 0
        part, rest = torch.where(rising, 2 * phi, t), torch.where(rising, t, 2 * psi)
        p, q = part / (part + rest), rest / (part + rest)
        _, log_det = _slope_terms(p, q, slope, bin_.d0, bin_.d1)
        value = torch.where(p < q, bin_.x0 + width * p, bin_.x1 - width * q)
        return self._outside(y, inside, value.to(y.dtype), -log_det.to(y.dtype))

    def _outside(self, x: Tensor, inside: Tensor, value: Tensor, log_det: Tensor) -> Mapped:
        if self.tails == "linear":
            return Mapped(torch.where(inside, value, x), torch.where(inside, log_det, 0.0))
        nowhere = torch.where(torch.isnan(x), torch.nan, torch.copysign(torch.full_like(x, torch.inf), x))
        return Mapped(torch.where(inside, value, nowhere), torch.where(inside, log_det, -torch.inf))

    def _bin(self, point: Tensor, theta: Tensor, axis: int) -> _Bin:
        """Find the bin of `point` on the x axis (0) or the y axis (1) and its parameters.

        Parameters go to the leading axis: a softmax over a short trailing axis is 15 times slower on a CPU.
        """
        bins = self.bins
        leading = theta.to(point.dtype).expand(*point.shape, self.spec.size).movedim(-1, 0)
        raw_shares, raw_slopes = torch.tensor_split(leading, [2 * bins])
        shares = torch.softmax(raw_shares.reshape(2, bins, *point.shape), dim=1)[:, :-1].cumsum(dim=1)
        floor = torch.arange(1, bins, device=point.device, dtype=point.dtype) * (2 * self.bound * SMALLEST_BIN)
        floor = (floor - self.bound).reshape(-1, *(1,) * point.ndim)
        inner = torch.add(floor, shares, alpha=2 * self.bound * (1 - bins * SMALLEST_BIN))
        end = torch.full_like(inner[:, :1], self.bound)
        knots = torch.cat([-end, inner, end], dim=1)
        index = (point >= inner[axis]).sum(dim=0)
        ends = torch.stack([index, index + 1])
        (x0, x1), (y0, y1) = knots.gather(1, ends.expand(2, *ends.shape)).double()
        d0, d1 = self._derivatives(raw_slopes, ends)
        return _Bin(x0, x1, y0, y1, d0, d1)

    def _derivatives(self, raw: Tensor, ends: Tensor) -> Tensor:
        if self.tails == "none":
            chosen = raw.gather(0, ends)
        else:
            chosen = raw.gather(0, (ends - 1).clamp(0, self.bins - 2))
            chosen = torch.where((ends > 0) & (ends < self.bins), chosen, 0.0)
        low, high = chosen.new_tensor(-math.log(SMALLEST_SLOPE)), chosen.new_tensor(math.log(LARGEST_SLOPE))
        bound = torch.where(chosen < 0, low, high)
        return torch.exp(bound * torch.tanh(chosen / bound)).double()


def _slope_terms(p: Tensor, q: Tensor, slope: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """s / denominator and the log-derivative at p = 1 - q, measured from the end with derivative `near`."""
    # s + (d0 + d1 - 2 s) p q without the subtraction.
    ratio = slope / (slope * (p * p + q * q) + (near + far) * (p * q))
    return ratio, torch.log(ratio * ratio * (far * p * p + 2 * slope * (p * q) + near * q * q))


def _raise_outside(outside: Tensor, bound: float) -> None:
    if bool(outside.any()):
        rows = outside.reshape(-1).nonzero().squeeze(-1).tolist()
        raise InverseError(
            f"inverse: {len(rows)} values lie outside [-{bound}, {bound}] (first flat indices {rows[:5]}), where "
            "a spline without tails has no inverse; use tails='linear' or a Box base.",
            rows,
        )
