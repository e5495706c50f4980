"""The integral of a density, which must be one: on a grid, or by importance sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rosenblatt.core.density import Density, fresh_generator
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.bits import Estimate

ROWS_AT_ONCE = 8192


def grid_mass(
    density: Density,
    *,
    lower: Tensor | None = None,
    upper: Tensor | None = None,
    near: Tensor | None = None,
    cells: int = 200,
    context: Tensor | None = None,
) -> float:
    """Integrate a density of one or two columns by two-point Gauss-Legendre cells, `cells` per axis.

    With `lower` and `upper` (features,) over that box; without them over the whole space by `x = m + s tan(.)`.
    With rows `near` (rows, features) half of the cells end at their quantiles, so that narrow peaks are resolved,
    and m and s are their median and spread; else 0 and 1. `context` is one row (context,).
    Raises `OptionError` for more than two columns or when only one end of the box came.

    >>> from rosenblatt.bases import StandardLogistic
    >>> round(grid_mass(StandardLogistic(2), cells=60), 4)
    1.0
    """
    if density.features > 2:
        raise OptionError(f"density: {density.features} features came, a grid takes at most 2; use importance_mass.")
    if (lower is None) != (upper is None):
        raise OptionError("lower, upper: only one came; give both ends of the box or none.")
    axes, log_weights = [], []
    for column in range(density.features):
        rows = None if near is None else near[:, column].detach().double()
        line: _Segment
        if lower is None or upper is None:
            line = _Line(*_centre_and_width(rows))
        else:
            line = _Segment(float(lower[column]), float(upper[column]))
        t, weight = _cells(line, rows, cells)
        x, log_rate = line.point(t)
        axes.append(x)
        log_weights.append(torch.log(weight) + log_rate)
    x = torch.cartesian_prod(*axes).reshape(-1, density.features)
    log_weight = torch.cartesian_prod(*log_weights).reshape(-1, density.features).sum(dim=-1)
    return float(torch.exp(_log_prob(density, x, context) + log_weight).sum())


class _Segment:
    """The interval [lower, upper] as the image of [0, 1]."""

    def __init__(self, lower: float, upper: float) -> None:
        self.lower, self.span = lower, upper - lower

    def point(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Where t lands, and log dx/dt there."""
        return self.lower + self.span * t, torch.full_like(t, math.log(self.span))

    def fraction(self, x: Tensor) -> Tensor:
        """The t that lands at x."""
        return (x - self.lower) / self.span


class _Line(_Segment):
    """The whole line as the image of (0, 1): x = centre + width tan(pi (t - 1/2))."""

    def __init__(self, centre: float, width: float) -> None:
        self.centre, self.width = centre, width

    def point(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = math.pi * (t - 0.5)
        x = self.centre + self.width * torch.tan(angle)
        return x, math.log(math.pi * self.width) - 2 * torch.log(torch.cos(angle))

    def fraction(self, x: Tensor) -> Tensor:
        return torch.atan((x - self.centre) / self.width) / math.pi + 0.5


def _centre_and_width(rows: Tensor | None) -> tuple[float, float]:
    if rows is None:
        return 0.0, 1.0
    low, centre, high = rows.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=rows.dtype)).tolist()
    return centre, high - low if high > low else 1.0


def _cells(line: _Segment, rows: Tensor | None, cells: int) -> tuple[Tensor, Tensor]:
    """Nodes in (0, 1) and their weights: two per cell."""
    edges = torch.linspace(0, 1, cells + 1 if rows is None else cells // 2 + 1, dtype=torch.float64)
    if rows is not None:
        levels = torch.linspace(0, 1, cells // 2, dtype=rows.dtype)
        edges = torch.cat([edges, line.fraction(rows.quantile(levels)).clamp(0, 1)]).unique()
    width = edges.diff().unsqueeze(-1)
    offsets = 0.5 + torch.tensor([-0.5, 0.5], dtype=torch.float64) / math.sqrt(3)
    return (edges[:-1, None] + width * offsets).flatten(), (0.5 * width).expand(-1, 2).flatten()


def importance_mass(
    density: Density,
    proposal: Density,
    *,
    rows: int = 100_000,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Estimate the integral of `density` as the mean of `p(x) / q(x)` over `rows` draws of `proposal`.

    Unbiased when the proposal q covers the density; judge the value by its standard error. `context` is one row.
    """
    total = square = 0.0
    done = 0
    with torch.no_grad():
        while done < rows:
            count = min(ROWS_AT_ONCE, rows - done)
            x, log_q = proposal.sample_and_log_prob(count, generator=generator)
            ratio = torch.exp(_log_prob(density, x, context) - log_q.double())
            total += float(ratio.sum())
            square += float(ratio.square().sum())
            done += count
    mean = total / rows
    return Estimate(mean, math.sqrt(max(square / rows - mean * mean, 0.0) / rows))


class KernelProposal(Density):
    """A wide kernel density around some rows, to draw from in importance sampling.

    A mixture of multivariate Student-t kernels (4 degrees of freedom), centred at at most `centres` of the rows,
    each with the rows' covariance times `bandwidth^2`. Heavy tails keep the weights p / q bounded.
    Raises `DataError` for fewer than two rows or a covariance that is not positive definite.

    >>> rows = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    >>> KernelProposal(rows).sample(3, generator=torch.Generator().manual_seed(1)).shape
    torch.Size([3, 2])
    """

    context = 0
    DEGREES = 4.0
    centres: Tensor
    factor: Tensor

    def __init__(self, rows: Tensor, *, centres: int = 512, bandwidth: float | None = None) -> None:
        super().__init__()
        rows = rows.detach().double()
        if rows.ndim != 2 or len(rows) < 2:
            raise DataError(f"rows: shape {tuple(rows.shape)} came, at least two rows were expected.")
        self.features = rows.shape[1]
        if bandwidth is None:  # Silverman's rule, widened: too wide costs little, too narrow costs the tails
            bandwidth = 1.5 * min(len(rows), centres) ** (-1 / (self.features + 4))
        covariance = torch.cov(rows.T).reshape(self.features, self.features)
        factor, failure = torch.linalg.cholesky_ex(covariance)
        if int(failure):
            raise DataError("rows: their covariance is singular; drop constant or collinear columns.")
        picked = torch.linspace(0, len(rows) - 1, min(centres, len(rows))).round().long()
        self.register_buffer("centres", rows[picked])
        self.register_buffer("factor", bandwidth * factor)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of the mixture, in float64."""
        self.check(x, context)
        whiten = torch.linalg.inv(self.factor).T
        distance = torch.cdist(x.double() @ whiten, self.centres @ whiten, compute_mode="donot_use_mm_for_euclid_dist")
        df, d = self.DEGREES, self.features
        log_norm = math.lgamma((df + d) / 2) - math.lgamma(df / 2) - 0.5 * d * math.log(df * math.pi)
        log_norm -= float(self.factor.diagonal().log().sum()) + math.log(len(self.centres))
        return log_norm + torch.logsumexp(-0.5 * (df + d) * torch.log1p(distance.square() / df), dim=-1)

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` rows and their log-densities."""
        generator = fresh_generator() if generator is None else generator
        chosen = torch.randint(len(self.centres), (n,), generator=generator)
        normal = torch.randn(n, self.features, generator=generator, dtype=torch.float64)
        half = int(self.DEGREES) // 2  # chi-square of even degrees is a sum of exponentials
        uniform = torch.rand(n, half, generator=generator, dtype=torch.float64)
        chi_square = -2 * torch.log1p(-uniform).sum(dim=-1, keepdim=True)
        x = self.centres[chosen] + (normal @ self.factor.T) * torch.sqrt(self.DEGREES / chi_square)
        return x, self.log_prob(x)


def _log_prob(density: Density, x: Tensor, context: Tensor | None) -> Tensor:
    dtype = next((p.dtype for p in density.parameters()), torch.float64)
    x = x.to(dtype)
    with torch.no_grad():
        parts = []
        for start in range(0, len(x), ROWS_AT_ONCE):
            rows = x[start : start + ROWS_AT_ONCE]
            given = None if context is None else context.expand(len(rows), -1)
            parts.append(density.log_prob(rows, given).double())
        return torch.cat(parts)
