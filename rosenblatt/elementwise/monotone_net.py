r"""NITS: a positive network that *is* a CDF (Li & Kluger, ICML 2022).

The raw network phi is increasing because all its weights are positive. On its support [a, b] the CDF is
`F(x) = (phi(x) - phi(a)) / (phi(b) - phi(a))`, its density the exact derivative, so the normaliser is exact.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.roots import attach_gradient, find_root
from rosenblatt.core.types import REAL, Mapped, ParamSpec, Support
from rosenblatt.elementwise.base import ROOT_TOLERANCE, UnitElementwise
from rosenblatt.elementwise.fused import Fused, _aligned
from rosenblatt.elementwise.monotone_gradient import gradients_at
from rosenblatt.elementwise.monotone_inverse import solve, whole_lanes
from rosenblatt.elementwise.monotone_kernel import SLOPE_BOUND, Plan, sums_at
from rosenblatt.elementwise.monotone_logs import LogNet, computable

CAREFUL_STEPS = 3  # of Newton's method on the whole map, before a bracketed search


class MonotoneNet(Fused, UnitElementwise):
    r"""CDF network with hidden `widths` and a softmax output: `F = (phi - phi(a)) / (phi(b) - phi(a))`.

    With per-coordinate weights from `theta`:
    `h_1 = s(A_1 (x - b_1))`, `h_l = s(A_l h_{l-1} - b_l mean(A_l))`, `phi = softmax(w) . h + epsilon G(x)`,
    where `s` is the sigmoid and `A = exp(-7 tanh(a / 7))`, the smooth form of the published `neg_exp` with its
    floor of -7. `G(x) = x` on a bounded interval (the published term) and the standard logistic CDF on the
    whole line, where it keeps the tails from vanishing. `widths=(K, 1)` with `epsilon=0` on the whole line is
    exactly a K-component mixture of logistics.

    Everything is computed as logarithms of differences, layer by layer
    (`s(p) - s(q) = s(p) s(-q) (1 - exp(q - p))`), so both tails and narrow intervals keep full relative precision.

    Arguments: `widths` ends in 1; `lower`, `upper` are both finite or both infinite; `epsilon >= 0`.
    Shapes: `x` (*batch), `theta` (*batch, spec.size). Outside [lower, upper] the density is 0 (`log_prob` -inf).
    Raises `OptionError` for widths or ends that make no CDF.
    Reference: Li & Kluger, Neural Inverse Transform Sampler, ICML 2022.

    >>> net = MonotoneNet((16, 16, 1))
    >>> net.spec.size
    320
    >>> float(net.cdf(torch.tensor(torch.inf), net.start()))
    1.0
    """

    piece = sys.maxsize  # the sums are cut into pieces where they are computed, in memory that is used again

    def __init__(
        self,
        widths: Sequence[int] = (16, 16, 1),
        *,
        lower: float = -math.inf,
        upper: float = math.inf,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        whole = all(isinstance(width, int) and width >= 1 for width in widths)
        if not whole or len(widths) < 2 or widths[-1] != 1:
            raise OptionError(
                f"widths: {list(widths)} came; give hidden widths >= 1 and a last width of 1, as in [16, 16, 1]."
            )
        if math.isfinite(lower) != math.isfinite(upper):
            raise OptionError(
                f"lower={lower}, upper={upper}: both ends must be finite or both infinite; "
                "a half-bounded column is declared with a support instead."
            )
        if not 0 <= epsilon < math.inf:
            raise OptionError(f"epsilon: {epsilon} came, a finite number >= 0 was expected.")
        self.widths = widths
        self.epsilon = float(epsilon)
        self.domain = Support(lower, upper) if math.isfinite(lower) else REAL
        shapes: dict[str, tuple[int, ...]] = {}
        for number, (inputs, outputs) in enumerate(zip((1, *widths[:-2]), widths[:-1], strict=True), start=1):
            shapes[f"slope_{number}"] = (outputs, inputs)
            shapes[f"offset_{number}"] = (outputs,)
        self.spec = ParamSpec(**shapes, mixture=(widths[-2],))
        self.plan = Plan(self.spec, self.domain, self.epsilon)

    def start(self) -> Tensor:
        """A theta near the standard logistic CDF whose units already differ, so that they can specialise."""
        parts: dict[str, Tensor] = {"mixture": torch.zeros(self.widths[-2])}
        for number, width in enumerate(self.widths[:-1], start=1):
            levels = (torch.arange(width) + 0.5) / width
            inputs = 1 if number == 1 else self.widths[number - 2]
            if number == 1:
                weight, location = self._first_start(levels)
            else:
                gain = 4.0  # sigmoids of gain 4 spread over (0, 1) average to nearly the identity there
                weight, location = gain / inputs, levels * inputs
            scaled = -math.log(weight) / SLOPE_BOUND
            parts[f"slope_{number}"] = torch.full((width, inputs), SLOPE_BOUND * math.atanh(scaled))
            parts[f"offset_{number}"] = location
        return self.spec.join(**parts)

    def _first_start(self, levels: Tensor) -> tuple[float, Tensor]:
        if self.domain.bounded:
            span = self.domain.upper - self.domain.lower
            return min(max(4 * math.sqrt(len(levels)) / span, 1.0 / 900.0), 900.0), self.domain.lower + span * levels
        # A logistic of scale 0.5 at spread quantiles adds up to variance 1 of the standard logistic.
        return 2.0 if len(levels) > 1 else 1.0, 0.87 * torch.logit(levels)

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Return logit F(x) and its log-derivative; outside the support +-inf and -inf."""
        if theta.shape[-1] != self.spec.size:
            self.spec.split(theta)  # says what is wrong
        taped = torch.is_grad_enabled() and (x.requires_grad or theta.requires_grad)
        if taped or not runs_eagerly():
            return super().forward(x, theta)
        shape = torch.broadcast_shapes(x.shape, theta.shape[:-1])
        mapped, _ = self.evaluate_keeping(*_aligned(x, theta, shape))
        return Mapped(mapped.value.reshape(shape), mapped.log_det.reshape(shape))

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Map by logarithms throughout, wherever x is."""
        inside = x.clamp(*computable(self.domain, x.dtype))
        logs = LogNet.decode(self.plan, theta).differences(inside.unsqueeze(-1), tangent=True)
        below, above, slope = logs.unbind(dim=-1)
        return self._outside(x, below - above, slope + torch.logaddexp(below, above) - below - above)

    def evaluate_keeping(self, x: Tensor, theta: Tensor) -> tuple[Mapped, tuple[Tensor, ...]]:
        """Map by plain sums, and by logarithms the few points where a sum is too small for that; keep the sums."""
        x, theta = _promoted(x, theta)
        inside = x.clamp(*computable(self.domain, x.dtype))
        sums = sums_at(self.plan, inside, theta)
        log_below, log_above, log_slope = sums.log()
        log_det = log_slope.add_((sums[0] + sums[1]).log_()).sub_(log_below).sub_(log_above)
        value = log_below.sub_(log_above)
        rows, columns = _places(self._faint(sums))
        if len(rows):
            value[rows, columns], log_det[rows, columns] = self.evaluate(inside[rows, columns], theta[columns])
        return self._outside(x, value, log_det), (sums,)

    def pull_back(
        self, x: Tensor, theta: Tensor, kept: tuple[Tensor, ...], grad_value: Tensor, grad_log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Go back through the sums, and through the logarithms where those were used."""
        x, theta = _promoted(x, theta)
        low, high = computable(self.domain, x.dtype)
        inside, faint = x.clamp(low, high), self._faint(kept[0])
        if self.domain.bounded:
            beyond = (x < self.domain.lower) | (x > self.domain.upper)
            grad_value, grad_log_det = (torch.where(beyond, 0.0, grad) for grad in (grad_value, grad_log_det))
        plain_value, plain_log_det = (torch.where(faint, 0.0, grad) for grad in (grad_value, grad_log_det))
        below, above, slope = torch.where(faint, 1.0, kept[0])
        whole = plain_log_det / (below + above)
        weights = torch.stack(
            [
                (plain_value - plain_log_det) / below + whole,
                whole - (plain_value + plain_log_det) / above,
                plain_log_det / slope,
            ]
        )
        grad_x, grad_theta = gradients_at(self.plan, torch.where(faint, self._inner(0.4), inside), theta, weights)
        rows, columns = _places(faint)
        if len(rows):
            with torch.enable_grad():
                inputs = [part.detach().requires_grad_() for part in (inside[rows, columns], theta[columns])]
                mapped = self.evaluate(*inputs)
                grads = (grad_value[rows, columns], grad_log_det[rows, columns])
                found_x, found_theta = torch.autograd.grad(tuple(mapped), inputs, grads)
            grad_x[rows, columns] = found_x
            grad_theta.index_add_(0, columns, found_theta)
        return torch.where((x < low) | (x > high), 0.0, grad_x), grad_theta

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Solve `logit F(x) = y`; exact to rounding, differentiable in `y` and `theta`.

        Raises `InverseError` naming the rows where the search did not converge.
        """
        if y.is_meta or not runs_eagerly():
            return super().inverse(y, theta)
        shape = torch.broadcast_shapes(y.shape, theta.shape[:-1])
        with torch.no_grad():
            vectors = theta.detach().expand(*shape, theta.shape[-1]).reshape(-1, theta.shape[-1])
            root, log_slope = self._roots(y.detach().expand(shape).reshape(-1), vectors)
        if torch.is_grad_enabled() and (y.requires_grad or theta.requires_grad):
            x = attach_gradient(root.reshape(shape), y, theta, self.forward)
            return Mapped(x, -self.forward(x, theta).log_det)
        return Mapped(root.reshape(shape), log_slope.neg_().reshape(shape))

    def _roots(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Roots (n,) for `y` (n,) and `theta` (n, size), and the log-slopes there."""
        tolerance = ROOT_TOLERANCE[y.dtype]
        found = solve(self.plan, y, theta, tolerance)
        root, log_slope = found.x.to(y.dtype), found.log_slope.to(y.dtype)
        rows = (~found.sure).nonzero().squeeze(-1)
        if len(rows):
            known = ~y[rows].isnan() & torch.isfinite(theta[rows]).all(dim=-1)
            root[rows[~known]] = log_slope[rows[~known]] = torch.nan
            rows = whole_lanes(rows[known])
        if len(rows):
            vectors = theta[rows]
            try:
                careful = self._careful_roots(y[rows].double(), vectors.double(), found.x[rows], tolerance)
            except InverseError as error:
                raise InverseError(error.reason, sorted(set(rows[error.rows].tolist()))) from None
            root[rows] = careful.to(y.dtype)
            log_slope[rows] = self.forward(root[rows], vectors).log_det.to(y.dtype)
        return root, log_slope

    def _careful_roots(self, y: Tensor, theta: Tensor, guess: Tensor, tolerance: float) -> Tensor:
        """Newton's method on the whole map, and the bracketed search for what that leaves; all in float64."""
        root = guess.clamp(self.domain.lower, self.domain.upper)
        rows = torch.arange(len(y), device=y.device)
        for _ in range(CAREFUL_STEPS):
            value, log_slope = self.forward(root[rows], theta[rows])
            missing = y[rows] - value
            left = ~(missing.abs() <= tolerance * (1 + y[rows].abs()))
            if not bool(left.any()):
                return root
            root[rows[left]] += (missing * torch.exp(-log_slope))[left]
            rows = whole_lanes(rows[left])
        try:
            root[rows] = find_root(self.bind(theta[rows]), y[rows], self.domain, tolerance=tolerance, guess=root[rows])
        except InverseError as error:
            raise InverseError(error.reason, rows[error.rows].tolist()) from None
        return root

    def bind(self, theta: Tensor) -> LogNet:
        """Decode the weights once for a root search."""
        return LogNet.decode(self.plan, theta)

    def _log_interval(self, lower: Tensor, upper: Tensor, theta: Tensor) -> Tensor:
        points = torch.stack([lower, upper], dim=-1)
        logs = LogNet.decode(self.plan, theta).differences(points, tangent=False)
        return logs[..., 1] - torch.logsumexp(logs, dim=-1)

    def _faint(self, sums: Tensor) -> Tensor:
        """Where underflow may have touched one of the three sums (or one is NaN)."""
        return ~(sums.amin(dim=0) >= self.plan.floor(sums.dtype))

    def _outside(self, x: Tensor, value: Tensor, log_det: Tensor) -> Mapped:
        if self.domain.whole_line:
            return Mapped(value, log_det)
        value = torch.where(x < self.domain.lower, -torch.inf, value)
        value = torch.where(x > self.domain.upper, torch.inf, value)
        return Mapped(value, torch.where((x < self.domain.lower) | (x > self.domain.upper), -torch.inf, log_det))


def _promoted(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, theta.dtype)
    return x.to(dtype), theta.to(dtype)


def _places(mask: Tensor) -> tuple[Tensor, ...]:
    """Indices where a mask holds; on the meta device nowhere."""
    if mask.is_meta:
        return tuple(torch.empty(0, dtype=torch.long, device=mask.device) for _ in mask.shape)
    return mask.nonzero(as_tuple=True)
