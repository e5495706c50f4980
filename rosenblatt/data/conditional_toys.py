"""Conditional toy densities with exact log p(y | x) and sampler: what a conditional model ought to recover."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rosenblatt.core.errors import DataError
from rosenblatt.data.toys import NORMAL_ENTROPY

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class ConditionalToy(ABC):
    """A density of `features` columns y given one number x, uniform on (-1, 1), that is known exactly.

    `mean_log_prob` is E log p(y | x) over both, in nats.
    """

    name: str
    features: int
    mean_log_prob: float

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `n` pairs in float64: x (n, 1), uniform on (-1, 1), and y (n, features)."""
        x = 2 * _uniform(n, generator) - 1
        return x.unsqueeze(-1), self._given(x, generator)

    def sample_given(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one y (n, features) in float64 for each row of `x` (n, 1)."""
        return self._given(self._number(x), generator)

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """Exact log-density in nats of `y` (*batch, features) given `x` (*batch, 1), -inf outside the support."""
        if y.shape[-1:] != (self.features,):
            raise DataError(f"y: shape {tuple(y.shape)} came, '{self.name}' has {self.features} columns.")
        return self._log_prob(y, self._number(x))

    def _number(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (1,):
            raise DataError(f"x: shape {tuple(x.shape)} came, one column was expected.")
        return x.squeeze(-1)

    @abstractmethod
    def _given(self, x: Tensor, generator: torch.Generator) -> Tensor: ...

    @abstractmethod
    def _log_prob(self, y: Tensor, x: Tensor) -> Tensor: ...


class Squares(ConditionalToy):
    """Uniform on one of two squares of side 4, each with probability 1/2: (-5 + x, -1 + x)^2 and (1 - x, 5 - x)^2."""

    name = "squares"
    features = 2
    mean_log_prob = -math.log(32)

    def _given(self, x: Tensor, generator: torch.Generator) -> Tensor:
        corner = torch.where(_uniform(len(x), generator) < 0.5, x - 5, 1 - x)
        return corner.unsqueeze(-1) + 4 * _uniform(2 * len(x), generator).reshape(-1, 2)

    def _log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        first, second = (
            ((y > corner.unsqueeze(-1)) & (y < corner.unsqueeze(-1) + 4)).all(dim=-1).to(y) for corner in (x - 5, 1 - x)
        )
        return torch.log((first + second) / 32)


class HalfGaussian(ConditionalToy):
    """(|N(0, 4)|, N(0, 4)), variances, turned by the angle pi x."""

    name = "half_gaussian"
    features = 2
    mean_log_prob = -(math.log(8 * math.pi) + 1 - math.log(2))

    def _given(self, x: Tensor, generator: torch.Generator) -> Tensor:
        z = 2 * torch.randn(len(x), 2, generator=generator, dtype=torch.float64)
        return _turned(torch.stack([z[:, 0].abs(), z[:, 1]], dim=-1), math.pi * x)

    def _log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        z = _turned(y, -math.pi * x)
        log_prob = math.log(2) - z.square().sum(dim=-1) / 8 - math.log(8 * math.pi)
        return torch.where(z[..., 0] >= 0, log_prob, -torch.inf)


class GaussianStick(ConditionalToy):
    """N(0, 1) across and uniform on (-6, 6) along a stick turned by the angle pi (x - 3/4) / 2."""

    name = "gaussian_stick"
    features = 2
    mean_log_prob = -(NORMAL_ENTROPY + math.log(12))

    def _given(self, x: Tensor, generator: torch.Generator) -> Tensor:
        across = torch.randn(len(x), generator=generator, dtype=torch.float64)
        along = 12 * _uniform(len(x), generator) - 6
        return _turned(torch.stack([across, along], dim=-1), 0.5 * math.pi * (x - 0.75))

    def _log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        across, along = _turned(y, -0.5 * math.pi * (x - 0.75)).unbind(dim=-1)
        log_prob = -0.5 * across.square() - LOG_SQRT_2PI - math.log(12)
        return torch.where(along.abs() < 6, log_prob, -torch.inf)


class ElasticRing(ConditionalToy):
    """`y = (a cos t, b sin t)`, `a = 4 + 2 x + d`, `b = 4 - 2 x + d`, d uniform on (0, 2) and t on (0, 2 pi).

    The ring between the ellipses d = 0 and d = 2, not evenly covered: with the Jacobian of (d, t) -> y,
    `p(y | x) = 1 / (4 pi (b cos^2 t + a sin^2 t))`.
    """

    name = "elastic_ring"
    features = 2
    mean_log_prob = -4.1192  # by integration over x, d and t

    def _given(self, x: Tensor, generator: torch.Generator) -> Tensor:
        d, t = 2 * _uniform(len(x), generator), 2 * math.pi * _uniform(len(x), generator)
        return torch.stack([(4 + 2 * x + d) * torch.cos(t), (4 - 2 * x + d) * torch.sin(t)], dim=-1)

    def _log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        first, second = y.unbind(dim=-1)

        def excess(d: Tensor) -> Tensor:
            """Above 0 where y lies beyond the ellipse of d; falls as d grows."""
            return (first / (4 + 2 * x + d)).square() + (second / (4 - 2 * x + d)).square() - 1

        low, high = torch.zeros_like(first + x), torch.full_like(first + x, 2.0)
        inside = (excess(low) > 0) & (excess(high) < 0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            beyond = excess(middle) > 0
            low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
        a, b = 4 + 2 * x + low, 4 - 2 * x + low
        jacobian = b * (first / a).square() + a * (second / b).square()
        log_prob = -torch.log(4 * math.pi * torch.where(inside, jacobian, 1.0))
        return torch.where(inside, log_prob, -torch.inf)


class Heteroscedastic(ConditionalToy):
    """One column: `y ~ N(sin 3x, (1/10 + |x| / 10)^2)`."""

    name = "heteroscedastic"
    features = 1
    # E log(0.1 + 0.1 |x|) over |x| uniform on (0, 1) is log 0.1 + 2 log 2 - 1.
    mean_log_prob = -(NORMAL_ENTROPY + math.log(0.1) + 2 * math.log(2) - 1)

    def _given(self, x: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(len(x), generator=generator, dtype=torch.float64)
        return (torch.sin(3 * x) + (0.1 + 0.1 * x.abs()) * z).unsqueeze(-1)

    def _log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        scale = 0.1 + 0.1 * x.abs()
        return -0.5 * ((y.squeeze(-1) - torch.sin(3 * x)) / scale).square() - torch.log(scale) - LOG_SQRT_2PI


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _turned(y: Tensor, angle: Tensor) -> Tensor:
    """Vectors turned against the clock."""
    cosine, sine = torch.cos(angle), torch.sin(angle)
    first, second = y.unbind(dim=-1)
    return torch.stack([cosine * first - sine * second, sine * first + cosine * second], dim=-1)


# The first four are those of Chen, Islam, Gao & Wang, Deconvolutional Density Network, AAAI 2022.
CONDITIONAL_TOYS: dict[str, ConditionalToy] = {
    toy.name: toy for toy in (Squares(), HalfGaussian(), GaussianStick(), ElasticRing(), Heteroscedastic())
}
