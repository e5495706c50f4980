"""S4: neural spline flows on the checkerboard and, in the wrong order, on the parabola."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.checks.common import CHECKERBOARD, TEST_ROWS, Check, fresh_rows, gap, test_nats, trained
from rosenblatt.bases import StandardNormal
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.density import Flow
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.layers.conditional import Conditional
from rosenblatt.models.nsf import nsf
from rosenblatt.models.realnvp import realnvp

METHOD = "S4 NSF"
STEPS = 2000


def checks() -> Iterator[Check]:
    """Unit facts, the checkerboard, one layer in the wrong order."""
    yield from unit_facts()
    yield from checkerboard()
    spline = RationalQuadraticSpline(16, 4.5)
    model = trained(
        lambda: Flow(Conditional(spline, Masked(2, spline.spec.size, hidden=64)), StandardNormal(2)),
        fresh_rows("parabola", 2500),
        steps=2500,
    )
    found = gap(model, "parabola")
    yield Check(
        METHOD, "parabola, one spline layer in the wrong order: gap, nats", "< 0.1 (affine: 0.34)", found, found < 0.1
    )


def unit_facts() -> Iterator[Check]:
    """Round trips, the count of parameters, and the join with the identity."""
    spline = RationalQuadraticSpline(8, 3.0)
    count = spline.spec.size
    yield Check(METHOD, "numbers a coordinate at K = 8", "3K - 1 = 23", count, count == 23)
    draw = torch.Generator().manual_seed(0)
    theta = 2 * torch.randn(10_000, count, generator=draw, dtype=torch.float64)
    x = 8 * torch.rand(10_000, generator=draw, dtype=torch.float64) - 4
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        points, weights = x.to(dtype), theta.to(dtype)
        y = spline(points, weights).value
        residual = (spline(spline.inverse(y, weights).value, weights).value - y).abs().max().item()
        what = f"largest residual of the inverse, weights 2 N(0, 1), {str(dtype)[6:]}"
        yield Check(METHOD, what, f"< {limit:g}", residual, residual < limit)
    edges = torch.tensor([-3.0, 3.0], dtype=torch.float64).repeat_interleave(5000)
    mapped = spline(edges, theta)
    error = max((mapped.value - edges).abs().max().item(), mapped.log_det.abs().max().item())
    yield Check(METHOD, "value and log-slope at the ends against the identity", "< 1e-10", error, error < 1e-10)


def checkerboard() -> Iterator[Check]:
    """Spline couplings against twice as many affine ones."""
    rows = fresh_rows("checkerboard", STEPS)
    test = CHECKERBOARD.sample(TEST_ROWS, torch.Generator().manual_seed(1))
    affine = test_nats(trained(lambda: realnvp(2, transforms=8, hidden=64), rows, steps=STEPS, standardise=False), test)
    spline = test_nats(
        trained(
            lambda: nsf(2, coupling=True, transforms=4, bins=16, bound=4.5, hidden=64),
            rows,
            steps=STEPS,
            standardise=False,
        ),
        test,
    )
    yield Check(
        METHOD,
        "checkerboard, 4 spline couplings, nats (exact 3.4657)",
        "3.4557 to 3.53",
        spline,
        3.4557 < spline < 3.53,
    )
    yield Check(
        METHOD,
        "checkerboard, 8 affine couplings, nats",
        "at least 0.05 above the splines",
        affine,
        affine >= spline + 0.05,
    )
