"""Inverses of smooth maps of whole vectors: Newton's method with steps shortened until the residual falls.

Along the Newton step the residual falls at first wherever the Jacobian is regular. So the search ends from any start
for maps whose Jacobian is regular everywhere and that send far points far away: the identity plus a contraction, the
gradient of a strongly convex function. It runs in float64 and stops on the residual; what does not converge raises
`InverseError`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rosenblatt.core.errors import InverseError

MAX_STEPS = 200
TOLERANCE = 1e-12  # residual at which a row is done, relative to 1 + its largest number
MAX_HALVINGS = 50
LEAST_DECREASE = 1e-4  # part of the predicted decrease of the residual that a step must bring (Armijo 1966)
NUMBERS = 1 << 23  # in the largest tensor of a Jacobian: bounds the memory of a large batch, not its values


class Smooth(Protocol):
    """A differentiable map of rows (rows, features) whose rows can be selected.

    `size` is how many numbers the Jacobian of a row takes while it is computed.
    """

    @property
    def size(self) -> int:
        """Numbers per row."""

    def value(self, x: Tensor) -> Tensor:
        """Evaluate at `x` (rows, features)."""

    def derive(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate at `x`, and the Jacobian (rows, features, features) there."""

    def select(self, rows: Tensor) -> Smooth:
        """Keep only `rows`."""


def find_vectors(function: Smooth, y: Tensor) -> Tensor:
    """Solve `function(x) = y` for rows `y` (rows, features) in float64, with derivatives of up to third order.

    The search starts at y. A row is done when no residual exceeds 1e-12 (1 + max |y|). A row of `y` that is not finite
    is answered by NaN. Raises `InverseError` naming the rows that did not converge.
    """
    with torch.no_grad():
        finite = torch.isfinite(y).all(dim=-1)
        rows = finite.nonzero().squeeze(-1)
        root = torch.zeros_like(y)
        for some in rows.split(max(1, NUMBERS // function.size)):
            root[some] = _search(function.select(some), y.detach()[some], some)
    if torch.is_grad_enabled():
        root = _differentiable(function, torch.where(finite.unsqueeze(-1), y, 0.0), root, finite)
    return torch.where(finite.unsqueeze(-1), root, torch.nan)


def _search(function: Smooth, y: Tensor, rows: Tensor) -> Tensor:
    root, active = y.clone(), torch.arange(len(y), device=y.device)
    x, residual = y, y - function.value(y)
    limit = TOLERANCE * (1 + y.abs().amax(dim=-1))
    stuck: list[Tensor] = []
    for _ in range(MAX_STEPS):
        keep = (~(residual.abs().amax(dim=-1) <= limit)).nonzero().squeeze(-1)
        if keep.numel() < len(x):
            function = function.select(keep)
            x, y, residual, limit, active = (part[keep] for part in (x, y, residual, limit, active))
        if keep.numel() == 0:
            break
        _, jacobian = function.derive(x)
        step = _solve(jacobian, residual)
        x, residual, moved = _shortened(function, y, x, residual, step)
        root[active] = x
        if not bool(moved.all()):
            stuck.append(active[~moved])
            keep = moved.nonzero().squeeze(-1)
            function = function.select(keep)
            x, y, residual, limit, active = (part[keep] for part in (x, y, residual, limit, active))
    failed = torch.cat([*stuck, active])
    if failed.numel():
        raise InverseError("did not converge by Newton's method", rows[failed.sort().values].tolist())
    return root


def _shortened(function: Smooth, y: Tensor, x: Tensor, residual: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Go along `step`, or half, or a quarter of it, until the residual falls; the last answer: which rows moved."""
    size = torch.linalg.vector_norm(residual, dim=-1)
    pending = torch.arange(len(x), device=x.device)
    x, residual = x.clone(), residual.clone()
    length = 1.0
    for _ in range(MAX_HALVINGS):
        candidate = x[pending] + length * step[pending]
        left = y[pending] - function.value(candidate)
        falls = torch.linalg.vector_norm(left, dim=-1) <= (1 - LEAST_DECREASE * length) * size[pending]
        x[pending[falls]], residual[pending[falls]] = candidate[falls], left[falls]
        if bool(falls.all()):
            return x, residual, torch.ones_like(size, dtype=torch.bool)
        function, pending = function.select((~falls).nonzero().squeeze(-1)), pending[~falls]
        length /= 2
    moved = torch.ones_like(size, dtype=torch.bool)
    moved[pending] = False
    return x, residual, moved


def _differentiable(function: Smooth, y: Tensor, root: Tensor, finite: Tensor) -> Tensor:
    """Give a root found without gradients its derivatives in `y` and in what the function is made of.

    A Newton step from a constant root is right to first order in all of these, and a second step, which starts there,
    to third order.
    """
    value, jacobian = function.derive(root)
    if not (value.requires_grad or y.requires_grad):
        return root
    unit = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    for number in range(2):
        if number:
            value, jacobian = function.derive(root)
        # Rows without a root are left out before anything is divided, so that their gradients are 0.
        jacobian = torch.where(finite[:, None, None], jacobian, unit)
        root = root + _solve(jacobian, torch.where(finite.unsqueeze(-1), y - value, 0.0))
    return root


def _solve(jacobian: Tensor, residual: Tensor) -> Tensor:
    # A singular matrix gives no step that lowers the residual, which is where it is found out.
    step: Tensor = torch.linalg.solve_ex(jacobian, residual.unsqueeze(-1))[0].squeeze(-1)
    return step
