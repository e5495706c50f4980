"""S5: the exactness of exact-Lipschitz networks and what they learn."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.checks.common import CHECKERBOARD, TEST_ROWS, Check, fresh_rows, gap, test_nats, trained
from rosenblatt.core.density import Density
from rosenblatt.elementwise.elf import ExactLipschitz, relu_constant
from rosenblatt.models.elf import elf
from rosenblatt.testing.tables import disturbed, seeded

METHOD = "S5 ELF"
NETS, UNITS = 1000, 64


def checks() -> Iterator[Check]:
    """(a) to (e) of the specification."""
    yield from constant()
    yield from exactness()
    parabola = trained(lambda: elf(2, transforms=4, hidden=64), fresh_rows("parabola", 2500), steps=2500)
    found = gap(parabola, "parabola")
    yield Check(METHOD, "(d) parabola, 4 layers: gap, nats", "< 0.02", found, found < 0.02)
    board = trained(lambda: elf(2, transforms=6, hidden=64), fresh_rows("checkerboard", 2500), steps=2500)
    found = test_nats(board, CHECKERBOARD.sample(TEST_ROWS, torch.Generator().manual_seed(1)))
    yield Check(
        METHOD, "(d) checkerboard, 6 layers, nats (exact 3.4657)", "3.4557 to 3.62", found, 3.4557 < found < 3.62
    )
    found = mass(parabola)
    yield Check(METHOD, "(e) mass of the parabola's model on a grid", "1 +- 0.01", found, abs(found - 1) < 0.01)


def constant() -> Iterator[Check]:
    """The closed constant against the steepest slope on grids, the second one around the first one's best point."""
    draw = torch.Generator().manual_seed(0)
    inner, offset, outer = (torch.randn(NETS, UNITS, generator=draw, dtype=torch.float64) for _ in range(3))
    exact = relu_constant(inner, offset, outer)
    grid = torch.linspace(-50, 50, 4001, dtype=torch.float64).expand(NETS, -1)
    steepest, where = slopes(inner, offset, outer, grid)
    excess = (steepest - exact).max().item()
    yield Check(METHOD, "(a) 1000 random ReLU nets: grid slope over the constant", "<= 1e-12", excess, excess <= 1e-12)
    # The steepest piece may be narrower than the grid: look right after every breakpoint too.
    breaks = -offset / inner
    after = torch.cat([breaks - 1e-9, breaks + 1e-9, where.unsqueeze(-1)], dim=-1)
    refined = torch.maximum(steepest, slopes(inner, offset, outer, after)[0])
    lack = (1 - refined / exact).max().item()
    yield Check(METHOD, "(a) the constant over the refined grid, relative", "<= 0.01", lack, -1e-12 <= lack <= 0.01)
    product = inner.norm(dim=-1) * outer.norm(dim=-1)
    ratio = (product / exact).median().item()
    yield Check(METHOD, "product of norms over the constant, median", "several times", ratio, ratio > 3)


def slopes(inner: Tensor, offset: Tensor, outer: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Largest |slope| of each net over its points, and where it is found."""
    best = torch.zeros(len(x), dtype=x.dtype)
    where = torch.zeros_like(best)
    for part in x.split(500, dim=-1):
        on = (inner.unsqueeze(1) * part.unsqueeze(-1) + offset.unsqueeze(1) > 0).to(x.dtype)
        size = (on * (inner * outer).unsqueeze(1)).sum(dim=-1).abs()
        top = size.max(dim=-1)
        where = torch.where(top.values > best, part.gather(-1, top.indices.unsqueeze(-1)).squeeze(-1), where)
        best = torch.maximum(best, top.values)
    return best, where


def exactness() -> Iterator[Check]:
    """Log-determinant against autodiff, the root search, and the fixed point that the paper iterates."""
    model = disturbed(seeded(lambda: elf(3, transforms=2, units=16, hidden=32)), 0.3).double()
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, generator=draw, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: model.transform(row).value))(x)
    error = (torch.linalg.slogdet(jacobian).logabsdet - model.transform(x).log_det).abs().max().item()
    yield Check(METHOD, "(b) log-determinant against autodiff, float64", "< 1e-6", error, error < 1e-6)
    with torch.no_grad():
        error = (model.transform.inverse(model.transform(x).value).value - x).abs().max().item()
    yield Check(METHOD, "(c) inverse by the root search", "< 1e-4", error, error < 1e-4)
    net = ExactLipschitz(UNITS, lipschitz=0.97)
    theta = torch.randn(1000, net.spec.size, generator=draw, dtype=torch.float64)
    x = torch.randn(1000, generator=draw, dtype=torch.float64)
    y = net(x, theta).value
    guess = y
    for _ in range(100):
        guess = guess + y - net(guess, theta).value
    error = (guess - x).abs().max().item()
    yield Check(METHOD, "(c) inverse by 100 fixed-point steps, c = 0.97", "< 1e-4", error, error < 1e-4)


def mass(model: Density) -> float:
    """Integral over a box that holds all but a millionth of the parabola."""
    x1 = torch.linspace(-8, 40, 1201, dtype=torch.float64)
    x2 = torch.linspace(-12, 12, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(x1, x2)
    cell = (x1[1] - x1[0]) * (x2[1] - x2[0])
    with torch.no_grad():
        return float(sum(model.log_prob(part).exp().sum() for part in grid.split(50_000)) * cell)
