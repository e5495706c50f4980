"""Increasing maps of single coordinates, with their parameters handed in.

An `Elementwise` owns no weights: `theta` comes from a conditioner, one vector per coordinate. Its `log_det` is per
coordinate, not summed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.laws import Law
from rosenblatt.core.logspace import log_logistic_density, logit_difference
from rosenblatt.core.roots import Increasing, attach_gradient, find_root, find_root_traced
from rosenblatt.core.types import REAL, Mapped, ParamSpec, Support

ROOT_TOLERANCE = {
    torch.float32: 2e-9,
    torch.float64: 2e-14,
}  # residual of the float64 search, per result dtype


class Elementwise(nn.Module, ABC):
    """A family of increasing maps `x -> y`, one member for each `theta`.

    Shapes: `x` (*batch), `theta` (*batch, spec.size), `value` and `log_det` (*batch).
    """

    spec: ParamSpec
    domain: Support = REAL

    def start(self) -> Tensor:
        """The `theta` (spec.size,) from which training starts: (nearly) the identity."""
        return torch.zeros(self.spec.size)

    @abstractmethod
    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Map `x` and return the log-derivative of the map that ran."""

    def closed_law(self, law: Law, theta: Tensor) -> Law | None:
        """The law of x where `forward(x, theta)` has `law`, or None where no formula is known for it.

        Shapes: `theta` (*batch, spec.size), and one law for each element of *batch.
        """
        return None

    def bind(self, theta: Tensor) -> Increasing:
        """The map at fixed `theta` (rows, spec.size), decoded once for a root search."""
        return _Bound(self, theta)

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Solve `forward(x) = y`; exact to rounding, differentiable in `y` and `theta`.

        Raises `InverseError` naming the rows where the search did not converge (NaN inside compile, export, `vmap`).
        """
        if y.is_meta or not runs_eagerly():
            return self._traced_inverse(y, theta)
        with torch.no_grad():
            shape = torch.broadcast_shapes(y.shape, theta.shape[:-1])
            flat_y = y.detach().expand(shape).reshape(-1).double()
            flat_theta = theta.detach().expand(*shape, theta.shape[-1]).reshape(-1, theta.shape[-1]).double()
            valid = torch.isfinite(flat_theta).all(dim=-1)
            flat_y = torch.where(valid, flat_y, torch.nan)
            root = find_root(self.bind(flat_theta), flat_y, self.domain, tolerance=ROOT_TOLERANCE[y.dtype])
            root = root.to(y.dtype).reshape(shape)
        x = attach_gradient(root, y, theta, self.forward)
        return Mapped(x, -self.forward(x, theta).log_det)

    def _traced_inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        wide = theta.double()
        shape = torch.broadcast_shapes(y.shape, theta.shape[:-1])
        tolerance = ROOT_TOLERANCE[y.dtype]
        target = y.double().expand(shape)
        root = find_root_traced(lambda x: self.forward(x, wide), target, self.domain, tolerance=tolerance)
        x = root.to(y.dtype)
        return Mapped(x, -self.forward(x, theta).log_det)


class _Bound:
    """The default view of an elementwise map at fixed parameters."""

    def __init__(self, elementwise: Elementwise, theta: Tensor) -> None:
        self.elementwise = elementwise
        self.theta = theta

    def __call__(self, x: Tensor) -> Tensor:
        value: Tensor = self.elementwise.forward(x, self.theta).value
        return value

    def select(self, rows: Tensor) -> _Bound:
        return _Bound(self.elementwise, self.theta[rows])


class UnitElementwise(Elementwise):
    """An elementwise map that is a CDF, carried as its logit: `value = logit F(x)`.

    With a standard logistic base its density is exactly `dF/dx`. Everything below keeps full relative precision in
    both tails, because F and 1 - F are never subtracted from 1. `cdf`, `log_cdf`, `log_sf` and `quantile` run in
    float64 inside, whatever the dtype: a steep float32 net would lose digits between its layers.
    """

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        """log dF/dx, -inf outside the domain."""
        mapped: Mapped = self(x, theta)
        return mapped.log_det + log_logistic_density(mapped.value)

    def log_cdf(self, x: Tensor, theta: Tensor) -> Tensor:
        """log F(x)."""
        return logsigmoid(self._logit(x, theta)).to(x.dtype)

    def log_sf(self, x: Tensor, theta: Tensor) -> Tensor:
        """log(1 - F(x))."""
        return logsigmoid(-self._logit(x, theta)).to(x.dtype)

    def cdf(self, x: Tensor, theta: Tensor) -> Tensor:
        """F(x): exactly 0 at and below the domain, exactly 1 at and above it."""
        return torch.sigmoid(self._logit(x, theta)).to(x.dtype)

    def quantile(self, u: Tensor, theta: Tensor) -> Tensor:
        """The x with F(x) = u; the ends of the domain at 0 and 1, NaN outside [0, 1]."""
        return self.inverse(torch.logit(u.double()), theta.double()).value.to(u.dtype)

    def log_interval(self, lower: Tensor, upper: Tensor, theta: Tensor) -> Tensor:
        """log(F(upper) - F(lower)) for lower < upper, without cancellation; NaN where lower > upper."""
        lower, upper = torch.broadcast_tensors(lower, upper)
        domain = self.domain
        low, high = lower.clamp(min=domain.lower, max=domain.upper), upper.clamp(domain.lower, domain.upper)
        open_low, open_high = low <= domain.lower, high >= domain.upper
        empty = (high <= low) | ~(lower <= upper)
        usable = ~(empty | open_low | open_high)
        middle = self._log_interval(
            torch.where(usable, low, self._inner(0.4)), torch.where(usable, high, self._inner(0.6)), theta
        )
        result = torch.where(open_low, self.log_cdf(high, theta), middle)
        result = torch.where(open_high, self.log_sf(low, theta), result)
        result = torch.where(open_low & open_high, 0.0, result)
        result = torch.where(empty, -torch.inf, result)
        return torch.where(lower <= upper, result, torch.nan)

    def interval_log_prob(self, lower: Tensor, upper: Tensor, theta: Tensor) -> Tensor:
        """log(F(upper) - F(lower)) for lower < upper in their own dtype, fast enough to train on.

        Ends at or beyond those of the domain (infinite ones on the line) leave a tail, which is found without a
        subtraction, as is everything else: no interval is lost in a tail, and none is NaN for finite theta.
        Shapes: `lower`, `upper` (*batch) and `theta` (*batch, spec.size), which broadcast.
        """
        lower, upper = torch.broadcast_tensors(lower, upper)
        shape = torch.broadcast_shapes(lower.shape, theta.shape[:-1])
        low, high = (end.expand(shape).reshape(-1) for end in (lower, upper))
        vectors = theta.expand(*shape, theta.shape[-1]).reshape(-1, theta.shape[-1])
        open_low, open_high = low <= self.domain.lower, high >= self.domain.upper
        if not runs_eagerly() or low.is_meta:
            inner = self._log_interval(
                torch.where(open_low, self._inner(0.4), low), torch.where(open_high, self._inner(0.6), high), vectors
            )
            left = logsigmoid(self(torch.where(open_high, self._inner(0.6), high), vectors).value)
            right = logsigmoid(-self(torch.where(open_low, self._inner(0.4), low), vectors).value)
            inner = torch.where(open_low, left, torch.where(open_high, right, inner))
            return torch.where(open_low & open_high, 0.0, inner).reshape(shape)
        kinds = (~open_low & ~open_high, open_low & ~open_high, open_high & ~open_low, open_low & open_high)
        places = [kind.nonzero().squeeze(-1) for kind in kinds]
        found = []
        for kind, place in enumerate(places):
            whole = len(place) == len(low)
            at = vectors if whole else vectors[place]
            if kind == 0:
                found.append(self._log_interval(low[place], high[place], at))
            elif kind == 3:
                found.append(at.new_zeros(len(place)))
            else:  # the mass below one end, or above
                value = self(high[place] if kind == 1 else low[place], at).value
                found.append(logsigmoid(value if kind == 1 else -value))
            if whole:
                return found[-1].reshape(shape)
        joined = torch.cat(found)
        return joined.new_empty(len(joined)).index_copy(0, torch.cat(places), joined).reshape(shape)

    def _log_interval(self, lower: Tensor, upper: Tensor, theta: Tensor) -> Tensor:
        return logit_difference(self(upper, theta).value, self(lower, theta).value)

    def _inner(self, fraction: float) -> float:
        """Some point strictly inside the domain."""
        if self.domain.bounded:
            return self.domain.lower + fraction * (self.domain.upper - self.domain.lower)
        return fraction

    def _logit(self, x: Tensor, theta: Tensor) -> Tensor:
        logit = self(x.double(), theta.double()).value
        logit = torch.where(x <= self.domain.lower, -torch.inf, logit)
        return torch.where(x >= self.domain.upper, torch.inf, logit)
