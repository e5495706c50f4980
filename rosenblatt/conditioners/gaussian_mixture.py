"""Mixtures of Gaussians over whole vectors, taken apart into the conditionals of their columns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rosenblatt.conditioners.base import Conditioner, Walk
from rosenblatt.core.logspace import soft_bound

LOG_SLOPE_BOUND = 7.0  # as in elementwise.normal_mixture, which takes the raw slopes
LARGEST_INPUT = 1e100  # beyond, the density is constant: its square would overflow float64
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Components(NamedTuple):
    """K Gaussians over D columns, perhaps for each context: what a `MixtureSource` emits.

    logits: (*batch, K), weights before the softmax. locations, raw_slopes: (*batch, D, K).
    regression: (*batch, D, D, K) below the diagonal, or None where columns of a component are independent.
    """

    logits: Tensor
    locations: Tensor
    raw_slopes: Tensor
    regression: Tensor | None


class MixtureSource(nn.Module, ABC):
    """Emits the components of a Gaussian mixture from the context, or holds them as free numbers."""

    features: int
    context: int
    components: int

    @abstractmethod
    def forward(self, context: Tensor | None = None) -> Components:
        """The components given each context."""

    def start_at(self, theta: Tensor) -> None:
        """Start near a mixture whose columns each have the `theta` of one column; as it is by default."""

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Take starting values from rows; nothing by default."""


class GaussianMixtureConditionals(Conditioner):
    """The conditionals of a Gaussian mixture: Gaussian mixtures again, so the Rosenblatt transform is closed.

    With `u_ki = a_ki (x_i - m_ki + sum_{j<i} b_kij (x_j - m_kj))`, `p(x) = sum_k w_k prod_i a_ki N(u_ki; 0, 1)`, and

        p(x_i | x_<i) = sum_k w_ki a_ki N(u_ki; 0, 1),   w_ki proportional to w_k prod_{j<i} a_kj N(u_kj; 0, 1).

    Emits the theta of `elementwise.normal_mixture.NormalMixture`: log w_ki, `m_ki - sum_j b_kij (x_j - m_kj)` and the
    raw slopes, in float64 whatever the dtype, because the weights are differences of large squares far out.
    `log a` is smoothly bounded to [-7, 7].
    """

    def __init__(self, source: MixtureSource) -> None:
        super().__init__([[column] for column in range(source.features)], 3 * source.components, source.context)
        self.source = source

    def start_at(self, theta: Tensor) -> None:
        """Hand the start on to what emits the components."""
        self.source.start_at(theta)

    def parts(self, x: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """The thetas of all columns, from one pass of the source."""
        yield self.thetas(x, self.source(context))

    def thetas(self, x: Tensor, components: Components) -> Tensor:
        """Parameters (*batch, features, 3 K) of the conditionals at `x` of given components."""
        raw_slopes = components.raw_slopes.double()
        logits, explained, terms = _terms(x, components)
        before = terms.cumsum(dim=-2).roll(1, dims=-2)
        first = torch.arange(self.features, device=x.device).unsqueeze(-1) == 0
        before = logits.unsqueeze(-2) + torch.where(first, 0.0, before)
        shape = before.shape
        locations = (components.locations.double() - explained).expand(shape)
        return torch.cat([torch.log_softmax(before, dim=-1), locations, raw_slopes.expand(shape)], dim=-1)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-density in nats, (*batch), without the way through the conditionals."""
        logits, _, terms = _terms(x, self.source(context))
        joint = torch.log_softmax(logits, dim=-1) + terms.sum(dim=-2)
        return torch.logsumexp(joint, dim=-1).to(x.dtype)

    def walk(self, context: Tensor | None = None) -> Walk:
        """Run the source once for all levels."""
        return _Walk(self, self.source(context))


class _Walk:
    def __init__(self, conditioner: GaussianMixtureConditionals, components: Components) -> None:
        self.conditioner = conditioner
        self.components = components

    def theta(self, level: int, x: Tensor) -> Tensor:
        return self.conditioner.thetas(x, self.components)[..., level : level + 1, :]


def _terms(x: Tensor, components: Components) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, what earlier columns explain of each, and `log a N(u; 0, 1)`: (*batch, D, K) each, in float64."""
    locations, log_slopes = components.locations.double(), soft_bound(components.raw_slopes.double(), LOG_SLOPE_BOUND)
    offset = x.double().clamp(-LARGEST_INPUT, LARGEST_INPUT).unsqueeze(-1) - locations
    explained = torch.zeros_like(offset)
    if components.regression is not None:
        explained = (components.regression.double() * offset.unsqueeze(-3)).sum(dim=-2)
    u = torch.exp(log_slopes) * (offset + explained)
    return components.logits.double(), explained, log_slopes - 0.5 * u.square() - LOG_SQRT_2PI
