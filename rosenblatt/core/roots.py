"""One inverse for every increasing map: bracketed root search with an implicit gradient.

The search is Chandrupatla's (1997): inverse quadratic steps where the bracket vouches for them, bisection
elsewhere. It always runs in float64 and stops on the residual or on a bracket of a few ulp, never on an
absolute step. What does not converge raises `InverseError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rosenblatt.core.errors import InverseError
from rosenblatt.core.types import Mapped, Support

CHECK_EVERY = 3  # steps between compactions of the rows still searched
MAX_STEPS = 1200  # bisection from 4 to the smallest positive float64 takes 1077
FIRST_BRACKET = 4.0
CLOSE = 1e-9  # half-width, relative, of the bracket first tried around a guess
TRACED_STEPS, TRACED_REACH = 64, 92.0  # halvings of the line between -sinh(92) and sinh(92), about 4e39
MAX_EXPANSIONS = 66  # 4 ** 66 exceeds the range of float32


class Increasing(Protocol):
    """An increasing function of one coordinate per row, whose rows can be selected."""

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate at `x` (rows,)."""

    def select(self, rows: Tensor) -> Increasing:
        """Keep only `rows`."""


def find_root(
    function: Increasing, y: Tensor, support: Support, *, tolerance: float, guess: Tensor | None = None
) -> Tensor:
    """Solve `function(x) = y` row by row, in float64.

    `y` is (rows,) and may hold infinities (answered by the ends of the support) and NaN (answered by NaN).
    A row is done when |function(x) - y| <= tolerance * (1 + |y|) or its bracket is 2 ulp wide. Where a `guess` (rows,)
    is close, fewer evaluations are needed; where it is not, nothing is lost but two.
    Raises `InverseError` naming the rows that have no bracket or did not converge.
    """
    x = torch.where(y > 0, y.new_tensor(support.upper), y.new_tensor(support.lower))
    x = torch.where(torch.isnan(y), torch.nan, x)
    rows = torch.isfinite(y).nonzero().squeeze(-1)
    if rows.numel() == 0:
        return x
    if rows.numel() < y.numel():
        function, y = function.select(rows), y[rows]
        guess = None if guess is None else guess[rows]
    bracket = _bracket(function, y, support, rows) if guess is None else _near(function, y, support, rows, guess)
    x[rows] = _chandrupatla(function, y, bracket, tolerance, rows)
    return x


def find_root_traced(map_: Callable[[Tensor], Mapped], y: Tensor, support: Support, *, tolerance: float) -> Tensor:
    """Solve `map_(x).value = y` by a fixed number of operations, as `vmap`, `compile`, `export` and meta tensors need.

    The line is halved on the scale of arsinh(x), 64 times, in float64. Two Newton steps, which a tracer differentiates,
    then bring in the derivatives of the root, right up to the third. What does not come within `tolerance` (as in
    `find_root`, or within some ulp of the root) is answered with NaN, since nothing can be raised here.
    """
    reach = torch.full_like(y, TRACED_REACH)
    low, high = -reach, reach
    target = y.detach()
    for _ in range(TRACED_STEPS):
        middle = 0.5 * (low + high)
        below = map_(torch.sinh(middle).clamp(support.lower, support.upper)).value.detach() < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    x = torch.sinh(0.5 * (low + high)).clamp(support.lower, support.upper)
    for _ in range(2):
        value, log_slope = map_(x)
        x = x + (y - value) * torch.exp(-log_slope)
    value, log_slope = map_(x)
    stored = 16 * torch.finfo(y.dtype).eps * torch.exp(log_slope) * x.abs()
    close = (value - y).abs() <= tolerance * (1 + y.abs()) + stored
    return torch.where(close, x, torch.nan)


class _Bracket(NamedTuple):
    """Ends with f(low) <= y <= f(high), and f - y at them."""

    low: Tensor
    high: Tensor
    f_low: Tensor
    f_high: Tensor


def _bracket(function: Increasing, y: Tensor, support: Support, rows: Tensor) -> _Bracket:
    """Ends with f(low) <= 0 <= f(high); infinite sides are widened fourfold until they hold."""
    reach = FIRST_BRACKET
    low = torch.full_like(y, max(support.lower, -reach) if support.upper > -reach else support.lower)
    high = torch.full_like(y, min(support.upper, reach) if support.lower < reach else support.upper)
    f_low, f_high = function(low) - y, function(high) - y
    for _ in range(MAX_EXPANSIONS):
        below, above = f_low > 0, f_high < 0
        open_rows = (below & (low > support.lower)) | (above & (high < support.upper))
        if not bool(open_rows.any()):
            break
        reach *= 4.0
        # The end that failed becomes the opposite end of the wider bracket.
        new_low = torch.where(below, low.clamp(max=0) - reach, torch.where(above, high, low))
        new_high = torch.where(above, high.clamp(min=0) + reach, torch.where(below, low, high))
        f_new_low, f_new_high = torch.where(above, f_high, f_low), torch.where(below, f_low, f_high)
        low, high = new_low.clamp(min=support.lower), new_high.clamp(max=support.upper)
        index = open_rows.nonzero().squeeze(-1)
        part = function.select(index)
        probe = torch.where(below, low, high)[index]
        f_probe = part(probe) - y[index]
        f_low, f_high = f_new_low, f_new_high
        f_low[index] = torch.where(below[index], f_probe, f_low[index])
        f_high[index] = torch.where(above[index], f_probe, f_high[index])
    # At a finite end of the support an unreachable target means that end itself.
    if support.lower > -torch.inf:
        high = torch.where(f_low > 0, low, high)
        f_high = torch.where(f_low > 0, f_low, f_high)
    if support.upper < torch.inf:
        low = torch.where(f_high < 0, high, low)
        f_low = torch.where(f_high < 0, f_high, f_low)
    failed = torch.isnan(f_low) | torch.isnan(f_high)
    failed |= ((f_low > 0) | (f_high < 0)) & (low < high)
    _raise_for(failed, rows, "have no bracket")
    return _Bracket(low, high, f_low, f_high)


def _near(function: Increasing, y: Tensor, support: Support, rows: Tensor, guess: Tensor) -> _Bracket:
    """A narrow bracket around the guess where it holds, else one from scratch."""
    margin = CLOSE * (1 + guess.abs())
    low, high = ((guess + side * margin).clamp(support.lower, support.upper) for side in (-1, 1))
    found = _Bracket(low, high, function(low) - y, function(high) - y)
    missed = (~((found.f_low <= 0) & (found.f_high >= 0))).nonzero().squeeze(-1)
    if missed.numel():
        fresh = _bracket(function.select(missed), y[missed], support, rows[missed])
        for part, new in zip(found, fresh, strict=True):
            part[missed] = new
    return found


def _chandrupatla(function: Increasing, y: Tensor, bracket: _Bracket, tolerance: float, rows: Tensor) -> Tensor:
    """Search inside valid brackets; finished rows are dropped every few steps."""
    low, high, f_low, f_high = bracket
    eps = torch.finfo(y.dtype).eps
    root = torch.where(f_low.abs() < f_high.abs(), low, high)
    a, b, c, f_a, f_b, f_c = high, low, high, f_high, f_low, f_high
    t = (f_a / (f_a - f_b)).nan_to_num(0.5).clamp(0.05, 0.95)  # a secant start: maps are near linear
    active = torch.arange(y.numel(), device=y.device)
    for step in range(MAX_STEPS):
        x = a + t * (b - a)
        f_x = function(x) - y
        same = torch.sign(f_x) == torch.sign(f_a)
        c, f_c = torch.where(same, a, b), torch.where(same, f_a, f_b)
        b, f_b = torch.where(same, b, a), torch.where(same, f_b, f_a)
        a, f_a = x, f_x
        nearer = f_a.abs() < f_b.abs()
        best, f_best = torch.where(nearer, a, b), torch.where(nearer, f_a, f_b)
        root[active] = best
        limit = eps * best.abs() / (b - a).abs()  # half of a 2-ulp bracket
        done = (f_best.abs() <= tolerance * (1 + y.abs())) | (limit >= 0.5) | (a == b)
        if step % CHECK_EVERY == CHECK_EVERY - 1 or step < 1:
            keep = (~done).nonzero().squeeze(-1)
            if keep.numel() == 0:
                return root
            if keep.numel() < done.numel():
                function, active = function.select(keep), active[keep]
                y, a, b, c, f_a, f_b, f_c, limit = (value[keep] for value in (y, a, b, c, f_a, f_b, f_c, limit))
        t = _next_fraction((a, b, c), (f_a, f_b, f_c))
        t = torch.maximum(torch.minimum(t, 1 - limit), limit.clamp(max=0.5))
    failed = torch.zeros_like(root, dtype=torch.bool)
    failed[active] = True
    _raise_for(failed, rows, f"did not converge in {MAX_STEPS} steps")
    return root


def _next_fraction(points: tuple[Tensor, Tensor, Tensor], values: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Where to probe next, as a fraction of the way from a to b (Chandrupatla's criterion)."""
    (a, b, c), (f_a, f_b, f_c) = points, values
    xi, phi = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
    trusted = (phi.square() < xi) & ((1 - phi).square() < 1 - xi)
    quadratic = f_a / (f_b - f_a) * f_c / (f_b - f_c) + (c - a) / (b - a) * f_a / (f_c - f_a) * f_b / (f_c - f_b)
    return torch.where(trusted & torch.isfinite(quadratic), quadratic, 0.5)


def _raise_for(failed: Tensor, rows: Tensor, reason: str) -> None:
    if bool(failed.any()):
        raise InverseError(reason, rows[failed].tolist())


class _ImplicitInverse(torch.autograd.Function):
    """The root `x` of f(x, theta) = y as a differentiable function of y and theta.

    dx/dy = 1 / f'(x) and dx/dtheta = -f_theta / f'(x). The backward pass is made of differentiable
    operations on the saved root, so derivatives of any order are right.
    """

    @staticmethod
    def forward(ctx: Any, root: Tensor, y: Tensor, theta: Tensor, map_: Callable[[Tensor, Tensor], Mapped]) -> Tensor:
        x = root.clone()
        ctx.map_ = map_
        ctx.save_for_backward(x, theta)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None]:
        x, theta = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # An alias keeps the partial derivative in theta apart from theta's influence through x.
            alias = theta.view_as(theta) if theta.requires_grad else theta.detach().requires_grad_()
            value, log_slope = ctx.map_(x, alias)
            grad_y = grads[0] * torch.exp(-log_slope)
            (grad_theta,) = torch.autograd.grad(value, alias, -grad_y, create_graph=create_graph)
        return None, grad_y, grad_theta, None


def attach_gradient(root: Tensor, y: Tensor, theta: Tensor, map_: Callable[[Tensor, Tensor], Mapped]) -> Tensor:
    """Give a root found without gradients its derivatives in `y` and `theta`."""
    if not (torch.is_grad_enabled() and (y.requires_grad or theta.requires_grad)):
        return root
    result: Tensor = _ImplicitInverse.apply(root.detach(), y, theta, map_)  # type: ignore[no-untyped-call]
    return result
