"""Maps between power-law tails and light ones: behind them a light-tailed base gives heavy-tailed data.

A flow whose layers are affine far out has the tails of its base, and learned bases give tails that one number per
column decides. Here the conditioner decides: each tail of each coordinate has its own index 1 / xi.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.closed import ClosedForm, ClosedUnitForm, signed
from rosenblatt.elementwise.simple import between

SMALLEST_XI, LARGEST_XI, START_XI = 0.01, 2.0, 0.05
FARTHEST = 1e300
LOG_SQRT_2_OVER_PI = 0.5 * math.log(2 / math.pi)
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
FAR = 30.0  # standard deviations from which the asymptotic series of the normal tail has all digits
NEWTON_STEPS = 8  # six reach the last digit from the start taken here, whatever the target


class ParetoTails(ClosedUnitForm):
    """CDF with two power-law tails, `F(x) = s(y)` with `y = sign(x) log(1 + xi |x|) / xi`, carried as y = logit F.

    Far out `1 - F(x)` is `(xi x)^(-1/xi)`: the tail index is 1 / xi, with its own xi in (0.01, 2) on either side.
    `log_det = -log(1 + xi |x|)`. theta = 0 gives xi = 0.05 on both, within 0.02 of the standard logistic CDF (xi -> 0).
    Closed inverse `x = sign(y) (exp(xi |y|) - 1) / xi`, the generalised Pareto quantile of a logistic tail; the idea is
    that of the tail transform flow (Hickling & Prangle, Flexible Tails for Normalizing Flows, 2024).

    >>> tails = ParetoTails()
    >>> tails.log_sf(torch.tensor([1e4]), torch.tensor([[0.0, 1e9]]))  # xi = 2: -log(1 + 2e4) / 2, about
    tensor([-4.9588])
    """

    spec = ParamSpec(left=(), right=())

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Take logarithms of what is large."""
        sign, size = signed(x)
        xi = _xi(theta, sign)
        log_size = torch.log1p(xi * size)
        return Mapped(sign * log_size / xi, -log_size)

    def solve(self, y: Tensor, theta: Tensor) -> Mapped:
        """Take powers."""
        sign, size = signed(y)
        xi = _xi(theta, sign)
        log_size = xi * size
        return Mapped(sign * torch.expm1(log_size) / xi, log_size)


class TailTransform(ClosedForm):
    """Two-sided tail transform of Hickling & Prangle (2024), from data with power-law tails to a normal base.

    Data are `x = sign(z) (erfc(|z| / sqrt 2)^-xi - 1) / xi`, so that |x| is generalised Pareto and its tail index
    1 / xi, with its own xi in (0.01, 2) on either side; `forward` finds z with `-log erfc(|z| / sqrt 2) = m`,
    `m = log(1 + xi |x|) / xi`. All in log space: `log_det = z^2 / 2 - m - xi m - log(2 / pi) / 2` has its digits where
    erfc has long underflowed. theta = 0 gives xi = 0.05: no member is the identity, this one is within 0.1 of it in the
    sense of CDFs. The inverse is closed; `forward` is Newton's search for a convex function, with exact derivatives.

    >>> tails = TailTransform()
    >>> z = tails(torch.tensor([1e4]), torch.zeros(1, 2)).value
    >>> round(z.item(), 3), round(tails.inverse(z, torch.zeros(1, 2)).value.item())
    (15.579, 10000)
    """

    spec = ParamSpec(left=(), right=())

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """From data to the normal scale."""
        sign, size = signed(x)
        xi = _xi(theta, sign)
        log_size = torch.log1p(xi * size.clamp(max=FARTHEST))
        m = log_size / xi
        z = normal_size(m)
        value = torch.where(torch.isinf(x), x, sign * z)
        return Mapped(value, 0.5 * z.square() - m - log_size - LOG_SQRT_2_OVER_PI)

    def solve(self, y: Tensor, theta: Tensor) -> Mapped:
        """From the normal scale to data."""
        sign, z = signed(y)
        xi = _xi(theta, sign)
        m = _log_tail(z)
        log_size = xi * m
        log_det = log_size + m - 0.5 * z.square() + LOG_SQRT_2_OVER_PI
        return Mapped(sign * torch.expm1(log_size) / xi, log_det)


def _xi(theta: Tensor, sign: Tensor) -> Tensor:
    """The tail weight on the side of `sign`."""
    left, right = between(theta, SMALLEST_XI, LARGEST_XI, start=START_XI).unbind(dim=-1)
    return torch.where(sign > 0, right, left)


def _log_tail(z: Tensor) -> Tensor:
    """`-log P(|Z| > z) = -log erfc(z / sqrt 2)` of a normal Z, for z >= 0, accurate at both ends."""
    near = z < 1.0
    u = z * math.sqrt(0.5)
    small = -torch.log1p(-torch.erf(torch.where(near, u, 0.5)))
    large = u.square() - torch.log(torch.special.erfcx(torch.where(near, 1.0, u)))
    return torch.where(near, small, large)


def _log_hazard(z: Tensor, m: Tensor) -> Tensor:
    """Log of the derivative of `_log_tail` at z, where it is m."""
    return LOG_SQRT_2_OVER_PI - 0.5 * z.square() + m


def log_normal_tail(z: Tensor) -> Tensor:
    """`log Phi(-z)` of the normal for z >= 0, with derivatives that are right at any distance."""
    far = z > FAR
    distance, middle = torch.where(far, z, FAR), torch.where(far, 1.0, z)
    near = -0.5 * middle.square() + torch.log(0.5 * torch.special.erfcx(middle * math.sqrt(0.5)))
    beyond = -0.5 * distance.square() - torch.log(distance) - LOG_SQRT_2PI + torch.log1p(_mills_series(distance))
    return torch.where(far, beyond, near)


def log_hazard(z: Tensor) -> Tensor:
    """`log phi(z) / Phi(-z)` of the normal, in which nothing cancels on either side."""
    far, right = z > FAR, z > 0
    distance = torch.where(far, z, FAR)
    middle, left = torch.where(right & ~far, z, 1.0), torch.where(right, 0.0, z)
    before = -0.5 * left.square() - LOG_SQRT_2PI - torch.log1p(-0.5 * torch.erfc(-left * math.sqrt(0.5)))
    near = LOG_SQRT_2_OVER_PI - torch.log(torch.special.erfcx(middle * math.sqrt(0.5)))
    beyond = torch.log(distance) - torch.log1p(_mills_series(distance))
    return torch.where(far, beyond, torch.where(right, near, before))


def _mills_series(z: Tensor) -> Tensor:
    """`z Phi(-z) / phi(z) - 1` for z > 30, where six terms are exact to rounding (erfcx loses its derivative there)."""
    square = 1 / z.square()
    return -square * (1 - 3 * square * (1 - 5 * square * (1 - 7 * square * (1 - 9 * square))))


def normal_size(m: Tensor) -> Tensor:
    """The z >= 0 with `_log_tail(z) = m`."""
    size: Tensor = _NormalSize.apply(m)  # type: ignore[no-untyped-call]
    return size


class _NormalSize(torch.autograd.Function):
    """Newton's search; `_log_tail` is convex and the start lies beyond the root, so each step comes nearer."""

    generate_vmap_rule = True

    @staticmethod
    def forward(m: Tensor) -> Tensor:
        z = torch.sqrt(2 * m)  # erfc(u) <= exp(-u^2), so its _log_tail is at least m
        for _ in range(NEWTON_STEPS):
            reached = _log_tail(z)
            z = (z - (reached - m) * torch.exp(-_log_hazard(z, reached))).clamp(min=0.0)
        return z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        # Made of differentiable operations on the output, so that derivatives of any order are right.
        return grad * torch.exp(-log_hazard(z))
