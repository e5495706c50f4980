"""Checks of a flow's transform and of its log-density, for pairs and models alike.

Each takes a row (a pair or a model: anything with `make(features)`) and raises `AssertionError` with numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import gradcheck

from rosenblatt.core.density import Flow
from rosenblatt.testing.measures import (
    all_true,
    at_most,
    central_jacobian,
    conditionals,
    forbidden_influence,
    inputs_of,
    log_abs_det,
    mapped_value,
    round_trip_limit,
    row_jacobian,
    ulp,
)
from rosenblatt.testing.tables import rows_like_data

ROWS = 32


class FlowRow(Protocol):
    """What the checks need of a row."""

    @property
    def name(self) -> str:
        """The row's name."""

    def make(self, features: int, /) -> Flow:
        """A flow with disturbed weights."""


def inside(flow: Flow, rows: int, features: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None]:
    """Rows of data inside the flow's support, and their context."""
    x, context = rows_like_data(16 * rows, features), context_for(flow, 16 * rows)
    wide = flow.double()
    with torch.no_grad():
        usable = torch.isfinite(wide.log_prob(x, context))
    x, context = x[usable][:rows], None if context is None else context[usable][:rows]
    if len(x) < rows:
        raise AssertionError(f"log_prob: only {len(x)} of {16 * rows} normal rows have a finite log-density.")
    flow.to(dtype)
    return x.to(dtype), None if context is None else context.to(dtype)


def context_for(flow: Flow, rows: int) -> Tensor | None:
    """Context rows in float64, or None."""
    return rows_like_data(rows, flow.context, seed=13) if flow.context else None


def check_round_trip(row: FlowRow) -> None:
    """R1: `f(f^-1(f(x))) = f(x)`, in float64 and float32, for rows of data and rows three times as large."""
    for dtype, residual in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        flow = row.make(4)
        x, context = inside(flow, ROWS, 4, dtype)
        for size in (1, 3):
            usable = torch.isfinite(flow.log_prob(size * x, context))
            rows = torch.where(usable.unsqueeze(-1), size * x, x)
            with torch.no_grad():
                z = flow.transform(rows, context).value
                back = flow.transform.inverse(z, context).value
                again = flow.transform(back, context).value
            jacobian = row_jacobian(mapped_value(flow.transform, context), back)
            at_most(again - z, round_trip_limit(jacobian, back, z, residual), f"R1 residual in {dtype}")


def check_round_trip_of_noise(row: FlowRow) -> None:
    """R1: noise up to three times the base's maps to finite data and back."""
    flow = row.make(4).double()
    context = context_for(flow, ROWS)
    given = context if flow.base.context else None
    generator = torch.Generator().manual_seed(14)
    z = flow.base.sample(1 if flow.base.context else ROWS, given, generator=generator).detach().reshape(ROWS, 4)
    wide = torch.where(torch.isfinite(flow.base.log_prob(3 * z, given)).unsqueeze(-1), 3 * z, z)
    with torch.no_grad():
        x = flow.transform.inverse(wide, context).value
        again = flow.transform(x, context).value
    all_true(torch.isfinite(x), "R1 finite samples")
    jacobian = row_jacobian(mapped_value(flow.transform, context), x)
    at_most(again - wide, round_trip_limit(jacobian, x, wide, 1e-10), "R1 residual of noise")


def check_log_det(row: FlowRow) -> None:
    """R2: `log_det` equals autodiff's to 1e-8 and that of central differences to 1e-5."""
    flow = row.make(4)
    x, context = inside(flow, ROWS, 4)
    function = mapped_value(flow.transform, context)
    log_det = flow.transform(x, context).log_det.detach()
    at_most(log_abs_det(row_jacobian(function, x)) - log_det, 1e-8, "R2 log_det against autodiff")
    error = torch.full_like(log_det, torch.inf)
    for step in (1e-4, 1e-5, 1e-6, 1e-7):
        jacobian = central_jacobian(function, x, torch.full((4,), step, dtype=torch.float64))
        error = torch.fmin(error, (log_abs_det(jacobian) - log_det).abs().detach())
    # Rows within a step of a kink (of a relu or a knot) have no two-sided derivative; few rows are.
    at_most(error.sort().values[: int(0.95 * len(error))], 1e-5, "R2 log_det against differences")


def check_both_directions(row: FlowRow) -> None:
    """R3: the log-determinants of both directions cancel to 1e-9."""
    flow = row.make(4)
    x, context = inside(flow, ROWS, 4)
    with torch.no_grad():
        x, inverse_log_det = flow.transform.inverse(flow.transform(x, context).value, context)
    x.requires_grad_()
    log_det = flow.transform(x, context).log_det
    bend = torch.zeros_like(x)
    if log_det.requires_grad:
        (grad,) = torch.autograd.grad(log_det.sum(), x, allow_unused=True)
        bend = bend if grad is None else grad
    at_most(log_det + inverse_log_det, 1e-9 + 8 * (bend.abs() * ulp(x)).sum(dim=-1), "R3 log_dets")


def check_float32(row: FlowRow) -> None:
    """R8: float32 log-densities of data rows are those of float64 to 1e-4 + 1e-5 |log p|."""
    flow = row.make(4)
    x, context = inside(flow, 4 * ROWS, 4, torch.float32)
    with torch.no_grad():
        narrow = flow.log_prob(x, context).double()
        wide = flow.double().log_prob(x.double(), None if context is None else context.double())
    at_most(narrow - wide, 1e-4 + 1e-5 * wide.abs(), "R8 float32 log-density")


def check_gradients(row: FlowRow) -> None:
    """R9: gradients of log_prob and of the sample path, through earlier coordinates too, in x, z, context, weights."""
    flow = row.make(3)
    x, context = inside(flow, 2, 3)
    with torch.no_grad():
        z = flow.transform(x, context).value
    x, z = x.requires_grad_(), z.requires_grad_()
    given = () if context is None else (context.requires_grad_(),)
    weights = tuple(p for p in flow.parameters() if p.requires_grad)[:1]

    def log_prob(x: Tensor, *rest: Tensor) -> Tensor:
        return flow.log_prob(x, rest[0] if given else None)

    def path(z: Tensor, *rest: Tensor) -> Tensor:
        return flow.transform.inverse(z, rest[0] if given else None).value

    gradcheck(log_prob, (x, *given, *weights), eps=1e-6, atol=1e-5, fast_mode=True)
    gradcheck(path, (z, *given, *weights), eps=1e-6, atol=1e-5, fast_mode=True)


def check_pathwise_gradient(row: FlowRow) -> None:
    """R9: dx/dz of the sample path is the inverse of dz/dx, with the influence through earlier coordinates."""
    flow = row.make(4)
    x, context = inside(flow, 16, 4)
    with torch.no_grad():
        z = flow.transform(x, context).value
        x = flow.transform.inverse(z, context).value
    forward = row_jacobian(mapped_value(flow.transform, context), x)
    backward = row_jacobian(lambda z: flow.transform.inverse(z, context).value, z)
    identity = torch.eye(4, dtype=torch.float64)
    limit = 1e-6 + 1e-10 * (forward.abs() @ backward.abs())
    at_most(forward @ backward - identity, limit, "R9 pathwise gradient against the inverse Jacobian")


def check_finite_gradients(row: FlowRow) -> None:
    """R10: log_prob of any finite row has no NaN or infinite gradient, in float32, in x and in the weights."""
    flow = row.make(3).float()
    values = torch.tensor([0.0, 3.0, -3.0, 5.0, 6.0, 20.0, -1e3, 1e4])
    x = torch.cat([torch.cartesian_prod(values, values, values), rows_like_data(64, 3).float()])
    context = context_for(flow, len(x))
    x.requires_grad_()
    log_prob = flow.log_prob(x, None if context is None else context.float())
    all_true(~torch.isnan(log_prob), "R10 log_prob is a number")
    seen = torch.isfinite(log_prob)
    torch.where(seen, log_prob, 0.0).sum().backward()
    assert x.grad is not None
    all_true(torch.isfinite(x.grad), "R10 finite gradient in x")
    for name, parameter in flow.named_parameters():
        if parameter.grad is not None:
            all_true(torch.isfinite(parameter.grad), f"R10 finite gradient in {name}")


def check_causality(row: FlowRow) -> None:
    """R11: every conditional layer is causal, exactly, in both modes."""
    flow = row.make(4)
    x, context = inside(flow, 4, 4)
    for training in (False, True):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            entering = inputs_of(flow.train(training), lambda: flow.log_prob(x, context))
        layers = dict(conditionals(flow))
        for name, (rows, given) in entering.items():
            with torch.random.fork_rng(devices=[]):
                leak = forbidden_influence(layers[name].conditioner, rows, given)
            if leak != 0.0:
                raise AssertionError(f"R11 {name}: influence {leak:.3e} against the order, 0.0 expected.")


def check_shapes(row: FlowRow) -> None:
    """One feature, batches (), (3, 4) and (0,): log_prob, to_base and back."""
    for features in (1, 4):
        flow = row.make(features).double()
        for batch in ((), (1,), (3, 4), (0,)):
            x = rows_like_data(12, features)[: torch.Size(batch).numel()].reshape(*batch, features)
            context = context_for(flow, 12)
            if context is not None:
                context = context[: torch.Size(batch).numel()].reshape(*batch, flow.context)
            log_prob = flow.log_prob(x, context)
            if log_prob.shape != batch:
                raise AssertionError(f"log_prob: shape {tuple(log_prob.shape)} for a batch {batch}.")
            usable = torch.isfinite(log_prob)
            z = flow.transform(x, context).value
            z = torch.where(usable.unsqueeze(-1), z, 0.1)
            back, log_det = flow.transform.inverse(z, context)
            if back.shape != x.shape or log_det.shape != batch:
                raise AssertionError(
                    f"inverse: shapes {tuple(back.shape)}, {tuple(log_det.shape)} for {tuple(x.shape)}."
                )
            error = torch.where(usable.unsqueeze(-1), back - x, 0.0)
            at_most(error, 1e-6 * (1 + x.abs()), f"inverse for batch {batch}, {features} features")


def check_row_independence(row: FlowRow) -> None:
    """R13: batch sizes, order and bad rows leave a row's log-density alone; bad rows get the documented answer."""
    for dtype, relative in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        flow = row.make(4)
        x, context = inside(flow, 129, 4, dtype)
        count = len(x)
        with torch.no_grad():
            whole = flow.log_prob(x, context)
            for rows in (torch.arange(1), torch.arange(7), torch.arange(count).flip(0)):
                part = flow.log_prob(x[rows], None if context is None else context[rows])
                at_most(part - whole[rows], relative * (1 + whole[rows].abs()), f"R13 {len(rows)} rows in {dtype}")
            for value, answer in ((torch.nan, torch.nan), (torch.inf, -torch.inf), (-torch.inf, -torch.inf)):
                _check_poison(flow, x, context, value, answer)
            far = x.clone()
            far[2] = 1e30
            log_prob = flow.log_prob(far, context)
            if bool(torch.isnan(log_prob[2])) or float(log_prob[2]) > -50:
                raise AssertionError(f"R13 a row of 1e30: log-density {float(log_prob[2])}, a huge negative expected.")
            others = torch.arange(count) != 2
            all_true(log_prob[others] == whole[others], "R13 rows beside one of 1e30")


def _check_poison(flow: Flow, x: Tensor, context: Tensor | None, value: float, answer: float) -> None:
    whole = flow.log_prob(x, context)
    spoiled = x.clone()
    spoiled[2, 1] = value
    log_prob = flow.log_prob(spoiled, context)
    expected = torch.tensor(answer, dtype=x.dtype)
    if not torch.allclose(log_prob[2], expected, equal_nan=True):
        raise AssertionError(f"R13 a row with {value}: log-density {float(log_prob[2])}, {answer} expected.")
    others = torch.arange(len(x)) != 2
    all_true(log_prob[others] == whole[others], f"R13 rows beside one with {value}")


FlowCheck = Callable[[FlowRow], None]

FLOW_CHECKS: tuple[FlowCheck, ...] = (
    check_round_trip,
    check_round_trip_of_noise,
    check_log_det,
    check_both_directions,
    check_float32,
    check_gradients,
    check_pathwise_gradient,
    check_finite_gradients,
    check_causality,
    check_shapes,
    check_row_independence,
)
