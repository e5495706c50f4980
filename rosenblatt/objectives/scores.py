"""Training by proper scores: no density and no Jacobian is needed, only draws or quantiles that carry gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Batch
from rosenblatt.objectives import rules
from rosenblatt.objectives.closed import closed_crps


class CRPS:
    """Continuous ranked probability score of each feature, summed: `loss_i = sum_d CRPS(F_d(. | context_i), x_id)`.

    By formula where the model's law has one (`closed_law`), else the unbiased estimate from `draws` draws of each row,
    whose gradient goes through the draws. It sees each feature's own law and nothing of how they depend on one another;
    `EnergyScore` does. Shape (rows,), in the units of x. With `closed=False` draws are taken always.
    Raises `OptionError` for fewer than two draws.
    Reference: Gneiting, Raftery, Westveld & Goldman, Monthly Weather Review 133, 2005.

    >>> from rosenblatt.bases import StandardNormal
    >>> CRPS()(StandardNormal(1), Batch(torch.zeros(1, 1)), torch.Generator())
    tensor([0.2337])
    """

    measure = "minus CRPS"

    def __init__(self, draws: int = 8, *, closed: bool = True) -> None:
        _check_draws(draws)
        self.draws = draws
        self.closed = closed

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the losses of `batch`."""
        exact = closed_crps(model, batch.x, batch.context) if self.closed else None
        if exact is not None:
            return exact
        return rules.crps_from_samples(draws_for(model, batch, self.draws, generator), batch.x).sum(dim=-1)


class EnergyScore:
    """Unbiased energy score of a row from `draws` draws, which sees all features together.

    `loss_i = mean_k |X_ik - x_i|^beta - sum_kl |X_ik - X_il|^beta / (2 n (n - 1))`, the gradient going through the
    draws; two draws are enough. Features count by their spread, so let them be of one scale. Shape (rows,), in the
    units of x to the power beta. Raises `OptionError` for beta outside (0, 2) or fewer than two draws.
    References: Gneiting & Raftery, JASA 102, 2007; Si, Chen & Kuleshov, Energy flows, NeurIPS 2023.

    >>> from rosenblatt.models.maf import maf
    >>> EnergyScore()(maf(2, hidden=8), Batch(torch.zeros(3, 2)), torch.Generator().manual_seed(0)).shape
    torch.Size([3])
    """

    def __init__(self, beta: float = 1.0, draws: int = 2) -> None:
        if not 0 < beta < 2:
            raise OptionError(f"beta: {beta} came, a number in (0, 2) was expected; elsewhere the score is not proper.")
        _check_draws(draws)
        self.beta, self.draws = beta, draws
        self.measure = "minus energy score" if beta == 1 else f"minus energy score (beta {beta:g})"

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the losses of `batch`."""
        return rules.energy_score(draws_for(model, batch, self.draws, generator), batch.x, self.beta)


class PinballLoss:
    """Quantile loss of a one-feature model by its quantile function, `loss_i = 2 mean_k rho_{a_k}(x_i - q(a_k))`.

    Without `levels`, each row gets `draws` of its own, one in each of so many equal steps of (0, 1): unbiased for the
    CRPS, which is the integral over all. With `levels` in (0, 1) it is the loss at these alone. Shape (rows,), in the
    units of x. Raises `OptionError` for levels outside (0, 1), a model of more features, or one without `from_uniform`.
    Reference: Koenker & Bassett, Regression quantiles, Econometrica 46, 1978.

    >>> from rosenblatt.models.nsf import nsf
    >>> model = nsf(1, transforms=1, hidden=8)
    >>> PinballLoss([0.5])(model, Batch(torch.ones(1, 1)), torch.Generator())  # |1 - median|
    tensor([1.], grad_fn=<MulBackward0>)
    """

    measure = "minus pinball loss"

    def __init__(self, levels: Sequence[float] | None = None, *, draws: int = 8) -> None:
        if levels is not None and not (len(levels) and all(0 < level < 1 for level in levels)):
            raise OptionError(f"levels: {list(levels)} came, probabilities in (0, 1) were expected.")
        if draws < 1:
            raise OptionError(f"draws: {draws} came, an integer >= 1 was expected.")
        self.levels = None if levels is None else tuple(levels)
        self.draws = draws

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the losses of `batch`; levels that are drawn come from `generator`."""
        quantile = getattr(model, "from_uniform", None)
        if model.features != 1 or quantile is None:
            raise OptionError(
                f"model: {type(model).__name__} with {model.features} features came, one feature and a method "
                "from_uniform were expected; train by CRPS or EnergyScore, which need draws only."
            )
        x = batch.x.squeeze(-1)
        if self.levels is None:
            step = torch.arange(self.draws, dtype=torch.float64, device=generator.device).unsqueeze(-1)
            drawn = torch.rand(self.draws, len(x), generator=generator, dtype=torch.float64, device=generator.device)
            levels = ((step + drawn) / self.draws).to(x.device).clamp(min=2.0**-54, max=1 - 2.0**-53)
        else:
            levels = x.new_tensor(self.levels, dtype=torch.float64).unsqueeze(-1).expand(-1, len(x))
        quantiles: Tensor = quantile(levels.unsqueeze(-1), _each(batch.context, len(levels))).squeeze(-1)
        return 2 * rules.pinball(x - quantiles.to(x.dtype), levels.to(x.dtype)).mean(dim=0)


def draws_for(model: Density, batch: Batch, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` vectors for each row of `batch`, (count, rows, features), with gradients if there are any."""
    if batch.context is not None:
        return model.sample(count, batch.context, generator=generator)
    drawn = model.sample(count * len(batch.x), generator=generator)
    return drawn.reshape(count, len(batch.x), model.features)


def _each(context: Tensor | None, count: int) -> Tensor | None:
    return None if context is None else context.expand(count, *context.shape)


def _check_draws(draws: int) -> None:
    if draws < 2:
        raise OptionError(f"draws: {draws} came, an integer >= 2 was expected; one draw says nothing of the spread.")
