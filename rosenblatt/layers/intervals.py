"""Probabilities of intervals under a one-layer autoregressive flow: discrete, ordinal and interval-censored values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rosenblatt.bases import StandardLogistic, StandardNormal
from rosenblatt.core.density import Density, Flow
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.logspace import log_normal_interval, logit_difference
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.base import UnitElementwise
from rosenblatt.elementwise.normal_mixture import NormalMixture
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.fitted_box import FittedBox
from rosenblatt.layers.scaling import ActNorm, Standardise
from rosenblatt.layers.support import SupportMap
from rosenblatt.layers.units import Units

BY_COLUMN = (Standardise, SupportMap, ActNorm, FittedBox, Units)  # increasing in each column, mixing none


def interval_log_prob(
    density: Density,
    lower: Tensor,
    upper: Tensor,
    context: Tensor | None = None,
    *,
    at: Tensor | None = None,
) -> Tensor:
    """`log P(lower_i < x_i <= upper_i | x_j = at_j for the columns before i, context)` of every column, in nats.

    `density` is a flow of a single layer (`nits`, `made_mixture`, `mdn`, `ddn` of one order, in units or not), so that
    each column has a CDF given the ones before it. Ends may be infinite: an open interval. Later columns are told
    `at` of the earlier ones, by default the middle of a finite interval or the finite end of a half-open one; with the
    `at` of an interval fixed, the sum over columns is the log-probability of the cell, and all cells add up to one.
    F is never subtracted from F in the far tails, and everything runs in float64 whatever the dtype.

    Shapes: lower, upper, at (*batch, features); the result too. An empty interval gives -inf, a reversed one or a
    missing number NaN. Raises `OptionError` for a density of another kind, `DataError` for an interval without a finite
    end in several columns when `at` does not say what the others should be told.

    >>> from rosenblatt.models.made_mixture import made_mixture
    >>> counts = torch.arange(-30.0, 31.0).unsqueeze(-1)
    >>> model = made_mixture(1, hidden=8)
    >>> round(interval_log_prob(model, counts - 0.5, counts + 0.5).exp().sum().item(), 6)
    1.0
    """
    steps, layer, base = _taken_apart(density)
    density.check(lower, context)
    density.check(upper, context)
    lower, upper = torch.broadcast_tensors(lower.double(), upper.double())
    at = _told(lower, upper) if at is None else at.double().expand_as(lower)
    if context is not None:
        batch = torch.broadcast_shapes(lower.shape[:-1], context.shape[:-1])
        lower, upper, at = (part.expand(*batch, -1) for part in (lower, upper, at))
        context = context.double().expand(*batch, -1)
    unknown = torch.isnan(lower) | torch.isnan(upper)
    missing = unknown.any(dim=-1, keepdim=True) if context is None else unknown.any(-1, True) | _unknown(context)
    lower, upper, at = (torch.where(missing, 0.0, part) for part in (lower, upper, at))
    context = None if context is None else torch.nan_to_num(context, posinf=0.0, neginf=0.0)
    ends = [torch.where(torch.isinf(end), at, end) for end in (lower, upper)]
    mapped = [_through(steps, part) for part in (*ends, at)]
    low, high = (torch.where(torch.isinf(end), end, z) for end, z in zip((lower, upper), mapped, strict=False))
    told = torch.nan_to_num(mapped[2])  # what lies outside its support is told as a far number
    theta = torch.func.functional_call(layer.conditioner, _doubled(layer.conditioner), (told, context))
    log_prob = _log_interval(layer, base, low, high, theta)
    return torch.where(missing, torch.nan, log_prob)


def _log_interval(layer: Conditional, base: Density, low: Tensor, high: Tensor, theta: Tensor) -> Tensor:
    if isinstance(layer.elementwise, UnitElementwise | NormalMixture):
        return layer.elementwise.log_interval(low, high, theta)
    z = []
    for end in (low, high):
        finite = torch.isfinite(end)
        z.append(torch.where(finite, layer.elementwise(torch.where(finite, end, 0.0), theta).value, end))
    between = _logistic_interval if isinstance(base, StandardLogistic) else log_normal_interval
    return torch.where(low <= high, between(*z), torch.nan)


def _logistic_interval(low: Tensor, high: Tensor) -> Tensor:
    """log(s(high) - s(low)), -inf where nothing lies between."""
    finite = torch.isfinite(low) & torch.isfinite(high) & (low < high)
    middle = logit_difference(torch.where(finite, high, 1.0), torch.where(finite, low, -1.0))
    one_end = torch.where(torch.isfinite(high), logsigmoid(high), logsigmoid(-low))
    return torch.where(finite, middle, torch.where(low < high, one_end, -torch.inf))


def _taken_apart(density: Density) -> tuple[list[Transform], Conditional, Density]:
    """The steps by column, the one layer, and the base of a flow."""
    steps: list[Transform] = []
    if isinstance(density, Flow):
        pending: list[Transform] = [density.transform]
        while pending:
            step = pending.pop(0)
            if isinstance(step, Compose):
                pending = [*step.steps, *pending]
            else:
                steps.append(step)
    base = density.base if isinstance(density, Flow) else None
    layer = steps.pop() if steps else None
    by_column = all(isinstance(step, BY_COLUMN) for step in steps)
    if not isinstance(layer, Conditional) or not by_column or not isinstance(base, StandardLogistic | StandardNormal):
        raise OptionError(
            f"density: {type(density).__name__} came, a flow of a single autoregressive layer to a logistic or normal "
            "base was expected; choose 'nits', 'made_mixture', 'mdn', or 'ddn' with orders=1."
        )
    return steps, layer, base


def _through(steps: list[Transform], x: Tensor) -> Tensor:
    for step in steps:
        x = torch.func.functional_call(step, _doubled(step), (x,)).value
    return x


def _doubled(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def _unknown(context: Tensor) -> Tensor:
    return ~torch.isfinite(context).all(dim=-1, keepdim=True)


def _told(lower: Tensor, upper: Tensor) -> Tensor:
    """The middle of each interval, or its finite end."""
    open_low, open_high = torch.isinf(lower), torch.isinf(upper)
    if lower.shape[-1] > 1 and bool((open_low & open_high).any()):
        raise DataError("lower, upper: an interval without a finite end came; pass at= to say what later columns see.")
    middle = 0.5 * (torch.where(open_low, 0.0, lower) + torch.where(open_high, 0.0, upper))
    told = torch.where(open_low, upper, torch.where(open_high, lower, middle))
    return torch.where(open_low & open_high, 0.0, told)
