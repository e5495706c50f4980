"""Float32 against float64: log-densities of every exact model on data rows, and far out where a model claims it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.checks.common import Check
from rosenblatt.testing.model_table import MODELS
from rosenblatt.testing.tables import ModelRow, rows_like_data

METHOD = "float32"
ROWS = 2000
RADII = (10.0, 100.0, 1e3, 1e4)


def checks() -> Iterator[Check]:
    """The largest error of all models, in units of what is allowed: 1e-4 + 1e-5 |log p|."""
    errors = {row.name: error(row, 0.0) for row in MODELS.values()}
    worst = max(errors, key=errors.__getitem__)
    what = f"data rows, {len(errors)} models: largest error over 1e-4 + 1e-5 |log p| ({worst})"
    yield Check(METHOD, what, "<= 1", errors[worst], errors[worst] <= 1)
    for radius in RADII:
        errors = {row.name: error(row, radius) for row in MODELS.values() if row.far}
        worst = max(errors, key=errors.__getitem__)
        what = f"rows of size {radius:g}, the {len(errors)} models that claim them: the same ({worst})"
        yield Check(METHOD, what, "<= 1", errors[worst], errors[worst] <= 1)


def error(row: ModelRow, radius: float) -> float:
    """Largest error of one model, on data rows (radius 0) or on rows whose largest number is the radius."""
    flow = row.make(row.features)
    x = rows_like_data(ROWS, row.features, seed=8)
    if radius:
        x = radius * x / x.abs().amax(dim=-1, keepdim=True)
    context = rows_like_data(ROWS, row.context, seed=9).float() if row.context else None
    with torch.no_grad():
        narrow = flow.log_prob(x.float(), context).double()
        wide = flow.double().log_prob(x.float().double(), None if context is None else context.double())
    apart = torch.where(narrow == wide, 0.0, (narrow - wide).abs())  # both -inf outside a support
    return (apart / (1e-4 + 1e-5 * wide.abs().nan_to_num(posinf=0.0))).max().item()
