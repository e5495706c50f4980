"""The tail of importance weights: a generalised Pareto fit, its shape k-hat, and smoothed weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PRIOR_DRAWS, PRIOR_SHAPE = 10, 0.5  # the fitted shape is drawn towards 1/2 as by so many more exceedances
FEWEST_TAIL = 5
SMALLEST = math.log(2.0**-1022)


def fit_pareto(exceedances: Tensor) -> tuple[float, float]:
    """Shape k and scale s of a generalised Pareto law, `P(X > x) = (1 + k x / s)^(-1 / k)`, from positive numbers (n,).

    With b = -k / s, k(b) = mean log(1 - b x) maximises the likelihood; b is averaged over its profile likelihood
    `n (log(-b / k) - k - 1)` under a prior on a grid (Zhang & Stephens 2009). k is then drawn towards 1/2 by the weight
    of ten observations (Vehtari et al. 2024).
    """
    x = exceedances.double().sort().values
    n = len(x)
    points = 30 + math.isqrt(n)
    quartile = x[int(n / 4 + 0.5) - 1]
    grid = 1 - torch.sqrt(points / (torch.arange(1, points + 1, dtype=torch.float64) - 0.5))
    b = 1 / x[-1] + grid / (3 * quartile)
    k = torch.log1p(-b.unsqueeze(-1) * x).mean(dim=-1)
    profile = n * (torch.log(-b / k) - k - 1)
    b_mean = (torch.softmax(profile, dim=0) * b).sum()
    shape = float(torch.log1p(-b_mean * x).mean())
    scale = -shape / float(b_mean)
    return (n * shape + PRIOR_DRAWS * PRIOR_SHAPE) / (n + PRIOR_DRAWS), scale


def smooth_tail(log_weight: Tensor) -> tuple[Tensor, float]:
    """Normalised log-weights (n,) whose largest follow a fitted Pareto tail, and its shape k-hat.

    The `M = min(n / 5, 3 sqrt n)` largest weights are replaced, in order, by the quantiles of the fit at (j - 1/2) / M,
    none above the largest that was. Weights that are all nearly equal have k-hat -inf and stay.
    Reference: Vehtari, Simpson, Gelman, Yao & Gabry, Pareto Smoothed Importance Sampling, JMLR 25, 2024.
    """
    raw = log_weight.double() - log_weight.max()
    tail = math.ceil(min(0.2 * len(raw), 3 * math.sqrt(len(raw))))
    order = raw.argsort()
    largest = order[-tail:]
    cut = raw[order[-tail - 1]].clamp(min=SMALLEST)
    threshold = torch.exp(cut)
    exceedances = torch.exp(raw[largest]) - threshold
    used = exceedances > 0
    smoothed, khat = raw.clone(), -math.inf
    if tail >= FEWEST_TAIL and int(used.sum()) >= FEWEST_TAIL and not _level(exceedances[used], threshold):
        khat, scale = fit_pareto(exceedances[used])
        place = (torch.arange(tail, dtype=torch.float64) + 0.5) / tail
        quantile = threshold + scale * torch.expm1(-khat * torch.log1p(-place)) / khat
        smoothed[largest] = torch.log(quantile).clamp(max=0.0)
    return smoothed - torch.logsumexp(smoothed, dim=0), khat


def _level(exceedances: Tensor, threshold: Tensor) -> bool:
    """Whether the largest weights differ by no more than rounding: nothing is left to fit."""
    return bool(exceedances.max() <= 1e-6 * threshold)
