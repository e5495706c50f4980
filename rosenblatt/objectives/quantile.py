"""Training an autoregressive flow by the scores of its conditionals: no Jacobian, and in one direction no inverse."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.density import Density, FactorisedDensity
from rosenblatt.core.errors import OptionError
from rosenblatt.core.transform import Compose
from rosenblatt.core.types import Batch
from rosenblatt.layers.conditional import Conditional
from rosenblatt.objectives.rules import crps_from_quantiles

DIRECTIONS = ("quantile", "cdf")
SMALLEST_LEVEL, LARGEST_LEVEL = 2.0**-54, 1 - 2.0**-53  # nearest float64 to 0 and 1 that a draw can mean
EVAL_FACTOR = 4  # more levels where no gradient is taken, so that validation is less noisy
REACH = 0.25  # median distance, in standard deviations of the data, of a threshold from the outcome


class QuantileScore:
    """CRPS of every one-dimensional conditional, given the true values before it: `loss_i = sum_j CRPS(F_ij, x_ij)`.

    direction "quantile": `CRPS = 2 E_a rho_a(x_j - tau(a; x_<j))` with `rho_a(e) = max(a e, (a - 1) e)`, the level a
    uniform on (0, 1) and tau the conditional quantile function, which is what the flow samples by. The levels are drawn
    in `levels` strata, for every row and column anew, and handed over as noise of the base, unclipped.
    direction "cdf": `CRPS = int (F(t | x_<j) - 1[t >= x_j])^2 dt` at `levels` thresholds t, drawn in strata around the
    outcome and weighed by the inverse of their density. It calls the conditional CDFs alone.

    Both are unbiased and of the same loss, in units of the columns as the flow's last step sees them: standard
    deviations of the data behind a `Standardise`, so one learning rate serves all tables. The loss of a row is summed
    over columns, as nats are. Shape (rows,); a row that is not finite answers NaN.
    Raises `OptionError` for a model that is no flow whose last step is a conditional layer before independent noise, or
    an odd number of levels below 2. Reference: Si, Bishop & Kuleshov, Autoregressive Quantile Flows for Predictive
    Uncertainty Estimation, ICLR 2022.

    >>> from rosenblatt.models.quantile_flow import quantile_flow
    >>> model = quantile_flow(2, hidden=8)
    >>> QuantileScore()(model, Batch(torch.zeros(3, 2)), torch.Generator().manual_seed(0)).shape
    torch.Size([3])
    """

    measure = "minus CRPS in standard units"

    def __init__(self, levels: int = 8, direction: str = "quantile") -> None:
        if levels < 2 or levels % 2:
            raise OptionError(f"levels: {levels} came, an even number >= 2 was expected.")
        if direction not in DIRECTIONS:
            raise OptionError(f"direction: '{direction}' came, one of {', '.join(DIRECTIONS)} was expected.")
        self.levels = levels
        self.direction = direction

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the losses of `batch`; levels or thresholds come from `generator`."""
        parts = _parts(model)
        x, context = batch.x, batch.context
        finite = torch.isfinite(x).all(dim=-1)
        if context is not None:
            known = torch.isfinite(context)
            finite = finite & known.all(dim=-1)
            context = torch.where(known, context, 0.0)
        with torch.no_grad():
            for step in parts.before:
                x = step(x, context).value
        finite = finite & torch.isfinite(x).all(dim=-1)  # a row outside the supports is carried to infinity
        x = torch.where(finite.unsqueeze(-1), x, 0.0)
        theta = parts.layer.conditioner(x, context)
        count = self.levels if model.training else EVAL_FACTOR * self.levels
        score = _score_of_quantiles if self.direction == "quantile" else _score_of_cdfs
        scores = score(parts, x, theta, count, generator)
        return torch.where(finite, scores.sum(dim=-1), torch.nan)


def stratified(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Levels in (0, 1), float64, (count, *like): one in each of `count` equal strata, whose order is that of the axis.

    >>> stratified(4, torch.zeros(3), torch.Generator().manual_seed(0)).mul(4).floor()[:, 0]
    tensor([0., 1., 2., 3.], dtype=torch.float64)
    """
    shape = (count, *like.shape)
    within = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device).to(like.device)
    number = torch.arange(count, dtype=torch.float64, device=like.device).reshape(count, *[1] * like.ndim)
    return ((number + within) / count).clamp(SMALLEST_LEVEL, LARGEST_LEVEL)


def _score_of_quantiles(parts: _Parts, x: Tensor, theta: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """CRPS (rows, features) from quantiles at stratified levels."""
    levels = stratified(count, x, generator)
    quantiles = parts.layer.elementwise.inverse(parts.base.quantile(levels).to(x.dtype), theta).value
    return crps_from_quantiles(levels, quantiles, x)


def _score_of_cdfs(parts: _Parts, x: Tensor, theta: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """CRPS (rows, features) from the CDF at thresholds `t = x -+ r`, `r = REACH v / (1 - v)` with v stratified."""
    score = torch.zeros_like(x)
    for side in (-1.0, 1.0):
        share = stratified(count // 2, x, generator)
        distance = (REACH * share / (1 - share)).to(x.dtype)
        weight = (REACH / (1 - share).square()).to(x.dtype)
        # The tail that should be 0: F below the outcome, 1 - F at it and above.
        tail = parts.base.cdf(-side * parts.layer.elementwise(x + side * distance, theta).value)
        score = score + (weight * tail.square()).mean(dim=0)
    return score


class _Parts(NamedTuple):
    """The fixed steps of a flow, the conditional layer behind them, and its noise."""

    before: list[Any]
    layer: Conditional
    base: FactorisedDensity


def _parts(model: Any) -> _Parts:
    """The parts of a flow (which a compiler may have wrapped)."""
    transform, base = getattr(model, "transform", None), getattr(model, "base", None)
    *before, layer = transform.steps if isinstance(transform, Compose) else [transform]
    if not isinstance(layer, Conditional) or not isinstance(base, FactorisedDensity):
        raise OptionError(
            f"model: {type(model).__name__} came, a flow whose last step is one conditional layer before independent "
            "noise was expected; choose 'quantile_flow', or 'nits' with one transform."
        )
    return _Parts(before, layer, base)
