"""Where a target has its mode, and how wide it is there: a start for a flow."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from rosenblatt.core.errors import DataError
from rosenblatt.core.transform import Transform
from rosenblatt.inference.target import Target, checked

MOST_STEPS, NEWTON_STEPS = 500, 20
BARRIER = 1e300  # what a point costs where the target is not finite: more than any other


class Mode(NamedTuple):
    """A mode and the conditional standard deviation of every column there."""

    location: list[float]
    scale: list[float]


def find_mode(target: Target, units: Transform, features: int, dtype: torch.dtype) -> Mode:
    """Mode of `target` on the line behind `units`, and `1 / sqrt(-d^2 log p / d y_i^2)` there.

    L-BFGS from 0 (Nocedal 1980), then Newton steps, which columns of very different sizes need; in float64, though the
    target sees `dtype`. A column without downward curvature gets scale 1. Raises `DataError` when the search ends where
    the target is not finite, or runs away from a target without a mode.
    """

    def log_density(y: Tensor) -> Tensor:
        mapped = units.inverse(y.to(dtype).unsqueeze(0))
        return (checked(target, mapped.value) + mapped.log_det).double().squeeze(0)

    def cost(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _with_gradient(log_density, torch.from_numpy(values))
        if not (math.isfinite(float(value)) and bool(torch.isfinite(gradient).all())):
            return BARRIER, np.zeros(features)
        return -float(value), -gradient.numpy()

    found = minimize(cost, np.zeros(features), jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS})
    if not found.fun < BARRIER or found.nit >= MOST_STEPS:
        raise DataError(
            f"location: the search for a mode ended after {found.nit} steps at log-density {-found.fun:.4g}; the "
            "target may have none, so give location and scale as numbers."
        )
    y, curvature = _newton(log_density, torch.from_numpy(found.x))
    scale = [1 / math.sqrt(-second) if second < 0 else 1.0 for second in curvature.diagonal().tolist()]
    return Mode(y.tolist(), scale)


def _newton(log_density: Target, y: Tensor) -> tuple[Tensor, Tensor]:
    """Climb by Newton steps while they rise, and return the last point with its Hessian."""
    value, gradient = _with_gradient(log_density, y)
    curvature = _hessian(log_density, y)
    for _ in range(NEWTON_STEPS):
        factor, failed = torch.linalg.cholesky_ex(-curvature)
        if int(failed):
            break
        there = y + torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        value_there, gradient_there = _with_gradient(log_density, there)
        if not bool(value_there > value):
            break
        y, value, gradient, curvature = there, value_there, gradient_there, _hessian(log_density, there)
    return y, curvature


def _with_gradient(log_density: Target, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.detach().requires_grad_()
    with torch.enable_grad():
        value = log_density(y)
    gradient = torch.autograd.grad(value, y)[0] if value.requires_grad else torch.zeros_like(y)
    return value.detach(), gradient


def _hessian(log_density: Target, y: Tensor) -> Tensor:
    y = y.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(log_density(y), y, create_graph=True)
    zero = torch.zeros_like(y)
    if not gradient.requires_grad:
        return zero.expand(len(y), -1)
    rows = [torch.autograd.grad(g, y, retain_graph=True, allow_unused=True)[0] for g in gradient]
    return torch.stack([zero if row is None else row for row in rows])
