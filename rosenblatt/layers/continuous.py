"""Flows in continuous time: points drift along a velocity field for one unit of time, by a fixed number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Likelihood, Mapped
from rosenblatt.layers.velocity import Velocity

MOST_CORRECTIONS = 50
TANGENTS_AT_ONCE = 1 << 16
STRIDE = 2_654_435_761  # 2^32 over the golden ratio
TRACES = ("auto", "exact", "hutchinson")


class Solver(NamedTuple):
    """An explicit Runge-Kutta method: when each stage looks, how it mixes the slopes before it, and the final mix."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


SOLVERS = {
    "midpoint": Solver((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "rk4": Solver((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class Energy(NamedTuple):
    """Path integrals over the unit of time, one number a row: of |v|^2, and of |J|^2 (sum of squares of dv/dz)."""

    kinetic: Tensor
    jacobian: Tensor


class ContinuousFlow(Transform):
    """Follow `dz/dt = v(z, t, context)` from t = 0 (data) to t = 1 (base), in `steps` equal Runge-Kutta steps.

    The map that runs is the composition of the steps `F_n(z) = z + h (b_1 k_1 + ... + b_s k_s)`, and its exact
    log-determinant, `sum_n log det dF_n/dz`, is what is reported: tangents go through every stage, `features` passes
    beside the one of the value. It tends to the integral of the trace of dv/dz as the steps grow in number, but the
    density is exact for any number of them. All rows take the same steps, so that no row depends on another, which an
    adaptive solver (one step size for a whole batch) would make it do.

    The inverse undoes the steps one by one: the same method run backwards is right up to an error of its order, which
    corrections `x + B(y) - B(F(x))` remove; what misses `y` by more than `tolerance` (1 + |y|) (by default eps^0.7, so
    1e-11 in float64) raises `InverseError`. So does, in eval mode, a step that folds space (determinant below 0)
    or leaves the finite numbers: the steps are then too long for the field.

    `trace`: "exact"; "hutchinson" estimates the integral of the trace instead, by one random sign vector per row
    and solve (Hutchinson 1989), one pass for any number of columns; "auto" estimates in training mode alone. An
    estimate does not see what the steps do: it needs enough of them. The signs follow a counter kept with the
    weights, not the global random state. `inverse` is exact in every mode.
    Raises `OptionError` for an unknown solver or trace or steps < 1.
    References: Chen, Rubanova, Bettencourt & Duvenaud, Neural Ordinary Differential Equations, NeurIPS 2018;
    Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud, FFJORD, ICLR 2019.

    >>> from rosenblatt.layers.velocity import VelocityNet
    >>> flow = ContinuousFlow(VelocityNet(2, hidden=8), steps=4).eval()
    >>> x = torch.tensor([1.0, 2.0])
    >>> bool(((flow.inverse(flow(x).value).value - x).abs() < 1e-5).all())
    True
    """

    draws: Tensor

    def __init__(
        self,
        velocity: Velocity,
        *,
        steps: int = 8,
        solver: str = "rk4",
        trace: str = "auto",
        tolerance: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise OptionError(f"steps: {steps!r} came, an integer >= 1 was expected.")
        if solver not in SOLVERS:
            raise OptionError(f"solver: '{solver}' came, one of {', '.join(SOLVERS)} was expected.")
        if trace not in TRACES:
            raise OptionError(f"trace: '{trace}' came, one of {', '.join(TRACES)} was expected.")
        if tolerance is not None and not 0 < tolerance < 1:
            raise OptionError(f"tolerance: {tolerance} came, a number between 0 and 1 or None was expected.")
        self.velocity = velocity
        self.steps = steps
        self.solver = SOLVERS[solver]
        self.trace = trace
        self.tolerance = tolerance
        self.record: list[Energy] | None = None
        # Seeds of the signs, one a call; those of the layers of a stack start far apart.
        self.register_buffer("draws", torch.tensor(seed * STRIDE % 2**32))

    @property
    def likelihood(self) -> Likelihood:
        """An estimate where Hutchinson's trace is used."""
        return Likelihood.ESTIMATE if self._estimates else Likelihood.EXACT

    @property
    def _estimates(self) -> bool:
        return self.trace == "hutchinson" or (self.trace == "auto" and self.training)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Carry points from data to base."""
        usable = torch.isfinite(x).all(dim=-1, keepdim=True)
        z = torch.where(usable, x, 0.0)
        probe = self._signs(z) if self._estimates else None
        log_det = z.new_zeros(z.shape[:-1])
        energies = []
        for start in self._starts():
            if probe is None:
                z, jacobian, energy = self._step_with_jacobian(z, start, context)
                log_det = log_det + _log_det(jacobian)
            else:
                z, trace, energy = self._step_with_trace(z, probe, start, context)
                log_det = log_det + trace
            energies.append(energy)
        if self.record is not None:
            self.record.append(Energy(*(torch.stack(part).sum(dim=0) for part in zip(*energies, strict=True))))
        if not self.training:
            sound = torch.isfinite(z).all(dim=-1) & torch.isfinite(log_det)
            _refuse(~sound, f"fold or overflow in one of {self.steps} steps (raise the option 'steps')")
        return Mapped(torch.where(usable, z, _size(x)), log_det)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Carry points back from base to data."""
        usable = torch.isfinite(y).all(dim=-1, keepdim=True)
        z = torch.where(usable, y, 0.0)
        log_det = z.new_zeros(z.shape[:-1])
        for start in reversed(self._starts()):
            with torch.no_grad():
                x = self._undo_step(z, start, context)
            if torch.is_grad_enabled():
                # One step of Newton's method, whose derivative at the solution is that of the inverse.
                miss = self._step(x, start, 1 / self.steps, context) - z
                with torch.no_grad():
                    jacobian = self._step_with_jacobian(x, start, context)[1]
                x = x - torch.linalg.solve(jacobian.mT, miss.unsqueeze(-1)).squeeze(-1)
            log_det = log_det - _log_det(self._step_with_jacobian(x, start, context)[1])
            z = x
        sound = torch.isfinite(z).all(dim=-1) & torch.isfinite(log_det)
        _refuse(~sound, f"fold or overflow in one of {self.steps} steps (raise the option 'steps')")
        return Mapped(torch.where(usable, z, _size(y)), log_det)

    def _starts(self) -> list[float]:
        return [number / self.steps for number in range(self.steps)]

    def _step(self, z: Tensor, start: float, length: float, context: Tensor | None) -> Tensor:
        """One step of the solver, forwards or (`length` below 0) backwards in time."""
        slopes: list[Tensor] = []
        for node, mix in zip(self.solver.nodes, self.solver.stages, strict=True):
            slopes.append(self.velocity(_ahead(z, length, mix, slopes), start + node * length, context))
        return _ahead(z, length, self.solver.weights, slopes)

    def _step_with_jacobian(self, z: Tensor, start: float, context: Tensor | None) -> tuple[Tensor, Tensor, Energy]:
        """One step F, the rows `dF/dz_k` of its transposed Jacobian (*batch, features, features), and its energy.

        Without gradients a few rows at a time: tangents take `features` times the memory of a pass.
        """
        features = z.shape[-1]
        batch, rows = z.shape[:-1], max(1, TANGENTS_AT_ONCE // features)
        if torch.is_grad_enabled() or self.record is not None or not runs_eagerly() or batch.numel() <= rows:
            return self._pushed(z, start, context)
        pieces = z.reshape(-1, features).split(rows)
        contexts: Sequence[Tensor | None] = [None] * len(pieces)
        if context is not None:
            contexts = context.reshape(-1, context.shape[-1]).split(rows)
        parts = [self._pushed(some, start, given)[:2] for some, given in zip(pieces, contexts, strict=True)]
        value, jacobian = (torch.cat(part) for part in zip(*parts, strict=True))
        none = z.new_zeros(batch)
        return value.reshape(z.shape), jacobian.reshape(*z.shape, features), Energy(none, none)

    def _pushed(self, z: Tensor, start: float, context: Tensor | None) -> tuple[Tensor, Tensor, Energy]:
        """The same for all rows at once."""
        length = 1 / self.steps
        identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).expand(*z.shape, z.shape[-1])
        slopes: list[Tensor] = []
        pushed: list[Tensor] = []
        rates: list[Tensor] = []
        for node, mix in zip(self.solver.nodes, self.solver.stages, strict=True):
            tangents = _ahead(identity, length, mix, pushed)
            at = _ahead(z, length, mix, slopes)
            slope, push = self.velocity.push(at, tangents, start + node * length, context)
            slopes.append(slope)
            pushed.append(push)
            if self.record is not None:  # dv/dz itself, from its products with the tangents
                rates.append(torch.linalg.solve(tangents, push))
        value, jacobian = (_ahead(of, length, self.solver.weights, k) for of, k in ((z, slopes), (identity, pushed)))
        return value, jacobian, self._energy(slopes, rates)

    def _step_with_trace(
        self, z: Tensor, probe: Tensor, start: float, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Energy]:
        """One step, its share of the integral of `probe . J probe`, and its energy."""
        length = 1 / self.steps
        slopes: list[Tensor] = []
        rates: list[Tensor] = []
        for node, mix in zip(self.solver.nodes, self.solver.stages, strict=True):
            at = _ahead(z, length, mix, slopes)
            slope, push = self.velocity.push(at, probe, start + node * length, context)
            slopes.append(slope)
            rates.append(push)
        traces = [(push * probe).sum(dim=(-2, -1)) for push in rates]
        trace = _ahead(torch.zeros_like(traces[0]), length, self.solver.weights, traces)
        return _ahead(z, length, self.solver.weights, slopes), trace, self._energy(slopes, rates)

    def _energy(self, slopes: Sequence[Tensor], rates: Sequence[Tensor]) -> Energy:
        """What a step adds to the path integrals; `E|J e|^2 = |J|^2` for random signs e."""
        none = slopes[0].new_zeros(slopes[0].shape[:-1])
        if self.record is None:
            return Energy(none, none)
        squares = [slope.square().sum(dim=-1) for slope in slopes], [rate.square().sum(dim=(-2, -1)) for rate in rates]
        return Energy(*(_ahead(none, 1 / self.steps, self.solver.weights, part) for part in squares))

    def _undo_step(self, y: Tensor, start: float, context: Tensor | None) -> Tensor:
        """The point that a step takes to `y`; a row that has converged is left alone, so rows do not mix."""
        length = 1 / self.steps
        scale = 1 + y.abs().amax(dim=-1)
        eps = torch.finfo(y.dtype).eps

        def back(z: Tensor) -> Tensor:
            return self._step(z, start + length, -length, context)

        first = back(y)
        trial, best = first, first
        least = torch.full_like(scale, torch.inf)
        for _ in range(MOST_CORRECTIONS):
            reached = self._step(trial, start, length, context)
            error = (reached - y).abs().amax(dim=-1) / scale
            better = error < least
            best, least = torch.where(better.unsqueeze(-1), trial, best), torch.where(better, error, least)
            going = better & (error > eps)
            if not bool(going.any()):
                break
            trial = torch.where(going.unsqueeze(-1), trial + (first - back(reached)), trial)
        limit = eps**0.7 if self.tolerance is None else self.tolerance
        _refuse(~(least <= limit), f"were not found to {limit:.1g} in one of {self.steps} steps (raise 'steps')")
        return best

    def _signs(self, z: Tensor) -> Tensor:
        """Random signs (*batch, 1, features), new ones at every call in training mode."""
        generator = torch.Generator(device=z.device).manual_seed(int(self.draws))
        if self.training:
            self.draws += 1
        bits = torch.randint(2, z.shape, generator=generator, device=z.device)
        return (2 * bits - 1).to(z.dtype).unsqueeze(-2)


@contextmanager
def recorded_energy(model: nn.Module) -> Iterator[Callable[[], Energy]]:
    """Let every continuous flow of `model` note its path integrals; the callable adds them up over the layers.

    >>> from rosenblatt.layers.velocity import VelocityNet
    >>> flow = ContinuousFlow(VelocityNet(2, hidden=8), steps=2)
    >>> with recorded_energy(flow) as energy:
    ...     _ = flow(torch.zeros(5, 2))
    >>> energy().kinetic.shape
    torch.Size([5])
    """
    layers = [part for part in model.modules() if isinstance(part, ContinuousFlow)]
    if not layers:
        raise OptionError(
            f"model: {type(model).__name__} came, a model with a continuous flow was expected; choose 'ffjord'."
        )
    records: list[list[Energy]] = [[] for _ in layers]
    for layer, record in zip(layers, records, strict=True):
        layer.record = record

    def total() -> Energy:
        kinetic, jacobian = zip(
            *((torch.cat([e.flatten() for e in part]) for part in zip(*record, strict=True)) for record in records),
            strict=True,
        )
        return Energy(torch.stack(kinetic).sum(dim=0), torch.stack(jacobian).sum(dim=0))

    try:
        yield total
    finally:
        for layer in layers:
            layer.record = None


def _ahead(z: Tensor, length: float, mix: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """`z + length (mix_1 slope_1 + ...)`."""
    for share, slope in zip(mix, slopes, strict=True):
        if share:
            z = torch.add(z, slope, alpha=length * share)
    return z


def _size(x: Tensor) -> Tensor:
    """Infinity for a row with an infinity (outside a support), NaN for one with NaN."""
    return x.detach().abs().amax(dim=-1, keepdim=True)


def _log_det(jacobian: Tensor) -> Tensor:
    """log det, not a number where the determinant is not positive."""
    sign, size = torch.linalg.slogdet(jacobian)
    return torch.where(sign > 0, size, torch.nan)


def _refuse(bad: Tensor, reason: str) -> None:
    """Raise `InverseError` for rows that are `bad`, wherever a value can be looked at."""
    if bad.device.type == "meta" or not runs_eagerly():
        return
    if bool(bad.any()):
        raise InverseError(reason, bad.reshape(-1).nonzero().squeeze(-1).tolist())
