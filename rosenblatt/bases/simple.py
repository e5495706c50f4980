"""Simple densities to put behind a transform: normal, logistic, box, Student-t, Gaussian mixture."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rosenblatt.core.density import Density, FactorisedDensity, fresh_generator
from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import log_logistic_density, soft_bound
from rosenblatt.core.roots import find_root
from rosenblatt.core.types import REAL

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
SMALLEST_UNIFORM = 2.0**-54  # half of the smallest positive value that a float64 uniform draw can take


class _Independent(FactorisedDensity):
    """Independent coordinates: a subclass gives the log-density and a sampler of single coordinates."""

    origin: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        require_positive("features", features)
        self.features = features
        # Says on which device and in which dtype samples are wanted.
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    @abstractmethod
    def _log_density(self, x: Tensor) -> Tensor:
        """Log-density of each finite coordinate."""

    @abstractmethod
    def _draw(self, uniform: Callable[[], Tensor], normal: Callable[[], Tensor]) -> Tensor:
        """Coordinates made of float64 noise."""

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats; -inf for a row with an infinity, NaN for a row with NaN."""
        self.check(x, context)
        return only_finite(self._log_density, x).sum(dim=-1)

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` vectors and their log-densities."""
        x = self.sample(n, context, generator=generator)
        return x, self.log_prob(x)

    def sample(self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` vectors."""
        uniform, normal = noise((n, self.features), self.origin.device, generator)
        return self._draw(uniform, normal).to(self.origin)


class StandardNormal(_Independent):
    """Independent standard normal coordinates: `log p(x) = -sum_i (x_i^2 + log 2 pi) / 2`.

    >>> StandardNormal(2).log_prob(torch.zeros(2))
    tensor(-1.8379)
    """

    def cdf(self, x: Tensor) -> Tensor:
        """Normal CDF of each coordinate."""
        below: Tensor = 0.5 * torch.erfc(x * -(0.5**0.5))  # torch.special.ndtr is 0 from -9 on
        return below

    def quantile(self, u: Tensor) -> Tensor:
        """Normal quantile of each coordinate."""
        x: Tensor = torch.special.ndtri(u)
        return x

    def _log_density(self, x: Tensor) -> Tensor:
        return -0.5 * x.square() - LOG_SQRT_2PI

    def _draw(self, uniform: Callable[[], Tensor], normal: Callable[[], Tensor]) -> Tensor:
        return normal()


class StandardLogistic(_Independent):
    """Independent standard logistic coordinates: `p(x) = prod_i s(x_i) s(-x_i)`.

    Its CDF is the sigmoid s, which makes it the base of CDFs carried as logits.

    >>> StandardLogistic(1).cdf(torch.zeros(1))
    tensor([0.5000])
    """

    def cdf(self, x: Tensor) -> Tensor:
        """Sigmoid of each coordinate."""
        return torch.sigmoid(x)

    def quantile(self, u: Tensor) -> Tensor:
        """Logit of each coordinate."""
        return torch.logit(u)

    def _log_density(self, x: Tensor) -> Tensor:
        return log_logistic_density(x)

    def _draw(self, uniform: Callable[[], Tensor], normal: Callable[[], Tensor]) -> Tensor:
        return torch.logit(uniform())


class Box(_Independent):
    """Uniform density on the cube [-bound, bound]^features, ends included; -inf outside.

    `bound` is one number, or one for each feature. Raises `OptionError` unless all are > 0.

    >>> Box(1, bound=2.0).log_prob(torch.tensor([[2.0], [2.1]])).exp()
    tensor([0.2500, 0.0000])
    """

    def __init__(self, features: int, bound: float | list[float] = 1.0) -> None:
        super().__init__(features)
        given = [bound] * features if isinstance(bound, int | float) else list(bound)
        if len(given) != features:
            raise OptionError(f"bound: {len(given)} numbers came, one or {features} were expected.")
        for value in given:
            require_positive("bound", value)
        self.bound = bound

    def cdf(self, x: Tensor) -> Tensor:
        """`(x + bound) / (2 bound)`, exactly 0 below the box and 1 above it."""
        bound = self._bound(x)
        return ((x.clamp(-bound, bound) + bound) / (2 * bound)).clamp(0.0, 1.0)

    def quantile(self, u: Tensor) -> Tensor:
        """`(2 u - 1) bound`."""
        return torch.where((u >= 0) & (u <= 1), (2 * u - 1) * self._bound(u), torch.nan)

    def _log_density(self, x: Tensor) -> Tensor:
        # The product with 0 keeps x in the graph, so that its gradient is 0 and not missing.
        bound = self._bound(x)
        level = 0.0 * x.clamp(-bound, bound) - torch.log(2 * bound)
        return torch.where(x.abs() <= bound, level, -torch.inf)

    def _draw(self, uniform: Callable[[], Tensor], normal: Callable[[], Tensor]) -> Tensor:
        drawn = uniform()
        return (2 * drawn - 1) * self._bound(drawn)

    def _bound(self, like: Tensor) -> Tensor:
        """Bounds in the dtype of the data, rounded like the data itself."""
        return like.new_tensor(self.bound)


class StudentT(_Independent):
    """Independent Student-t coordinates with `df` degrees of freedom, one number or one for each feature.

    `p(t) = G((v+1)/2) / (G(v/2) sqrt(pi v)) (1 + t^2/v)^(-(v+1)/2)`. With `trainable`, each df is learned
    within a factor e^3 of its start. Samples by Bailey's polar method (1994), differentiable in df; `cdf` and
    `quantile` are computed in float64, `cdf` being differentiable in x only and `quantile` not at all.
    Raises `OptionError` unless df > 0.

    >>> round(StudentT(1, df=1.0).cdf(torch.ones(1)).item(), 6)  # Cauchy: 1/2 + atan(1) / pi
    0.75
    """

    start: Tensor

    def __init__(self, features: int, df: float | list[float] = 5.0, *, trainable: bool = False) -> None:
        super().__init__(features)
        given = [df] * features if isinstance(df, int | float) else list(df)
        if len(given) != features:
            raise OptionError(f"df: {len(given)} numbers came, one or {features} were expected.")
        for value in given:
            require_positive("df", value)
        self.register_buffer("start", torch.tensor(given))
        self.log_ratio = nn.Parameter(torch.zeros(features), requires_grad=trainable)

    @property
    def df(self) -> Tensor:
        """Degrees of freedom (features,)."""
        return self.start * torch.exp(soft_bound(self.log_ratio, 3.0))

    def cdf(self, x: Tensor) -> Tensor:
        """Student-t CDF of each coordinate, with full relative precision in the lower tail."""
        with torch.no_grad():
            value = _student_cdf(x.double(), self.df.double()).to(x.dtype)
            slope = torch.exp(only_finite(self._log_density, x))
        if not x.requires_grad:
            return value
        finite = torch.where(torch.isfinite(x), x, 0.0)
        return value + slope * (finite - finite.detach())

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of `cdf` by root search; raises `InverseError` where the answer leaves about 1e39."""
        with torch.no_grad():
            wide = u.double()
            tail = torch.minimum(wide, 1 - wide)
            tail = torch.where(tail >= 0, tail, torch.nan)
            df = self.df.double().expand_as(wide)
            found = find_root(
                _StudentLogCdf(df.reshape(-1)), torch.log(tail).reshape(-1), REAL, tolerance=2e-14
            ).reshape(u.shape)
            found = torch.where(tail == 0, -torch.inf, found)
            return torch.where(wide <= 0.5, found, -found).to(u.dtype)

    def _log_density(self, x: Tensor) -> Tensor:
        df = self.df.to(x.dtype)
        ratio = (x / df.sqrt()).abs()
        # log(1 + r^2) without overflow of r^2: taken about the larger of 1 and r.
        large = torch.where(ratio > 1, ratio, 1.0)
        small = torch.where(ratio > 1, 1 / large, ratio)
        return _student_log_norm(df) - (df + 1) * (0.5 * torch.log1p(small.square()) + torch.log(large))

    def _draw(self, uniform: Callable[[], Tensor], normal: Callable[[], Tensor]) -> Tensor:
        df = self.df.double()
        radius = torch.sqrt(df * torch.expm1(-2 / df * torch.log(uniform()).to(df.device)))
        return radius * torch.cos(2 * math.pi * uniform().to(df.device))


class GaussianMixture(Density):
    """Mixture of Gaussians with trainable weights, locations and precision factors.

    `p(x) = sum_k w_k |A_k| N(A_k (x - m_k); 0, 1)` with A_k lower triangular (`covariance="full"`) or
    diagonal (`"diag"`), its log-diagonal smoothly bounded to (-7, 7). Raises `OptionError` for any
    other `covariance`.

    >>> mixture = GaussianMixture(2, components=3)
    >>> mixture.sample(5, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5, 2])
    """

    context = 0

    def __init__(self, features: int, components: int = 10, *, covariance: str = "full") -> None:
        super().__init__()
        require_positive("features", features)
        require_positive("components", components)
        if covariance not in ("full", "diag"):
            raise OptionError(f"covariance: '{covariance}' came, 'full' or 'diag' was expected.")
        self.features = features
        self.logits = nn.Parameter(torch.zeros(components))
        self.locations = nn.Parameter(torch.randn(components, features))
        self.log_diagonal = nn.Parameter(torch.zeros(components, features))
        shape = (components, features, features) if covariance == "full" else (0,)
        self.lower = nn.Parameter(torch.zeros(shape))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats; -inf for a row with an infinity, NaN for a row with NaN."""
        self.check(x, context)
        finite = torch.isfinite(x)
        offset = torch.where(finite, x, 0.0).unsqueeze(-2) - self.locations
        log_diagonal = soft_bound(self.log_diagonal, 7.0)
        z = torch.exp(log_diagonal) * offset
        if self.lower.numel():
            z = z + (self.lower.tril(-1) * offset.unsqueeze(-2)).sum(dim=-1)
        log_weight = torch.log_softmax(self.logits, dim=-1) + log_diagonal.sum(dim=-1)
        parts = log_weight - 0.5 * z.square().sum(dim=-1) - self.features * LOG_SQRT_2PI
        log_prob = torch.where(finite.all(dim=-1), log_sum(parts), -torch.inf)
        return torch.where(torch.isnan(x).any(dim=-1), torch.nan, log_prob)

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` vectors and their log-densities; differentiable except in the weights."""
        device = self.logits.device
        uniform, _ = noise((n,), device, generator)
        _, normal = noise((n, self.features), device, generator)
        edges = torch.softmax(self.logits.detach().double(), dim=-1).cumsum(dim=-1)[:-1]
        chosen = torch.searchsorted(edges, uniform(), right=True)
        factor = torch.diag_embed(torch.exp(soft_bound(self.log_diagonal, 7.0)))
        if self.lower.numel():
            factor = factor + self.lower.tril(-1)
        z = normal().to(factor).unsqueeze(-1)
        offset = torch.linalg.solve_triangular(factor[chosen], z, upper=False).squeeze(-1)
        x = self.locations[chosen] + offset
        return x, self.log_prob(x)


def log_sum(parts: Tensor) -> Tensor:
    """`logsumexp` over the last axis; of nothing but -inf it is -inf with gradients 0, where those of torch are NaN."""
    peak = parts.detach().amax(dim=-1, keepdim=True)
    peak = torch.where(torch.isfinite(peak), peak, 0.0)
    total = torch.exp(parts - peak).sum(dim=-1)
    positive = total > 0
    return torch.where(positive, torch.log(torch.where(positive, total, 1.0)) + peak.squeeze(-1), -torch.inf)


def require_positive(name: str, value: float) -> None:
    """Refuse numbers that are not positive and finite."""
    if not 0 < value < math.inf:
        raise OptionError(f"{name}: {value} came, a positive number was expected.")


def only_finite(log_density: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Evaluate at finite coordinates only: -inf at infinities, NaN at NaN, no such gradient anywhere."""
    size = x.detach().abs()
    finite = size < torch.inf
    return torch.where(finite, log_density(torch.where(finite, x, 0.0)), -size)


def noise(
    shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Float64 uniform and normal draws, made where the generator lives, delivered on `device`."""
    generator = fresh_generator(device) if generator is None else generator
    home, wide = generator.device, torch.float64

    def uniform() -> Tensor:
        drawn = torch.rand(shape, generator=generator, dtype=wide, device=home)
        # A draw of exactly 0 would become an infinite sample.
        return drawn.clamp(min=SMALLEST_UNIFORM).to(device)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=wide, device=home).to(device)

    return uniform, normal


def _student_log_norm(df: Tensor) -> Tensor:
    # The two log-gammas nearly cancel for large df, so they are subtracted in float64.
    wide = df.double()
    log_norm = torch.lgamma((wide + 1) / 2) - torch.lgamma(wide / 2) - 0.5 * torch.log(math.pi * wide)
    return log_norm.to(df.dtype)


class _StudentLogCdf:
    """log F(t) at fixed df per row, for the root search."""

    def __init__(self, df: Tensor) -> None:
        self.df = df

    def __call__(self, x: Tensor) -> Tensor:
        return torch.log(_student_cdf(x, self.df))

    def select(self, rows: Tensor) -> _StudentLogCdf:
        return _StudentLogCdf(self.df[rows])


def _student_cdf(t: Tensor, df: Tensor) -> Tensor:
    """F(t) in float64: `P(T < -|t|) = I_x(v/2, 1/2) / 2` with x = v / (v + t^2)."""
    df = df.expand_as(t)
    half = torch.full_like(df, 0.5)
    scale = df + t.square()
    near = t.square() < 3 * df / (df + 2)  # where the continued fraction of the mirrored integral is the faster one
    inside = _incomplete_beta(torch.where(near, t.square() / scale, 0.0), half, df / 2)
    outside = _incomplete_beta(torch.where(near | torch.isinf(t), 0.0, df / scale), df / 2, half)
    tail = torch.where(near, 0.5 - 0.5 * inside, 0.5 * outside)
    tail = torch.where(torch.isnan(t), torch.nan, tail)
    return torch.where(t > 0, 1 - tail, tail)


def _incomplete_beta(x: Tensor, a: Tensor, b: Tensor, steps: int = 400) -> Tensor:
    """Regularised I_x(a, b) by its continued fraction (Lentz), for x below (a + 1) / (a + b + 2)."""
    tiny = 1e-300
    log_front = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b) + a * torch.log(x) + b * torch.log1p(-x)
    c, d = torch.ones_like(x), 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, steps):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            d = 1 / (1 + numerator * d + tiny)
            c = 1 + numerator / c + tiny
            fraction = fraction * c * d
        if bool(((c * d - 1).abs() < 1e-16).all()):
            break
    return torch.exp(log_front) * fraction / a
