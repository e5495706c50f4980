"""Roots of the monotone net: a bracketed Newton search in float32, then steps in float64 whose residual is certified.

Both look from the end of the support that the target is nearer to: mirrored if need be, it is a lower tail. Its mass is
a sum of sigmoids less the sum at the end. That difference costs digits where the mass is small, and a root is called
sure only where the digits lost leave the tolerance intact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.elementwise.monotone_kernel import Plan, even_step, exponentiate, squash

LANES = 64  # a multiple of what a processor handles in one instruction, unrolled
POINTS = 4096  # roots sought at once, at most: their weights stay in the cache
# Steps of the search after which finished roots are dropped; the last one ends it, first in float32, then in float64.
CHECKS, LATE_CHECKS = (3, 5, 7, 9, 12, 16, 20), (8, 12, 16, 20, 26, 32, 40, 50, 60)
NEAR = 1e-3  # residual from which one more step reaches what float32 can tell
STRIDE, STRIDES = 4.0, 3  # longest step of the search on the whole line; what it has not found it seeks farther out
STEPS = 4  # further steps in float64 for roots that are not yet sure


class Roots(NamedTuple):
    """Solutions (n,) in float64, the log-slope there, and whether the residual is certain to meet the tolerance."""

    x: Tensor
    log_slope: Tensor
    sure: Tensor


def solve(plan: Plan, y: Tensor, theta: Tensor, tolerance: float) -> Roots:
    """Solve `logit F(x; theta) = y` for `y` (n,), `theta` (n, size), to a residual of `tolerance * (1 + |y|)`.

    The log-slope belongs to `x` rounded to the dtype of `y`.
    """
    size = even_step(len(y), POINTS)
    parts = [_solve(plan, *cut, tolerance) for cut in zip(y.split(size), theta.split(size), strict=True)]
    return parts[0] if len(parts) == 1 else Roots(*(torch.cat(column) for column in zip(*parts, strict=True)))


def whole_lanes(rows: Tensor) -> Tensor:
    """Repeat the last of `rows` up to a multiple of `LANES`.

    What is left over by full lanes is rounded in another way, so the digits of a row would depend on how many others
    are still searched with it.
    """
    return torch.cat([rows, rows[-1:].expand(-len(rows) % LANES)])


def _solve(plan: Plan, y: Tensor, theta: Tensor, tolerance: float) -> Roots:
    side = torch.sign(-y.double()).add_(0.5).sign_()  # 1 for targets up to 0, else -1
    target = y.double().abs().neg_()
    tail = _tail(plan, theta.t(), side)
    start = _search(tail.single(), target.float(), CHECKS).double()
    limit = tolerance * (1 - target)
    found, error = _certify(tail, start, target, limit, y.dtype)
    lost = (~(error <= NEAR) & target.isfinite()).nonzero().squeeze(-1)
    if len(lost):  # the sums of some nets cancel too much for float32 to tell left from right
        lost = whole_lanes(lost)
        rest, aims = tail.select(lost), target[lost]
        again, _ = _certify(rest, _search(rest, aims, LATE_CHECKS), aims, limit[lost], y.dtype)
        for part, better in zip(found, again, strict=True):
            part[lost] = better
    return found._replace(x=found.x * side)


class _Tail:
    """Shares of the mass below points, of nets mirrored where `side` is -1: all numbers (height, n) of n vectors."""

    def __init__(self, plan: Plan, numbers: Tensor) -> None:
        self.plan, self.numbers = plan, numbers
        self.exact = numbers.dtype == torch.float64
        units = [outputs for outputs, _ in plan.shapes]
        self.location, *self.shifts, self.mixture, ends = numbers[plan.end :].split([*units, units[-1], 4])
        self.start, self.epsilon, self.lower, self.upper = ends
        self.slope = numbers[plan.places["slope_1"]]
        self.weights = [numbers[plan.places[f"slope_{number}"]] for number in range(2, plan.layers + 1)]
        self.weights = [weight.unflatten(0, shape) for weight, shape in zip(self.weights, plan.shapes[1:], strict=True)]
        self.products = [torch.empty_like(weight) for weight in self.weights]

    def select(self, rows: Tensor) -> _Tail:
        """Keep only some of the vectors."""
        return _Tail(self.plan, torch.gather(self.numbers, 1, rows.expand(len(self.numbers), -1)))

    def single(self) -> _Tail:
        """The same in float32."""
        return _Tail(self.plan, self.numbers.float())

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the mass below `x` (n,), and its derivative."""
        pair, hidden, rate = self._bend((x - self.location).mul_(self.slope))
        rate.mul_(self.slope)
        for weight, shift, product in zip(self.weights, self.shifts, self.products, strict=True):
            z = torch.mul(weight, hidden, out=product).sum(dim=1).sub_(shift)
            risen = torch.mul(weight, rate, out=product).sum(dim=1)
            pair, hidden, rate = self._bend(z)
            rate.mul_(risen)
        mass, density = pair.mul_(self.mixture).sum(dim=1).unbind()  # as iterating would, at a third of the cost
        mass.sub_(self.start)
        if self.plan.epsilon and self.plan.support.bounded:
            mass.addcmul_(x - self.lower, self.epsilon)
            density.add_(self.epsilon)
        elif self.plan.epsilon:
            _, below, rate = self._bend(x)
            mass.addcmul_(below, self.epsilon)
            density.addcmul_(rate, self.epsilon)
        return mass, density

    def _bend(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s(z) and its derivative, together (2, ...) and each; takes z's place.

        The search can do without the digits of 1 - s(z).
        """
        pair = z.new_empty(2, *z.shape)
        value, rate = pair.unbind()
        torch.sigmoid(z, out=value)
        if self.exact:
            torch.neg(z, out=rate).sigmoid_().mul_(value)
        else:
            torch.addcmul(value, value, value, value=-1, out=rate)
        return pair, value, rate


def _tail(plan: Plan, theta: Tensor, side: Tensor) -> _Tail:
    """Decode `theta` (size, n), in float64, for the net mirrored where `side` (n,) is -1."""
    bounded = plan.support.bounded
    height = plan.end + plan.units + plan.shapes[-1][0] + 4
    tail = _Tail(plan, side.new_empty(height, len(side)))
    decoded = tail.numbers[: plan.end].copy_(theta[: plan.end])
    exponentiate(squash(decoded, decoded), decoded)
    torch.mul(theta[plan.places["offset_1"]], side, out=tail.location)
    torch.softmax(theta[plan.places["mixture"]].double(), dim=0, out=tail.mixture)
    # Values of the hidden units at both ends of the support: on the line those of the first layer are 0 and 1.
    ends: list[Tensor] = []
    if bounded:
        lower, upper = side.new_tensor(plan.support.lower), side.new_tensor(plan.support.upper)
        tail.lower.copy_(torch.where(side > 0, lower, -upper))
        tail.upper.copy_(torch.where(side > 0, upper, -lower))
        ends = [torch.sigmoid((end - tail.location) * tail.slope) for end in (tail.lower, tail.upper)]
    else:
        tail.lower.fill_(-1e30)
        tail.upper.fill_(1e30)
    for layer, (weight, shift) in enumerate(zip(tail.weights, tail.shifts, strict=True), start=2):
        inputs, mean = weight.shape[1], weight.mean(dim=1)
        # The mirror image of s(A h - b m), with m the mean weight, is s(A (1 - h) - (inputs - b) m).
        offset = theta[plan.places[f"offset_{layer}"]].double()
        torch.sub(offset, inputs / 2, out=shift).mul_(side).add_(inputs / 2).mul_(mean)
        risen = [(weight * end).sum(dim=1) for end in ends] if ends else [torch.zeros_like(mean), mean.mul_(inputs)]
        ends = [rise.sub_(shift).sigmoid_() for rise in risen]
    start, end = ((tail.mixture * end).sum(dim=0) for end in ends) if ends else (torch.zeros_like(side), 1.0)
    whole = end - start + plan.epsilon * (tail.upper - tail.lower if bounded else 1.0)
    tail.mixture.div_(whole)
    torch.div(start, whole, out=tail.start)
    torch.reciprocal(whole, out=tail.epsilon).mul_(plan.epsilon)
    return tail


def _search(tail: _Tail, target: Tensor, checks: tuple[int, ...]) -> Tensor:
    """Newton's method on the logit, at most half-way to a bracket that closes, for `target` <= 0; it may fail."""
    bounded, eps = tail.plan.support.bounded, torch.finfo(target.dtype).eps
    x = tail.lower + (tail.upper - tail.lower) * torch.sigmoid(target) if bounded else target.clamp(min=-2).mul_(0.5)
    low, high, result, rows, huge = tail.lower, tail.upper, x, None, x.new_tensor(1e38)
    for step in range(1, checks[-1] + 1):
        # Nothing here branches on what differs from root to root: that costs more than arithmetic.
        mass, density = tail(x)
        missing = torch.logit(mass.clamp_(eps, 1 - eps)).neg_().add_(target)
        beyond = missing * huge
        low, high = torch.maximum(low, torch.minimum(x, beyond)), torch.minimum(high, torch.maximum(x, beyond))
        stride = torch.inf if bounded else STRIDE * 2.0 ** max(0, step - STRIDES)
        move = torch.addcmul(mass, mass, mass, value=-1).div_(density).mul_(missing).clamp_(-stride, stride)
        x = torch.maximum(torch.minimum(move.add_(x), torch.lerp(x, high, 0.5)), torch.lerp(x, low, 0.5))
        if step not in checks:
            continue
        result = x if rows is None else result.index_copy_(0, rows, x)
        keep = (missing.abs() > NEAR).nonzero().squeeze(-1)
        if len(keep) == 0 or step == checks[-1]:
            break
        keep = whole_lanes(keep)
        rows = keep if rows is None else rows[keep]
        tail = tail.select(keep)
        x, low, high, target = (part.index_select(0, keep) for part in (x, low, high, target))
    return result


class _Measured(NamedTuple):
    missing: Tensor  # target less the logit
    slope: Tensor  # of the logit
    doubt: Tensor  # what rounding may have done to the logit


def _measure(tail: _Tail, x: Tensor, target: Tensor) -> _Measured:
    mass, density = tail(x)
    rest = 1 - mass
    doubt = ((tail.start + mass) / mass).add_((tail.start + 1).div_(rest)).mul_(32 * torch.finfo(x.dtype).eps)
    return _Measured(target - torch.log(mass / rest), density.div_(rest.mul_(mass)), doubt)


def _certify(tail: _Tail, start: Tensor, target: Tensor, limit: Tensor, dtype: torch.dtype) -> tuple[Roots, Tensor]:
    """Newton's method on the logit until the residual is below `limit` and float64 can vouch for it; the residual."""
    first = _measure(tail, start, target)
    root, slope, error, sure = _polish(tail, torch.addcdiv(start, first.missing, first.slope), target, limit, STEPS)
    log_slope = torch.log(slope)
    # The slope belongs to the root as it will be stored: less than an ulp away, by its change since the start.
    change = (log_slope - torch.log(first.slope)).div_(root - start)
    log_slope += change.mul_(root.to(dtype) - root).nan_to_num_(0.0, 0.0, 0.0)
    return Roots(root, log_slope, sure), error


def _polish(tail: _Tail, x: Tensor, target: Tensor, limit: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Roots, slopes, residuals, and which roots are sure, after further steps where that helps."""
    found = _measure(tail, x, target)
    error = found.missing.abs()
    sure = error + found.doubt <= limit
    if steps > 0 and not bool(sure.all()):
        rows = (~sure & (error < 1) & (2 * found.doubt < limit)).nonzero().squeeze(-1)
        if len(rows):
            rows = whole_lanes(rows)
            start = torch.addcdiv(x, found.missing, found.slope)[rows]
            better = _polish(tail.select(rows), start, target[rows], limit[rows], steps - 1)
            for part, polished in zip((x, found.slope, error, sure), better, strict=True):
                part[rows] = polished
    return x, found.slope, error, sure
