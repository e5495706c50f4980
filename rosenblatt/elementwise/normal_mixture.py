"""Mixtures of normals carried on the normal scale: where a Gaussianization bends its columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import ndtri

from rosenblatt.core.errors import OptionError
from rosenblatt.core.laws import Law, NormalLaw
from rosenblatt.core.logspace import log_normal_interval, soft_bound
from rosenblatt.core.roots import attach_gradient, find_root
from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.base import ROOT_TOLERANCE, Elementwise
from rosenblatt.elementwise.tails import log_hazard, log_normal_tail, normal_size

LOG_SLOPE_BOUND = 7.0
START_SPREAD = 0.6  # share of the normal's quantiles over which components start
LOG_2 = math.log(2)
LARGEST_INPUT = 1e30  # beyond, the map is constant: in float64 the square of a hazard would overflow


class NormalMixture(Elementwise):
    """A mixture of normals to the normal scale: `z = Phi^-1(F(x))`, `F(x) = sum_k w_k Phi(a_k (x - m_k))`.

    Behind it the density of a column is the mixture (Chen & Gopinath 2000), and far out z is straight, with the slope
    of the widest component. `log_det = log F' - log phi(z)`; both are taken as hazards of the nearer tail, so that
    nothing cancels. `log a_k` is smoothly bounded to [-7, 7]; theta = 0 is the identity. The inverse is a root
    search. Raises `OptionError` unless components >= 1.

    >>> mixture = NormalMixture(components=3)
    >>> mixture(torch.tensor([-2.0, 30.0]), torch.zeros(2, mixture.spec.size)).value
    tensor([-2., 30.])
    """

    def __init__(self, components: int = 10) -> None:
        super().__init__()
        if components < 1:
            raise OptionError(f"components: {components} came, an integer >= 1 was expected.")
        self.components = components
        self.spec = ParamSpec(logits=(components,), locations=(components,), log_scales=(components,))

    def start(self) -> Tensor:
        """Components spread over the normal's quantiles, with the variance of the normal: nearly the identity."""
        levels = (torch.arange(self.components, dtype=torch.float64) + 0.5) / self.components
        locations = START_SPREAD * ndtri(levels)
        scale = (1 - locations.square().mean()).sqrt().expand_as(locations)
        return self.at(torch.full_like(scale, 1 / self.components), locations, scale).to(torch.get_default_dtype())

    def at(self, weight: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        """The theta of given weights, locations and standard deviations, each (*batch, components)."""
        log_slope = (-torch.log(scale)).clamp(-0.99 * LOG_SLOPE_BOUND, 0.99 * LOG_SLOPE_BOUND)
        raw = LOG_SLOPE_BOUND * torch.atanh(log_slope / LOG_SLOPE_BOUND)
        return self.spec.join(logits=torch.log(weight), locations=location, log_scales=raw)

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Phi^-1(F) and its log-derivative, in float64 inside."""
        log_weight, log_slope, location = self._decode(theta.double())
        u = torch.exp(log_slope) * (_bounded(x.double()).unsqueeze(-1) - location)
        left, right = (log_weight + side for side in _log_sides(u))
        below, above = torch.logsumexp(left, dim=-1), torch.logsumexp(right, dim=-1)
        upper = above < below
        # How deep in the nearer tail: F or 1 - F, whichever is below 1/2, is exp(-m) / 2.
        m = -LOG_2 - torch.where(upper, above, below)
        size = normal_size(m + (-m).clamp(min=0.0).detach())  # rounding may leave m below 0, whose slope stays 1
        nearer = upper.unsqueeze(-1)
        depth = torch.where(nearer, u, -u)
        log_share = torch.log_softmax(torch.where(nearer, right, left), dim=-1)
        mixed = torch.logsumexp(log_share + log_slope + log_hazard(depth), dim=-1)
        value = torch.where(upper, size, -size)
        return Mapped(value.to(x.dtype), (mixed - log_hazard(size)).to(x.dtype))

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Solve `logit F(x) = logit Phi(y)`, which needs no Phi^-1 at each step of the search."""
        with torch.no_grad():
            shape = torch.broadcast_shapes(y.shape, theta.shape[:-1])
            flat_y = y.detach().expand(shape).reshape(-1).double()
            flat_theta = theta.detach().expand(*shape, theta.shape[-1]).reshape(-1, theta.shape[-1]).double()
            below, above = _log_sides(flat_y)
            target = torch.where(torch.isfinite(flat_theta).all(dim=-1), below - above, torch.nan)
            bound = _BoundLogit(*self._decode(flat_theta))
            root = find_root(bound, target, self.domain, tolerance=ROOT_TOLERANCE[y.dtype]).to(y.dtype).reshape(shape)
        x = attach_gradient(root, y, theta, self.forward)
        return Mapped(x, -self.forward(x, theta).log_det)

    def closed_law(self, law: Law, theta: Tensor) -> Law | None:
        """The mixture itself, in front of the standard normal."""
        if not (isinstance(law, NormalLaw) and law.standard):
            return None
        log_weight, log_slope, location = self._decode(theta.double())
        return NormalLaw(torch.exp(log_weight), location, torch.exp(-log_slope))

    def log_interval(self, lower: Tensor, upper: Tensor, theta: Tensor) -> Tensor:
        """log(F(upper) - F(lower)), component by component, so that no gap between them loses digits.

        An empty interval gives -inf, one with lower > upper NaN. Ends may be infinite.
        """
        log_weight, log_slope, location = self._decode(theta.double())
        u = []
        for end in (lower.double().unsqueeze(-1), upper.double().unsqueeze(-1)):
            infinite = torch.isinf(end)
            u.append(torch.where(infinite, end, torch.exp(log_slope) * (torch.where(infinite, 0.0, end) - location)))
        parts = log_weight + log_normal_interval(*u)
        peak = parts.detach().amax(dim=-1, keepdim=True)
        some = torch.isfinite(peak)
        log_mass = torch.logsumexp(torch.where(some, parts, 0.0), dim=-1)
        log_mass = torch.where(some.squeeze(-1), log_mass, -torch.inf)
        return torch.where(lower <= upper, log_mass, torch.nan).to(lower.dtype)

    def _decode(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.spec.split(theta)
        log_weight = torch.log_softmax(parts["logits"], dim=-1)
        return log_weight, soft_bound(parts["log_scales"], LOG_SLOPE_BOUND), parts["locations"]


class _BoundLogit:
    """logit F at fixed parameters per row, for the root search."""

    def __init__(self, log_weight: Tensor, log_slope: Tensor, location: Tensor) -> None:
        self.log_weight, self.log_slope, self.location = log_weight, log_slope, location

    def __call__(self, x: Tensor) -> Tensor:
        u = torch.exp(self.log_slope) * (_bounded(x).unsqueeze(-1) - self.location)
        below, above = (torch.logsumexp(self.log_weight + side, dim=-1) for side in _log_sides(u))
        return below - above

    def select(self, rows: Tensor) -> _BoundLogit:
        return _BoundLogit(self.log_weight[rows], self.log_slope[rows], self.location[rows])


def _log_sides(u: Tensor) -> tuple[Tensor, Tensor]:
    """log Phi(u) and log Phi(-u): the smaller one directly, the larger one from it."""
    upper = u > 0
    small = log_normal_tail(torch.where(upper, u, -u))
    large = torch.log1p(-torch.exp(small))
    return torch.where(upper, large, small), torch.where(upper, small, large)


def _bounded(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST_INPUT, LARGEST_INPUT)
