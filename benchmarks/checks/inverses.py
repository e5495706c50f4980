"""No family inverts wrongly in silence: far from the data an inverse is right or raises with its rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.checks.common import Check
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import InverseError
from rosenblatt.layers.support import SupportMap
from rosenblatt.testing.model_table import MODELS
from rosenblatt.testing.tables import disturbed, rows_like_data

METHOD = "inverses"
ROWS, TOLERANCE = 500, 1e-3
RADII = (5.0, 9.0, 15.0, 50.0, 1000.0)
ROUGHNESS = (0.0, 0.3)


def checks() -> Iterator[Check]:
    """For every model of the conformance suite, near its start and rough, the rows that pass though they miss."""
    for size in ROUGHNESS:
        for radius in RADII:
            wrong, refused, judged = 0, 0, 0
            for row in MODELS.values():
                flow = disturbed(row.make(row.features), size).double()
                # Noise beyond 37 is nearer to the end of an interval than any other number: there is no way back.
                bounded = row.upper is not None or flow.supports is not None
                if bounded or any(isinstance(module, SupportMap) for module in flow.modules()):
                    continue
                context = rows_like_data(ROWS, row.context, seed=5) if row.context else None
                failed, missed = judge(flow, radius, context)
                wrong, refused, judged = wrong + missed, refused + failed, judged + ROWS
            what = (
                f"weights moved by {size:g} more, noise of radius {radius:g}, {judged:,} rows of all models: wrong in"
            )
            yield Check(METHOD, f"{what} silence ({refused} refused)", "0", wrong, wrong == 0)


def judge(flow: Flow, radius: float, context: torch.Tensor | None) -> tuple[int, int]:
    """Rows that an inverse refused, and rows it answered whose residual is beyond the tolerance."""
    z = rows_like_data(ROWS, flow.features, seed=4)
    z = radius * z / z.norm(dim=-1, keepdim=True)
    refused: list[int] = []
    kept = torch.arange(ROWS)
    with torch.no_grad():
        while len(kept):
            given = None if context is None else context[kept]
            try:
                x = flow.transform.inverse(z[kept], given).value
                break
            except InverseError as error:
                refused.extend(kept[error.rows].tolist())
                kept = torch.tensor([index for index in range(ROWS) if index not in set(refused)], dtype=torch.long)
        if not len(kept):
            return ROWS, 0
        residual = (flow.transform(x, given).value - z[kept]).abs().amax(dim=-1)
    return len(refused), int((~(residual <= TOLERANCE * (1 + radius))).sum())
