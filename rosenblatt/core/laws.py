"""One-dimensional laws with formulas: mean, variance, CDF and CRPS, in float64.

`*batch` axes hold one law each. An outcome with NaN, or a law with NaN among its parameters, answers NaN; an infinite
outcome has an infinite CRPS.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from rosenblatt.core.errors import DataError

# The trapezoid rule for a mean under the standard logistic: for functions without poles nearer than +-i pi, as all that
# follow, its error is about exp(-2 pi^2 / step) = 7e-18, and as much lies beyond the ends.
STEP, END = 0.5, 40.0


class Law(ABC):
    """A law on the line, or one for each element of *batch."""

    @abstractmethod
    def crps(self, y: Tensor) -> Tensor:
        """Continuous ranked probability score `E|X - y| - E|X - X'| / 2`, in the units of y, shape of `y`."""

    @abstractmethod
    def cdf(self, y: Tensor) -> Tensor:
        """P(X <= y), shape of `y`."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Expectation, shape (*batch)."""

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Variance, shape (*batch)."""

    @abstractmethod
    def moved(self, shift: Tensor, scale: Tensor) -> Law:
        """The law of `shift + scale X` for scale > 0; both broadcast with (*batch)."""


class _Mixture(Law):
    """`sum_k w_k F_0((y - m_k) / s_k)` of one symmetric shape F_0, `weight`, `location` and `scale` (*batch, K)."""

    unit_variance: float  # of F_0

    def __init__(self, weight: Tensor, location: Tensor, scale: Tensor) -> None:
        self.weight, self.location, self.scale = weight.double(), location.double(), scale.double()

    @property
    def standard(self) -> bool:
        """Whether this is F_0 itself."""
        return self.location.shape[-1] == 1 and bool((self.location == 0).all() and (self.scale == 1).all())

    @property
    def mean(self) -> Tensor:
        """`sum_k w_k m_k`."""
        return (self.weight * self.location).sum(dim=-1)

    @property
    def variance(self) -> Tensor:
        """`sum_k w_k (v_0 s_k^2 + (m_k - mean)^2)`."""
        offset = self.location - self.mean.unsqueeze(-1)
        return (self.weight * (self.unit_variance * self.scale.square() + offset.square())).sum(dim=-1)

    def cdf(self, y: Tensor) -> Tensor:
        """P(X <= y)."""
        z = (y.double().unsqueeze(-1) - self.location) / self.scale
        return (self.weight * self._unit_cdf(z)).sum(dim=-1).to(y.dtype)

    def crps(self, y: Tensor) -> Tensor:
        """`sum_k w_k E|X_k - y| - sum_ij w_i w_j E|X_i - X_j| / 2`, to rounding."""
        finite = torch.isfinite(y)
        offset = torch.where(finite, y, 0.0).double().unsqueeze(-1) - self.location
        near = (self.weight * self._mean_distance(offset, self.scale)).sum(dim=-1)
        crps = (near - self.half_difference()).to(y.dtype)
        return torch.where(finite | torch.isnan(crps), crps, y.abs())

    def half_difference(self) -> Tensor:
        """`E|X - X'| / 2` of two independent draws (half of Gini's mean difference), shape (*batch)."""
        total = torch.zeros_like(self.weight[..., 0])
        for k in range(self.weight.shape[-1]):  # with all before it at once
            location, scale = self.location[..., : k + 1], self.scale[..., : k + 1]
            offset = self.location[..., k : k + 1] - location
            between = self._mean_difference(offset, self.scale[..., k : k + 1].expand_as(scale), scale)
            share = self.weight[..., k : k + 1] * self.weight[..., : k + 1]
            total = total + (share * between).sum(dim=-1) - 0.5 * share[..., k] * between[..., k]
        return total

    def moved(self, shift: Tensor, scale: Tensor) -> Law:
        """Move and stretch every component."""
        shift, scale = shift.double().unsqueeze(-1), scale.double().unsqueeze(-1)
        return type(self)(self.weight, shift + scale * self.location, scale * self.scale)

    @classmethod
    def of(cls, laws: Sequence[Self], share: Tensor) -> Self:
        """The mixture of several laws of this kind with probabilities `share` (*batch, laws): their components."""
        batch = torch.broadcast_shapes(share.shape[:-1], *(law.weight.shape[:-1] for law in laws))
        parts = [(part * law.weight.new_ones(*batch, 1)) for law in laws for part in (law.location, law.scale)]
        weight = [share[..., k : k + 1].double() * law.weight for k, law in enumerate(laws)]
        weights = torch.cat([part.expand(*batch, part.shape[-1]) for part in weight], dim=-1)
        return cls(weights, torch.cat(parts[::2], dim=-1), torch.cat(parts[1::2], dim=-1))

    @abstractmethod
    def _unit_cdf(self, z: Tensor) -> Tensor:
        """F_0(z)."""

    @abstractmethod
    def _mean_distance(self, offset: Tensor, scale: Tensor) -> Tensor:
        """`E|offset + scale Z|` for Z of law F_0."""

    @abstractmethod
    def _mean_difference(self, offset: Tensor, scale: Tensor, other: Tensor) -> Tensor:
        """`E|offset + scale Z - other Z'|` for independent Z and Z' of law F_0."""


class NormalLaw(_Mixture):
    """A mixture of normals; one component is the normal itself.

    With `A(m, s) = m erf(m / (s sqrt 2)) + s sqrt(2 / pi) exp(-m^2 / (2 s^2))` = E|N(m, s^2)|,
    `CRPS = sum_i w_i A(y - m_i, s_i) - sum_ij w_i w_j A(m_i - m_j, sqrt(s_i^2 + s_j^2)) / 2`
    (Grimit, Gneiting, Berrocal & Johnson, Q. J. Royal Meteorological Society 132, 2006).

    >>> law = NormalLaw(torch.ones(1), torch.zeros(1), torch.ones(1))
    >>> round(law.crps(torch.tensor(0.0)).item(), 6)  # (sqrt 2 - 1) / sqrt pi
    0.233695
    """

    unit_variance = 1.0

    def _unit_cdf(self, z: Tensor) -> Tensor:
        below: Tensor = 0.5 * torch.erfc(-z / math.sqrt(2))
        return below

    def _mean_distance(self, offset: Tensor, scale: Tensor) -> Tensor:
        z = offset / scale
        return offset * torch.erf(z / math.sqrt(2)) + scale * math.sqrt(2 / math.pi) * torch.exp(-0.5 * z.square())

    def _mean_difference(self, offset: Tensor, scale: Tensor, other: Tensor) -> Tensor:
        return self._mean_distance(offset, torch.hypot(scale, other))


class LogisticLaw(_Mixture):
    """A mixture of logistics; one component is the logistic itself.

    `E|m + s Z| = |m| + 2 s log(1 + exp(-|m| / s))`. The mean difference of two components has an elementary formula for
    equal scales only, `m coth(m / (2 s))`; for any scales it is a mean of the former under the narrower one, taken by a
    trapezoid rule that is exact to rounding, because everything in it is analytic far enough from the line.

    >>> law = LogisticLaw(torch.ones(1), torch.zeros(1), torch.ones(1))
    >>> round(law.crps(torch.tensor(0.0)).item(), 6)  # 2 log 2 - 1
    0.386294
    """

    unit_variance = math.pi**2 / 3

    def _unit_cdf(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    def _mean_distance(self, offset: Tensor, scale: Tensor) -> Tensor:
        half = 0.5 * offset / scale
        return 2 * scale * torch.logaddexp(half, -half)  # the formula, without the kink of |m|

    def _mean_difference(self, offset: Tensor, scale: Tensor, other: Tensor) -> Tensor:
        nodes = torch.arange(-END, END + STEP / 2, STEP, dtype=offset.dtype, device=offset.device)
        mass = STEP * torch.sigmoid(nodes) * torch.sigmoid(-nodes)
        narrow, wide = torch.minimum(scale, other), torch.maximum(scale, other)
        places = offset.unsqueeze(-1) + narrow.unsqueeze(-1) * nodes
        return (mass * self._mean_distance(places, wide.unsqueeze(-1))).sum(dim=-1)


class HistogramLaw(Law):
    """A piecewise uniform law: probability `mass` (*batch, K) spread evenly over K bins between `edges` (..., K + 1).

    F is straight on every bin, so `CRPS = int (F(x) - 1[x >= y])^2 dx` is a sum of `width (a^2 + a b + b^2) / 3` over
    pieces from a to b, cut at y. Masses must sum to one. Raises `DataError` for numbers of edges and masses that do
    not fit.

    >>> uniform = HistogramLaw(torch.tensor([0.0, 1.0]), torch.ones(1))
    >>> round(uniform.crps(torch.tensor(0.5)).item(), 6)  # 1/12
    0.083333
    """

    def __init__(self, edges: Tensor, mass: Tensor) -> None:
        if edges.shape[-1] != mass.shape[-1] + 1:
            raise DataError(f"edges: {edges.shape[-1]} came for {mass.shape[-1]} bins, one more was expected.")
        self.edges, self.mass = edges.double(), mass.double()

    @property
    def mean(self) -> Tensor:
        """Masses times the middles of the bins."""
        return (self.mass * self._middle).sum(dim=-1)

    @property
    def variance(self) -> Tensor:
        """`sum_k p_k (width_k^2 / 12 + (middle_k - mean)^2)`."""
        offset = self._middle - self.mean.unsqueeze(-1)
        return (self.mass * (self.edges.diff(dim=-1).square() / 12 + offset.square())).sum(dim=-1)

    def cdf(self, y: Tensor) -> Tensor:
        """P(X <= y)."""
        return (self.mass * self._share(y.double())).sum(dim=-1).to(y.dtype)

    def crps(self, y: Tensor) -> Tensor:
        """The integral, bin by bin, and the distance of an outcome outside."""
        finite = torch.isfinite(y)
        place = torch.where(finite, y, 0.0).double()
        share, width = self._share(place), self.edges.diff(dim=-1)
        right = self.mass.cumsum(dim=-1)
        left = right - self.mass
        cut = left + share * self.mass
        before = width * share * _mean_square(left, cut)
        after = width * (1 - share) * _mean_square(1 - cut, 1 - right)
        outside = (self.edges[..., 0] - place).clamp(min=0.0) + (place - self.edges[..., -1]).clamp(min=0.0)
        crps = ((before + after).sum(dim=-1) + outside).to(y.dtype)
        return torch.where(finite | torch.isnan(crps), crps, y.abs())

    def moved(self, shift: Tensor, scale: Tensor) -> Law:
        """Move the edges."""
        edges = shift.double().unsqueeze(-1) + scale.double().unsqueeze(-1) * self.edges
        return HistogramLaw(edges, self.mass)

    @property
    def _middle(self) -> Tensor:
        return self.edges[..., :-1] + 0.5 * self.edges.diff(dim=-1)

    def _share(self, y: Tensor) -> Tensor:
        """How much of each bin lies below y, (*batch, K)."""
        share = (y.unsqueeze(-1) - self.edges[..., :-1]) / self.edges.diff(dim=-1)
        return share.clamp(0.0, 1.0)


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the square of a straight line from a to b."""
    return (a.square() + a * b + b.square()) / 3
