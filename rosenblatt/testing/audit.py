"""Why the numbers of a trained model can be believed: the central checks, run on the user's model and data."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.density import Density, FactorisedDensity, Flow, fresh_generator
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Likelihood
from rosenblatt.eval.calibration import dkw_band, uniformity
from rosenblatt.eval.mass import KernelProposal, grid_mass, importance_mass
from rosenblatt.layers.discretised import Discretised
from rosenblatt.testing.audit_levels import audit_levels
from rosenblatt.testing.measures import (
    central_jacobian,
    conditionals,
    forbidden_influence,
    inputs_of,
    log_abs_det,
    mapped_value,
    poison,
    round_trip_limit,
    row_jacobian,
    ulp,
)
from rosenblatt.testing.report import AuditReport, AuditRow, excess, judged, run_checks

MOST_ROWS = 256
JACOBIAN_ENTRIES = 512  # rows times columns, since each column costs a pass
MASS_COLUMNS = 8  # importance weights around data rows are too wild in more columns
SMALLEST_SAMPLE, LARGEST_SAMPLE = 1000, 20_000


class _Subject(NamedTuple):
    """What is audited: the model as it is, a float64 copy of it, and finite rows inside its support."""

    native: Flow
    double: Flow
    x: Tensor  # float64
    context: Tensor | None  # float64
    generator: torch.Generator
    dtype: torch.dtype
    sample_rows: int

    def head(self, rows: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The first rows: as many as a Jacobian can be had for when no number is given."""
        rows = min(64, max(8, JACOBIAN_ENTRIES // self.x.shape[1])) if rows is None else rows
        return self.x[:rows], None if self.context is None else self.context[:rows]

    @property
    def scale(self) -> Tensor:
        """Spread of each column, 1 for a constant one."""
        spread = self.x.std(dim=0)
        return torch.where(spread > 0, spread, 1.0)

    @property
    def native_context(self) -> Tensor | None:
        return None if self.context is None else self.context.to(self.dtype)


NO_DENSITY = AuditRow(
    "-",
    "what log_prob is",
    Likelihood.NONE.value,
    Likelihood.EXACT.value,
    False,
    "the model has no density; compare its samples with rows by the distances of rosenblatt.eval.",
)


def audit(
    model: Density,
    data: Tensor,
    *,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    seconds: float = 60.0,
) -> AuditReport:
    """Check a trained flow on rows it will be used for; the model itself is left as it is.

    Runs round trips (R1), log-determinants (R2, R3), the mass (R5), float32 (R8), causality (R11), independence of
    rows (R13) and the sampler (R16) on copies of the model. `data` is (rows, features), `context` (rows, context).
    Sample sizes are chosen so that it ends in about `seconds`. Where a check cannot decide it says so.
    A model of whole numbers (`Discretised`) gets checks of its own, see `audit_levels`.
    Of a sampler without a density it says just that. Raises `DataError` when no row is finite and inside the support,
    `OptionError` for a density that is neither a flow nor such a sampler.

    >>> from rosenblatt.models.nits import nits
    >>> rows = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    >>> audit(nits(1, hidden=8), rows, generator=torch.Generator().manual_seed(0), seconds=5).passed
    True
    """
    if model.likelihood is Likelihood.NONE:
        return AuditReport([NO_DENSITY])
    if isinstance(model, Discretised):
        return audit_levels(model, data, context=context, generator=generator, seconds=seconds)
    if not isinstance(model, Flow):
        raise OptionError(
            f"model: {type(model).__name__} came, a flow was expected, or a model of whole numbers; only these can be "
            "audited."
        )
    subject = _prepare(model, data, context, generator or fresh_generator(), seconds)
    checks: list[tuple[str, str, Callable[[_Subject], AuditRow]]] = [
        ("R1", "round trip data -> base -> data, float64", _round_trip),
        ("R1", "round trip base x 3 -> data -> base, float64", _round_trip_of_noise),
        ("R1", "round trip of rows as they are scored", _native_round_trip),
        ("R2", "log-determinant against autodiff", _log_det),
        ("R2", "log-determinant against differences", _log_det_by_differences),
        ("R3", "log-determinants of both directions", _both_directions),
        ("R5", "mass of the density", _mass),
        ("R8", "log-density as scored against float64", _precision),
        ("R11", "influence against the order of columns", _causality),
        ("R13", "a row alone against a row in a batch", _row_independence),
        ("R13", "rows beside a NaN row", _poisoned_batch),
        ("R16", "own samples against own CDF", _sampler),
    ]
    return run_checks(checks, subject)


def _prepare(model: Flow, data: Tensor, context: Tensor | None, generator: torch.Generator, seconds: float) -> _Subject:
    native = copy.deepcopy(model).eval().requires_grad_(False).cpu()
    double = copy.deepcopy(native).double()
    dtype = _scored_dtype(native, data.detach().cpu()[:1], context if context is None else context.cpu()[:1])
    x = data.detach().cpu().double()
    double.check(x, context if context is None else context.double())
    order = torch.randperm(len(x), generator=generator)[: 4 * MOST_ROWS]
    x = x[order]
    given = None if context is None else context.detach().cpu().double()[order]
    usable = torch.isfinite(x).all(dim=-1)
    with torch.no_grad():
        usable &= torch.isfinite(double.log_prob(x, given))
    x = x[usable][:MOST_ROWS]
    given = None if given is None else given[usable][:MOST_ROWS]
    if len(x) < 2:
        raise DataError(
            f"data: {len(x)} of {len(order)} rows have a finite log-density, at least 2 were expected; "
            "check units and supports."
        )
    started = time.perf_counter()
    with torch.no_grad():
        double.sample(200, None if given is None else given[0], generator=generator)
    pace = 200 / max(time.perf_counter() - started, 1e-3)  # rows a second
    rows = int(min(LARGEST_SAMPLE, max(SMALLEST_SAMPLE, pace * seconds / 15)))
    return _Subject(native, double, x, given, generator, dtype, rows)


def _scored_dtype(native: Flow, row: Tensor, context: Tensor | None) -> torch.dtype:
    """The dtype of the data if the model takes it (a model may cast after standardising), else the model's own."""
    own = next((p.dtype for p in native.parameters()), torch.float64)
    if row.dtype != own and row.is_floating_point():
        try:
            with torch.no_grad():
                native.log_prob(row, None if context is None else context.to(row.dtype))
        except RuntimeError:
            return own
        return row.dtype
    return own


def _round_trip(subject: _Subject) -> AuditRow:
    x, context = subject.head()
    transform = subject.double.transform
    with torch.no_grad():
        z = transform(x, context).value
        back = transform.inverse(z, context).value
        again = transform(back, context).value
    jacobian = row_jacobian(mapped_value(transform, context), back)
    limit = round_trip_limit(jacobian, back, z, 1e-10)
    return excess((again - z).abs(), limit, 1e-10, "samples are not exact inverses; do not rely on them.")


def _round_trip_of_noise(subject: _Subject) -> AuditRow:
    x, context = subject.head()
    z = subject.double.base.sample(len(x), generator=subject.generator)
    z = 3 * z if isinstance(subject.double.base, FactorisedDensity) else z
    z = torch.where(torch.isfinite(subject.double.base.log_prob(z)).unsqueeze(-1), z, z / 3)
    transform = subject.double.transform
    with torch.no_grad():
        x = transform.inverse(z, context).value
        again = transform(x, context).value
    limit = round_trip_limit(row_jacobian(mapped_value(transform, context), x), x, z, 1e-10)
    return excess((again - z).abs(), limit, 1e-10, "far samples are not exact; the map is not onto there.")


def _native_round_trip(subject: _Subject) -> AuditRow:
    x = subject.x.to(subject.dtype)
    transform = subject.native.transform
    with torch.no_grad():
        z = transform(x, subject.native_context).value
        back = transform.inverse(z, subject.native_context).value
    error = ((back - x).abs() / subject.scale).max()
    return judged(torch.nan_to_num(error, nan=torch.inf), 1e-3, "in this dtype samples lose accuracy; use float64.")


def _log_det(subject: _Subject) -> AuditRow:
    x, context = subject.head()
    transform = subject.double.transform
    jacobian = row_jacobian(mapped_value(transform, context), x)
    with torch.no_grad():
        error = (log_abs_det(jacobian) - transform(x, context).log_det).abs().max()
    return judged(error, 1e-8, "log-densities are wrong: the log-determinant is not that of the map.")


def _log_det_by_differences(subject: _Subject) -> AuditRow:
    x, context = subject.head()
    transform = subject.double.transform
    log_det = transform(x, context).log_det
    error = torch.full((len(x),), torch.inf, dtype=torch.float64)
    # A step too long sees curvature and one too short sees rounding, so the best of several counts per row.
    for step in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        jacobian = central_jacobian(mapped_value(transform, context), x, step * subject.scale)
        found = (log_abs_det(jacobian) - log_det).abs()
        error = torch.fmin(error, found)
    # A row on a kink or bend of a piecewise map has no two-sided derivative: its neighbours judge it.
    return judged(error.quantile(0.9), 1e-5, "log-densities are wrong: the map that runs has another slope.")


def _both_directions(subject: _Subject) -> AuditRow:
    x, context = subject.head(MOST_ROWS)
    transform = subject.double.transform
    with torch.no_grad():
        x, inverse_log_det = transform.inverse(transform(x, context).value, context)
        error = (transform(x, context).log_det + inverse_log_det).abs()
    return judged(error.max(), 1e-9, "densities of samples differ from those of rows.")


def _mass(subject: _Subject) -> AuditRow:
    model, x = subject.double, subject.x
    if model.features > MASS_COLUMNS:
        what = f"not measurable in {model.features} columns; it follows from R1 and R2."
        return AuditRow("", "", "-", f"<= {MASS_COLUMNS} columns", None, what)
    context = None if subject.context is None else subject.context[0]
    if model.features <= 2:
        return _grid_mass(subject, context)
    own = model.sample(4 * MOST_ROWS, context, generator=subject.generator)
    # Kernels around the model's own samples, so that their tails are covered even where the data have none.
    centres = own if context is not None else torch.cat([x, own])
    try:
        proposal = KernelProposal(centres[torch.isfinite(centres).all(dim=-1)], centres=512)
    except DataError as error:
        return AuditRow("", "", "-", "1 within 4 s.e.", None, str(error))
    mass = importance_mass(model, proposal, rows=3 * subject.sample_rows, context=context, generator=subject.generator)
    shown = f"{mass.value:.4f} +- {mass.standard_error:.4f}"
    right = abs(mass.value - 1) <= 4 * mass.standard_error + 1e-6
    if not right:
        return AuditRow("", "", shown, "1 within 4 s.e.", False, "the density does not integrate to one.")
    sharp = mass.standard_error < 0.01
    meaning = "" if sharp else "the standard error is above 1 %, so this says little; R1 and R2 decide."
    return AuditRow("", "", shown, "1 within 4 s.e., s.e. < 1 %", True if sharp else None, meaning)


def _grid_mass(subject: _Subject, context: Tensor | None) -> AuditRow:
    own = subject.double.sample(10 * MOST_ROWS, context, generator=subject.generator)
    cells = 4000 if subject.x.shape[1] == 1 else 200
    coarse, mass = (grid_mass(subject.double, near=own, cells=count, context=context) for count in (cells // 2, cells))
    shown, threshold = f"{mass:.5f}", "1 +- 2e-03"
    if abs(mass - 1) <= 2e-3:
        return AuditRow("", "", shown, threshold, True)
    if abs(mass - coarse) > 2e-4:
        return AuditRow("", "", shown, threshold, None, "too sharp for a grid; R1 and R2 decide.")
    return AuditRow("", "", shown, threshold, False, "the density does not integrate to one.")


def _precision(subject: _Subject) -> AuditRow:
    x = subject.x.to(subject.dtype)
    context = subject.native_context
    with torch.no_grad():
        native = subject.native.log_prob(x, context).double()
        exact = subject.double.log_prob(x.double(), None if context is None else context.double())
    error = (native - exact).abs()
    meaning = "log-densities lose digits in this dtype; centre columns with large offsets, or use float64."
    return excess(error, 1e-4 + 1e-5 * exact.abs(), 1e-4, meaning)


def _causality(subject: _Subject) -> AuditRow:
    x, context = subject.head(4)
    entering = inputs_of(subject.double, lambda: subject.double.log_prob(x, context))
    if not entering:
        return AuditRow("", "", "-", "= 0", None, "the model has no conditional layer.")
    layers = dict(conditionals(subject.double))
    leak = max(forbidden_influence(layers[name].conditioner, *given) for name, given in entering.items())
    meaning = "a column sees itself: the density is not one, whatever the score."
    return AuditRow("", "", f"{leak:.2e}", "= 0 exactly", leak == 0.0, meaning)


def _row_independence(subject: _Subject) -> AuditRow:
    x, context = subject.x, subject.context
    order = torch.randperm(len(x), generator=subject.generator)
    x.requires_grad_()
    together = subject.double.log_prob(x, context)
    (slope,) = torch.autograd.grad(together.sum(), x)
    x.requires_grad_(False)
    with torch.no_grad():
        shuffled = subject.double.log_prob(x[order], None if context is None else context[order])
        alone = [subject.double.log_prob(x[i], None if context is None else context[i]) for i in range(min(8, len(x)))]
    error = torch.empty_like(together).index_copy(0, order, shuffled).sub(together).abs()
    error[: len(alone)] = torch.maximum(error[: len(alone)], (torch.stack(alone) - together[: len(alone)]).abs())
    # Batches of other sizes are summed in another order; a steep density turns an ulp of that into more.
    limit = 1e-12 * (1 + together.abs()) + 8 * (slope.abs() * ulp(x)).sum(dim=-1)
    return excess(error, limit, 1e-12, "a row's score depends on its neighbours in the batch.")


def _poisoned_batch(subject: _Subject) -> AuditRow:
    with torch.no_grad():
        clean = subject.double.log_prob(subject.x, subject.context)
        poisoned = subject.double.log_prob(poison(subject.x, torch.nan), subject.context)
    changed = int((poisoned[1:] != clean[1:]).sum()) + int(not torch.isnan(poisoned[0]))
    return AuditRow("", "", f"{changed} rows changed", "0", changed == 0, "one bad row spoils others of its batch.")


def _sampler(subject: _Subject) -> AuditRow:
    if not isinstance(subject.double.base, FactorisedDensity):
        return AuditRow("", "", "-", "-", None, "the base has no coordinate-wise CDF to test samples with.")
    context = subject.context
    shape = [] if context is None else [len(context)]
    count = -(-subject.sample_rows // (shape[0] if shape else 1))
    with torch.no_grad():
        x = subject.native.sample(count, subject.native_context, generator=subject.generator).double()
        given = None if context is None else context.expand(count, *context.shape)
        u = subject.double.to_uniform(x, given).reshape(-1, x.shape[-1])
    rows = len(u)
    distance, band = float(uniformity(u).statistic.max()), dkw_band(rows, false_alarm=1e-6 / u.shape[1])
    meaning = "samples do not follow the density that the model reports."
    return AuditRow("", "", f"{distance:.4f}", f"<= {band:.4f} ({rows} samples)", distance <= band, meaning)
