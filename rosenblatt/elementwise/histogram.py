"""Histograms: a constant density on each of many bins, its logarithms handed in."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import log_logistic_density, logit_difference, soft_bound
from rosenblatt.core.types import REAL, Mapped, ParamSpec, Support
from rosenblatt.elementwise.base import UnitElementwise
from rosenblatt.elementwise.monotone_logs import computable

LOGIT_BOUND = 15.0  # of the logits: two bins differ by at most exp(30), which float64 can add up


class Histogram(UnitElementwise):
    """A density that is constant on each of `bins` equal bins of [-bound, bound], its CDF carried as `logit F`.

    `f(x) = q p_b / w` in bin b of width w, `p = softmax(logits)`, the logits smoothly bounded to [-15, 15]. With
    `tails` the box holds the mass of the standard logistic there, `q = tanh(bound / 2)`, and outside the density is the
    standard logistic's, so that `logit F(x) = x` and no row is impossible; without them q = 1, and outside the density
    is 0. F is piecewise linear: its inverse is closed. F and 1 - F are sums of positive numbers each, and so is the
    probability of an interval, in float64 whatever the dtype: nothing is found by subtraction.
    Raises `OptionError` unless bins >= 1 and 0 < bound < inf.

    >>> histogram = Histogram(bins=2, bound=1.0, tails=False)
    >>> theta = 15 * torch.atanh(torch.log(torch.tensor([0.25, 0.75])) / 15)
    >>> histogram.cdf(torch.tensor([0.0, 0.5, 1.0]), theta)
    tensor([0.2500, 0.6250, 1.0000])
    """

    def __init__(self, bins: int = 256, bound: float = 7.0, *, tails: bool = True) -> None:
        super().__init__()
        if bins < 1:
            raise OptionError(f"bins: {bins} came, an integer >= 1 was expected.")
        if not 0 < bound < math.inf:
            raise OptionError(f"bound: {bound} came, a positive number was expected.")
        self.bins, self.bound, self.tails = bins, float(bound), tails
        self.width = 2 * self.bound / bins
        self.domain = REAL if tails else Support(-self.bound, self.bound)
        self.tail = 1 / (1 + math.exp(self.bound)) if tails else 0.0
        self.spec = ParamSpec(logits=(bins,))

    def start(self) -> Tensor:
        """The standard logistic's bins; without tails equal ones."""
        if not self.tails:
            return torch.zeros(self.bins)
        edges = torch.linspace(-self.bound, self.bound, self.bins + 1, dtype=torch.float64)
        logits = logit_difference(edges[1:], edges[:-1])
        middle = 0.5 * (logits.amax() + logits.amin())
        largest = 0.99 * LOGIT_BOUND
        raw = LOGIT_BOUND * torch.atanh((logits - middle).clamp(-largest, largest) / LOGIT_BOUND)
        return raw.to(torch.get_default_dtype())

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Return logit F(x) and its log-derivative; outside a box without tails +-inf and -inf."""
        mass, wide = torch.exp(self._log_mass(theta)), x.double()
        index, share, rest = self._place(x)
        own, (below, above) = _chosen(mass, index), self._at_edges(mass)
        log_below = torch.log(_chosen(below, index) + share * own)
        log_above = torch.log(_chosen(above, index + 1) + rest * own)
        value, log_det = log_below - log_above, torch.log(own / self.width) - log_below - log_above
        outside = wide.abs() > self.bound
        if self.tails:
            value, log_det = torch.where(outside, wide, value), torch.where(outside, 0.0, log_det)
        else:
            end = torch.where(wide > 0, torch.inf, -torch.inf).to(wide)
            value, log_det = torch.where(outside, end, value), torch.where(outside, -torch.inf, log_det)
        unknown = torch.isnan(wide)
        value, log_det = torch.where(unknown, torch.nan, value), torch.where(unknown, torch.nan, log_det)
        return Mapped(value.to(x.dtype), log_det.to(x.dtype))

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        """log dF/dx: what the bin says, without the CDF."""
        wide = x.double()
        inside = _chosen(self._log_mass(theta), self._place(x)[0]) - math.log(self.width)
        beyond = log_logistic_density(wide) if self.tails else torch.full_like(wide, -torch.inf)
        log_prob = torch.where(wide.abs() > self.bound, beyond, inside)
        return torch.where(torch.isnan(wide), torch.nan, log_prob).to(x.dtype)

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Find the bin by the logits at its edges and go along it from the end of the smaller tail."""
        mass, wide = torch.exp(self._log_mass(theta)), y.double()
        inside = wide.abs() <= (self.bound if self.tails else torch.finfo(wide.dtype).max)
        near = torch.where(inside, wide, 0.0)
        below, above = self._at_edges(mass)
        with torch.no_grad():
            inner = torch.log(below[..., 1:-1]) - torch.log(above[..., 1:-1])
            index = (near.unsqueeze(-1) >= inner).sum(dim=-1)
        own = _chosen(mass, index)
        left = (torch.sigmoid(near) - _chosen(below, index)) / own
        right = (torch.sigmoid(-near) - _chosen(above, index + 1)) / own
        share = torch.where(near < 0, left, 1 - right)
        share = share + (share.clamp(0.0, 1.0) - share).detach()  # rounding alone can leave the bin
        x = (index + share) * self.width - self.bound
        log_det = logsigmoid(near) + logsigmoid(-near) - torch.log(own / self.width)
        if self.tails:
            x, log_det = torch.where(inside, x, wide), torch.where(inside, log_det, 0.0)
        else:
            end = torch.where(wide > 0, self.bound, -self.bound).to(wide)
            x, log_det = torch.where(inside, x, end), torch.where(inside, log_det, torch.inf)
        unknown = torch.isnan(wide) | torch.isnan(own)
        x, log_det = torch.where(unknown, torch.nan, x), torch.where(unknown, torch.nan, log_det)
        return Mapped(x.to(y.dtype), log_det.to(y.dtype))

    def _log_interval(self, lower: Tensor, upper: Tensor, theta: Tensor) -> Tensor:
        """The parts of all bins that the interval covers, and those of the tails."""
        low, high = lower.double(), upper.double()
        edges = torch.linspace(-self.bound, self.bound, self.bins + 1, dtype=torch.float64, device=low.device)
        covered = torch.minimum(high.unsqueeze(-1), edges[1:]) - torch.maximum(low.unsqueeze(-1), edges[:-1])
        mass = (torch.exp(self._log_mass(theta)) * (covered / self.width).clamp(0.0, 1.0)).sum(dim=-1)
        some = mass > 0
        log_mass = torch.where(some, torch.log(torch.where(some, mass, 1.0)), -torch.inf)
        if self.tails:
            left = _log_logistic_interval(low, high.clamp(max=-self.bound))
            right = _log_logistic_interval(low.clamp(min=self.bound), high)
            # An interval meets one tail or, with all of the box between them, both.
            tails = torch.where(torch.isinf(left), right, torch.where(torch.isinf(right), left, _log_add(left, right)))
            log_mass = torch.where(torch.isinf(tails), log_mass, torch.where(some, _log_add(log_mass, tails), tails))
        return log_mass.to(lower.dtype)

    def _log_mass(self, theta: Tensor) -> Tensor:
        """Log-probabilities of the bins, (*batch, bins)."""
        logits = soft_bound(self.spec.split(theta.double())["logits"], LOGIT_BOUND)
        return torch.log_softmax(logits, dim=-1) + math.log1p(-2 * self.tail)

    def _place(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bin of each x, the share of it on the left and on the right.

        Points outside, and the ends of a box, are put just inside.
        """
        low, high = (-self.bound, self.bound) if self.tails else computable(self.domain, x.dtype)
        inside = torch.nan_to_num(x.clamp(low, high)).double()
        position = (inside + self.bound) / self.width
        index = position.detach().floor().long().clamp(0, self.bins - 1)
        share = position - index
        last = index == self.bins - 1
        return index, share, torch.where(last, (self.bound - inside) / self.width, 1 - share)

    def _at_edges(self, mass: Tensor) -> tuple[Tensor, Tensor]:
        """F and 1 - F at all edges, (*batch, bins + 1); each is its neighbour plus a bin, to the last digit."""
        tail = torch.full_like(mass[..., :1], self.tail)
        below = torch.cat([tail, mass], dim=-1).cumsum(dim=-1)
        above = torch.cat([tail, mass.flip(-1)], dim=-1).cumsum(dim=-1).flip(-1)
        return below, above


def _chosen(of_bins: Tensor, index: Tensor) -> Tensor:
    """Entry `index` (*batch) of numbers (*batch, bins)."""
    shape = torch.broadcast_shapes(of_bins.shape[:-1], index.shape)
    return of_bins.expand(*shape, -1).gather(-1, index.expand(shape).unsqueeze(-1)).squeeze(-1)


def _log_logistic_interval(lower: Tensor, upper: Tensor) -> Tensor:
    """log(s(upper) - s(lower)), -inf where there is nothing between them."""
    some = upper > lower
    low, high = torch.where(some, lower, 0.0), torch.where(some, upper, 1.0)
    return torch.where(some, logit_difference(high, low), -torch.inf)


def _log_add(first: Tensor, second: Tensor) -> Tensor:
    """log(exp(first) + exp(second)); where one is -inf the result is not used, and has no gradient."""
    usable = torch.isfinite(first) & torch.isfinite(second)
    return torch.logaddexp(torch.where(usable, first, 0.0), torch.where(usable, second, 0.0))
