"""Probabilities as logarithms and logits, so that no tail is rounded away.

In float32 `1 - sigmoid(17)` is already 0. These helpers keep full relative precision there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.special import log_ndtr


def log_one_minus_exp(log_d: Tensor) -> Tensor:
    """log(1 - exp(-d)) from `log d`, for any d > 0 however small.

    For small d the result is log d - d/2 + d^2/24, accurate where d itself underflows.
    """
    d = log_d.clamp(max=4.7).exp()  # beyond, 1 - exp(-d) is 1 to rounding
    tiny = d < 1e-4
    safe = torch.where(tiny, 1.0, d)
    return torch.where(tiny, log_d - 0.5 * d + d.square() / 24, torch.log(-torch.expm1(-safe)))


def log_matvec(weight: Tensor, log_vectors: Tensor) -> Tensor:
    """log(W exp(v)) for positive `weight` (*b, out, in) and `log_vectors` (*b, in, columns).

    The largest entry of each column is taken out first, so no column under- or overflows.
    """
    peak = log_vectors.detach().amax(dim=-2, keepdim=True)
    return torch.log(weight @ torch.exp(log_vectors - peak)) + peak


def log_logistic_density(logit: Tensor) -> Tensor:
    """Log-density of the standard logistic at `logit`: log s(z) + log s(-z)."""
    return logsigmoid(logit) + logsigmoid(-logit)


def logit_difference(upper: Tensor, lower: Tensor) -> Tensor:
    """log(s(upper) - s(lower)) for upper > lower: log s(q) + log s(-p) + log(1 - exp(-(q - p)))."""
    return logsigmoid(upper) + logsigmoid(-lower) + log_one_minus_exp(torch.log(upper - lower))


def log_normal_interval(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)), from the tail that both ends are nearer to; -inf where nothing lies between.

    Ends may be infinite.
    """
    turned = lower + upper > 0
    low, high = torch.where(turned, -upper, lower), torch.where(turned, -lower, upper)
    finite = torch.isfinite(low) & torch.isfinite(high)
    near, far = (torch.where(finite, end, fill) for end, fill in ((high, 1.0), (low, -1.0)))
    step = log_ndtr(near) - log_ndtr(far)
    some = step > 0
    middle = log_ndtr(near) + log_one_minus_exp(torch.log(torch.where(some, step, 1.0)))
    whole = torch.where(finite, torch.where(some, middle, -torch.inf), log_ndtr(torch.where(finite, 0.0, high)))
    return torch.where(lower < upper, whole, -torch.inf)


def soft_bound(value: Tensor, bound: float) -> Tensor:
    """Squash to (-bound, bound) with slope 1 at 0: bound * tanh(value / bound)."""
    return bound * torch.tanh(value / bound)
