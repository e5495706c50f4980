"""Monotone rational-quadratic splines: the map of neural spline flows."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import REAL, Mapped, ParamSpec, Support
from rosenblatt.elementwise.box import nothing_outside, refuse_outside
from rosenblatt.elementwise.fused import Fused, _aligned, _joined

SMALLEST_BIN = 1e-3  # width and height of a bin as a share of the box, as published
# Derivatives at the knots. The floor is the published one, the ceiling what the published softplus reaches in
# practice: more would make the middle of a bin so flat that a float32 value cannot be mapped back.
SMALLEST_SLOPE, LARGEST_SLOPE = 1e-3, 30.0


class RationalQuadraticSpline(Fused):
    """Monotone rational-quadratic spline on the box [-bound, bound] (Durkan et al. 2019).

    In a bin of width w, height h, secant slope s = h / w and end derivatives d0, d1 (Gregory & Delbourgo 1982),
    with p = (x - x0) / w, q = 1 - p, u = q d0 + p s and v = q s + p d1:
    `y = y0 + h p u / (p u + q v)`,
    `dy/dx = s^2 (q u + p v) / (p u + q v)^2`.

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

    piece = 65_000

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
        self.spare = 2 * bound * (1 - bins * SMALLEST_BIN)  # what the smallest bins leave of the box

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Evaluate the spline; closed, no search beyond that for the bin."""
        if x.ndim == theta.ndim == 2 and x.shape[1] == theta.shape[0]:
            return self.evaluate_keeping(x, theta)[0]
        shape = torch.broadcast_shapes(x.shape, theta.shape[:-1])
        vectors = theta.expand(*shape, theta.shape[-1]).reshape(-1, theta.shape[-1])
        value, log_det = self.evaluate_keeping(x.expand(shape).reshape(1, -1), vectors)[0]
        return Mapped(value.reshape(shape), log_det.reshape(shape))

    def evaluate_keeping(self, x: Tensor, theta: Tensor) -> tuple[Mapped, tuple[Tensor, ...]]:
        """Evaluate at `x` (k, n), `theta` (n, size); the softmax, the bins and their slopes are kept."""
        here, dtype = self._clamped(x)
        found, powers, total = self._find(here, theta.to(dtype), axis=0)
        slopes, squashed = _slopes(found.ends[2::3])
        point, ends = here.double(), found.ends.double()
        bin_ = _in_bin(point, ends, slopes.double())
        ratio = bin_.secant / bin_.below
        # Measured from the nearer knot, so that rounding never steps over the knot.
        right = ends[3] - point
        low = torch.addcmul(ends[1], bin_.left, ratio * bin_.u).to(x.dtype)
        high = torch.addcmul(ends[4], right, ratio * bin_.v, value=-1).to(x.dtype)
        value = torch.where(bin_.left < right, low, high)
        log_det = torch.log((ratio.square() * bin_.bend).to(dtype)).to(x.dtype)
        return self._outside(x, here, value, log_det), (powers, total, *found, slopes, squashed)

    def pull_back(
        self, x: Tensor, theta: Tensor, kept: tuple[Tensor, ...], grad_value: Tensor, grad_log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Differentiate the bin in closed form, then take its ends back to the softmax and the raw slopes."""
        powers, total, ends, place, slopes, squashed = kept
        here, dtype = self._clamped(x)
        inside = here == x
        seen_value, seen_log_det = (torch.where(inside, grad, 0.0).to(dtype) for grad in (grad_value, grad_log_det))
        grad_ends, grad_x = _bin_gradient(_in_bin(here, ends, slopes), slopes, seen_value, seen_log_det)
        pairs = grad_ends.view(2, 3, *x.shape)
        pairs[:, :2] *= (total.reciprocal() * self.spare).unsqueeze(1)
        pairs[:, 2] *= torch.addcmul(slopes, slopes * squashed, squashed, value=-1)
        grad_theta = self._theta_gradient(grad_ends, place, powers, total)
        grad_theta = _transposed(grad_theta) if theta.stride(-1) == 1 else grad_theta.t()
        grad_x = torch.where(inside, grad_x, grad_value if self.tails == "linear" else 0.0)
        return grad_x.to(x.dtype), grad_theta.to(theta.dtype)

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Solve the quadratic of the bin.

        Raises `InverseError` outside the box when there are no tails.
        """
        if self.tails == "none":
            refuse_outside(y, self.bound)
        shape = _common_shape(y, theta)
        points, vectors = _aligned(y, theta, shape)
        cuts = self._pieces(points) if _without_tape(points, vectors) else []
        if len(cuts) < 2:
            value, log_det = self._solve(points, vectors)
        else:
            parts = [self._solve(points[cut], vectors[cut[1]]) for cut in cuts]
            value, log_det = (_joined([part[i] for part in parts], points) for i in range(2))
        return Mapped(value.reshape(shape), log_det.reshape(shape))

    def _solve(self, y: Tensor, theta: Tensor) -> Mapped:
        """Invert at `y` (k, n), `theta` (n, size).

        With f = (y - y0) / h, e = (1 - f) d0 - f d1 and r = sqrt(e^2 + 4 s^2 f (1 - f)):
        `p = (2 s f + r - e) / (2 s + 2 r)` and `dy/dx = s r / (p u + q v)`.
        """
        here, dtype = self._clamped(y)
        found, _, _ = self._find(here, theta.to(dtype), axis=1)
        x0, y0, _, x1, y1, _ = found.ends.double().unbind()
        d0, d1 = _slopes(found.ends[2::3])[0].double().unbind()
        height = y1 - y0
        secant, share, both = height / (x1 - x0), (here.double() - y0) / height, d0 + d1
        double = secant + secant
        low = double * share
        e = torch.lerp(d0, -d1, share)
        root = torch.addcmul(e * e, low, double - low).sqrt()
        p = (root - e + low) / torch.add(double, root, alpha=2)  # exactly 0 and 1 at the knots
        below = torch.addcmul(secant, both - double, torch.addcmul(p, p, p, value=-1))
        log_det = torch.log((below / (secant * root)).to(dtype)).to(y.dtype)
        return self._outside(y, here, torch.lerp(x0, x1, p).to(y.dtype), log_det)

    def _clamped(self, x: Tensor) -> tuple[Tensor, torch.dtype]:
        """Move `x` into the box before anything is computed, so that no point outside has a wild gradient."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x.clamp(-self.bound, self.bound).to(dtype), dtype

    def _outside(self, x: Tensor, here: Tensor, value: Tensor, log_det: Tensor) -> Mapped:
        inside = here == x
        if self.tails == "linear":  # at the ends log_det is exactly 0
            return Mapped(torch.where(inside, value, x), log_det)
        return nothing_outside(x, inside, value, log_det, self.bound)

    def _find(self, point: Tensor, theta: Tensor, axis: int) -> tuple[_Found, Tensor, Tensor]:
        """Find the bin of `point` (k, n) on the x axis (0) or the y axis (1); also the softmax behind the knots.

        Parameters go to the leading axis, where a CPU is fastest; a transposed `theta` is there already.
        """
        bins, untaped = self.bins, _without_tape(point, theta)
        leading = theta.t()
        copied = leading.stride(-1) != 1
        if copied:
            leading = _transposed(theta) if untaped else leading.contiguous()
        shares, slopes = leading[: 2 * bins].view(2, bins, -1), leading[2 * bins :]
        powers = torch.sub(
            shares, shares.amax(dim=1, keepdim=True).detach(), out=shares if copied and untaped else None
        )
        powers = torch.exp(powers, out=powers if untaped else None)
        table, total = (self._filled_table if untaped else self._stacked_table)(powers, slopes)
        return _look_up(point, table, axis, untaped), powers, total

    def _filled_table(self, powers: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """x, y and raw slope of every knot (bins + 1, 3, n), and the sum of powers (2, n); without a tape."""
        bins = self.bins
        table = powers.new_empty(bins + 1, 3, powers.shape[-1])
        table[::bins].zero_()
        knots = table[:, :2]
        rows = knots.unbind()
        *each, last = powers.unbind(1)
        for power, before, after in zip(each, rows[:-2], rows[1:-1], strict=True):
            torch.add(before, power, out=after)
        total = rows[-2] + last
        knots /= total
        torch.add(self._offsets(powers), knots, alpha=self.spare, out=knots)
        inner = table[1:bins, 2] if self.tails == "linear" else table[:, 2]
        inner.copy_(slopes)
        return table, total

    def _stacked_table(self, powers: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """The same by differentiable operations."""
        zero = torch.zeros_like(powers[:, 0])
        *sums, total = accumulate(powers.unbind(1), initial=zero)
        knots = torch.add(self._offsets(powers), torch.stack([*sums, zero]) / total, alpha=self.spare)
        if self.tails == "linear":
            slopes = torch.cat([zero[:1], slopes, zero[:1]])
        return torch.cat([knots, slopes.unsqueeze(1)], dim=1), total

    def _offsets(self, like: Tensor) -> Tensor:
        """Each knot where every bin has its smallest size, (bins + 1, 1, 1)."""
        smallest = 2 * self.bound - self.spare
        offsets = [smallest * (k / self.bins) - self.bound for k in range(self.bins)]
        return like.new_tensor([*offsets, self.bound]).view(-1, 1, 1)

    def _theta_gradient(self, grad_ends: Tensor, place: Tensor, powers: Tensor, total: Tensor) -> Tensor:
        """Gradient (size, n) in theta from gradients at the ends of bins (6, k, n), each in units of its parameter."""
        bins, n = self.bins, powers.shape[-1]
        # Many points of one theta are summed with more digits.
        parts = grad_ends.double() if place.shape[1] > 1 else grad_ends
        table = parts.new_zeros(3 * (bins + 1) * n)
        table = table.index_add_(0, place.view(-1), parts.view(-1)).to(powers.dtype).view(bins + 1, 3, n)
        # A share moves all knots above it; the ends of the box stay.
        above = table[1:, :2]
        rows = above.unbind()
        rows[-1].zero_()
        for k in range(bins - 2, -1, -1):
            rows[k].add_(rows[k + 1])
        above = above.transpose(0, 1)
        above *= powers
        mean = above.sum(dim=1).div_(total).unsqueeze(1)
        grad = powers.new_empty(self.spec.size, n)
        torch.addcmul(above, powers, mean, value=-1, out=grad[: 2 * bins].view(2, bins, n))
        grad[2 * bins :] = table[1:bins, 2] if self.tails == "linear" else table[:, 2]
        return grad


class _Found(NamedTuple):
    """The two ends of the bin of each point: x0, y0, raw slope, x1, y1, raw slope (6, k, n), and their places."""

    ends: Tensor
    place: Tensor


class _InBin(NamedTuple):
    """A point in its bin, in the letters of the class: below = p u + q v, bend = q u + p v."""

    width: Tensor
    height: Tensor
    secant: Tensor
    left: Tensor
    p: Tensor
    u: Tensor
    v: Tensor
    below: Tensor
    bend: Tensor


def _look_up(point: Tensor, table: Tensor, axis: int, untaped: bool) -> _Found:
    """Find the bin of `point` (k, n) in `table` (knots, 3, n); a NaN is in the first bin."""
    knots, _, n = table.shape
    inner = table[1:-1, axis].unsqueeze(1)
    # Numbers are added up faster than booleans.
    passed = torch.ge(point, inner, out=point.new_empty(knots - 2, *point.shape) if untaped else None)
    bin_ = passed.sum(dim=0, dtype=point.dtype)
    dtype = torch.int32 if untaped and table.numel() < 2**31 else torch.int64
    columns = torch.arange(n, dtype=dtype, device=point.device)
    rows = torch.arange(6, dtype=dtype, device=point.device) * n
    place = rows.view(6, 1, 1) + (bin_.to(dtype) * (3 * n) + columns)
    ends = table.view(-1).index_select(0, place.view(-1)).view(6, *point.shape)
    return _Found(ends, place)


def _transposed(matrix: Tensor) -> Tensor:
    """Copy a matrix to the memory layout of its transpose."""
    rows, columns = matrix.shape
    if (
        matrix.dtype is not torch.float32
        or matrix.device.type != "cpu"
        or rows < 2
        or not columns
        or not matrix.is_contiguous()
    ):
        return matrix.t().clone(memory_format=torch.contiguous_format)
    # A shuffle of the channels of one pixel: on a CPU the only transpose of torch that is vectorised, three times
    # as fast as a copy.
    count = rows * columns
    pixel = matrix.as_strided((1, count, 1, 1), (count, 1, count, count))
    return torch.channel_shuffle(pixel, rows).as_strided((columns, rows), (rows, 1))


def _slopes(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives at the knots, and the squashed number t in `exp(limit t)`, t = tanh(raw / limit)."""
    low, high = -math.log(SMALLEST_SLOPE), math.log(LARGEST_SLOPE)
    limit = torch.add(raw.new_full((), (low + high) / 2), torch.sign(raw), alpha=(high - low) / 2)
    squashed = torch.tanh(raw / limit)
    return torch.exp(limit * squashed), squashed


def _in_bin(x: Tensor, ends: Tensor, slopes: Tensor) -> _InBin:
    x0, y0, _, x1, y1, _ = ends.unbind()
    d0, d1 = slopes.unbind()
    width, height = x1 - x0, y1 - y0
    secant, left = height / width, x - x0
    p = left / width
    u, v = torch.lerp(d0, secant, p), torch.lerp(secant, d1, p)
    return _InBin(width, height, secant, left, p, u, v, torch.lerp(v, u, p), torch.lerp(u, v, p))


def _bin_gradient(bin_: _InBin, slopes: Tensor, grad_value: Tensor, grad_log_det: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients at x0, y0, d0, x1, y1, d1, stacked (6, k, n), and at x."""
    width, height, secant, _, p, u, v, below, bend = bin_
    d0, d1 = slopes.unbind()
    ends = torch.empty(6, *p.shape, dtype=p.dtype, device=p.device)
    grad_x0, grad_y0, grad_d0, grad_x1, grad_y1, grad_d1 = ends.unbind()
    # Of share and log_det by p u (rise), -q v (fall) and bend.
    q, share, twice = 1 - p, p * u / below, grad_log_det + grad_log_det
    climb = grad_value * height / below
    fall = torch.addcmul(twice / below, climb, share)
    bent = grad_log_det / bend
    rise_less_bent, fall_and_bent = climb - fall - bent, fall + bent
    grad_u = torch.addcmul(bent, p, rise_less_bent)
    grad_v = torch.addcmul(bent, q, fall_and_bent, value=-1)
    grad_x = (u * rise_less_bent).addcmul_(v, fall_and_bent)
    grad_x = grad_x.addcmul_(secant - d0, grad_u).addcmul_(d1 - secant, grad_v).div_(width)
    torch.mul(q, grad_u, out=grad_d0)
    torch.mul(p, grad_v, out=grad_d1)
    grad_rise = (twice / secant).addcmul_(p, grad_u).addcmul_(q, grad_v).div_(width)
    torch.addcmul(grad_rise * secant, q, grad_x, value=-1, out=grad_x0)
    torch.add(grad_x0, grad_x, out=grad_x1).neg_()  # a shift of bin and point changes nothing
    torch.addcmul(grad_rise, grad_value, share, out=grad_y1)
    torch.sub(grad_value, grad_y1, out=grad_y0)
    return ends, grad_x


def _without_tape(point: Tensor, theta: Tensor) -> bool:
    """Whether operations may write over their inputs: nobody differentiates or traces them."""
    return runs_eagerly() and not (torch.is_grad_enabled() and (point.requires_grad or theta.requires_grad))


def _common_shape(x: Tensor, theta: Tensor) -> torch.Size:
    lead = theta.shape[:-1]
    return x.shape if x.shape == lead else torch.broadcast_shapes(x.shape, lead)
