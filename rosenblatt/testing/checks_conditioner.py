"""Checks of a conditioner: each takes a row of the table and raises `AssertionError` with numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rosenblatt.conditioners.base import Conditioner
from rosenblatt.testing.measures import all_true, at_most, forbidden_influence
from rosenblatt.testing.tables import ConditionerRow, disturbed, rows_like_data, seeded

FEATURES, PARAMS, ROWS = 5, 3, 7


def _made(row: ConditionerRow, features: int = FEATURES) -> Conditioner:
    return disturbed(seeded(lambda: row.make(features, PARAMS))).double()


def _context(row: ConditionerRow, *batch: int) -> Tensor | None:
    return (
        rows_like_data(max(1, int(torch.Size(batch).numel())), row.context, seed=12).reshape(*batch, row.context)
        if row.context
        else None
    )


def check_levels(row: ConditionerRow) -> None:
    """The levels are a partition of the coordinates, also for a single one."""
    for features in (1, 2, FEATURES):
        covered = torch.cat(list(_made(row, features).levels)).sort().values
        all_true(covered == torch.arange(features), f"levels of {features} features")


def check_causality(row: ConditionerRow) -> None:
    """R11: no influence outside the graph, exactly 0.0, in both modes, before and after an optimiser step."""
    conditioner = _made(row)
    x, context = rows_like_data(4, FEATURES), _context(row, 4)
    for moment in ("before", "after"):
        for training in (False, True):
            with torch.random.fork_rng(devices=[]):
                leak = forbidden_influence(conditioner.train(training), x, context)
            if leak != 0.0:
                raise AssertionError(f"R11 influence {leak:.3e} {moment} a step, training={training}; 0.0 expected.")
        optimiser = torch.optim.Adam(conditioner.parameters(), lr=0.1, weight_decay=0.1)
        with torch.random.fork_rng(devices=[]):
            conditioner.train()(x, context).square().sum().backward()
        optimiser.step()


def check_influence(row: ConditionerRow) -> None:
    """The allowed influence is there: the last level moves with what it may see, and with the context."""
    conditioner = _made(row)
    x, context = rows_like_data(16, FEATURES), _context(row, 16)
    theta = conditioner(x, context)
    if len(conditioner.levels) > 1:
        last = conditioner.levels[-1]
        for level in conditioner.levels[:-1]:
            moved = conditioner(x.index_add(-1, level, torch.ones(16, len(level)).double()), context)
            if not bool((moved - theta).index_select(-2, last).abs().max() > 0):
                raise AssertionError(f"influence: coordinates {level.tolist()} do not reach the last level.")
    if context is not None and not bool((conditioner(x, context + 1) != theta).flatten(1).any(dim=1).all()):
        raise AssertionError("influence: the context does not reach theta.")


def check_walk(row: ConditionerRow) -> None:
    """A level-by-level walk emits the thetas of one pass, to 1e-12, whatever the later coordinates hold."""
    for features, batch in ((FEATURES, (ROWS,)), (1, (ROWS,)), (FEATURES, (2, 3)), (FEATURES, (0,))):
        conditioner = _made(row, features)
        count = int(torch.Size(batch).numel())
        x = rows_like_data(count, features).reshape(*batch, features)
        context = _context(row, *batch) if count else (torch.zeros(0, row.context).double() if row.context else None)
        whole = conditioner(x, context)
        if whole.shape != (*batch, features, PARAMS):
            raise AssertionError(f"theta: shape {tuple(whole.shape)}, {(*batch, features, PARAMS)} expected.")
        walk = conditioner.walk(context)
        filled = torch.zeros_like(x)
        for number, level in enumerate(conditioner.levels):
            theta = walk.theta(number, filled)
            expected = whole.index_select(-2, level)
            at_most(theta.expand_as(expected) - expected, 1e-12 * (1 + expected.abs()), f"walk, level {number}")
            filled = filled.index_copy(-1, level, x.index_select(-1, level))


def check_start(row: ConditionerRow) -> None:
    """`start_at(theta)` starts every coordinate near theta, within a tenth for data of unit size."""
    conditioner = seeded(lambda: row.make(FEATURES, PARAMS))
    target = torch.tensor([0.3, -1.2, 2.0])
    conditioner.start_at(target)
    x = rows_like_data(64, FEATURES).float()
    context = _context(row, 64)
    theta = conditioner.eval()(x, None if context is None else context.float())
    at_most(theta - target, 0.3, "start_at")


def check_row_independence(row: ConditionerRow) -> None:
    """R13: batches of 1, 7 and 257 agree to 1e-12, and a NaN or 1e30 row leaves the others bit-identical."""
    conditioner = _made(row)
    x, context = rows_like_data(257, FEATURES), _context(row, 257)
    whole = conditioner(x, context)
    for size in (1, 7):
        part = conditioner(x[:size], None if context is None else context[:size])
        at_most(part - whole[:size], 1e-12 * (1 + whole[:size].abs()), f"R13 batch of {size}")
    for value in (torch.nan, 1e30, -torch.inf):
        spoiled = x.clone()
        spoiled[3] = value
        theta = conditioner(spoiled, context)
        others = torch.arange(257) != 3
        all_true(theta[others] == whole[others], f"R13 rows beside one of {value}")
        if value == 1e30:
            all_true(torch.isfinite(theta), "outlier of 1e30: theta stays finite")


def check_dtype(row: ConditionerRow) -> None:
    """R15: float32 in, float32 out; no tensor is left behind by `.double()`; the state loads strictly."""
    first, second = seeded(lambda: row.make(FEATURES, PARAMS)), _made(row).float()
    for dtype in (torch.float32, torch.float64):
        context = _context(row, ROWS)
        theta = first.to(dtype)(
            rows_like_data(ROWS, FEATURES).to(dtype), None if context is None else context.to(dtype)
        )
        if theta.dtype != dtype:
            raise AssertionError(f"R15: {dtype} in, {theta.dtype} out.")
    first.float().load_state_dict(second.state_dict(), strict=True)
    x, context = rows_like_data(ROWS, FEATURES).float(), _context(row, ROWS)
    given = None if context is None else context.float()
    all_true(first.eval()(x, given) == second(x, given), "R15 state_dict")


ConditionerCheck = Callable[[ConditionerRow], None]

CONDITIONER_CHECKS: tuple[ConditionerCheck, ...] = (
    check_levels,
    check_causality,
    check_influence,
    check_walk,
    check_start,
    check_row_independence,
    check_dtype,
)
