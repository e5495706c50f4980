"""Checks of elementwise maps that are CDFs: quantiles, interval probabilities and derivatives of the CDF (R7, R17)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from rosenblatt.elementwise.base import UnitElementwise
from rosenblatt.testing import oracles
from rosenblatt.testing.checks_elementwise import grid, points, thetas
from rosenblatt.testing.measures import all_true, at_most, ulp
from rosenblatt.testing.tables import ElementwiseRow


def is_cdf(row: ElementwiseRow) -> bool:
    """Whether these checks apply to a row."""
    return isinstance(row.make(), UnitElementwise)


def _made(row: ElementwiseRow) -> UnitElementwise:
    elementwise = row.make()
    if not isinstance(elementwise, UnitElementwise):
        raise TypeError(f"{row.name}: a family of CDFs was expected; select rows with is_cdf.")
    return elementwise


def check_density_is_derivative(row: ElementwiseRow) -> None:
    """R7: exp(log_prob) is d cdf / dx to 1e-9 relative, and log_cdf, log_sf are the logs of cdf and 1 - cdf."""
    elementwise = _made(row)
    x, theta = grid(points(row, elementwise), thetas(elementwise, 1.0, 3.0))
    x = x.clone().requires_grad_()
    lower = elementwise.cdf(x, theta)
    (density,) = torch.autograd.grad(lower.sum(), x)
    log_prob = elementwise.log_prob(x, theta)
    # d cdf/dx is autodiff's s'(logit), which underflows with the CDF itself in the far left tail.
    seen = (lower > 1e-290) & (lower < 1 - 1e-6)
    at_most((density / torch.exp(log_prob) - 1)[seen], 1e-9, "R7 density against d cdf/dx")
    at_most((torch.exp(elementwise.log_cdf(x, theta)) - lower)[seen], 1e-12, "R7 log_cdf")
    at_most(torch.exp(elementwise.log_sf(x, theta)) - (1 - lower), 1e-12, "R7 log_sf")


def check_quantile(row: ElementwiseRow) -> None:
    """R7: `cdf(quantile(u)) = u` to 1e-12 (float64) or 1e-6 + 4 ulp(x) density (float32), steep maps included."""
    elementwise = _made(row)
    generator = torch.Generator().manual_seed(11)
    u = torch.cat([torch.rand(300, generator=generator).double(), torch.tensor([1e-6, 1e-3, 0.5, 0.999]).double()])
    for dtype, residual in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        levels, theta = grid(u.to(dtype), thetas(elementwise, 1.0, 3.0, dtype=dtype))
        x = elementwise.quantile(levels, theta)
        density = torch.exp(elementwise.log_prob(x.double(), theta.double()))
        again = elementwise.cdf(x, theta)
        at_most(again - levels, residual + 4 * ulp(x).double() * density, f"R7 quantile in {dtype}")
    ends = torch.tensor([0.0, 1.0, -0.1, 1.1], dtype=torch.float64)
    x = elementwise.quantile(ends, elementwise.start().double().expand(4, -1))
    all_true(x[:2] == torch.tensor([elementwise.domain.lower, elementwise.domain.upper]).double(), "R7 ends")
    all_true(torch.isnan(x[2:]), "R7 quantile outside [0, 1] is NaN")


def check_quantile_of_cdf(row: ElementwiseRow) -> None:
    """R7: `cdf(quantile(cdf(x))) = cdf(x)`, to 1e-12 in float64."""
    elementwise = _made(row)
    x, theta = grid(points(row, elementwise), thetas(elementwise, 1.0, 3.0))
    u = elementwise.cdf(x, theta)
    found = elementwise.quantile(u, theta)
    inside = (u > 0) & (u < 1)
    density = torch.exp(elementwise.log_prob(found, theta))
    error = elementwise.cdf(found, theta) - u
    at_most(error[inside], (1e-12 + 4 * ulp(found) * density)[inside], "R7 residual in u")


def check_intervals(row: ElementwiseRow) -> None:
    """R17: 256 bins, and 12-bit bins, have probabilities that sum to one within 1e-6 and are never NaN."""
    elementwise = _made(row)
    for bins in (256, 4096):
        for dtype in (torch.float64, torch.float32):
            theta = thetas(elementwise, 1.0, 3.0, dtype=dtype)[-2:]
            edges = torch.linspace(-4, 4, bins + 1, dtype=dtype)
            edges[0], edges[-1] = -math.inf, math.inf
            lower, spread = grid(edges[:-1], theta)
            upper = edges[1:].expand_as(lower)
            log_mass = elementwise.log_interval(lower, upper, spread)
            all_true(~torch.isnan(log_mass) & (log_mass <= 1e-5), f"R17 {bins} bins in {dtype}")
            total = torch.exp(log_mass.double()).sum(dim=-1)
            allowed = 1e-6 if dtype == torch.float64 else 2e-5  # 4096 roundings of 1e-7 in the logarithms
            at_most(total - 1, allowed, f"R17 sum over {bins} bins in {dtype}")


def check_interval_edges(row: ElementwiseRow) -> None:
    """R17: empty intervals have probability 0, reversed ones are NaN, and halves add up to the whole."""
    elementwise = _made(row)
    theta = thetas(elementwise, 1.0)
    low, middle, high = torch.tensor([-0.7, 0.1, 1.9], dtype=torch.float64).unsqueeze(-1).expand(3, len(theta))
    all_true(elementwise.log_interval(low, low, theta) == -math.inf, "R17 empty interval")
    all_true(torch.isnan(elementwise.log_interval(high, low, theta)), "R17 reversed interval")
    parts = torch.logaddexp(elementwise.log_interval(low, middle, theta), elementwise.log_interval(middle, high, theta))
    at_most(parts - elementwise.log_interval(low, high, theta), 1e-12, "R17 halves against the whole")
    tiny = elementwise.log_interval(low, low + 1e-9, theta) - torch.log((low + 1e-9) - low)
    at_most(tiny - elementwise.log_prob(low, theta), 1e-5, "R17 narrow interval against the density")


def check_far_tail_intervals(row: ElementwiseRow) -> None:
    """R17: the log of a bin with mass down to 1e-30, in either tail, is right to 1e-4 (60-digit arithmetic)."""
    elementwise = _made(row)
    theta = thetas(elementwise, 1.0)
    for tail in (math.log(1e-10), math.log(1e-20), math.log(1e-30)):
        for sign in (-1.0, 1.0):
            logit = torch.full((len(theta),), -sign * tail, dtype=torch.float64)
            edge = elementwise.inverse(logit, theta).value.float().double()
            lower, upper = (edge, edge + 0.5) if sign > 0 else (edge - 0.5, edge)
            domain = elementwise.domain
            inside = (lower > domain.lower) & (upper < domain.upper)
            for index in inside.nonzero().squeeze(-1).tolist():
                exact = oracles.bin_probability(
                    row.oracle, elementwise, float(lower[index]), float(upper[index]), theta[index]
                )
                for dtype in (torch.float64, torch.float32):
                    ends = (lower[index].to(dtype), upper[index].to(dtype), theta[index].to(dtype))
                    if ends[0] != lower[index] or ends[1] != upper[index]:
                        continue  # not the same bin once rounded
                    found = elementwise.log_interval(*ends).double()
                    at_most(found - exact, 1e-4, f"R17 bin of log-mass {exact:.1f} in {dtype}")


UnitCheck = Callable[[ElementwiseRow], None]

UNIT_CHECKS: tuple[UnitCheck, ...] = (
    check_density_is_derivative,
    check_quantile,
    check_quantile_of_cdf,
    check_intervals,
    check_interval_edges,
    check_far_tail_intervals,
)
