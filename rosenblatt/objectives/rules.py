"""Proper scoring rules of draws, quantiles and intervals: plain functions of tensors, differentiable, no model.

All are losses: less is better, and the expected score is least for the true law. Draws and levels are the first axis
(as `Density.sample` returns them), `*batch` any axes after it. Rows that cannot be scored say so and leave the others
alone, values and gradients alike: an outcome with NaN answers NaN, one with an infinity +inf, and a row with a draw
that is not finite NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError

NUMBERS_AT_ONCE = 1 << 24  # differences between draws that are held in memory together


def log_score(log_prob: Tensor) -> Tensor:
    """Logarithmic score in nats, `-log p(y)`, shape of `log_prob`; +inf where the law excludes the outcome (Good 1952).

    >>> log_score(torch.tensor([-1.5]))
    tensor([1.5000])
    """
    return -log_prob


def pinball(error: Tensor, level: Tensor | float) -> Tensor:
    """Quantile loss `rho_a(e) = max(a e, (a - 1) e)` of `e = y - q`, in the units of e; shapes broadcast.

    Its mean is least where q is the a-quantile. A `level` that is a number must lie in (0, 1), `OptionError` otherwise;
    a tensor of levels is not looked at. Reference: Koenker & Bassett, Regression quantiles, Econometrica 46, 1978.

    >>> pinball(torch.tensor([2.0, -2.0]), 0.9)
    tensor([1.8000, 0.2000])
    """
    if not isinstance(level, Tensor):
        _check_level(level)
    return torch.maximum(level * error, (level - 1) * error)


def crps_from_samples(samples: Tensor, y: Tensor, *, fair: bool = True) -> Tensor:
    """CRPS estimated from draws, `mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 n (n - 1))`, in the units of y.

    Unbiased for the score of the law that was drawn from; with `fair=False` the sum is over 2 n^2, which is the CRPS of
    the n points themselves. Sorting makes it O(n log n). Shapes: `samples` (n, *batch), `y` (*batch), result (*batch).
    Raises `DataError` for other shapes or too few draws (2, or 1 if not fair). References: Gneiting & Raftery, JASA
    102, 2007; Ferro, Fair scores for ensemble forecasts, 2014.

    >>> crps_from_samples(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.0]))
    tensor([0.])
    """
    _check_draws(samples, y, "(n, *batch) of draws for (*batch) of outcomes", 2 if fair else 1)
    samples, y, odd = _finite_only(samples, y, samples, y)
    error = samples - y  # measured from the outcome, so that numbers far from 0 keep their digits
    count = len(samples)
    rank = torch.arange(1 - count, count, 2, dtype=error.dtype, device=error.device)
    ordered = error.sort(dim=0).values
    spread = (rank.reshape(-1, *[1] * (error.ndim - 1)) * ordered).sum(dim=0)  # sum of |x_i - x_j| over i < j
    pairs = count * (count - 1 if fair else count)
    return _answer(error.abs().mean(dim=0) - spread / pairs, odd)


def crps_from_quantiles(levels: Tensor, quantiles: Tensor, y: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """CRPS from quantiles, `2 sum_k w_k rho_{a_k}(y - q_k)`: the quadrature of `CRPS = 2 int_0^1 rho_a(y - q(a)) da`.

    Without `weights` each is 1/n: right for levels drawn uniformly (unbiased) or midpoints of equal steps; for the
    nodes of `gauss_legendre` give theirs. Shapes: `levels` (n,) or (n, *batch), `quantiles` (n, *batch), `y` (*batch).
    Raises `DataError` for other shapes. Reference: Gneiting & Ranjan, J. Business & Economic Statistics 29, 2011.

    >>> levels = torch.tensor([0.25, 0.75])
    >>> crps_from_quantiles(levels, torch.tensor([[-1.0], [1.0]]), torch.tensor([0.0]))
    tensor([0.5000])
    """
    _check_draws(quantiles, y, "(n, *batch) of quantiles for (*batch) of outcomes", 1)
    if len(levels) != len(quantiles) or (weights is not None and weights.shape != levels.shape[:1]):
        raise DataError(
            f"levels: {len(levels)} came for {len(quantiles)} quantiles, one level (and weight) for each was expected."
        )
    axes = [1] * (quantiles.ndim - 1)
    quantiles, y, odd = _finite_only(quantiles, y, quantiles, y)
    if levels.ndim == 1:
        levels = levels.reshape(-1, *axes)
    losses = pinball(y - quantiles, levels.to(quantiles.dtype))
    if weights is None:
        return _answer(2 * losses.mean(dim=0), odd)
    return _answer(2 * (weights.to(losses.dtype).reshape(-1, *axes) * losses).sum(dim=0), odd)


def energy_score(samples: Tensor, y: Tensor, beta: float = 1.0, *, fair: bool = True) -> Tensor:
    """Energy score from draws, `mean_i |x_i - y|^beta - sum_ij |x_i - x_j|^beta / (2 n (n - 1))`.

    Unbiased for the score of the law that was drawn from (with `fair=False` over 2 n^2: the score of the n points), in
    the units of y to the power beta; for one feature and beta 1 it is the CRPS. Strictly proper for beta in (0, 2).
    Distances are exact down to 0, where their gradient is 0. Pairs are summed in pieces, so without gradients memory
    stays constant. Shapes: `samples` (n, *batch, features), `y` (*batch, features), result (*batch).
    Raises `OptionError` for another beta, `DataError` for other shapes or too few draws (2, or 1 if not fair).
    Reference: Gneiting & Raftery, Strictly proper scoring rules, JASA 102, 2007.

    >>> energy_score(torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]), torch.zeros(1, 2))
    tensor([0.])
    """
    if not 0 < beta < 2:
        raise OptionError(f"beta: {beta} came, a number in (0, 2) was expected; elsewhere the score is not proper.")
    _check_draws(samples, y, "(n, *batch, features) of draws for (*batch, features) of outcomes", 2 if fair else 1)
    size, wide = y.detach().abs().amax(dim=-1), samples.detach().abs().amax(dim=-1)
    samples, y, odd = _finite_only(samples, y, wide, size)
    count = len(samples)
    near = distance_power(samples - y, beta).mean(dim=0)
    first, second = torch.triu_indices(count, count, 1, device=samples.device)
    step = max(1, NUMBERS_AT_ONCE // max(1, y.numel()))
    spread = torch.zeros_like(near)
    for i, j in zip(first.split(step), second.split(step), strict=True):
        spread = spread + distance_power(samples[i] - samples[j], beta).sum(dim=0)
    return _answer(near - spread / (count * (count - 1 if fair else count)), odd)


def distance_power(difference: Tensor, beta: float = 1.0) -> Tensor:
    """Euclidean length of the last axis to the power `beta`, at any size of float32 or float64; gradient 0 at 0.

    >>> distance_power(torch.tensor([3e30, 4e30]))
    tensor(5.0000e+30)
    """
    scale = difference.detach().abs().amax(dim=-1, keepdim=True)
    apart = scale > 0
    unit = torch.where(apart, difference, 1.0) / torch.where(apart, scale, 1.0)
    length = scale.squeeze(-1) * unit.square().sum(dim=-1).sqrt()
    apart = apart.squeeze(-1)
    return torch.where(apart, torch.where(apart, length, 1.0).pow(beta), 0.0)


def variogram_score(
    samples: Tensor, y: Tensor, p: float = 0.5, weights: Tensor | None = None, *, fair: bool = True
) -> Tensor:
    """Variogram score of order p, `sum_ij w_ij (|y_i - y_j|^p - E |X_i - X_j|^p)^2`: sees what correlations are wrong.

    The expectation is the mean over draws; its variance over n would be added to the score, and is subtracted if
    `fair` (unbiased). It is blind to a shift of all features alike. Proper, not strictly. `weights` (features,
    features), 1 without. Shapes: `samples` (n, *batch, features), `y` (*batch, features), result (*batch).
    Raises `OptionError` for p that is not positive, `DataError` for other shapes or too few draws (2, or 1 if not
    fair). Reference: Scheuerer & Hamill, Variogram-based proper scoring rules, Monthly Weather Review 143, 2015.

    >>> variogram_score(torch.tensor([[[0.0, 4.0]], [[0.0, 4.0]]]), torch.tensor([[0.0, 1.0]]))
    tensor([2.])
    """
    if not 0 < p < float("inf"):
        raise OptionError(f"p: {p} came, a positive number was expected.")
    _check_draws(samples, y, "(n, *batch, features) of draws for (*batch, features) of outcomes", 2 if fair else 1)
    if weights is not None and weights.shape != (y.shape[-1], y.shape[-1]):
        raise DataError(f"weights: shape {tuple(weights.shape)} came, (features, features) was expected.")
    size, wide = y.detach().abs().amax(dim=-1), samples.detach().abs().amax(dim=-1)
    samples, y, odd = _finite_only(samples, y, wide, size)
    score = torch.zeros_like(y[..., 0])
    for i in range(y.shape[-1]):  # a feature with all others at once, so memory stays that of the draws
        real = distance_power((y[..., i : i + 1] - y).unsqueeze(-1), p)
        drawn = distance_power((samples[..., i : i + 1] - samples).unsqueeze(-1), p)
        miss = (real - drawn.mean(dim=0)).square()
        if fair:
            miss = miss - drawn.var(dim=0) / len(drawn)
        score = score + (miss if weights is None else miss * weights[i].to(miss)).sum(dim=-1)
    return _answer(score, odd)


def interval_score(lower: Tensor, upper: Tensor, y: Tensor, level: float) -> Tensor:
    """Score of the central interval that should hold y with probability `level`, in the units of y; shapes broadcast.

    `(upper - lower) + 2 / a (max(lower - y, 0) + max(y - upper, 0))`, a = 1 - level: least in the mean where the ends
    are the a/2 and 1 - a/2 quantiles. Raises `OptionError` for a level outside (0, 1).
    Reference: Winkler, JASA 67, 1972; Gneiting & Raftery, JASA 102, 2007.

    >>> interval_score(torch.tensor(-1.0), torch.tensor(1.0), torch.tensor([0.0, 2.0]), 0.8)
    tensor([ 2., 12.])
    """
    _check_level(level)
    # Twice the pinball losses of both ends over a: the same number, with their gradients.
    tail = (1 - level) / 2
    return (pinball(y - lower, tail) + pinball(y - upper, 1 - tail)) / tail


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise OptionError(f"level: {level} came, a probability in (0, 1) was expected.")


def _check_draws(samples: Tensor, y: Tensor, expected: str, least: int) -> None:
    if samples.shape[1:] != y.shape or samples.ndim < 1:
        raise DataError(f"samples, y: shapes {tuple(samples.shape)} and {tuple(y.shape)} came, {expected} expected.")
    if len(samples) < least:
        raise DataError(f"samples: {len(samples)} draws came, at least {least} were expected; draw more.")


def _finite_only(samples: Tensor, y: Tensor, draw_size: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draws and outcomes with 0 in the rows that cannot be scored, and what those answer (0 for the others).

    `draw_size` (n, *rows) and `size` (*rows) are the largest absolute numbers of a row; signs do not matter.
    """
    size = size.detach().abs()
    known = torch.isfinite(draw_size).all(dim=0)
    odd = torch.where(torch.isfinite(size), 0.0, size)
    odd = torch.where(known, odd, torch.nan)
    usable = odd == 0
    if usable.ndim < y.ndim:
        usable = usable.unsqueeze(-1)
    return torch.where(usable, samples, 0.0), torch.where(usable, y, 0.0), odd


def _answer(score: Tensor, odd: Tensor) -> Tensor:
    return torch.where(odd == 0, score, odd.to(score.dtype))
