"""Planar and radial layers: a bend across a plane, a swelling around a point (Rezende & Mohamed 2015)."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from rosenblatt.conditioners.independent import Independent
from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped
from rosenblatt.elementwise.tanh_bump import TanhBump, rise_of, squared_sech
from rosenblatt.layers.linear import require_features

LOG_RADIUS_BOUND = 3.0


class Residual(Transform):
    """`y = x + g(x; theta)` with parameters that are free numbers or, with `context`, a network of it.

    A row with an infinity (outside a support) becomes infinite and its numbers reach no other row.
    """

    def __init__(self, params: int, context: int, hidden: int) -> None:
        super().__init__()
        self.conditioner = Independent(1, params, context=context, hidden=hidden)

    @abstractmethod
    def bend(self, x: Tensor, theta: Tensor) -> Mapped:
        """Map finite rows; `theta` is (params,) or (*batch, params), in float64."""

    @abstractmethod
    def straighten(self, y: Tensor, theta: Tensor) -> Mapped:
        """Map finite rows back."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Bend every row."""
        usable = ~torch.isinf(x).any(dim=-1, keepdim=True)
        value, log_det = self.bend(torch.where(usable, x, 0.0), self._theta(x, context))
        return Mapped(torch.where(usable, value, torch.inf), log_det)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Straighten every row."""
        usable = ~torch.isinf(y).any(dim=-1, keepdim=True)
        value, log_det = self.straighten(torch.where(usable, y, 0.0), self._theta(y, context))
        return Mapped(torch.where(usable, value, torch.inf), log_det)

    def _theta(self, x: Tensor, context: Tensor | None) -> Tensor:
        return next(self.conditioner.parts(x, context)).squeeze(-2).double()


class Planar(Residual):
    """`y = x + u' tanh(w.x + b)`: space is bent across the plane w.x + b = 0; starts as the identity.

    `u'` is u moved along w until `u'.w = s - 1` with the slope s > e^-2 of `TanhBump` at raw = w.u, which makes the map
    invertible for every u and w. `log_det = log(1 + u'.w sech^2(w.x + b))` by the matrix determinant lemma.
    The inverse solves `a + (s - 1) tanh(a + b) = w.y` for a = w.x by a root search, and raises `InverseError` where
    that fails. With `context`, u, w and b are a network of it. Raises `OptionError` unless features >= 1.
    Reference: Rezende & Mohamed, Variational Inference with Normalizing Flows, ICML 2015.

    >>> Planar(2)(torch.tensor([1.0, 2.0])).value
    tensor([1., 2.], grad_fn=<...>)
    """

    def __init__(self, features: int, *, context: int = 0, hidden: int = 64) -> None:
        require_features(features)
        super().__init__(2 * features + 1, context, hidden)
        self.bump = TanhBump()
        across = torch.randn(features) / features**0.5
        self.conditioner.start_at(torch.cat([torch.zeros(features), across, torch.randn(1)]))

    def bend(self, x: Tensor, theta: Tensor) -> Mapped:
        """Move along u' by the tanh of the height over the plane."""
        along, across, line = _decoded(theta)
        rise, offset = rise_of(line[..., 0]).to(x.dtype), line[..., 2].to(x.dtype)
        z = (x * across.to(x.dtype)).sum(dim=-1) + offset
        value = x + along.to(x.dtype) * torch.tanh(z).unsqueeze(-1)
        return Mapped(value, torch.log1p(rise * squared_sech(z)))

    def straighten(self, y: Tensor, theta: Tensor) -> Mapped:
        """Find the height over the plane, and move back."""
        along, across, line = _decoded(theta)
        wide = y.double()
        height, log_det = self.bump.inverse((wide * across).sum(dim=-1), line)
        value = wide - along * torch.tanh(height + line[..., 2]).unsqueeze(-1)
        return Mapped(value.to(y.dtype), log_det.to(y.dtype))


def _decoded(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors u' and w, and the parameters of the bump along w."""
    features = theta.shape[-1] // 2
    u, w, b = theta.split([features, features, 1], dim=-1)
    raw = (w * u).sum(dim=-1, keepdim=True)
    # w / |w|^2, without squares that under- or overflow; along w = 0 there is nothing to move.
    largest = w.detach().abs().amax(dim=-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    scaled = w / largest
    square = scaled.square().sum(dim=-1, keepdim=True)
    along = u + (rise_of(raw) - raw) / largest * scaled / torch.where(square > 0, square, 1.0)
    return along, w, torch.cat([raw, torch.zeros_like(raw), b], dim=-1)


class Radial(Residual):
    """`y = x + (s - 1) q (x - c)`, `q = a / (a + |x - c|)`: space swells or shrinks around c; starts as the identity.

    s > e^-2 is the slope at the centre, log a smoothly bounded to [-3, 3]; the published form has beta = a (s - 1).
    `log_det = (features - 1) log(1 + (s - 1) q) + log(1 + (s - 1) q^2)`. The inverse is closed: |x - c| solves a
    quadratic equation. With `context`, c, a and s are a network of it. Raises `OptionError` unless features >= 1.
    Reference: Rezende & Mohamed, Variational Inference with Normalizing Flows, ICML 2015.

    >>> Radial(2)(torch.tensor([1.0, 2.0])).value
    tensor([1., 2.], grad_fn=<...>)
    """

    def __init__(self, features: int, *, context: int = 0, hidden: int = 64) -> None:
        require_features(features)
        super().__init__(features + 2, context, hidden)
        self.conditioner.start_at(torch.cat([torch.randn(features), torch.zeros(2)]))

    def bend(self, x: Tensor, theta: Tensor) -> Mapped:
        """Move away from the centre, or towards it."""
        centre, radius, rise = (part.to(x.dtype) for part in _around(theta))
        offset = x - centre
        share = radius / (radius + _length(offset))
        value = x + (rise * share).unsqueeze(-1) * offset
        return Mapped(value, _radial_log_det(rise, share, x.shape[-1]))

    def straighten(self, y: Tensor, theta: Tensor) -> Mapped:
        """Find the distance from the centre, and move back."""
        centre, radius, rise = _around(theta)
        offset = y.double() - centre
        reached = _length(offset) / radius
        # distance^2 + (s - reached) distance - reached = 0, by the root without cancellation.
        half = 1 + rise - reached
        larger = (torch.where(half < 0, -half, half) + torch.sqrt(half.square() + 4 * reached)) / 2
        distance = torch.where(half < 0, larger, reached / larger)
        share = 1 / (1 + distance)
        value = centre + offset / (1 + rise * share).unsqueeze(-1)
        return Mapped(value.to(y.dtype), -_radial_log_det(rise, share, y.shape[-1]).to(y.dtype))


def _around(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, radius and rise at the centre."""
    return theta[..., :-2], torch.exp(soft_bound(theta[..., -2], LOG_RADIUS_BOUND)), rise_of(theta[..., -1])


def _radial_log_det(rise: Tensor, share: Tensor, features: int) -> Tensor:
    return (features - 1) * torch.log1p(rise * share) + torch.log1p(rise * share.square())


def _length(vectors: Tensor) -> Tensor:
    """Euclidean norm whose squares neither under- nor overflow, with gradient 0 at the zero vector."""
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    square = (vectors / largest).square().sum(dim=-1)
    length = torch.where(square > 0, square, 1.0).sqrt() * largest.squeeze(-1)
    return torch.where(square > 0, length, 0.0)
