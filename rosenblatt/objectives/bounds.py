"""Lower bounds on a log-likelihood by sampled latent variables, and gradients of them with little noise.

With z_1, ..., z_K from q and log-weights `log w_k = log p(z_k) - log q(z_k)`, the mean of `log (1/K) sum_k w_k` is at
most `log int p(z) dz`: the ELBO for K = 1, the importance-weighted bound for more (Burda et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Batch

LogDensity = Callable[[Tensor], Tensor]


class Draw(NamedTuple):
    """Latent vectors `value` (n, *batch, features) and their `log_prob` (n, *batch)."""

    value: Tensor
    log_prob: Tensor


def draw(
    q: Density,
    n: int,
    context: Tensor | None = None,
    *,
    path_derivative: bool = True,
    generator: torch.Generator | None = None,
) -> Draw:
    """Draw `n` vectors (per context row) with pathwise gradients.

    With `path_derivative` the log-density depends on the weights through the vectors alone: the part left out has mean
    zero, and without it the gradient of the ELBO has no noise at all where q is exact. The density is then evaluated
    at the drawn rows, which for flows made for sampling (`iaf`) costs their slow direction.
    Reference: Roeder, Wu & Duvenaud, Sticking the Landing, NeurIPS 2017.
    """
    value, log_prob = q.sample_and_log_prob(n, context, generator=generator)
    if not (path_derivative and value.requires_grad):
        return Draw(value, log_prob)
    fixed = {name: tensor.detach() for name, tensor in (*q.named_parameters(), *q.named_buffers())}
    given = None if context is None else context.detach().expand(n, *context.shape)
    return Draw(value, torch.func.functional_call(q, fixed, (value, given)))


def importance_bound(log_weight: Tensor) -> Tensor:
    """`log (1/K) sum_k w_k` over the first axis of `log_weight` (K, *batch).

    >>> importance_bound(torch.log(torch.tensor([1.0, 3.0]))).exp()
    tensor(2.)
    """
    bound: Tensor = torch.logsumexp(log_weight, dim=0) - math.log(log_weight.shape[0])
    return bound


def reweigh_path(value: Tensor, log_weight: Tensor) -> None:
    """Multiply the gradients that later pass `value` (K * bounds, features) by the weights (K, bounds), normalised.

    `value` may have the axes of `log_weight` too, (K, *batch, features). Together with a log-density taken by
    `path_derivative`, this makes the gradient of `importance_bound` in the weights of q the doubly reparameterised one,
    `sum_k w_k^2 d(log w_k)/dz_k dz_k`, whose noise falls with K where that of the plain one grows; gradients in the
    weights of p stay what they are.
    Reference: Tucker, Lawson, Gu & Maddison, Doubly Reparameterized Gradient Estimators, ICLR 2019.
    """
    if value.requires_grad and len(log_weight) > 1:
        share = torch.softmax(log_weight.detach(), dim=0).reshape(*value.shape[:-1], 1)
        value.register_hook(lambda gradient: gradient * share)


def bound_by_sampling(
    q: Density,
    log_density: LogDensity,
    *,
    bounds: int,
    particles: int = 1,
    temperature: float = 1.0,
    path_derivative: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw `bounds` lower bounds (bounds,) on `log int exp(log_density(z)) dz`, of `particles` vectors each.

    `log_density` maps (rows, features) to (rows,). One particle gives the ELBO, `E_q[log p - log q]`; more give the
    importance-weighted bound. `temperature` below 1 multiplies log p, to anneal (Rezende & Mohamed 2015).
    """
    value, log_q = draw(q, bounds * particles, path_derivative=path_derivative, generator=generator)
    log_weight = (temperature * log_density(value) - log_q).reshape(particles, bounds)
    if path_derivative:
        reweigh_path(value, log_weight)
    return importance_bound(log_weight)


def linear_warmup(step: int, steps: int, start: float = 0.0) -> float:
    """A factor that grows along a line from `start` to 1 within `steps` steps, and is 1 from there on.

    >>> [linear_warmup(step, 4) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return 1.0 if step >= steps else start + (1 - start) * step / steps


def free_bits(divergence: Tensor, floor: float) -> Tensor:
    """Replace the divergences (rows, groups) of a batch by `floor` nats wherever a group's mean is below it.

    The mean over rows is then `sum_j max(floor, mean_i KL_ij)`: a group below the floor costs a constant and is free to
    be used; returned summed over groups, (rows,). Taken on the mean of the batch, not row by row.
    Reference: Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, NeurIPS 2016.

    >>> free_bits(torch.tensor([[1.0, 0.1], [3.0, 0.2]]), 0.5)
    tensor([1.5000, 3.5000])
    """
    above = divergence.detach().mean(dim=0) > floor
    # A product with 0 would keep NaN; a group that is not a number is passed on as it is.
    above = above | torch.isnan(divergence.detach()).any(dim=0)
    return torch.where(above, divergence, torch.full_like(divergence, floor)).sum(dim=-1)


class LatentBound(NamedTuple):
    """What a latent-variable model says of rows, for `n` latent vectors each.

    `value` (n, rows, latent), `fit` = log p(x | z) and `divergence` = log q(z | x) - log p(z), both (n, rows).
    """

    value: Tensor
    fit: Tensor
    divergence: Tensor


class LatentVariableModel(Protocol):
    """A density `p(x) = int p(x | z) p(z) dz` with an approximate posterior `q(z | x)`."""

    steps_seen: Tensor  # calls of the objective in training mode

    def latent_bound(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        samples: int,
        path_derivative: bool,
        generator: torch.Generator,
    ) -> LatentBound:
        """Draw `samples` latent vectors for each row and say what they are worth."""


class VariationalBound:
    """The loss of a latent-variable model: minus a lower bound on `log p(x_i)`, shape (rows,).

    `measure` says which bound minus the mean loss is in eval mode.
    One sample gives the ELBO, `log p(x | z) - (log q(z | x) - log p(z))`, more the importance-weighted bound.
    `free_bits` nats of divergence (mean over the batch) cost nothing more; the divergence grows from weight 0 to 1 over
    the first `warmup` calls in training mode, which the model counts in its buffer `steps_seen`, so that a resumed run
    goes on where it was. Raises `OptionError` for free bits with more than one sample: that bound has no such term.
    """

    def __init__(
        self, samples: int = 1, *, free_bits: float = 0.0, warmup: int = 0, path_derivative: bool = True
    ) -> None:
        if samples < 1 or free_bits < 0 or warmup < 0:
            raise OptionError(
                f"samples={samples}, free_bits={free_bits}, warmup={warmup}: samples >= 1 and nothing below 0 expected."
            )
        if free_bits and samples > 1:
            raise OptionError(f"free_bits: {free_bits} came with samples={samples}; free bits need samples=1.")
        self.samples, self.free_bits, self.warmup = samples, free_bits, warmup
        self.path_derivative = path_derivative
        self.measure = "ELBO in nats" if samples == 1 else f"importance-weighted bound in nats ({samples} samples)"

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the losses of `batch`."""
        latent: LatentVariableModel = model  # type: ignore[assignment]
        value, fit, divergence = latent.latent_bound(
            batch.x,
            batch.context,
            samples=self.samples,
            path_derivative=self.path_derivative and torch.is_grad_enabled(),
            generator=generator,
        )
        weight = 1.0
        if model.training:
            weight = linear_warmup(int(latent.steps_seen), self.warmup)
            latent.steps_seen += 1
            if self.free_bits:
                divergence = free_bits(divergence.mT, self.free_bits).unsqueeze(0)
        log_weight = fit - weight * divergence
        if self.path_derivative:
            reweigh_path(value, log_weight)
        return -importance_bound(log_weight)
