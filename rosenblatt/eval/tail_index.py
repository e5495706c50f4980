"""Estimators of a tail's weight xi = 1 / index, and the double bootstrap that chooses how far in the tail reaches.

With L_i the log of the i-th largest of n positive numbers, all of them look at `L_1 - L_{k+1}, ..., L_k - L_{k+1}`:
few of them (small k) scatter, many are no longer the tail. The double bootstrap finds the k of smallest mean squared
error from resamples of two sizes (Danielsson, de Haan, Peng & de Vries 2001; Draisma et al. 1999).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.errors import DataError

FEWEST = 100  # values that differ from the median
SMALLEST_K = 10
MOST_K = 50_000  # a longer tail would change nothing and take memory
PARTS = 5  # k stays below a fifth of the values: nearer the median, both sides of a lopsided law are folded together
GRID = 40  # numbers k tried
NUMBERS_AT_ONCE = 1 << 21
WEIGHTS_FROM = 0.1  # xi below which the asymptotic constants of positive xi no longer hold
LARGEST_CORRECTION = 4.0

Estimate = Callable[[Tensor, Tensor], Tensor]
Weights = Callable[[Tensor, float], Tensor]


class Choice(NamedTuple):
    """An estimate of xi and the number k of largest values that it is made of."""

    xi: float
    k: int


@dataclass(frozen=True)
class TailEstimator:
    """An estimator of xi and what its double bootstrap needs.

    `estimate` and `auxiliary` map logs (*batch, m + 1) in falling order and numbers k (count,) to (*batch, count);
    `auxiliary` tends to 0 and has its smallest mean square near the best k of `estimate`. Both are asymptotically means
    of the normalised spacings `i (L_i - L_{i+1})`, weighted by a function of s = i / k and xi.
    """

    estimate: Estimate
    auxiliary: Estimate
    weights: Weights
    auxiliary_weights: Weights


def distances(values: Tensor) -> Tensor:
    """Distances `|x - median|` of a column in falling order, without zeros, in float64.

    The weight of a tail knows no location, but its estimators do: around the median they see the same whatever the
    column's units. Raises `DataError` for values that are not finite or fewer than 100 that differ from the median.
    """
    values = values.detach().double().flatten().cpu()
    if not bool(torch.isfinite(values).all()):
        raise DataError("values: NaN or infinities came; drop or fill those rows.")
    ordered = values.sort().values
    # The mean of the two middle values: a mirrored column then has the same distances.
    middle = ordered[(len(values) - 1) // 2 : len(values) // 2 + 1].mean()
    away = (values - middle).abs()
    away = away[away > 0]
    if len(away) < FEWEST:
        raise DataError(
            f"values: {len(away)} of {len(values)} numbers differ from their median, at least {FEWEST} were expected; "
            "bring more rows or drop the column."
        )
    return away.sort(descending=True).values


def hill(logs: Tensor, ks: Tensor) -> Tensor:
    """Hill's estimator (1975): the mean of `L_i - L_{k+1}` over i <= k. Always positive."""
    return _log_moments(logs, ks)[0]


def moments(logs: Tensor, ks: Tensor) -> Tensor:
    """Moment estimator of any sign, `M1 + 1 - (1 / 2) / (1 - M1^2 / M2)` (Dekkers, Einmahl & de Haan 1989)."""
    first, second, _ = _log_moments(logs, ks)
    return first + 1 - 0.5 / (1 - first.square() / second)


def kernel(logs: Tensor, ks: Tensor, power: int = 2) -> Tensor:
    """Kernel estimator with `K(s) = c (1 - s^2)^power`: that of Csorgo, Deheuvels & Mason (1985), for any sign.

    `g - 1 + q / g` with `g = sum_i s K(s) (L_i - L_{i+1})` (theirs) and `q = sum_i (s^2 K(s))' (L_i - L_{i+1})`,
    s = i / k (Groeneboom, Lopuhaa & de Wolf 2003, alpha = 1).
    """
    spacings = logs[..., :-1] - logs[..., 1:]
    s = torch.arange(1, spacings.shape[-1] + 1, dtype=logs.dtype).unsqueeze(-1) / ks
    value, slope = _kernel(s, power)
    positive = spacings @ (s * value)
    xi: Tensor = positive - 1 + spacings @ (2 * s * value + s * slope) / positive
    return xi


def double_bootstrap(
    away: Tensor, *, resamples: int = 500, generator: torch.Generator | None = None
) -> dict[str, Choice]:
    """Estimate xi by `hill`, `moments` and `kernel`, each at its own best k, from `distances` (n,) in falling order.

    Resamples of n1 = n / sqrt 2 and n2 = n1^2 / n values give the numbers k1, k2 at which the mean square of the
    auxiliary statistic is smallest; then `k = c k1^2 / k2`, c being the ratio of the best numbers of estimator and
    auxiliary statistic for bias of the order rho = -log k1 / (2 log(n1 / k1)). As the best numbers grow like a power of
    the size between 0 and 1, k1 / k2 is kept between 1 and n1 / n2: the minima are flat, and scatter.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    n = len(away)
    logs = torch.log(away)
    sizes = (round(n / math.sqrt(2)), n // 2)
    best = [_best_numbers(logs, size, resamples, generator) for size in sizes]
    most = _most(n)
    chosen = {}
    for name, estimator in ESTIMATORS.items():
        k1, k2 = (numbers[name] for numbers in best)
        growth = min(max(k1 / k2, 1.0), sizes[0] / sizes[1])
        plain = min(max(round(k1 * growth), SMALLEST_K), most)
        xi = _at(estimator.estimate, logs, plain)
        k = min(max(round(plain * _correction(estimator, xi, k1, sizes[0])), SMALLEST_K), most)
        chosen[name] = Choice(_at(estimator.estimate, logs, k), k)
    return chosen


def hill_path(away: Tensor, points: int = 200) -> tuple[Tensor, Tensor]:
    """Numbers k, evenly spread on a log scale, and Hill's estimate at each, from `distances` (n,)."""
    ks = _numbers(_most(len(away)), points)
    return ks, hill(torch.log(away[: int(ks[-1]) + 1]), ks)


def _at(estimate: Estimate, logs: Tensor, k: int) -> float:
    return float(estimate(logs[: k + 1], torch.tensor([k])))


def _most(size: int) -> int:
    """The largest k tried on `size` values."""
    return min(size // PARTS, MOST_K)


def _numbers(most: int, count: int) -> Tensor:
    ks = torch.logspace(math.log10(SMALLEST_K), math.log10(most), count, dtype=torch.float64)
    whole: Tensor = ks.round().long().unique()
    return whole


def _best_numbers(logs: Tensor, size: int, resamples: int, generator: torch.Generator) -> dict[str, int]:
    """For each estimator the k of smallest mean squared auxiliary statistic over resamples of `size` values."""
    most = _most(size)
    ks = _numbers(most, GRID)
    total = {name: torch.zeros(len(ks), dtype=torch.float64) for name in ESTIMATORS}
    at_once = max(1, NUMBERS_AT_ONCE // most)
    for start in range(0, resamples, at_once):
        drawn = _largest_resampled(logs, size, most + 1, min(at_once, resamples - start), generator)
        for name, estimator in ESTIMATORS.items():
            square = estimator.auxiliary(drawn, ks).square()
            # Ties can make a few largest values equal, which no estimator can use.
            total[name] += torch.where(torch.isfinite(square), square, torch.inf).sum(dim=0)
    return {name: int(ks[sums.argmin()]) for name, sums in total.items()}


def _largest_resampled(logs: Tensor, size: int, most: int, resamples: int, generator: torch.Generator) -> Tensor:
    """The `most` largest of `size` draws with replacement from `logs`, in falling order: (resamples, most).

    Ordered uniforms are partial sums of exponentials over their total, so the smaller draws are never made. The sum of
    those left out has a gamma law, here by the cube of a normal number (Wilson & Hilferty 1931).
    """
    sums = torch.empty(resamples, most, dtype=torch.float64).exponential_(generator=generator).cumsum(dim=-1)
    others = size + 1 - most
    normal = torch.randn(resamples, 1, generator=generator, dtype=torch.float64)
    rest = others * (1 - 1 / (9 * others) + normal / (3 * math.sqrt(others))) ** 3
    uniform = sums / (sums[:, -1:] + rest)
    return logs[(uniform * len(logs)).long()]


def _log_moments(logs: Tensor, ks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means over i <= k of the first three powers of `L_i - L_{k+1}`."""
    above = logs - logs[..., -1:]
    threshold = above[..., ks]
    one, two, three = (above.pow(j).cumsum(dim=-1)[..., ks - 1] / ks for j in (1, 2, 3))
    second = two - 2 * threshold * one + threshold.square()
    third = three - 3 * threshold * two + 3 * threshold.square() * one - threshold.pow(3)
    return one - threshold, second, third


def _third_moments(logs: Tensor, ks: Tensor) -> Tensor:
    """Another estimator of any sign, `sqrt(M2 / 2) + 1 - (2 / 3) / (1 - M1 M2 / M3)`, to compare `moments` with."""
    first, second, third = _log_moments(logs, ks)
    return torch.sqrt(second / 2) + 1 - (2 / 3) / (1 - first * second / third)


def _hill_auxiliary(logs: Tensor, ks: Tensor) -> Tensor:
    first, second, _ = _log_moments(logs, ks)
    return second - 2 * first.square()


def _kernel(s: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """`K(s)` and `s K'(s)`, 0 beyond s = 1."""
    norm = math.gamma(power + 1.5) / (math.gamma(power + 1) * math.gamma(1.5))
    rest = (1 - s.square()).clamp(min=0.0)
    return norm * rest.pow(power), -2 * power * norm * s.square() * rest.pow(power - 1)


def _kernel_weights(s: Tensor, xi: float, power: int = 2) -> Tensor:
    value, slope = _kernel(s, power)
    return value + (value + slope) / xi


def _moments_weights(s: Tensor, xi: float) -> Tensor:
    return 1 - (1 + torch.log(s)) / xi


def _third_weights(s: Tensor, xi: float) -> Tensor:
    log_s = torch.log(s)
    second = 1 - log_s  # of M2 / (2 xi); M3 / (3 xi^2) has the one below
    third = log_s.square() - 2 * log_s + 2
    return second / 2 - 1 / (2 * xi) - second / (2 * xi) + third / (4 * xi)


ESTIMATORS: dict[str, TailEstimator] = {
    "hill": TailEstimator(
        hill, _hill_auxiliary, lambda s, xi: torch.ones_like(s), lambda s, xi: -2 * xi * (1 + torch.log(s))
    ),
    "moments": TailEstimator(
        moments,
        lambda logs, ks: moments(logs, ks) - _third_moments(logs, ks),
        _moments_weights,
        lambda s, xi: _moments_weights(s, xi) - _third_weights(s, xi),
    ),
    "kernel": TailEstimator(
        kernel,
        lambda logs, ks: kernel(logs, ks) - kernel(logs, ks, power=3),
        _kernel_weights,
        lambda s, xi: _kernel_weights(s, xi) - _kernel_weights(s, xi, power=3),
    ),
}


def weighted_variance(weights: Weights, xi: float) -> float:
    """Limit of k times the variance of a weighted mean of spacings: `xi^2` times the integral of `weights^2`."""
    return xi * xi * _integral(lambda s: weights(s, xi).square())


def _correction(estimator: TailEstimator, xi: float, k1: int, n1: int) -> float:
    """Best k of the estimator over best k of its auxiliary statistic, for bias in proportion to `(n / k)^rho`.

    With variance V / k and bias b, the best k goes with `(V / b^2)^(1 / (1 - 2 rho))`.
    """
    if not xi > WEIGHTS_FROM:
        return 1.0
    share = math.log(k1) / math.log(n1)
    rho = -share / (2 * (1 - share))

    def quality(weights: Weights) -> float:
        bias = _integral(lambda s: weights(s, xi) * s.pow(-rho))
        return weighted_variance(weights, xi) / max(bias * bias, 1e-12)

    ratio: float = (quality(estimator.weights) / quality(estimator.auxiliary_weights)) ** (1 - share)
    # The bias of `moments` vanishes for some tails (a Student-t of 2 degrees is one), and would ask for every value.
    return min(max(ratio, 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)


def _integral(function: Callable[[Tensor], Tensor]) -> float:
    """Integral over (0, 1) of a function with at most a power of a logarithm at 0."""
    v = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    return float((function(v.square()) * 2 * v).mean())
