"""What maps of the box [-bound, bound] onto itself answer outside it."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.core.errors import InverseError
from rosenblatt.core.types import Mapped


def nothing_outside(x: Tensor, inside: Tensor, value: Tensor, log_det: Tensor, bound: float) -> Mapped:
    """Keep `value` and `log_det` where `inside`; elsewhere an infinity without density, and NaN where `x` is NaN."""
    nowhere = torch.where(torch.isnan(x), torch.nan, torch.copysign(torch.full_like(x, torch.inf), x))
    value = value.clamp(-bound, bound)  # against the last rounding
    return Mapped(torch.where(inside, value, nowhere), torch.where(inside, log_det, -torch.inf))


def refuse_outside(y: Tensor, bound: float) -> None:
    """Raise `InverseError` that names the values outside the box, where there is nothing to go back to."""
    outside = y.abs() > bound
    if bool(outside.any()):
        raise InverseError(
            f"lie outside [-{bound}, {bound}], where a map without tails has no inverse; use tails='linear' or a Box "
            "base",
            outside.reshape(-1).nonzero().squeeze(-1).tolist(),
        )
