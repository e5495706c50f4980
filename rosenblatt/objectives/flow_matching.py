"""Flow matching: a velocity field is regressed on the straight ways from data to noise, without solving anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rosenblatt.core.density import Density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.transform import Compose
from rosenblatt.core.types import Batch
from rosenblatt.layers.continuous import ContinuousFlow

COUPLINGS = ("independent", "optimal")


class FlowMatching:
    """Squared error of the velocity on straight paths (Lipman et al., ICLR 2023; Tong et al., TMLR 2024).

    `loss_i = |v(z_t, t) - dz_t/dt|^2` with `z_t = (1 - t) x_i + (t + sigma (1 - t)) e_i`, t uniform and e_i standard
    normal, shape (rows,); `sigma` blurs the data by noise of that size, in the units of the continuous flow. The field
    of least loss carries the data to the base, and its density is exact by `ContinuousFlow`; the loss itself says
    nothing about nats, since its lowest value is above 0 and unknown.

    `coupling="optimal"` pairs rows and noise of a batch so that their squared distances add up to the least (scipy's
    assignment, cubic in the rows of a batch): paths are straighter, and the loss varies less. It would tie the noise to
    context or weights, so it takes neither. The steps before the continuous flow, which must be the last, are left
    as they are. Raises `OptionError` for a model without one, or sigma < 0; `DataError` for batches that cannot be
    coupled.

    >>> from rosenblatt.models.flow_matching import flow_matching
    >>> model = flow_matching(2, hidden=8)
    >>> FlowMatching()(model, Batch(torch.zeros(3, 2)), torch.Generator().manual_seed(0)).shape
    torch.Size([3])
    """

    measure = "minus flow-matching loss"

    def __init__(self, *, sigma: float = 0.0, coupling: str = "independent") -> None:
        if not 0 <= sigma < 1:
            raise OptionError(f"sigma: {sigma} came, a number in [0, 1) was expected.")
        if coupling not in COUPLINGS:
            raise OptionError(f"coupling: '{coupling}' came, one of {', '.join(COUPLINGS)} was expected.")
        self.sigma = sigma
        self.coupling = coupling

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the losses; times and noise come from `generator`."""
        *before, flow = _steps(model)
        x = batch.x
        with torch.no_grad():
            for step in before:
                x = step(x, batch.context).value
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        if self.coupling == "optimal":
            noise = _coupled(x, noise, batch)
        # Each row falls into a slice of its own of the unit of time, which is uniform with less scatter.
        slot = torch.randperm(len(x), generator=generator, device=x.device).to(x.dtype)
        time = (slot + torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)) / len(x)
        share = time.unsqueeze(-1)
        z = (1 - share) * x + (share + self.sigma * (1 - share)) * noise
        velocity: Tensor = flow.velocity(z, time, batch.context)
        return (velocity - ((1 - self.sigma) * noise - x)).square().sum(dim=-1)


def _steps(model: Any) -> list[Any]:
    """The steps of a flow (which a compiler may have wrapped), whose last is a continuous one."""
    transform = getattr(model, "transform", None)
    steps = transform.steps if isinstance(transform, Compose) else [transform]
    if not isinstance(steps[-1], ContinuousFlow):
        raise OptionError(
            f"model: {type(model).__name__} came, a flow whose last step is a continuous one was expected; choose "
            "'flow_matching', or 'ffjord' with one transform."
        )
    return steps


def _coupled(x: Tensor, noise: Tensor, batch: Batch) -> Tensor:
    """The same noise in the order that brings it nearest to the rows."""
    if batch.context is not None or batch.weight is not None:
        raise DataError(
            'coupling: "optimal" came with context or row weights, which it would tie to the noise; use "independent".'
        )
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x.double(), noise.double()).square()
    if not bool(torch.isfinite(cost).all()):  # a row that is not finite spoils its own loss and no other
        return noise
    _, column = linear_sum_assignment(cost.cpu().numpy())
    return noise[torch.as_tensor(column, device=noise.device)]
