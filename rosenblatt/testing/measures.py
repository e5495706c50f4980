"""What the checks and the audit measure, as plain functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from rosenblatt.conditioners.base import Conditioner
from rosenblatt.core.transform import Transform
from rosenblatt.layers.conditional import Conditional


def ulp(x: Tensor) -> Tensor:
    """Distance from |x| to the next larger number of its dtype."""
    size = x.detach().abs()
    return torch.nextafter(size, torch.full_like(size, torch.inf)) - size


def row_jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Jacobian (rows, out, in) of a function (rows, in) -> (rows, ..., out) that treats rows independently."""
    x = x.detach().clone().requires_grad_()
    value = function(x).reshape(len(x), -1)
    slices = []
    for column in range(value.shape[1]):
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value[:, column].sum(), x, retain_graph=True, allow_unused=True)
        else:
            grad = None
        slices.append(torch.zeros_like(x) if grad is None else grad)
    return torch.stack(slices, dim=1)


def central_jacobian(function: Callable[[Tensor], Tensor], x: Tensor, step: Tensor) -> Tensor:
    """Jacobian (rows, out, in) by central differences with `step` (in,) per column."""
    columns = []
    for column in range(x.shape[-1]):
        offset = torch.zeros_like(step)
        offset[column] = step[column]
        above, below = x + offset, x - offset
        span = (above - below)[..., column : column + 1]  # what rounding left of 2 * step
        columns.append((function(above) - function(below)) / span)
    return torch.stack(columns, dim=-1)


def forbidden_influence(conditioner: Conditioner, x: Tensor, context: Tensor | None = None) -> float:
    """Largest influence of x_j on any theta_i that the levels forbid; exactly 0.0 if the conditioner is causal.

    One pass per level: a randomly weighted sum of its thetas must not move with coordinates of this or later levels.
    A sum of forbidden derivatives is exactly 0.0 only if each is, for the weights are random.
    """
    x = x.detach().clone().requires_grad_()
    theta = conditioner(x, context)
    weight = torch.empty_like(theta).uniform_(1, 2, generator=torch.Generator().manual_seed(0))
    largest = 0.0
    for number, level in enumerate(conditioner.levels):
        total = (weight * theta).index_select(-2, level).sum()
        if not total.requires_grad:
            continue
        (grad,) = torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)
        if grad is not None:
            later = torch.cat(conditioner.levels[number:])
            largest = max(largest, float(grad.index_select(-1, later).abs().max()))
    return largest


def influence_at_levels(
    conditioner: Conditioner, x: Tensor, levels: Sequence[int], context: Tensor | None = None
) -> float:
    """Largest forbidden influence at some levels: that of `forbidden_influence`, for one row `x` (features,) at once.

    Every level gets a copy of the row in one batch, so that one pass is enough for all of them. Copies that saw each
    other would count as well, since each may only move with its own earlier coordinates.
    """
    rows = x.detach().expand(len(levels), -1).clone().requires_grad_()
    given = None if context is None else context.expand(len(levels), -1)
    theta = conditioner(rows, given)
    weight = torch.empty_like(theta).uniform_(1, 2, generator=torch.Generator().manual_seed(0))
    own = conditioner.levels
    allowed = torch.zeros_like(rows, dtype=torch.bool)
    total = theta.new_zeros(())
    for row, level in enumerate(levels):
        total = total + (weight[row] * theta[row]).index_select(-2, own[level]).sum()
        allowed[row, conditioner.order[: sum(conditioner.sizes[:level])]] = True
    if not total.requires_grad:
        return 0.0
    (grad,) = torch.autograd.grad(total, rows, allow_unused=True)
    return 0.0 if grad is None else float(grad.masked_fill(allowed, 0.0).abs().max())


def conditionals(module: nn.Module) -> Iterator[tuple[str, Conditional]]:
    """Every conditional layer of a model, with its name."""
    for name, part in module.named_modules():
        if isinstance(part, Conditional):
            yield name, part


def inputs_of(module: nn.Module, run: Callable[[], object]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Rows and context that reach each conditional layer of `module` while `run` runs."""
    seen: dict[str, tuple[Tensor, Tensor | None]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor | None, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor | None, ...]) -> None:
            x, context = (None if part is None else part.detach() for part in (*args, None)[:2])
            if x is not None:
                seen.setdefault(name, (x, context))

        return hook

    hooks = [part.register_forward_pre_hook(remember(name)) for name, part in conditionals(module)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def round_trip_limit(jacobian: Tensor, x: Tensor, value: Tensor, residual: float) -> Tensor:
    """Largest residual |f(x') - y| (rows, features) that a right inverse may leave.

    `residual (1 + |y|)`, or what storing x' at all costs: half an ulp in every coordinate, carried through the
    Jacobian, with a factor for the roundings inside the map. No inverse can do better than that.
    """
    stored = torch.einsum("rij,rj->ri", jacobian.abs(), ulp(x))
    return residual * (1 + value.abs()) + 8 * stored


def poison(x: Tensor, value: float, row: int = 0) -> Tensor:
    """Return a copy of `x` (rows, features) with `value` in the first column of `row`."""
    x = x.clone()
    x[row, 0] = value
    return x


def log_abs_det(jacobian: Tensor) -> Tensor:
    """log|det| of square matrices (rows, n, n)."""
    result: Tensor = torch.linalg.slogdet(jacobian).logabsdet
    return result


def mapped_value(transform: Transform, context: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The transform's value as a function of x alone."""
    return lambda x: transform(x, context).value


def at_most(error: Tensor, limit: Tensor | float, what: str) -> None:
    """Raise `AssertionError` with the worst offender unless `error <= limit` everywhere; NaN offends."""
    error = error.detach().double().abs()
    limit = torch.as_tensor(limit, dtype=torch.float64).detach().expand_as(error)
    bad = ~(error <= limit)
    if bool(bad.any()):
        excess = torch.where(bad, torch.nan_to_num(error / limit, nan=torch.inf), -torch.inf).flatten()
        worst = int(excess.argmax())
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {error.numel()} beyond the limit; the worst is "
            f"{error.flatten()[worst]:.3e} against {limit.flatten()[worst]:.3e} (flat index {worst})."
        )


def all_true(condition: Tensor, what: str) -> None:
    """Raise `AssertionError` that counts the exceptions unless `condition` holds everywhere."""
    if not bool(condition.all()):
        bad = (~condition).flatten().nonzero().squeeze(-1)
        raise AssertionError(
            f"{what}: fails at {len(bad)} of {condition.numel()}, first flat indices {bad[:5].tolist()}."
        )


def integrate(
    density: Callable[[Tensor, Tensor], Tensor], row_of: Tensor, low: Tensor, high: Tensor, rows: int
) -> Tensor:
    """Sum of Gauss-Legendre cells per row; a cell that differs from its two halves is split again."""
    nodes, weights = legendre(6)

    def cells(row_of: Tensor, low: Tensor, high: Tensor) -> Tensor:
        width = (high - low).unsqueeze(-1)
        return (density(low.unsqueeze(-1) + width * nodes, row_of) * width * weights).sum(dim=-1)

    total = torch.zeros(rows, dtype=torch.float64)
    whole = cells(row_of, low, high)
    for _ in range(40):
        middle = 0.5 * (low + high)
        left, right = cells(row_of, low, middle), cells(row_of, middle, high)
        done = (left + right - whole).abs() <= 1e-11
        total.index_add_(0, row_of[done], (left + right)[done])
        row_of, low, middle, high = (part[~done] for part in (row_of, low, middle, high))
        whole = torch.cat([left[~done], right[~done]])
        row_of, low, high = torch.cat([row_of, row_of]), torch.cat([low, middle]), torch.cat([middle, high])
    return total.index_add(0, row_of, whole)


def legendre(order: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1], by the eigenvalues of the Jacobi matrix (Golub & Welsch 1969)."""
    k = torch.arange(1, order, dtype=torch.float64)
    beta = k / torch.sqrt(4 * k * k - 1)
    nodes, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return 0.5 * (nodes + 1), vectors[0].square()
