"""Inverses of smooth maps of whole vectors: Newton's method with steps that are shortened until they are progress.

What is progress is the map's affair, for it decides from where the search arrives: for the identity plus a contraction
it is a smaller residual, and the residual itself is a step that brings it; for the gradient of a convex function it is
a smaller value of that function. Both arrive from any start in the end, but a map made of sharp edges can take more
steps than there are. The search runs in float64 and stops on the residual; what does not converge raises
`InverseError`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rosenblatt.core.errors import InverseError

MAX_STEPS = 300
TOLERANCE = 1e-12  # residual at which a row is done, relative to 1 + its largest number
MAX_ATTEMPTS = 60
NUMBERS = 1 << 23  # in the largest tensor of a Jacobian: bounds the memory of a large batch, not its values


class Smooth(Protocol):
    """A differentiable map of rows (rows, features) whose rows can be selected, and how a search for its roots goes."""

    @property
    def size(self) -> int:
        """How many numbers the Jacobian of a row takes while it is computed."""

    def value(self, x: Tensor) -> Tensor:
        """Evaluate at `x` (rows, features)."""

    def derive(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate at `x`, and the Jacobian (rows, features, features) there."""

    def attempt(self, number: int, newton: Tensor, residual: Tensor) -> Tensor:
        """The step to try after `number` others were no progress, given Newton's and the residual (rows, features)."""

    def progress(self, x: Tensor, y: Tensor, residual: Tensor, step: Tensor, left: Tensor) -> Tensor:
        """Whether (rows,) a step from `x` towards `y` is progress, that leaves the residual `left` of `residual`."""

    def select(self, rows: Tensor) -> Smooth:
        """Keep only `rows`."""


def find_vectors(function: Smooth, y: Tensor) -> Tensor:
    """Solve `function(x) = y` for rows `y` (rows, features) in float64, with derivatives of up to third order.

    The search starts at y. A row is done one step after no residual exceeds 1e-12 (1 + max |y|), or what rounding x to
    4 ulp makes of it. A row of `y` that is not finite is answered by NaN. Raises `InverseError` naming the rows that
    did not converge.
    """
    with torch.no_grad():
        finite = torch.isfinite(y).all(dim=-1)
        root = torch.zeros_like(y)
        for rows in finite.nonzero().squeeze(-1).split(max(1, NUMBERS // function.size)):
            root[rows] = _search(function.select(rows), y.detach()[rows], rows)
    if torch.is_grad_enabled():
        root = _differentiable(function, torch.where(finite.unsqueeze(-1), y, 0.0), root, finite)
    return torch.where(finite.unsqueeze(-1), root, torch.nan)


def _search(function: Smooth, y: Tensor, rows: Tensor) -> Tensor:
    root, x, active = y.clone(), y, torch.arange(len(y), device=y.device)
    rounded = 4 * torch.finfo(y.dtype).eps
    stuck: list[Tensor] = []
    for _ in range(MAX_STEPS):
        if len(x) == 0:
            break
        value, jacobian = function.derive(x)
        residual = y - value
        step = _solve(jacobian, residual)
        limit = TOLERANCE * (1 + y.abs().amax(dim=-1, keepdim=True))
        limit = torch.maximum(limit, rounded * (jacobian.abs() @ x.abs().unsqueeze(-1)).squeeze(-1))
        close = (residual.abs() <= limit).all(dim=-1)
        # Next to a root one more full step takes most of the digits that are left, if it lowers the residual.
        last = close.nonzero().squeeze(-1)
        final = x[last] + step[last]
        left = y[last] - function.select(last).value(final)
        better = left.abs().amax(dim=-1) < residual[last].abs().amax(dim=-1)
        root[active[last]] = torch.where(better.unsqueeze(-1), final, x[last])
        keep = (~close).nonzero().squeeze(-1)
        function = function.select(keep)
        x, y, active = x[keep], y[keep], active[keep]
        x, moved = _moved(function, y, x, residual[keep], step[keep])
        if not bool(moved.all()):
            stuck.append(active[~moved])
            keep = moved.nonzero().squeeze(-1)
            function = function.select(keep)
            x, y, active = x[keep], y[keep], active[keep]
    failed = torch.cat([*stuck, active])
    if failed.numel():
        raise InverseError("did not converge by Newton's method", rows[failed.sort().values].tolist())
    return root


def _moved(function: Smooth, y: Tensor, x: Tensor, residual: Tensor, newton: Tensor) -> tuple[Tensor, Tensor]:
    """Make the first attempt that is progress, row by row; the second answer: which rows found one."""
    arrived, pending = x.clone(), torch.arange(len(x), device=x.device)
    for number in range(MAX_ATTEMPTS):
        step = function.attempt(number, newton, residual)
        left = y - function.value(x + step)
        good = function.progress(x, y, residual, step, left)
        arrived[pending[good]] = (x + step)[good]
        keep = (~good).nonzero().squeeze(-1)
        pending = pending[keep]
        if keep.numel() == 0:
            break
        function = function.select(keep)
        x, y, residual, newton = (part[keep] for part in (x, y, residual, newton))
    found = torch.ones(len(arrived), dtype=torch.bool, device=x.device)
    found[pending] = False
    return arrived, found


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
    # A singular matrix gives no step that is progress, which is where it is found out.
    step: Tensor = torch.linalg.solve_ex(jacobian, residual.unsqueeze(-1))[0].squeeze(-1)
    return step
