"""Ten toy densities with exact log-density and sampler, to see what a model learns and to test it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rosenblatt.core.errors import DataError
from rosenblatt.core.types import REAL, Support

NORMAL_ENTROPY = 0.5 * math.log(2 * math.pi * math.e)


class Toy(ABC):
    """A density over `features` columns that is known exactly.

    `entropy` is in nats, or None where it has no closed form; `support` holds for every column.
    """

    name: str
    features: int
    entropy: float | None = None
    support: Support = REAL

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log-density in nats of `x` (*batch, features), -inf outside the support, NaN for NaN rows."""
        if x.shape[-1:] != (self.features,):
            raise DataError(f"x: shape {tuple(x.shape)} came, '{self.name}' has {self.features} features.")
        log_prob = torch.where(torch.isinf(x).any(dim=-1), -torch.inf, self._log_prob(x))
        return torch.where(torch.isnan(x).any(dim=-1), torch.nan, log_prob)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` vectors in float64, shape (n, features)."""
        return self._sample(n, generator)

    @abstractmethod
    def _log_prob(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _sample(self, n: int, generator: torch.Generator) -> Tensor: ...


class RoundMixture(Toy):
    """Equal mixture of round Gaussians: `p(x) = mean_k N(x | centre_k, width^2 I)`."""

    def __init__(self, name: str, centres: Tensor, width: float) -> None:
        self.name = name
        self.features = centres.shape[1]
        self.centres = centres
        self.width = width

    def _log_prob(self, x: Tensor) -> Tensor:
        z = (x.unsqueeze(-2) - self.centres.to(x)) / self.width
        each = -0.5 * z.square().sum(dim=-1) - self.features * math.log(self.width * math.sqrt(2 * math.pi))
        return torch.logsumexp(each, dim=-1) - math.log(len(self.centres))

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        component = torch.randint(len(self.centres), (n,), generator=generator)
        return self.centres[component] + self.width * _normal(n, self.features, generator)


class Parabola(Toy):
    """A bent Gaussian: `x2 ~ N(0, 4)`, `x1 | x2 ~ N(x2^2 / 4, 1)` (Papamakarios et al. 2017)."""

    name = "parabola"
    features = 2
    entropy = 2 * NORMAL_ENTROPY + math.log(2)

    def _log_prob(self, x: Tensor) -> Tensor:
        x1, x2 = x.unbind(dim=-1)
        z = torch.stack([x1 - x2.square() / 4, x2 / 2], dim=-1)
        return _normal_log_prob(z) - math.log(2)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        z1, z2 = _normal(n, 2, generator).unbind(dim=-1)
        return torch.stack([z1 + z2.square(), 2 * z2], dim=-1)


class Checkerboard(Toy):
    """Uniform on 8 of the 16 squares of side 2 of [-4, 4]^2."""

    name = "checkerboard"
    features = 2
    entropy = math.log(32)
    support = Support(-4.0, 4.0)

    def _log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= -4) & (x <= 4)).all(dim=-1)
        dark = (x / 2).floor().sum(dim=-1) % 2 == 0
        return _flat(x, inside & dark, math.log(32))

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        first = torch.randint(-2, 2, (n,), generator=generator)
        second = 2 * torch.randint(-1, 1, (n,), generator=generator) + first % 2
        corner = 2.0 * torch.stack([first, second], dim=-1)
        return corner + 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64)


class UniformBox(Toy):
    """Uniform on [0, 2]^3."""

    name = "uniform_box"
    features = 3
    entropy = 3 * math.log(2)
    support = Support(0.0, 2.0)

    def _log_prob(self, x: Tensor) -> Tensor:
        return _flat(x, ((x >= 0) & (x <= 2)).all(dim=-1), 3 * math.log(2))

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return 2 * torch.rand(n, 3, generator=generator, dtype=torch.float64)


class CorrelatedGaussian(Toy):
    """Six columns of standard deviations 0.5 to 3 with correlation `0.8^|i - j|`."""

    name = "correlated_gaussian"
    features = 6

    def __init__(self) -> None:
        scale = torch.linspace(0.5, 3.0, self.features, dtype=torch.float64)
        self.factor = scale[:, None] * torch.linalg.cholesky(_decaying_correlation(self.features, 0.8))
        self.log_volume = float(self.factor.diagonal().log().sum())
        self.entropy = self.features * NORMAL_ENTROPY + self.log_volume

    def _log_prob(self, x: Tensor) -> Tensor:
        return _normal_log_prob(_whiten(x, self.factor)) - self.log_volume

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.matmul(_normal(n, self.features, generator), self.factor.mT)


class CorrelatedStudentT(Toy):
    """Multivariate Student-t with 4 degrees of freedom in 3 columns, correlation `0.5^|i - j|`."""

    name = "student_t"
    features = 3
    degrees = 4

    def __init__(self) -> None:
        self.factor = torch.linalg.cholesky(_decaying_correlation(self.features, 0.5))
        self.log_volume = float(self.factor.diagonal().log().sum())
        nu, d = self.degrees, self.features
        self.log_constant = math.lgamma((nu + d) / 2) - math.lgamma(nu / 2) - d / 2 * math.log(nu * math.pi)
        digamma = torch.digamma(torch.tensor([(nu + d) / 2, nu / 2], dtype=torch.float64))
        self.entropy = self.log_volume - self.log_constant + (nu + d) / 2 * float(digamma[0] - digamma[1])

    def _log_prob(self, x: Tensor) -> Tensor:
        square = _whiten(x, self.factor).square().sum(dim=-1)
        tail = (self.degrees + self.features) / 2 * torch.log1p(square / self.degrees)
        return self.log_constant - self.log_volume - tail

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        normal = torch.matmul(_normal(n, self.features, generator), self.factor.mT)
        chi_square = _normal(n, self.degrees, generator).square().sum(dim=-1, keepdim=True)
        return normal * torch.sqrt(self.degrees / chi_square)


class Funnel(Toy):
    """Neal's funnel (2003) in 3 columns: `v ~ N(0, 1.5^2)`, `x1, x2 | v ~ N(0, e^v)`."""

    name = "funnel"
    features = 3
    width = 1.5
    entropy = 3 * NORMAL_ENTROPY + math.log(1.5)

    def _log_prob(self, x: Tensor) -> Tensor:
        v, rest = x[..., :1], x[..., 1:]
        z = torch.cat([v / self.width, rest * torch.exp(-v / 2)], dim=-1)
        return _normal_log_prob(z) - math.log(self.width) - v.squeeze(-1)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = _normal(n, self.features, generator)
        v = self.width * z[:, :1]
        return torch.cat([v, z[:, 1:] * torch.exp(v / 2)], dim=-1)


class LogNormal(Toy):
    """Exponential of two Gaussian columns with standard deviations 0.5 and 0.8 and correlation 0.6."""

    name = "log_normal"
    features = 2
    support = Support(0.0, math.inf)

    def __init__(self) -> None:
        scale = torch.tensor([0.5, 0.8], dtype=torch.float64)
        self.factor = scale[:, None] * torch.linalg.cholesky(_decaying_correlation(2, 0.6))
        self.log_volume = float(self.factor.diagonal().log().sum())
        self.entropy = 2 * NORMAL_ENTROPY + self.log_volume  # the logarithms have mean zero

    def _log_prob(self, x: Tensor) -> Tensor:
        inside = (x > 0).all(dim=-1)
        log_x = torch.where(inside.unsqueeze(-1), x, 1.0).log()
        log_prob = _normal_log_prob(_whiten(log_x, self.factor)) - self.log_volume - log_x.sum(dim=-1)
        return torch.where(inside, log_prob, -torch.inf)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.matmul(_normal(n, 2, generator), self.factor.mT).exp()


def _normal(n: int, features: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, features, generator=generator, dtype=torch.float64)


def _normal_log_prob(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(dim=-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)


def _whiten(x: Tensor, factor: Tensor) -> Tensor:
    """Solve `factor z = x` for every vector of `x`."""
    flat = x.reshape(-1, x.shape[-1])
    z: Tensor = torch.linalg.solve_triangular(factor.to(x).mT, flat, upper=True, left=False)
    return z.reshape(x.shape)


def _flat(x: Tensor, inside: Tensor, log_volume: float) -> Tensor:
    return torch.where(inside, x.new_tensor(-log_volume), -torch.inf)


def _decaying_correlation(features: int, correlation: float) -> Tensor:
    index = torch.arange(features, dtype=torch.float64)
    return correlation ** (index[:, None] - index).abs()


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _ring() -> Tensor:
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return _polar(torch.full_like(angle, 4.0), angle)


def _moons() -> Tensor:
    upper = _polar(torch.full((64,), 2.0, dtype=torch.float64), torch.linspace(0, math.pi, 64, dtype=torch.float64))
    return torch.cat([upper - torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.5]) - upper])


def _spirals() -> Tensor:
    angle = torch.linspace(0.5, 3 * math.pi, 128, dtype=torch.float64)
    arm = _polar(angle / 2, angle)
    return torch.cat([arm, -arm])


TOYS: dict[str, Toy] = {
    toy.name: toy
    for toy in (
        RoundMixture("two_moons", _moons(), 0.15),
        RoundMixture("eight_gaussians", _ring(), 0.5),
        RoundMixture("spirals", _spirals(), 0.15),
        Parabola(),
        Checkerboard(),
        UniformBox(),
        CorrelatedGaussian(),
        CorrelatedStudentT(),
        Funnel(),
        LogNormal(),
    )
}
