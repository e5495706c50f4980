"""Checks of an elementwise map: each takes a row of the table and raises `AssertionError` with numbers.

The R-numbers are those of the library's table of tests. Thresholds are in units that the machine can reach: what
storing a result costs (`slope * ulp`) is allowed on top, for no implementation could do better.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from rosenblatt.core.types import Mapped
from rosenblatt.elementwise.backwards import Backwards
from rosenblatt.elementwise.base import Elementwise, UnitElementwise
from rosenblatt.testing import oracles
from rosenblatt.testing.measures import all_true, at_most, integrate, ulp
from rosenblatt.testing.tables import ElementwiseRow

POINTS = (0.0, 1e-6, -1e-6, 1.0, -1.0, 5.0, -5.0, 20.0, -20.0, 1e3, -1e3)
TARGETS = (0.0, 1e-6, -1e-6, 1.0, -1.0, 5.0, -5.0, 20.0, -20.0)
WILD = 50.0  # size of the raw parameters that a map must survive


def thetas(elementwise: Elementwise, *scales: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Zero, the start, and the start with normal noise of each scale: (2 + len(scales), params)."""
    generator = torch.Generator().manual_seed(3)
    start = elementwise.start().double()
    noise = torch.randn(len(scales), len(start), generator=generator, dtype=torch.float64)
    drawn = start + torch.tensor(scales, dtype=torch.float64).unsqueeze(-1) * noise
    return torch.cat([torch.zeros_like(start).unsqueeze(0), start.unsqueeze(0), drawn]).to(dtype)


def points(row: ElementwiseRow, elementwise: Elementwise, dtype: torch.dtype = torch.float64) -> Tensor:
    """Hard points and normal ones, inside the domain."""
    generator = torch.Generator().manual_seed(4)
    x = torch.cat([torch.tensor(POINTS + row.points).double(), torch.randn(20, generator=generator).double()])
    domain = elementwise.domain
    return x[(x >= domain.lower) & (x <= domain.upper)].to(dtype)


def grid(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Every point with every theta: (thetas, points) and (thetas, points, params)."""
    shape = (theta.shape[0], x.shape[0])
    return x.expand(shape), theta.unsqueeze(1).expand(*shape, theta.shape[-1])


def log_density(row: ElementwiseRow, elementwise: Elementwise, x: Tensor, theta: Tensor) -> Tensor:
    """Log-density of each coordinate behind the family's base."""
    mapped = elementwise(x, theta)
    return row.base(1).log_prob(mapped.value.unsqueeze(-1)) + mapped.log_det  # type: ignore[no-any-return]


def check_round_trip(row: ElementwiseRow) -> None:
    """R1: `f(f^-1(y)) = y` and `f^-1(f(x)) = x`, in float64 and float32."""
    elementwise = row.make()
    for dtype, residual in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        x, theta = grid(points(row, elementwise, dtype), thetas(elementwise, 1.0, 3.0, dtype=dtype))
        _check_inverse(elementwise, elementwise(x, theta).value, theta, residual, x)
        targets = torch.tensor(TARGETS, dtype=dtype).expand(len(theta), -1)
        spread = theta[:, :1].expand(-1, targets.shape[-1], -1)
        low, high = _reach(elementwise, spread, dtype)
        _check_inverse(elementwise, torch.clamp(targets, low, high), spread, residual, None)


def _reach(elementwise: Elementwise, theta: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values at the outermost representable points: beyond them no stored x can answer."""
    domain = elementwise.domain
    ends = torch.tensor([domain.lower, domain.upper], dtype=dtype)
    if domain.bounded:
        low, high = torch.nextafter(ends, ends.flip(0))
    else:  # a map run backwards is searched as far as its family reaches, which is not the range of the dtype
        low, high = ends.clamp(-1e20, 1e20) if isinstance(elementwise, Backwards) else ends.nan_to_num()
    shape = theta.shape[:-1]
    return elementwise(low.expand(shape), theta).value, elementwise(high.expand(shape), theta).value


def _check_inverse(elementwise: Elementwise, y: Tensor, theta: Tensor, residual: float, x: Tensor | None) -> None:
    found = elementwise.inverse(y, theta).value
    again, log_slope = elementwise(found, theta)
    slope = torch.exp(log_slope)
    at_most(again - y, residual * (1 + y.abs()) + 8 * slope * ulp(found), f"R1 residual in {y.dtype}")
    if x is not None:
        eps = torch.finfo(x.dtype).eps
        slope = torch.minimum(slope, torch.exp(elementwise(x, theta).log_det))
        limit = 1e3 * eps * (1 + y.abs()) / slope + 8 * ulp(x)
        at_most(found - x, limit, f"R1 forward error in {x.dtype}")


def check_log_det_by_autodiff(row: ElementwiseRow) -> None:
    """R2: `log_det` is the logarithm of the autodiff slope, to 1e-8."""
    elementwise = row.make()
    x, theta = grid(points(row, elementwise), thetas(elementwise, 1.0, 3.0))
    x = x.clone().requires_grad_()
    value, log_det = elementwise(x, theta)
    (slope,) = torch.autograd.grad(value.sum(), x)
    # Where the slope itself underflows autodiff has nothing to say.
    seen = slope > 1e-250
    at_most((torch.log(slope) - log_det)[seen], 1e-8, "R2 log_det against autodiff")


def check_log_det_by_differences(row: ElementwiseRow) -> None:
    """R2: `log_det` is the slope of the map that runs, by central differences, to 1e-5."""
    elementwise = row.make()
    generator = torch.Generator().manual_seed(5)
    x = 1.5 * torch.randn(50, generator=generator, dtype=torch.float64)
    x, theta = grid(x[x.abs() < 2.9], thetas(elementwise, 1.0))
    log_det = elementwise(x, theta).log_det
    error = torch.full_like(x, torch.inf)
    # Too long a step sees curvature, too short a one rounding: the best of several counts.
    for step in (1e-4, 1e-5, 1e-6, 1e-7):
        above, below = x + step, x - step
        rise = elementwise(above, theta).value - elementwise(below, theta).value
        error = torch.fmin(error, (torch.log(rise / (above - below)) - log_det).abs())
    at_most(error, 1e-5, "R2 log_det against differences")


def check_both_directions(row: ElementwiseRow) -> None:
    """R3: the log-derivatives of both directions cancel to 1e-9."""
    elementwise = row.make()
    x, theta = grid(points(row, elementwise), thetas(elementwise, 1.0, 3.0))
    x, inverse_log_det = elementwise.inverse(elementwise(x, theta).value, theta)
    x = x.detach().requires_grad_()
    log_det = elementwise(x, theta).log_det
    bend = torch.zeros_like(x)
    if log_det.requires_grad:
        (bend,) = torch.autograd.grad(log_det.sum(), x)
    inside = torch.isfinite(log_det)
    at_most((log_det + inverse_log_det)[inside], (1e-9 + 8 * bend.abs() * ulp(x))[inside], "R3 log_dets")


def check_monotone(row: ElementwiseRow) -> None:
    """R4: increasing over 10,000 ordered points, for parameters up to +-50."""
    elementwise = row.make()
    generator = torch.Generator().manual_seed(6)
    wild = WILD * (2 * torch.randint(0, 2, (2, elementwise.spec.size), generator=generator) - 1.0).double()
    wild[1] *= torch.rand(elementwise.spec.size, generator=generator)
    x = torch.cat([torch.linspace(-30, 30, 10_000).double(), torch.tensor(row.points).double()]).unique()
    domain = elementwise.domain
    x = x[(x > domain.lower) & (x < domain.upper)]
    for theta in torch.cat([thetas(elementwise, 1.0, 3.0), wild]):
        value, log_det = elementwise(x, theta.expand(len(x), -1))
        rise, size = value.diff(), 1 + value[1:].abs()
        # A net with flat stretches (slopes like exp(-1000)) rises by less than an ulp there.
        visible = torch.minimum(log_det[1:], log_det[:-1]) + torch.log(x.diff()) > torch.log(1e-11 * size)
        all_true(rise[visible] > 0, "R4 strictly increasing in float64")
        at_most((-rise).clamp(min=0), 1e-11 * size, "R4 never falling in float64")
    single = x.float().unique()
    for theta in thetas(elementwise, 1.0, dtype=torch.float32):
        value = elementwise(single, theta.expand(len(single), -1)).value
        # Sums of logarithms round by some ulp of their terms, whatever the order of the points.
        at_most((-value.diff()).clamp(min=0), 4e-6 * (1 + value[1:].abs()), "R4 never falling in float32")


def check_mass(row: ElementwiseRow) -> None:
    """R5: the density behind the family's base integrates to one, to 1e-6, by Gauss-Legendre cells."""
    elementwise = row.make()
    base = row.base(1)
    theta = thetas(elementwise, 1.0, 3.0)
    # Cells end at quantiles, so that no peak is missed, and at evenly spread points, so that no valley is.
    u = torch.linspace(0, 1, 300, dtype=torch.float64)[1:-1]
    tails = torch.logspace(-16, -3, 40, dtype=torch.float64)
    levels = base.quantile(torch.cat([tails, u, 1 - tails]).sort().values).expand(len(theta), -1)
    edges = elementwise.inverse(levels, theta.unsqueeze(1).expand(*levels.shape, -1)).value
    even = edges[:, :1] + torch.linspace(0, 1, 100, dtype=torch.float64) * (edges[:, -1:] - edges[:, :1])
    # And at hard points: a jump of the density beside an edge would fall between the nodes.
    ends = torch.tensor([elementwise.domain.lower, elementwise.domain.upper, *row.points], dtype=torch.float64)
    outer = ends[torch.isfinite(ends)].expand(len(theta), -1)
    edges = torch.cat([edges, even, outer], dim=-1).sort(dim=-1).values
    row_of = torch.arange(len(theta)).unsqueeze(-1).expand(-1, edges.shape[1] - 1).flatten()

    def density(x: Tensor, row_of: Tensor) -> Tensor:
        return torch.exp(log_density(row, elementwise, x, theta[row_of].unsqueeze(1).expand(*x.shape, -1)))

    mass = integrate(density, row_of, edges[:, :-1].flatten(), edges[:, 1:].flatten(), len(theta))
    at_most(mass - 1, 1e-6, "R5 mass")


def check_start(row: ElementwiseRow) -> None:
    """Rule (a): at `start()` the map is the identity, or F the logistic (or uniform) CDF up to the tolerance."""
    elementwise = row.make()
    x = points(row, elementwise)
    value, log_det = elementwise(x, elementwise.start().double().expand(len(x), -1))
    if row.start_tolerance == 0:
        at_most(value - x, 2 * ulp(x), "start: value is x")
        at_most(log_det, 4e-16, "start: log_det is 0")
        return
    domain = elementwise.domain
    uniform = domain.bounded and isinstance(elementwise, UnitElementwise)
    reference = (x - domain.lower) / (domain.upper - domain.lower) if uniform else torch.sigmoid(x)
    at_most(torch.sigmoid(value) - reference, row.start_tolerance, "start: distance of the CDFs")


def check_support(row: ElementwiseRow) -> None:
    """R6: nothing outside a compact support, and finite numbers up to its ends."""
    elementwise = row.make()
    domain = elementwise.domain
    for dtype in (torch.float64, torch.float32):
        ends = torch.tensor([domain.lower, domain.upper], dtype=dtype)
        away = torch.tensor([-math.inf, math.inf], dtype=dtype)
        infinite, theta = grid(away, thetas(elementwise, 1.0, dtype=dtype))
        if not domain.bounded:
            all_true(~torch.isnan(elementwise(infinite, theta).value), "R6 no NaN at infinities")
            continue
        outer, inner = torch.nextafter(ends, away), torch.nextafter(ends, ends.flip(0))
        value, log_det = elementwise(*grid(torch.cat([outer, away]), theta[:, 0]))
        all_true(value == torch.cat([away, away]), "R6 value outside is infinite")
        all_true(log_det == -math.inf, "R6 log_det outside is -inf")
        closed = elementwise(*grid(torch.cat([ends, inner]), theta[:, 0]))
        all_true(torch.isfinite(closed.value) & torch.isfinite(closed.log_det), "R6 finite up to the ends")
        if isinstance(elementwise, UnitElementwise):
            cdf = elementwise.cdf(*grid(torch.cat([outer, ends, away]), theta[:, 0]))
            all_true(cdf == torch.tensor([0.0, 1, 0, 1, 0, 1], dtype=dtype), "R6 cdf exactly 0 and 1")
            all_true(torch.isfinite(elementwise.log_prob(*grid(inner, theta[:, 0]))), "R6 density inside")
            outside = elementwise.log_prob(*grid(torch.cat([outer, away]), theta[:, 0]))
            all_true(outside == -math.inf, "R6 no density outside")


def check_oracle(row: ElementwiseRow) -> None:
    """R7: value and log-derivative equal the formula in 60-digit arithmetic."""
    elementwise = row.make()
    x = torch.tensor([-1.7, 0.013, 2.4, 6.1], dtype=torch.float64)
    x = x[(x > elementwise.domain.lower) & (x < elementwise.domain.upper)]
    x, theta = grid(x, thetas(elementwise, 1.0))
    value, log_det = elementwise(x, theta)
    truth = [
        [oracles.exact(row.oracle, elementwise, float(a), t) for a in xs] for xs, t in zip(x, theta[:, 0], strict=True)
    ]
    exact = torch.tensor(truth, dtype=torch.float64)
    at_most(value - exact[..., 0], row.oracle_tolerance * (1 + value.abs()), "R7 value")
    at_most(log_det - exact[..., 1], row.oracle_tolerance * (1 + log_det.abs()), "R7 log_det")


def check_float32(row: ElementwiseRow) -> None:
    """R8: float32 log-densities are those of float64 to 1e-4 + 1e-5 |log p|, and to 1e-5 in the tails to 1e4."""
    elementwise = row.make()
    generator = torch.Generator().manual_seed(7)
    data = torch.randn(500, generator=generator)
    data = data[(data > elementwise.domain.lower) & (data < elementwise.domain.upper)]
    far = torch.tensor([s * 10.0**k for k in (1, 2, 3, 4) for s in (-1, 1)])
    far = far[(far > elementwise.domain.lower) & (far < elementwise.domain.upper)]
    theta = thetas(elementwise, 1.0, dtype=torch.float32)
    for region, absolute, relative in ((data, 1e-4, 1e-5), (far, 1e-5, 1e-5)):
        x, spread = grid(region, theta)
        narrow = log_density(row, elementwise, x, spread).double()
        wide = log_density(row, elementwise, x.double(), spread.double())
        at_most(narrow - wide, absolute + relative * wide.abs(), "R8 float32 log-density")


def check_gradients(row: ElementwiseRow) -> None:
    """R9: gradients of both directions in x, y and theta, and second derivatives of the inverse."""
    elementwise = row.make()
    generator = torch.Generator().manual_seed(8)
    x = torch.tensor([-1.31, 0.27, 2.13], dtype=torch.float64).requires_grad_()
    start = elementwise.start().double()
    theta = start + 0.5 * torch.randn(3, len(start), generator=generator, dtype=torch.float64)
    y = elementwise(x, theta).value.detach().requires_grad_()
    theta.requires_grad_()

    def forward(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(elementwise(x, theta))

    def inverse(y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(elementwise.inverse(y, theta))  # type: ignore[return-value]

    gradcheck(forward, (x, theta), eps=1e-6, atol=1e-5, fast_mode=True)
    gradcheck(inverse, (y, theta), eps=1e-6, atol=1e-5, fast_mode=True)
    gradgradcheck(lambda y, theta: elementwise.inverse(y, theta).value, (y, theta), atol=1e-4, fast_mode=True)
    _check_implicit_gradient(elementwise, x, y, theta)


def _check_implicit_gradient(elementwise: Elementwise, x: Tensor, y: Tensor, theta: Tensor) -> None:
    value, log_det = elementwise(x, theta)
    weight = torch.exp(-log_det.detach())
    (expected,) = torch.autograd.grad((-weight * value).sum(), theta)
    solved = elementwise.inverse(y, theta).value
    found_y, found_theta = torch.autograd.grad(solved.sum(), (y, theta))
    at_most(found_y - weight, 1e-6 * weight, "R9 inverse gradient in y")
    at_most(found_theta - expected, 1e-6 * (1e-3 + expected.abs()), "R9 inverse gradient in theta")


def check_finite_gradients(row: ElementwiseRow) -> None:
    """R10: no NaN or infinite gradient in float32, at knots and ends, far outside, and for parameters of +-50."""
    elementwise = row.make()
    generator = torch.Generator().manual_seed(9)
    signs = 2.0 * torch.randint(0, 2, (2, elementwise.spec.size), generator=generator) - 1
    theta = torch.cat([thetas(elementwise, 1.0, 3.0, dtype=torch.float32), WILD * signs])
    domain = elementwise.domain
    ends = tuple(end for end in (domain.lower, domain.upper) if math.isfinite(end))
    outside = torch.tensor([*POINTS, *row.points, *ends, 1e4, -1e4, 1e10, -1e10], dtype=torch.float32)
    x, theta = (part.clone().requires_grad_() for part in grid(outside, theta))
    value, log_det = elementwise(x, theta)
    total = torch.where(torch.isfinite(value), value, 0.0) + torch.where(torch.isfinite(log_det), log_det, 0.0)
    for name, grad in zip(("x", "theta"), torch.autograd.grad(total.sum(), (x, theta)), strict=True):
        all_true(torch.isfinite(grad), f"R10 finite gradient in {name}")


def check_broadcasting(row: ElementwiseRow) -> None:
    """R12: shapes of x against as many or fewer axes of theta equal a loop."""
    elementwise = row.make()
    generator = torch.Generator().manual_seed(10)
    size = elementwise.spec.size
    start = elementwise.start().double()
    shapes = (((), ()), ((1,), ()), ((3,), (3,)), ((3,), ()), ((2, 3), (3,)), ((2, 3), (2, 1)), ((0,), ()))
    for x_shape, theta_shape in shapes:
        x = torch.randn(x_shape, generator=generator, dtype=torch.float64)
        x = x.clamp(elementwise.domain.lower, elementwise.domain.upper)
        theta = start + torch.randn(*theta_shape, size, generator=generator, dtype=torch.float64)
        whole = elementwise(x, theta)
        shape = torch.broadcast_shapes(x_shape, theta_shape)
        if whole.value.shape != shape or whole.log_det.shape != shape:
            raise AssertionError(f"R12 shapes: {whole.value.shape}, {whole.log_det.shape} instead of {shape}.")
        flat_x, flat_theta = x.expand(shape).reshape(-1), theta.expand(*shape, size).reshape(-1, size)
        if len(flat_x) == 0:
            continue
        single = [elementwise(a, t) for a, t in zip(flat_x, flat_theta, strict=True)]
        for name, parts in (("value", [s.value for s in single]), ("log_det", [s.log_det for s in single])):
            at_most(getattr(whole, name).reshape(-1) - torch.stack(parts), 1e-12, f"R12 {name} against a loop")
        back = elementwise.inverse(whole.value, theta).value
        at_most(back - x, 1e-9, "R12 inverse")


def check_row_independence(row: ElementwiseRow) -> None:
    """R13: a NaN or infinite row leaves the others bit-identical, in both directions, and is not made a number."""
    elementwise = row.make()
    x, theta = grid(points(row, elementwise), thetas(elementwise, 1.0))
    x, theta = x.reshape(-1), theta.reshape(-1, theta.shape[-1])
    clean = elementwise(x, theta)
    keep = clean.value.abs() < 30
    x, theta = x[keep], theta[keep]
    clean = elementwise(x, theta)
    for call, at, expected in (
        (elementwise, x, clean),
        (elementwise.inverse, clean.value, elementwise.inverse(clean.value, theta)),
    ):
        spoiled = at.clone()
        spoiled[0] = torch.nan
        poisoned: Mapped = call(spoiled, theta)
        all_true(poisoned.value[1:] == expected.value[1:], "R13 values beside a NaN")
        all_true(poisoned.log_det[1:] == expected.log_det[1:], "R13 log_dets beside a NaN")
        all_true(torch.isnan(poisoned.value[0]), "R13 NaN stays NaN")
        bad_theta = theta.clone()
        bad_theta[0, 0] = torch.nan
        poisoned = call(at, bad_theta)
        all_true(poisoned.value[1:] == expected.value[1:], "R13 values beside a NaN parameter")


def check_dtype(row: ElementwiseRow) -> None:
    """R15: dtype out is dtype in, and the map runs on the meta device."""
    elementwise = row.make()
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(4, dtype=dtype)
        theta = elementwise.start().to(dtype).expand(4, -1)
        for mapped in (elementwise(x, theta), elementwise.inverse(x, theta)):
            if mapped.value.dtype != dtype or mapped.log_det.dtype != dtype:
                raise AssertionError(f"R15: {dtype} in, {mapped.value.dtype} and {mapped.log_det.dtype} out.")
    shape = elementwise(torch.zeros(4, device="meta"), torch.zeros(4, elementwise.spec.size, device="meta"))
    if shape.value.shape != (4,):
        raise AssertionError(f"R15: meta tensors of shape {tuple(shape.value.shape)} instead of (4,).")


ElementwiseCheck = Callable[[ElementwiseRow], None]

ELEMENTWISE_CHECKS: tuple[ElementwiseCheck, ...] = (
    check_round_trip,
    check_log_det_by_autodiff,
    check_log_det_by_differences,
    check_both_directions,
    check_monotone,
    check_mass,
    check_start,
    check_support,
    check_oracle,
    check_float32,
    check_gradients,
    check_finite_gradients,
    check_broadcasting,
    check_row_independence,
    check_dtype,
)
