"""Small increasing maps of the line onto itself, one or two parameters each, closed both ways."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import log_one_minus_exp, soft_bound
from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.closed import ClosedForm, ClosedUnitForm, log_cosh, signed

FARTHEST = 1e150  # its square is still a float64


class SinhArcsinh(ClosedForm):
    """Skew and tail weight: `y = sinh(d asinh(x) - e)`.

    `log_det = log d + log cosh(d asinh(x) - e) - log cosh asinh(x)`. Behind a normal base `d < 1` makes tails of the
    data heavier, `d > 1` lighter, and e shifts mass to one side. `log d` is smoothly bounded to (-1, 1), e to (-4, 4);
    theta = 0 is the identity. Closed inverse `x = sinh((asinh(y) + e) / d)` (Jones & Pewsey, Sinh-arcsinh
    distributions, 2009).

    >>> SinhArcsinh()(torch.tensor([2.0]), torch.zeros(1, 2)).value
    tensor([2.])
    """

    spec = ParamSpec(log_tail=(), skew=())

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Bend the scale on which asinh makes tails linear."""
        log_tail, skew = self._decode(theta)
        before = torch.asinh(x)
        after = torch.exp(log_tail) * before - skew
        return Mapped(torch.sinh(after), log_tail + log_cosh(after) - log_cosh(before))

    def solve(self, y: Tensor, theta: Tensor) -> Mapped:
        """Bend back."""
        log_tail, skew = self._decode(theta)
        after = torch.asinh(y)
        before = (after + skew) * torch.exp(-log_tail)
        return Mapped(torch.sinh(before), log_cosh(before) - log_cosh(after) - log_tail)

    def _decode(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_tail, skew = theta.unbind(dim=-1)
        return soft_bound(log_tail, 1.0), soft_bound(skew, 4.0)


class TwoSlopes(ClosedForm):
    """Slope a far to the left of 0 and b far to the right, as a leaky ReLU has, with a smooth or a sharp bend between.

    Smooth (default), a branch of a hyperbola with p = (a + b) / 2, q = (b - a) / 2:
    `y = p x + q (sqrt(x^2 + 1) - 1)`, `log_det = log(p + q x / sqrt(x^2 + 1))`. With `sharp=True` the two half-lines
    themselves, `y = a x` for x < 0 and `b x` from 0 on: its density jumps at 0, where it takes the slope b.
    `log a` and `log b` are smoothly bounded to (-2, 2); theta = 0 is the identity. Closed inverse.

    >>> TwoSlopes(sharp=True)(torch.tensor([-3.0, 3.0]), torch.tensor([0.0, 1e9])).value
    tensor([-3.0000, 22.1672])
    """

    spec = ParamSpec(log_left=(), log_right=())

    def __init__(self, *, sharp: bool = False) -> None:
        super().__init__()
        self.sharp = sharp

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Go along the branch."""
        log_left, log_right = soft_bound(theta, 2.0).unbind(dim=-1)
        if self.sharp:
            log_slope = torch.where(x >= 0, log_right, log_left)
            return Mapped(x * torch.exp(log_slope), log_slope)
        p, q, _ = _half_sum_and_difference(log_left, log_right)
        near = x.clamp(-FARTHEST, FARTHEST)
        root = torch.sqrt(near.square() + 1)
        # In this form nothing is subtracted near 0, where the square root is almost 1.
        return Mapped(x * (p + q * near / (root + 1)), torch.log(p + q * near / root))

    def solve(self, y: Tensor, theta: Tensor) -> Mapped:
        """Solve the quadratic: `x = y (p - q (y + 2 q) / (p + r)) / (a b)` with `r^2 = (y + q)^2 + a b`."""
        log_left, log_right = soft_bound(theta, 2.0).unbind(dim=-1)
        if self.sharp:
            log_slope = torch.where(y >= 0, log_right, log_left)
            return Mapped(y * torch.exp(-log_slope), -log_slope)
        p, q, product = _half_sum_and_difference(log_left, log_right)
        near = y.clamp(-FARTHEST, FARTHEST)
        root = torch.sqrt((near + q).square() + product)
        x = y * (p - q * (near + 2 * q) / (p + root)) / product
        near = x.clamp(-FARTHEST, FARTHEST)
        return Mapped(x, -torch.log(p + q * near / torch.sqrt(near.square() + 1)))


class YeoJohnson(ClosedForm):
    """The power transform of Yeo & Johnson (2000) with its power inside (0.1, 1.9), where it is onto the line.

    `y = ((1 + x)^p - 1) / p` for x >= 0 and `-((1 - x)^(2 - p) - 1) / (2 - p)` for x < 0, with p = 1 + 0.9 tanh(raw);
    `log_det = (p - 1) sign(x) log(1 + |x|)`. theta = 0 is the identity. Closed inverse.

    >>> YeoJohnson()(torch.tensor([3.0]), torch.tensor([[-1e9]])).value  # (4^0.1 - 1) / 0.1
    tensor([1.4870])
    """

    spec = ParamSpec(power=())

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Take powers of 1 + |x|."""
        sign, size = signed(x)
        power = self._power(theta, sign)
        log_size = torch.log1p(size)
        return Mapped(sign * torch.expm1(power * log_size) / power, (power - 1) * log_size)

    def solve(self, y: Tensor, theta: Tensor) -> Mapped:
        """Take the inverse powers."""
        sign, size = signed(y)
        power = self._power(theta, sign)
        log_size = torch.log1p(power * size) / power
        return Mapped(sign * torch.expm1(log_size), (1 - power) * log_size)

    def _power(self, theta: Tensor, sign: Tensor) -> Tensor:
        """The power on the side of `sign`: p to the right, 2 - p to the left."""
        return 1 + sign * soft_bound(theta.squeeze(-1), 0.9)


class Arcsinh(ClosedForm):
    """Linear near 0 and logarithmic far away: `y = asinh(b x) / b`, `log_det = -log cosh asinh(b x)`.

    Behind a logistic base both tails of the data are powers with index 1 / b. b lies in (0.001, 2), and theta = 0 gives
    b = 0.05, nearly the identity. Closed inverse `x = sinh(b y) / b` (Johnson 1949, the SU family).

    >>> Arcsinh()(torch.tensor([1.0, 1e4]), torch.zeros(1, 1)).value
    tensor([  0.9996, 138.1551])
    """

    spec = ParamSpec(bend=())

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Take the logarithm of what is large."""
        bend = between(theta.squeeze(-1), 0.001, 2.0, start=0.05)
        after = torch.asinh(bend * x)
        return Mapped(after / bend, -log_cosh(after))

    def solve(self, y: Tensor, theta: Tensor) -> Mapped:
        """Take powers."""
        bend = between(theta.squeeze(-1), 0.001, 2.0, start=0.05)
        after = bend * y
        return Mapped(torch.sinh(after) / bend, log_cosh(after))


class Kumaraswamy(ClosedUnitForm):
    """Powers of both tails of the logistic CDF s: `F(x) = 1 - (1 - s(x)^a)^b`, carried as `value = logit F`.

    The logit has slope a far to the left and b far to the right. With softplus t and `g_c(x) = log(exp(c t(x)) - 1)`
    it is `g_b(-g_a(-x))`. `log a` and `log b` are smoothly bounded to (-2, 2); theta = 0 is the standard logistic CDF,
    `value = x`. Closed inverse, since `g_c` and `g_{1/c}` undo each other (Kumaraswamy 1980).

    >>> kumaraswamy = Kumaraswamy()
    >>> kumaraswamy.cdf(torch.zeros(1), torch.tensor([[0.0, 1e9]]))  # 1 - 2^-e^2
    tensor([0.9940])
    """

    spec = ParamSpec(log_left=(), log_right=())

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Raise F, then 1 - F."""
        log_left, log_right = soft_bound(theta, 2.0).unbind(dim=-1)
        middle, left_log_det = _softplus_power(-x, log_left)
        value, right_log_det = _softplus_power(-middle, log_right)
        return Mapped(value, left_log_det + right_log_det)

    def solve(self, y: Tensor, theta: Tensor) -> Mapped:
        """Take the roots of 1 - F, then of F."""
        log_left, log_right = soft_bound(theta, 2.0).unbind(dim=-1)
        middle, right_log_det = _softplus_power(y, -log_right)
        value, left_log_det = _softplus_power(-middle, -log_left)
        return Mapped(-value, left_log_det + right_log_det)


def between(raw: Tensor, low: float, high: float, *, start: float) -> Tensor:
    """Squash to (low, high) by a logistic curve that passes `start` at raw = 0.

    Raises `OptionError` unless low < start < high.

    >>> between(torch.zeros(()), 1.0, 5.0, start=2.0)
    tensor(2.)
    """
    if not low < start < high:
        raise OptionError(f"start: {start} came, a number between {low} and {high} was expected.")
    return low + (high - low) * torch.sigmoid(raw + math.log((start - low) / (high - start)))


def _half_sum_and_difference(log_left: Tensor, log_right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, right = torch.exp(log_left), torch.exp(log_right)
    return (left + right) / 2, (right - left) / 2, left * right


def _softplus_power(x: Tensor, log_power: Tensor) -> Mapped:
    """`log(exp(c t) - 1)` with t = softplus(x) and c = exp(log_power), and the log of its derivative in x."""
    far = x < -40.0  # there t = exp(x) (1 - exp(x) / 2) to rounding, and would underflow
    plain = torch.where(far, 0.0, x)
    softplus = -logsigmoid(-plain)
    log_softplus = torch.where(far, x - 0.5 * torch.exp(x.clamp(max=-40.0)), torch.log(softplus))
    exponent = torch.where(far, torch.exp(x.clamp(max=-40.0)), softplus) * torch.exp(log_power)
    log_share = log_one_minus_exp(log_power + log_softplus)
    return Mapped(exponent + log_share, log_power + logsigmoid(x) - log_share)
