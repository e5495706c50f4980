"""The continuous flow against matrix exponentials, a high-order solver and autodiff; its estimates and its refusals."""

import copy
import math

import pytest
import torch
from torchdiffeq import odeint

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.types import Likelihood
from rosenblatt.layers.continuous import ContinuousFlow, recorded_energy
from rosenblatt.layers.velocity import SMOOTH, Velocity, VelocityNet
from rosenblatt.testing.measures import log_abs_det, mapped_value, row_jacobian
from rosenblatt.testing.tables import disturbed, seeded

FALSE_ALARM_SIGMAS = 5.5  # two-sided, below 1e-6 for eight comparisons


class Linear(Velocity):
    """v = A z."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.as_tensor(matrix, dtype=torch.float64))

    def forward(self, z, time, context=None):
        return z @ self.matrix.T


class Wave(Velocity):
    """v = size sin(3 z), far too fast for a step of length one."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, z, time, context=None):
        return self.size * torch.sin(3 * z)


def rows(count, features, seed=0):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def strong(features=3, context=0, size=0.5, **options):
    return disturbed(seeded(lambda: VelocityNet(features, context, hidden=16, **options)).double(), size)


FOLDED = 0.45  # where one step of Wave(2.0) folds
MATRIX = [[0.3, -1.2, 0.1], [0.9, -0.4, 0.5], [0.0, 0.7, 0.6]]


def test_tangents_of_many_rows_take_little_memory(monkeypatch):
    flow = ContinuousFlow(strong(3, 2), steps=2).eval()
    x, context = rows(50, 3).reshape(5, 10, 3), rows(50, 2, seed=1).reshape(5, 10, 2)
    with torch.no_grad():
        there = flow(x, context)
        back = flow.inverse(there.value, context)
        seen, push = [], flow.velocity.push
        monkeypatch.setattr("rosenblatt.layers.continuous.TANGENTS_AT_ONCE", 21)
        monkeypatch.setattr(
            flow.velocity, "push", lambda z, *rest: (seen.append(z.shape[:-1].numel()), push(z, *rest))[1]
        )
        for whole, piecewise in ((there, flow(x, context)), (back, flow.inverse(there.value, context))):
            torch.testing.assert_close(piecewise.value, whole.value, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(piecewise.log_det, whole.log_det, rtol=1e-12, atol=1e-12)
    assert max(seen) == 7
    assert (back.value - x).abs().max() < 1e-9


def test_linear_field_is_the_matrix_exponential():
    flow = ContinuousFlow(Linear(MATRIX), steps=32).eval()
    x = rows(20, 3)
    matrix = torch.tensor(MATRIX, dtype=torch.float64)
    value, log_det = flow(x)
    assert (value - x @ torch.linalg.matrix_exp(matrix).T).abs().max() <= 1e-6
    assert (log_det - matrix.trace()).abs().max() <= 1e-6
    back, back_log_det = flow.inverse(x)
    assert (back - x @ torch.linalg.matrix_exp(-matrix).T).abs().max() <= 1e-6
    assert (back_log_det + matrix.trace()).abs().max() <= 1e-6
    # The steps are undone as they were taken, far below their own error.
    assert (flow.inverse(value).value - x).abs().max() <= 1e-13


@pytest.mark.parametrize(("solver", "order"), [("midpoint", 2), ("rk4", 4)])
def test_error_falls_with_the_order_of_the_solver(solver, order):
    x = rows(20, 3)
    exact = x @ torch.linalg.matrix_exp(torch.tensor(MATRIX, dtype=torch.float64)).T
    errors = [
        float((ContinuousFlow(Linear(MATRIX), steps=steps, solver=solver).eval()(x).value - exact).detach().abs().max())
        for steps in (64, 128)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("context", [0, 2])
def test_many_steps_are_the_solution_of_the_differential_equation(context):
    velocity = strong(context=context, size=0.3)
    x, given = rows(10, 3), rows(10, context, seed=1) if context else None

    def joint(time, state):
        with torch.enable_grad():
            z = state[0].detach().requires_grad_()
            speed = velocity(z, float(time), given)
            trace = sum(torch.autograd.grad(speed[:, i].sum(), z, retain_graph=True)[0][:, i] for i in range(3))
        return speed.detach(), trace

    span = torch.tensor([0.0, 1.0], dtype=torch.float64)
    value, log_det = odeint(joint, (x, x.new_zeros(10)), span, method="dopri8", rtol=1e-11, atol=1e-11)
    found = ContinuousFlow(velocity, steps=96).eval()(x, given)
    assert (found.value - value[-1]).abs().max() <= 1e-7
    assert (found.log_det - log_det[-1]).abs().max() <= 1e-7
    assert found.log_det.abs().max() > 0.2  # a field that does something


@pytest.mark.parametrize("solver", ["midpoint", "rk4"])
def test_log_det_is_that_of_the_steps_however_few(solver):
    flow = ContinuousFlow(strong(size=0.3), steps=2, solver=solver, trace="exact").eval()
    x = rows(10, 3)
    log_det = flow(x).log_det
    assert (log_abs_det(row_jacobian(mapped_value(flow, None), x)) - log_det).abs().max() <= 1e-12
    traced = ContinuousFlow(flow.velocity, steps=64, trace="exact").eval()(x).log_det
    assert (traced - log_det).abs().max() > 1e-3  # so the integral of the trace would have been wrong here


@pytest.mark.parametrize("activation", SMOOTH)
def test_tangents_of_the_network_are_those_of_autodiff(activation):
    velocity = strong(2, 1, activation=activation, layers=3)
    z, given, tangents = rows(6, 2), rows(6, 1, seed=1), rows(18, 2, seed=2).reshape(6, 3, 2)
    z[0, 0] = 2e6  # saturated: no derivative there
    value, pushed = velocity.push(z, tangents, 0.3, given)
    assert torch.equal(value, velocity(z, 0.3, given))
    jacobian = row_jacobian(lambda z: velocity(z, 0.3, given), z)
    assert (pushed - tangents @ jacobian.mT).abs().max() <= 1e-12
    general = Velocity.push(velocity, z, tangents, 0.3, given)
    assert (general[0] - value).abs().max() <= 1e-12
    assert (general[1] - pushed).abs().max() <= 1e-12
    each = torch.stack([velocity(z[i], float(i) / 5, given[i]) for i in range(6)])
    assert (velocity(z, torch.arange(6, dtype=torch.float64) / 5, given) - each)[1:].abs().max() <= 1e-12


def test_hutchinson_estimates_the_integral_of_the_trace():
    velocity = strong(4)
    x = rows(5, 4)
    flow = ContinuousFlow(velocity, steps=8, trace="auto").train()
    assert flow.likelihood is Likelihood.ESTIMATE
    assert Flow(flow, StandardNormal(4)).likelihood is Likelihood.ESTIMATE
    with torch.no_grad():
        draws = torch.cat([flow(x.expand(200, 5, 4)).log_det for _ in range(20)])
    mean, error = draws.mean(dim=0), draws.std(dim=0) / 4000**0.5
    flow.eval()
    assert flow.likelihood is Likelihood.EXACT
    exact = flow(x).log_det
    assert (error > 1e-3).all()
    # Steps of 1/8 leave a difference between trace and determinant that is far below the error of the estimate.
    assert ((mean - exact).abs() <= FALSE_ALARM_SIGMAS * error).all()


def test_signs_follow_the_counter_and_leave_the_global_stream_alone():
    x = rows(5, 3)
    flow = ContinuousFlow(strong(), steps=2).train()
    state = torch.get_rng_state()
    kept = copy.deepcopy(flow.state_dict())
    first, second = flow(x).log_det, flow(x).log_det
    assert torch.equal(torch.get_rng_state(), state)
    assert (first != second).any()
    flow.load_state_dict(kept)
    assert torch.equal(flow(x).log_det, first)
    other = ContinuousFlow(flow.velocity, steps=2, seed=1).train()
    assert (other(x).log_det != first).any()
    fixed = ContinuousFlow(flow.velocity, steps=2, trace="hutchinson").eval()
    assert torch.equal(fixed(x).log_det, fixed(x).log_det)
    assert fixed.likelihood is Likelihood.ESTIMATE


def test_steps_that_fold_space_are_refused_with_their_rows():
    flow = ContinuousFlow(Wave(2.0), steps=1, trace="exact").eval()
    x = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64).unsqueeze(-1)
    slope = row_jacobian(lambda x: flow._step(x, 0.0, 1.0, None), x).flatten()
    folded = (slope <= 0).nonzero().flatten().tolist()
    assert 0 < len(folded) < 61
    with pytest.raises(InverseError, match="fold") as refused:
        flow(x)
    assert refused.value.rows == folded
    log_det = flow.train()(x).log_det  # in training the guard of the fit sees it
    assert torch.isnan(log_det).nonzero().flatten().tolist() == folded
    fine = ContinuousFlow(Wave(2.0), steps=64, trace="exact").eval()
    assert (fine.inverse(fine(x).value).value - x).abs().max() <= 1e-12


def test_inverse_that_is_not_found_is_refused_with_its_rows():
    flow = ContinuousFlow(Wave(20.0), steps=1, trace="exact").eval()
    y = torch.tensor([[0.0], [0.7], [0.0], [0.4]], dtype=torch.float64)
    with pytest.raises(InverseError, match="not found") as refused:
        flow.inverse(y)
    assert refused.value.rows == [1, 3]
    strict = ContinuousFlow(strong(), steps=2, tolerance=1e-30).eval()
    with pytest.raises(InverseError, match="1e-30"):
        strict.inverse(rows(3, 3))


def test_scoring_in_pieces_names_the_row_of_the_whole():
    model = Flow(ContinuousFlow(Wave(2.0), steps=1, trace="exact"), StandardNormal(1)).eval()
    x = torch.zeros(12_000, 1, dtype=torch.float64)
    x[11_000] = FOLDED
    with torch.no_grad(), pytest.raises(InverseError) as refused:
        model.log_prob(x)
    assert refused.value.rows == [11_000]


def test_rows_do_not_mix_in_the_inverse():
    flow = ContinuousFlow(strong(size=0.4), steps=3).eval()
    y = rows(40, 3)
    with torch.no_grad():
        whole = flow.inverse(y)
        y[7] *= 8  # takes more corrections
        other = flow.inverse(y)
    kept = torch.arange(40) != 7
    assert torch.equal(whole.value[kept], other.value[kept])
    assert torch.equal(whole.log_det[kept], other.log_det[kept])


def test_rows_that_are_not_finite_pass_through():
    flow = ContinuousFlow(strong(), steps=2).eval()
    x = rows(4, 3)
    x[1, 0], x[2, 2] = math.inf, math.nan
    for run in (flow, flow.inverse):
        with torch.no_grad():
            value, log_det = run(x)
            clean = run(x[[0, 3]])
        assert torch.isinf(value[1]).all()
        assert torch.isnan(value[2]).all()
        assert torch.isfinite(log_det).all()
        assert (value[[0, 3]] - clean.value).abs().max() <= 1e-14


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_recorded_energy_is_the_path_integral(trace):
    matrix = torch.tensor(MATRIX, dtype=torch.float64)
    flow = ContinuousFlow(Linear(MATRIX), steps=32, trace=trace).train()
    x = rows(2000, 3)
    with recorded_energy(flow) as energy:
        flow(x)
        flow(x)
    kinetic, jacobian = (part.detach() for part in energy())
    assert flow.record is None
    assert kinetic.shape == (4000,)
    # |A e^(At) x|^2 integrated over t by a fine rule.
    times = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    speeds = torch.stack([x @ (matrix @ torch.linalg.matrix_exp(t * matrix)).T for t in times])
    assert (kinetic[:2000] - speeds.square().sum(dim=-1).mean(dim=0)).abs().max() <= 1e-3
    error = float(jacobian.std()) / 4000**0.5
    assert abs(float(jacobian.mean()) - float(matrix.square().sum())) <= FALSE_ALARM_SIGMAS * error + 1e-9
    assert (error > 0.01) is (trace == "hutchinson")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: 0 came"),
        ({"steps": 2.0}, "steps: 2.0 came"),
        ({"solver": "euler"}, "solver: 'euler' came, one of midpoint, rk4"),
        ({"trace": "skilling"}, "trace: 'skilling' came, one of auto, exact, hutchinson"),
        ({"tolerance": 0.0}, "tolerance: 0.0 came"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError, match=message):
        ContinuousFlow(Linear(MATRIX), **options)


def test_networks_are_checked():
    with pytest.raises(OptionError, match="activation: 'relu' came"):
        VelocityNet(2, activation="relu")
    with pytest.raises(OptionError, match="layers: 0 came"):
        VelocityNet(2, layers=0)
    with pytest.raises(OptionError, match="a model with a continuous flow"), recorded_energy(StandardNormal(2)):
        pass
