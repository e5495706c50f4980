"""Distances between two samples: how far draws of a model are from draws of the truth, with standard errors.

Every function takes `x` (rows, features) and `y` (other rows, features), computes in float64 and returns an `Estimate`.
`DataError` for widths that differ, fewer than two rows or numbers that are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.bits import Estimate

PAIRS_AT_ONCE = 1 << 22  # distances held in memory together
MEDIAN_ROWS = 1000  # rows that the median distance is taken from


def energy_distance(x: Tensor, y: Tensor) -> Estimate:
    """Energy distance `2 E|X - Y| - E|X - X'| - E|Y - Y'|`, unbiased; 0 just where both laws are the same.

    Unbiased means that it may come out negative near 0. The standard error is the jackknife's over rows of both
    samples. Reference: Szekely & Rizzo, Energy statistics, J. Statistical Planning and Inference 143, 2013.

    >>> energy_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[10.0], [11.0]])).value
    18.0
    """
    return _discrepancy(x, y, lambda squared: -squared.sqrt())


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None) -> Estimate:
    """Squared maximum mean discrepancy with a Gaussian kernel, `E k(X, X') + E k(Y, Y') - 2 E k(X, Y)`, unbiased.

    `k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2))`; without `bandwidth` it is the median distance within the two samples
    together. May come out negative near 0; the standard error is the jackknife's. Raises `OptionError` for a bandwidth
    that is not positive. Reference: Gretton et al., A kernel two-sample test, JMLR 13, 2012.

    >>> near = mmd(torch.zeros(2, 1), torch.ones(2, 1), bandwidth=1.0)
    >>> round(near.value, 6) == round(2 - 2 * math.exp(-0.5), 6)
    True
    """
    if bandwidth is None:
        bandwidth = _median_distance(*same_width(x, y))
    if not 0 < bandwidth < math.inf:
        raise OptionError(f"bandwidth: {bandwidth} came, a positive number was expected (the rows may all be equal).")
    return _discrepancy(x, y, lambda squared: torch.exp(squared / (-2 * bandwidth**2)))


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, order: float = 2.0, projections: int = 100, generator: torch.Generator | None = None
) -> Estimate:
    """Sliced Wasserstein distance `(E_u W_p^p(u'X, u'Y))^(1/p)` over directions u uniform on the sphere.

    In one dimension `W_p^p` is the integral of |F^-1 - G^-1|^p, exact for samples of any two sizes. It is the distance
    of the two samples, which for finite rows is above 0 even where the laws agree; the standard error is that of
    drawing `projections` directions alone. Raises `OptionError` for an order below 1 or fewer than two projections.
    Reference: Bonneel, Rabin, Peyre & Pfister, Sliced and Radon Wasserstein barycenters of measures, 2015.

    >>> points = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    >>> round(sliced_wasserstein(points, points + 3.0).value, 6)
    3.0
    """
    if order < 1 or projections < 2:
        raise OptionError(f"order={order}, projections={projections}: at least 1 and 2 were expected.")
    x, y = same_width(x, y)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    directions = torch.randn(projections, x.shape[1], generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    # Steps of both quantile functions, cut wherever either has one.
    cuts = torch.cat([torch.arange(1, len(part) + 1, dtype=torch.float64) / len(part) for part in (x, y)])
    cuts = cuts.sort().values
    widths = cuts.diff(prepend=cuts.new_zeros(1))
    middle = cuts - widths / 2
    powers = []
    for direction in directions:
        ends = [(part @ direction).sort().values for part in (x, y)]
        first, second = (end[(middle * len(end)).long().clamp(max=len(end) - 1)] for end in ends)
        powers.append((widths * (first - second).abs().pow(order)).sum())
    power = torch.stack(powers)
    value = float(power.mean() ** (1 / order))
    error = float(power.std() / math.sqrt(projections))
    return Estimate(value, error * value ** (1 - order) / order if value > 0 else 0.0)


def _discrepancy(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> Estimate:
    """`E k(X, X') + E k(Y, Y') - 2 E k(X, Y)` as a U-statistic of both samples, with its jackknife error.

    `kernel` takes squared distances. Leaving out a row changes each of the three sums by what that row adds, so all
    leave-one-out values come from the sums over rows.
    """
    x, y = same_width(x, y)
    n, m = len(x), len(y)
    own = kernel(torch.zeros((), dtype=torch.float64))
    within_x, within_y = _row_sums(x, x, kernel)[0] - own, _row_sums(y, y, kernel)[0] - own
    across_x, across_y = _row_sums(x, y, kernel)
    xx, yy, xy = within_x.sum(), within_y.sum(), across_x.sum()
    mean_xx, mean_yy, mean_xy = xx / (n * (n - 1)), yy / (m * (m - 1)), xy / (n * m)
    value = float(mean_xx + mean_yy - 2 * mean_xy)
    if min(n, m) < 3:
        return Estimate(value, math.nan)
    without_x = (xx - 2 * within_x) / ((n - 1) * (n - 2)) + mean_yy - 2 * (xy - across_x) / ((n - 1) * m)
    without_y = (yy - 2 * within_y) / ((m - 1) * (m - 2)) + mean_xx - 2 * (xy - across_y) / (n * (m - 1))
    variance = (n - 1) * without_x.var(unbiased=False) + (m - 1) * without_y.var(unbiased=False)
    return Estimate(value, float(variance.sqrt()))


def _row_sums(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Sums of the kernel over the rows of `y` for each of `x`, and the other way round."""
    over_y, over_x = [], torch.zeros(len(y), dtype=torch.float64)
    for part in x.split(max(1, PAIRS_AT_ONCE // len(y))):
        # Differences are taken before squaring: |x|^2 + |y|^2 - 2xy would lose what is small.
        values = kernel(torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist").square())
        over_y.append(values.sum(dim=1))
        over_x += values.sum(dim=0)
    return torch.cat(over_y), over_x


def _median_distance(x: Tensor, y: Tensor) -> float:
    spread = [
        part[torch.arange(min(len(part), MEDIAN_ROWS)) * len(part) // min(len(part), MEDIAN_ROWS)] for part in (x, y)
    ]
    return float(torch.pdist(torch.cat(spread)).median())


def same_width(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples in float64 on the CPU; raises `DataError` where they cannot be compared."""
    x, y = (torch.as_tensor(part).detach().double().cpu() for part in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise DataError(
            f"x, y: shapes {tuple(x.shape)} and {tuple(y.shape)} came, two or more rows of equal width were expected."
        )
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise DataError("x, y: rows with NaN or infinities came; drop them first.")
    return x, y
