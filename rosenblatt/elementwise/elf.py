"""ELF: `x + g(x)` with a one-layer network g whose Lipschitz constant is known in closed form and kept below 1.

A network of one number and one hidden layer needs no product of norms: the slope of a ReLU network is piecewise
constant, so its largest size is found by walking over the breakpoints, and units whose slope lies between 0 and 1 are
bounded by the sum of their rising or of their falling parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.decoded import Decoded

WEIGHT_BOUND = 10.0  # of inner and outer weights: rounding of their sums stays far below 1 - lipschitz
LARGEST_INPUT = 1e30  # of g, which is constant beyond: a sum of infinities would be no number
START_SPREAD = 0.6  # share of the logistic's quantiles over which units start

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (torch.relu, lambda z: (z > 0).to(z.dtype)),
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z).square()),
    "softplus": (softplus, torch.sigmoid),
}


class ExactLipschitz(Elementwise):
    """Residual map `y = x + shift + g(x)`, `g(x) = sum_k a_k act(w_k x + b_k)`, with |g'| < lipschitz < 1.

    With L the Lipschitz constant of the raw network, a is divided by `sqrt(1 + (L / lipschitz)^2)`, so that small
    networks are left alone, large ones come near the limit smoothly, and gradients flow through L. So for every theta
    `1 - lipschitz < dy/dx < 1 + lipschitz`; `log_det = log(1 + g'(x))`. L is exact for "relu" and an upper bound for
    "tanh" and "softplus". Beyond |x| = 1e30 g is constant. theta = 0 is the identity. The inverse is a root search;
    repeating `x <- y - shift - g(x)` converges too.

    The log-derivative of "relu" does not change with b between breakpoints, which makes it learn badly by likelihood;
    the smooth activations are for that. Raises `OptionError` for another activation, units < 1, or lipschitz outside
    (0, 0.99].
    Reference: Gopal, ELF: Exact-Lipschitz Based Universal Density Approximator Flow, 2021.

    >>> elf = ExactLipschitz(units=4)
    >>> elf(torch.tensor([2.0]), torch.zeros(1, elf.spec.size)).value
    tensor([2.])
    """

    def __init__(self, units: int = 32, *, unit: str = "tanh", lipschitz: float = 0.97) -> None:
        super().__init__()
        if units < 1:
            raise OptionError(f"units: {units} came, an integer >= 1 was expected.")
        if unit not in ACTIVATIONS:
            raise OptionError(f"unit: '{unit}' came, choose one of {', '.join(ACTIVATIONS)}.")
        if not 0 < lipschitz <= 0.99:
            raise OptionError(f"lipschitz: {lipschitz} came, a number in (0, 0.99] was expected.")
        self.units = units
        self.unit = unit
        self.lipschitz = lipschitz
        self.spec = ParamSpec(shift=(), outer=(units,), inner=(units,), offset=(units,))

    def start(self) -> Tensor:
        """The identity, with hidden units spread over the data and of both directions."""
        location = START_SPREAD * torch.logit((torch.arange(self.units) + 0.5) / self.units)
        sign = 1.0 - 2.0 * (torch.arange(self.units) % 2)
        raw = WEIGHT_BOUND * torch.atanh(sign / WEIGHT_BOUND)
        return self.spec.join(shift=torch.zeros(()), outer=torch.zeros(self.units), inner=raw, offset=-sign * location)

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Add the network, and return log(1 + g')."""
        net = self._decode(theta.to(x.dtype))
        inside = x.clamp(-LARGEST_INPUT, LARGEST_INPUT).unsqueeze(-1)
        if self.unit == "relu":
            # Counted over the same breakpoints as the constant, so that rounding cannot put a slope beyond it.
            passed = (_breakpoints(net.inner, net.offset) < inside).to(x.dtype)
            slope = _leftmost_slope(net.inner, net.outer) + (net.outer * net.inner.abs() * passed).sum(dim=-1)
        else:
            derivative = ACTIVATIONS[self.unit][1]
            slope = (net.outer * net.inner * derivative(net.inner * inside + net.offset)).sum(dim=-1)
        slope = torch.where(x.abs() > LARGEST_INPUT, 0.0, slope)
        return Mapped(self._value(x, *net), torch.log1p(slope))

    def bind(self, theta: Tensor) -> Decoded:
        """Decode once for a root search."""
        return Decoded(self._value, self._decode(theta))

    def constant(self, theta: Tensor) -> Tensor:
        """Lipschitz constant (*batch) of g as it runs: exact for "relu", else an upper bound; below `lipschitz`."""
        net = self._decode(theta)
        return self._raw_constant(net.inner, net.offset, net.outer)

    def _value(self, x: Tensor, shift: Tensor, outer: Tensor, inner: Tensor, offset: Tensor) -> Tensor:
        z = inner * x.clamp(-LARGEST_INPUT, LARGEST_INPUT).unsqueeze(-1) + offset
        return x + shift + (outer * ACTIVATIONS[self.unit][0](z)).sum(dim=-1)

    def _decode(self, theta: Tensor) -> _Net:
        parts = self.spec.split(theta)
        inner, offset = soft_bound(parts["inner"], WEIGHT_BOUND), parts["offset"]
        outer = soft_bound(parts["outer"], WEIGHT_BOUND)
        outer = shrunk(outer, self._raw_constant(inner, offset, outer), self.lipschitz)
        return _Net(parts["shift"], outer, inner, offset)

    def _raw_constant(self, inner: Tensor, offset: Tensor, outer: Tensor) -> Tensor:
        if self.unit == "relu":
            return relu_constant(inner, offset, outer)
        return smooth_constant(inner, outer)


class _Net(NamedTuple):
    """Weights of g as they are used: shift (*batch), the others (*batch, units)."""

    shift: Tensor
    outer: Tensor
    inner: Tensor
    offset: Tensor


def relu_constant(inner: Tensor, offset: Tensor, outer: Tensor) -> Tensor:
    """Exact Lipschitz constant (*batch) of `sum_k outer_k relu(inner_k x + offset_k)`, weights (*batch, units).

    Left of all breakpoints -offset / inner the slope is the sum over units with a negative inner weight; at each
    breakpoint, in order, it changes by outer |inner|. Breakpoints that coincide are passed one after the other, which
    can only make the result larger.

    >>> relu_constant(torch.tensor([1.0, 1.0]), torch.tensor([0.0, -1.0]), torch.tensor([2.0, -3.0]))
    tensor(2.)
    """
    order = _breakpoints(inner, offset).argsort(dim=-1)
    first = _leftmost_slope(inner, outer)
    changes = (outer * inner.abs()).gather(-1, order)
    later = first.unsqueeze(-1) + changes.cumsum(dim=-1)
    return torch.maximum(first.abs(), later.abs().amax(dim=-1))


def smooth_constant(inner: Tensor, outer: Tensor) -> Tensor:
    """Bound (*batch) on the slope of `sum_k outer_k act(inner_k x + offset_k)` where `0 <= act' <= 1`.

    The larger of the sums of positive and of negative products outer inner: less than the sum of their sizes, and
    attained when the units of one sign are steep where those of the other are flat.

    >>> smooth_constant(torch.tensor([1.0, 1.0]), torch.tensor([2.0, -3.0]))
    tensor(3.)
    """
    products = outer * inner
    return torch.maximum(products.clamp(min=0).sum(dim=-1), (-products).clamp(min=0).sum(dim=-1))


def shrunk(outer: Tensor, constant: Tensor, limit: float) -> Tensor:
    """Outer weights (*batch, units) of a network of that Lipschitz `constant` (*batch), made smaller than `limit`.

    >>> shrunk(torch.tensor([3.0]), torch.tensor(3.0), 4.0)  # 3 / sqrt(1 + (3/4)^2)
    tensor([2.4000])
    """
    return outer / torch.sqrt(1 + (constant / limit).square()).unsqueeze(-1)


def _breakpoints(inner: Tensor, offset: Tensor) -> Tensor:
    """Where each unit switches; any point for a unit that never does. Only their order is used."""
    inner, offset = inner.detach(), offset.detach()
    still = inner == 0
    return torch.where(still, 0.0, -offset / torch.where(still, 1.0, inner))


def _leftmost_slope(inner: Tensor, outer: Tensor) -> Tensor:
    return (outer * inner.clamp(max=0)).sum(dim=-1)
