import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rosenblatt.core.errors import InverseError
from rosenblatt.core.roots import attach_gradient, find_root
from rosenblatt.core.types import REAL, Mapped, Support


class Function:
    """An increasing function that counts its calls and can drop rows."""

    def __init__(self, function, rows, calls=None):
        self.function, self.rows = function, rows
        self.calls = [] if calls is None else calls

    def __call__(self, x):
        assert x.shape == self.rows.shape
        self.calls.append(len(x))
        return self.function(x)

    def select(self, rows):
        return Function(self.function, self.rows[rows], self.calls)


def solve(function, y, support=REAL, tolerance=2e-14):
    y = torch.as_tensor(y, dtype=torch.float64)
    counted = Function(function, torch.arange(len(y)))
    return find_root(counted, y, support, tolerance=tolerance), counted.calls


HARD = {
    "cubic": (lambda x: x**3, [-8.0, 0.0, 1e-12, 27.0, 1e15]),
    "steep": (lambda x: torch.sinh(3 * x), [-1e6, 0.0, 5.0]),
    "flat": (lambda x: x + torch.tanh(1e4 * x), [-2.0, -0.5, 0.0, 0.5, 1.0, 2.0]),
    "nearly a step": (lambda x: torch.tanh(50 * (x - 1)) + 1e-3 * x, [-0.9, 0.0, 0.5, 0.9]),
    "far": (torch.asinh, [-30.0, 30.0, 60.0]),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_functions_are_solved_to_rounding(name):
    function, y = HARD[name]
    x, calls = solve(function, y)
    y = torch.tensor(y, dtype=torch.float64)
    at_x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(at_x).sum(), at_x)
    ulp = torch.nextafter(x.abs(), torch.tensor(torch.inf).double()) - x.abs()
    # A residual of 2e-14, or a bracket of 2 ulp where the function is too steep for that.
    assert bool(((function(x) - y).abs() <= 1e-13 * (1 + y.abs()) + 4 * slope * ulp).all())
    assert len(calls) < 120


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), st.floats(-6, 6))
def test_affine_functions_are_exact(ys, log_slope):
    slope = math.exp(log_slope)
    x, _ = solve(lambda x: slope * x + 0.5, ys)
    expected = (torch.tensor(ys, dtype=torch.float64) - 0.5) / slope
    torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-11 / slope)


def test_infinities_and_nan_are_answered_beside_numbers():
    x, _ = solve(torch.asinh, [torch.inf, 0.5, -torch.inf, torch.nan])
    assert x[0] == torch.inf
    assert x[2] == -torch.inf
    assert torch.isnan(x[3])
    assert x[1] == pytest.approx(math.sinh(0.5), abs=1e-13)
    bounded, _ = solve(lambda x: torch.logit(x.clamp(1e-300, 1)), [torch.inf, -torch.inf, 0.0], Support(0.0, 1.0))
    assert bounded.tolist() == pytest.approx([1.0, 0.0, 0.5])


def test_an_empty_batch_is_answered():
    x, calls = solve(torch.asinh, [])
    assert x.shape == (0,)
    assert calls == []


def test_a_function_that_cannot_reach_raises_and_names_the_rows():
    with pytest.raises(InverseError, match="no bracket") as caught:
        solve(torch.tanh, [0.1, 2.0, 0.2, -3.0])
    assert caught.value.rows == [1, 3]


def test_nan_from_the_function_raises():
    with pytest.raises(InverseError) as caught:
        solve(lambda x: torch.where(x > 100, torch.nan, x.clamp(max=50.0)), [60.0])
    assert caught.value.rows == [0]


def test_finished_rows_are_dropped():
    easy = torch.zeros(999, dtype=torch.float64)
    _, calls = solve(lambda x: x**3, torch.cat([easy, torch.tensor([1e15]).double()]))
    assert sum(calls) < 30 * 1000


def curve(x, theta):
    a, b = theta.unbind(-1)
    slope = torch.exp(a) + 3 * x**2
    return Mapped(torch.exp(a) * x + x**3 + b, torch.log(slope))


def solved(y, theta):
    with torch.no_grad():
        a, b = theta.unbind(-1)
        root, _ = solve(lambda x: torch.exp(a) * x + x**3 + b, y)
    return attach_gradient(root, y, theta, curve)


def test_implicit_gradients_of_first_and_second_order():
    y = torch.tensor([0.4, -2.0], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([[0.1, 0.3], [-1.0, 0.7]], dtype=torch.float64, requires_grad=True)
    # Row compaction would select rows of a closure: these two rows finish together or not at all.
    torch.autograd.gradcheck(one_row, (y[:1], theta[:1]), eps=1e-6, atol=1e-7)
    torch.autograd.gradgradcheck(one_row, (y[1:], theta[1:]), eps=1e-6, atol=1e-6)


def one_row(y, theta):
    return solved(y, theta)


def test_no_gradient_is_attached_where_none_is_asked():
    y = torch.tensor([0.4], dtype=torch.float64)
    theta = torch.zeros(1, 2, dtype=torch.float64)
    assert not solved(y, theta).requires_grad
    with torch.no_grad():
        assert not solved(y.requires_grad_(), theta).requires_grad
