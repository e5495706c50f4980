"""Why the probabilities of a trained model of whole numbers can be believed: checks on the user's model and rows."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.density import fresh_generator
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.calibration import dkw_band, uniformity
from rosenblatt.eval.levels import pit_per_number
from rosenblatt.layers.discretised import Discretised
from rosenblatt.testing.measures import influence_at_levels, poison
from rosenblatt.testing.report import AuditReport, AuditRow, excess, judged, run_checks

MOST_ROWS = 64
NUMBERS = 1 << 16  # of all rows that are looked at
MASSES = 1 << 17  # of all levels of the numbers whose masses are added up
LEVELS_AT_ONCE = 16  # copies of a row, one for each level whose influences are looked at
FEWEST_SAMPLES, LEAST_SAMPLED_NUMBERS, MOST_SAMPLED_NUMBERS = 16, 20_000, 1 << 20
FALSE_ALARM = 1e-6


class _Subject(NamedTuple):
    """What is audited: the model as it is, a float64 copy of it, and rows of levels."""

    native: Discretised
    double: Discretised
    x: Tensor  # float64
    context: Tensor | None  # float64
    generator: torch.Generator
    seconds: float  # that a check may take

    @property
    def dtype(self) -> torch.dtype:
        return next(self.native.parameters()).dtype

    def given(self, rows: int | None = None, dtype: torch.dtype = torch.float64) -> Tensor | None:
        return None if self.context is None else self.context[:rows].to(dtype)


def audit_levels(
    model: Discretised,
    data: Tensor,
    *,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    seconds: float = 60.0,
) -> AuditReport:
    """Check a trained model of whole numbers on rows it will be used for; the model itself is left as it is.

    The masses of all levels of a number add up to one, and those of a row's numbers are its probability (R5); float32
    agrees with float64 (R8); no number influences itself or those before it, in use and in training (R11): with R5,
    the probabilities of all rows add up to one. Rows do not see each other (R13); samples follow the probabilities
    (R16): the randomised PIT of their numbers is uniform, within the bands of Dvoretzky, Kiefer & Wolfowitz at a false
    alarm of 1e-6; completions keep what is known. `data` is (rows, features) of whole numbers, `context` (rows,
    context). Of large models it looks at some levels and samples, as many as `seconds` allow, and says how many.
    Raises `DataError` unless two rows are levels with finite log-probabilities.

    >>> from rosenblatt.core.registry import build
    >>> import rosenblatt.models
    >>> model = build("pixelcnn_mol", 4, options={"image": [1, 2, 2], "levels": 4, "filters": 4}, seed=0)
    >>> x = torch.randint(4, (50, 4), generator=torch.Generator().manual_seed(0))
    >>> audit_levels(model, x, generator=torch.Generator().manual_seed(0), seconds=5).passed
    True
    """
    if not isinstance(model, Discretised):
        raise OptionError(f"model: {type(model).__name__} came, a model of whole numbers (Discretised) was expected.")
    subject = _prepare(model, data, context, generator or fresh_generator(), seconds)
    checks: list[tuple[str, str, Callable[[_Subject], AuditRow]]] = [
        ("R5", "masses of all levels, float64", lambda subject: _masses(subject, subject.double, 1e-9)),
        ("R5", "masses of all levels, as scored", lambda subject: _masses(subject, subject.native, 1e-4)),
        ("R5", "log-probability against masses of levels", _sum_of_masses),
        ("R8", "log-probability as scored against float64", _precision),
        ("R11", "influence against the order, in use", lambda subject: _causality(subject, training=False)),
        ("R11", "influence against the order, in training", lambda subject: _causality(subject, training=True)),
        ("R13", "a row alone against a row in a batch", _row_independence),
        ("R13", "rows beside a NaN row", _poisoned_batch),
        ("R16", "log-probability of own samples", _own_samples),
        ("R16", "own samples against own CDF", _sampler),
        ("R16", "completion of known numbers", _completion),
    ]
    return run_checks(checks, subject)


def _prepare(
    model: Discretised, data: Tensor, context: Tensor | None, generator: torch.Generator, seconds: float
) -> _Subject:
    native = copy.deepcopy(model).eval().requires_grad_(False).cpu()
    double = copy.deepcopy(native).double()
    x = data.detach().cpu().double()
    given = None if context is None else context.detach().cpu().double()
    double.check(x, given)
    rows = max(2, min(MOST_ROWS, NUMBERS // double.features))
    order = torch.randperm(len(x), generator=generator)[: 4 * rows]
    x, given = x[order], None if given is None else given[order]
    with torch.no_grad():
        usable = torch.isfinite(double.log_prob(x, given))
    if int(usable.sum()) < 2:
        raise DataError(
            f"data: {int(usable.sum())} of {len(order)} rows are whole numbers from 0 to {double.levels - 1} with a "
            "finite log-probability, at least 2 were expected."
        )
    given = None if given is None else given[usable][:rows]
    return _Subject(native, double, x[usable][:rows], given, generator, seconds / 8)


def _some_masses(subject: _Subject, model: Discretised) -> tuple[Tensor, Tensor, Tensor]:
    """Log-masses (n, levels) of n numbers of the first rows, and which they are: rows and columns, (n,)."""
    rows = min(8, len(subject.x))
    count = max(1, min(rows * model.features, MASSES // model.levels))
    place = torch.randperm(rows * model.features, generator=torch.Generator().manual_seed(0))[:count]
    dtype = next(model.parameters()).dtype
    counts = subject.x[:rows].to(dtype)
    with torch.no_grad():
        theta = model.layer.conditioner(model.place(counts), subject.given(rows, dtype))
        log_masses = model.log_masses(theta.flatten(0, 1)[place])
    return log_masses.double(), place // model.features, place % model.features


def _masses(subject: _Subject, model: Discretised, limit: float) -> AuditRow:
    log_masses, _, _ = _some_masses(subject, model)
    error = (log_masses.exp().sum(dim=1) - 1).abs().max()
    row = judged(error, limit, "the probabilities of the levels of a number do not add up to one.")
    return row._replace(threshold=f"{row.threshold} ({len(log_masses):,} numbers)")


def _sum_of_masses(subject: _Subject) -> AuditRow:
    log_masses, rows, columns = _some_masses(subject, subject.double)
    context = subject.given()
    with torch.no_grad():
        numbers = subject.double.log_prob_by_number(subject.x, context)
        whole = subject.double.log_prob(subject.x, context)
    own = log_masses.gather(1, subject.x[rows, columns].long().unsqueeze(1)).squeeze(1)
    error = ((own - numbers[rows, columns]).abs() / (1 + own.abs())).max()
    error = torch.maximum(error, ((numbers.sum(dim=1) - whole).abs() / (1 + whole.abs())).max())
    return judged(error, 1e-9, "log_prob is not the logarithm of the masses of the levels.")


def _precision(subject: _Subject) -> AuditRow:
    with torch.no_grad():
        native = subject.native.log_prob(subject.x.to(subject.dtype), subject.given(dtype=subject.dtype)).double()
        exact = subject.double.log_prob(subject.x, subject.given())
    meaning = "log-probabilities lose digits in this dtype; score in float64."
    return excess((native - exact).abs(), 1e-4 + 1e-5 * exact.abs(), 1e-4, meaning)


def _causality(subject: _Subject, *, training: bool) -> AuditRow:
    model = copy.deepcopy(subject.double).train(training)
    conditioner, total = model.layer.conditioner, len(model.layer.conditioner.sizes)
    # The last level first, for it is what the most may influence; then at random, while there is time.
    order = torch.randperm(total - 1, generator=torch.Generator().manual_seed(0)).tolist()
    order = [total - 1, *order]
    context, deadline, leak, seen = subject.given(1), time.perf_counter() + subject.seconds, 0.0, 0
    with torch.random.fork_rng(devices=[]):  # dropout
        while seen < total and (seen == 0 or time.perf_counter() < deadline):
            levels = order[seen : seen + LEVELS_AT_ONCE]
            leak = max(leak, influence_at_levels(conditioner, model.place(subject.x[0]), levels, context))
            seen += len(levels)
    meaning = "a number sees itself or a later one: the probabilities are none, whatever the score."
    return AuditRow("", "", f"{leak:.2e}", f"= 0 exactly ({seen:,} of {total:,} levels)", leak == 0.0, meaning)


def _row_independence(subject: _Subject) -> AuditRow:
    x, context, model = subject.x, subject.given(), subject.double
    order = torch.randperm(len(x), generator=subject.generator)
    with torch.no_grad():
        together = model.log_prob(x, context)
        shuffled = torch.empty_like(together).index_copy(
            0, order, model.log_prob(x[order], None if context is None else context[order])
        )
        alone = [model.log_prob(x[i], None if context is None else context[i]) for i in range(min(8, len(x)))]
    error = (shuffled - together).abs()
    error[: len(alone)] = torch.maximum(error[: len(alone)], (torch.stack(alone) - together[: len(alone)]).abs())
    # Batches of other sizes are summed in another order.
    return excess(error, 1e-10 * (1 + together.abs()), 1e-10, "a row's score depends on its neighbours in the batch.")


def _poisoned_batch(subject: _Subject) -> AuditRow:
    with torch.no_grad():
        clean = subject.double.log_prob(subject.x, subject.given())
        poisoned = subject.double.log_prob(poison(subject.x, torch.nan), subject.given())
    changed = int((poisoned[1:] != clean[1:]).sum()) + int(not torch.isnan(poisoned[0]))
    return AuditRow("", "", f"{changed} rows changed", "0", changed == 0, "one bad row spoils others of its batch.")


def _own_samples(subject: _Subject) -> AuditRow:
    context = subject.given(1)
    given = None if context is None else context[0]
    x, log_prob = subject.double.sample_and_log_prob(4, given, generator=subject.generator)
    with torch.no_grad():
        again = subject.double.log_prob(x, None if given is None else given.expand(len(x), -1))
    error = (again - log_prob.detach()).abs() / (1 + again.abs())
    return judged(error.max(), 1e-9, "samples come with other log-probabilities than rows have.")


def _sampler(subject: _Subject) -> AuditRow:
    context, model = subject.given(1, subject.dtype), subject.native
    given, features = None if context is None else context[0], subject.double.features
    least = max(FEWEST_SAMPLES, -(-LEAST_SAMPLED_NUMBERS // features))
    started, parts = time.perf_counter(), [model.sample(least, given, generator=subject.generator)]
    pace = least / max(time.perf_counter() - started, 1e-3)  # a pass over more rows takes less for each
    more = min(MOST_SAMPLED_NUMBERS // features, int(pace * subject.seconds)) - least
    if more > 0:
        parts.append(model.sample(more, given, generator=subject.generator))
    x = torch.cat(parts).double()
    full = None if subject.context is None else subject.context[:1].expand(len(x), -1)
    u = pit_per_number(subject.double, x, full, generator=subject.generator)
    # All numbers together, which finds what is off a little everywhere, and each by itself: half the false alarm each.
    ratios = []
    for columns in (u.reshape(-1, 1), u):
        band = dkw_band(len(columns), false_alarm=FALSE_ALARM / 2 / columns.shape[1])
        ratios.append((float(uniformity(columns).statistic.max()), band))
    distance, band = max(ratios, key=lambda pair: pair[0] / pair[1])
    passed = all(found <= limit for found, limit in ratios)
    meaning = "samples do not follow the probabilities that the model reports."
    return AuditRow("", "", f"{distance:.4f}", f"<= {band:.4f} ({len(x):,} samples)", passed, meaning)


def _completion(subject: _Subject) -> AuditRow:
    model, rows = subject.double, min(4, len(subject.x))
    known, order = model.features // 2, model.layer.conditioner.order
    x, context = subject.x[:rows], subject.given(rows)
    whole, log_prob = model.complete(x, known, context, generator=subject.generator)
    changed = int((whole[:, order[:known]] != x[:, order[:known]]).sum())
    with torch.no_grad():
        later = model.log_prob_by_number(whole, context)[:, order[known:]].sum(dim=1)
    error = float(((later - log_prob).abs() / (1 + later.abs())).max())
    meaning = "completed rows are not draws given what is known."
    shown = f"{error:.2e}, {changed} changed"
    return AuditRow("", "", shown, "<= 1e-09, 0 changed", changed == 0 and error <= 1e-9, meaning)
