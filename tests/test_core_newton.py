"""The Newton search against maps whose inverse is known."""

import math

import numpy as np
import pytest
import torch

from rosenblatt.core import newton
from rosenblatt.core.errors import InverseError
from rosenblatt.core.newton import find_vectors


class Cubic:
    """y = s (z + z^3) A with z = x - c: solved by Cardano's formula."""

    size = 9

    def __init__(self, scale, matrix, shift=None):
        self.scale, self.matrix = scale, matrix
        self.shift = torch.zeros(3, dtype=torch.float64) if shift is None else shift

    def value(self, x):
        z = x - self.shift
        return self.scale * (z + z**3) @ self.matrix

    def derive(self, x):
        slope = self.scale * (1 + 3 * (x - self.shift) ** 2)
        return self.value(x), self.matrix.mT * slope.unsqueeze(-2)

    def attempt(self, number, newton, residual):
        return newton / 2**number

    def progress(self, x, y, residual, step, left):
        return left.norm(dim=-1) < residual.norm(dim=-1)

    def select(self, rows):
        return Cubic(self.scale, self.matrix, self.shift if self.shift.ndim == 1 else self.shift[rows])

    def solution(self, y):
        target = torch.linalg.solve(self.matrix.mT, y.unsqueeze(-1)).squeeze(-1) / self.scale
        inside = torch.asinh(target * (1.5 * 3**0.5)) / 3  # the one real root, by hyperbolic functions
        return 2 / 3**0.5 * torch.sinh(inside) + self.shift


class Flat(Cubic):
    """The arc tangent: no row beyond pi / 2 has a root."""

    def value(self, x):
        return torch.atan(x)

    def derive(self, x):
        return torch.atan(x), torch.diag_embed(1 / (1 + x**2))

    def select(self, rows):
        return self


def data(*shape, seed=1, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_roots_are_those_of_the_formula_from_any_distance(scale, monkeypatch):
    monkeypatch.setattr(newton, "NUMBERS", 9 * 32)  # several pieces, with rows that have shifts of their own
    function = Cubic(scale, data(3, 3), data(100, 3, seed=2))
    y = data(100, 3, seed=3) * torch.logspace(-3, 6, 100, dtype=torch.float64).unsqueeze(-1)
    x = find_vectors(function, y)
    residual = (function.value(x) - y).abs().amax(dim=-1) / (1 + y.abs().amax(dim=-1))
    assert residual.max() <= 1e-12
    conditioning = np.linalg.cond(function.matrix.numpy())
    assert ((x - function.solution(y)).abs() <= 1e-10 * conditioning / min(scale, 1) * (1 + x.abs())).all()


def test_derivatives_of_first_and_second_order_are_those_of_the_formula():
    scale, y = torch.tensor(1.5, dtype=torch.float64, requires_grad=True), data(4, 3, seed=3).requires_grad_()
    function = Cubic(scale, data(3, 3))
    results = []
    for x in (find_vectors(function, y), function.solution(y)):
        first = torch.autograd.grad((x * data(4, 3, seed=4)).sum(), [y, scale], create_graph=True)
        weighted = (first[0] * data(4, 3, seed=5)).sum() + first[1]
        results.append([*first, *torch.autograd.grad(weighted, [y, scale])])
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11)


def test_rows_that_are_not_finite_are_nan_and_have_no_gradient():
    y = data(4, 3)
    y[1, 0], y[3, 1] = math.nan, math.inf
    y.requires_grad_()
    x = find_vectors(Cubic(1.0, data(3, 3, seed=2)), y)
    assert torch.isnan(x[[1, 3]]).all()
    assert torch.isfinite(x[[0, 2]]).all()
    x[[0, 2]].sum().backward()
    assert torch.isfinite(y.grad).all()
    assert (y.grad[[1, 3]] == 0).all()


def test_rows_without_a_root_are_named():
    y = torch.tensor([[0.1, 0.2, 0.3], [0.0, 3.0, 0.0], [1.5, -1.5, 1.5], [0.0, 0.0, -1.6]], dtype=torch.float64)
    with pytest.raises(InverseError) as caught:
        find_vectors(Flat(1.0, torch.eye(3)), y)
    assert caught.value.rows == [1, 3]
    assert torch.allclose(torch.atan(find_vectors(Flat(1.0, torch.eye(3)), y[[0, 2]])), y[[0, 2]], atol=1e-11)
