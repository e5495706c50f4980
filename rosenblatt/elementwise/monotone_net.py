r"""NITS: a positive network that *is* a CDF (Li & Kluger, ICML 2022).

The raw network phi is increasing because all its weights are positive. On its support [a, b] the CDF is
`F(x) = (phi(x) - phi(a)) / (phi(b) - phi(a))`, its density the exact derivative, so the normaliser is exact.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import log_matvec, log_one_minus_exp, soft_bound
from rosenblatt.core.types import REAL, Mapped, ParamSpec, Support
from rosenblatt.elementwise.base import UnitElementwise
from rosenblatt.elementwise.fused import Fused, _aligned
from rosenblatt.elementwise.monotone_gradient import gradients_at
from rosenblatt.elementwise.monotone_kernel import SLOPE_BOUND, Plan, sums_at


class _Layer(NamedTuple):
    """One decoded hidden layer: positive weights, their logs, and pre-activations at both ends."""

    log_weight: Tensor  # (*b, out, in)
    weight: Tensor  # (*b, out, in)
    offset: Tensor  # (*b, out): at the first layer the locations b; later the pre-activation at the left end


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
        taped = torch.is_grad_enabled() and (x.requires_grad or theta.requires_grad)
        if taped or not runs_eagerly():
            return super().forward(x, theta)
        shape = torch.broadcast_shapes(x.shape, theta.shape[:-1])
        mapped, _ = self.evaluate_keeping(*_aligned(x, theta, shape))
        return Mapped(mapped.value.reshape(shape), mapped.log_det.reshape(shape))

    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Map by logarithms throughout, wherever x is."""
        low, high = self._computable(x.dtype)
        inside = x.clamp(low, high)
        layers, log_mixture = self._decode(theta)
        logs = self._log_differences(layers, log_mixture, inside.unsqueeze(-1), tangent=True)
        below, above, slope = logs.unbind(dim=-1)
        log_det = slope + torch.logaddexp(below, above) - below - above
        return self._outside(x, below - above, log_det)

    def evaluate_keeping(self, x: Tensor, theta: Tensor) -> tuple[Mapped, tuple[Tensor, ...]]:
        """Map by plain sums, and by logarithms the few points where a sum is too small for that; keep the sums."""
        x, theta = _promoted(x, theta)
        inside = x.clamp(*self._computable(x.dtype))
        sums = sums_at(self.plan, inside, theta)
        below, above, slope = sums
        log_below, log_above = below.log(), above.log()
        log_det = slope.log().add_((below + above).log_()).sub_(log_below).sub_(log_above)
        value = log_below.sub_(log_above)
        rows, columns = _places(self._faint(sums))
        if len(rows):
            value[rows, columns], log_det[rows, columns] = self.evaluate(inside[rows, columns], theta[columns])
        return self._outside(x, value, log_det), (sums,)

    def pull_back(
        self, x: Tensor, theta: Tensor, kept: tuple[Tensor, ...], grad_value: Tensor, grad_log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Go back through the sums, recomputed, and through the logarithms where those were used."""
        x, theta = _promoted(x, theta)
        low, high = self._computable(x.dtype)
        inside, faint = x.clamp(low, high), self._faint(kept[0])
        beyond = (x < self.domain.lower) | (x > self.domain.upper)
        grads = [torch.where(beyond, 0.0, grad) for grad in (grad_value, grad_log_det)]
        plain_value, plain_log_det = (torch.where(faint, 0.0, grad) for grad in grads)
        below, above, slope = torch.where(faint, 1.0, kept[0])
        whole = plain_log_det / (below + above)
        weights = torch.stack(
            [
                (plain_value - plain_log_det) / below + whole,
                whole - (plain_value + plain_log_det) / above,
                plain_log_det / slope,
            ]
        )
        points = torch.where(faint, self._inner(0.4), inside)
        grad_x, grad_theta = gradients_at(self.plan, points, theta, weights)
        rows, columns = _places(faint)
        if len(rows):
            with torch.enable_grad():
                inputs = [part.detach().requires_grad_() for part in (inside[rows, columns], theta[columns])]
                mapped = self.evaluate(*inputs)
                found = torch.autograd.grad(tuple(mapped), inputs, [grad[rows, columns] for grad in grads])
            grad_x[rows, columns] = found[0]
            grad_theta.index_add_(0, columns, found[1])
        return torch.where((x < low) | (x > high), 0.0, grad_x), grad_theta

    def _faint(self, sums: Tensor) -> Tensor:
        """Where underflow may have touched one of the three sums (or one is NaN)."""
        return ~(sums.amin(dim=0) >= self.plan.floor(sums.dtype))

    def _outside(self, x: Tensor, value: Tensor, log_det: Tensor) -> Mapped:
        if self.domain.whole_line:
            return Mapped(value, log_det)
        value = torch.where(x < self.domain.lower, -torch.inf, value)
        value = torch.where(x > self.domain.upper, torch.inf, value)
        return Mapped(value, torch.where((x < self.domain.lower) | (x > self.domain.upper), -torch.inf, log_det))

    def bind(self, theta: Tensor) -> _BoundNet:
        """Decode the weights once for a root search."""
        return _BoundNet(self, *self._decode(theta))

    def _log_interval(self, lower: Tensor, upper: Tensor, theta: Tensor) -> Tensor:
        layers, log_mixture = self._decode(theta)
        points = torch.stack([lower, upper], dim=-1)
        logs = self._log_differences(layers, log_mixture, points, tangent=False)
        return logs[..., 1] - torch.logsumexp(logs, dim=-1)

    def _computable(self, dtype: torch.dtype) -> tuple[float, float]:
        """The range in which a point differs from the ends, so that every logarithm is finite."""
        if self.domain.whole_line:
            reach = torch.finfo(dtype).max / 1e6  # times the steepest weight, still finite
            return -reach, reach
        low = torch.tensor(self.domain.lower, dtype=dtype)
        high = torch.tensor(self.domain.upper, dtype=dtype)
        return float(torch.nextafter(low, high)), float(torch.nextafter(high, low))

    def _decode(self, theta: Tensor) -> tuple[list[_Layer], Tensor]:
        """Positive weights of every layer and log-softmax mixture weights, from raw numbers."""
        parts = self.spec.split(theta)
        layers: list[_Layer] = []
        at_left: Tensor | None = None  # hidden values at the left end of the support
        for number in range(1, len(self.widths)):
            log_weight = -soft_bound(parts[f"slope_{number}"], SLOPE_BOUND)
            weight = torch.exp(log_weight)
            offset = parts[f"offset_{number}"]
            if number > 1:
                offset = -offset * weight.mean(dim=-1)
                if at_left is not None:
                    offset = offset + (weight @ at_left.unsqueeze(-1)).squeeze(-1)
                at_left = torch.sigmoid(offset)
            elif self.domain.bounded:
                at_left = torch.sigmoid(weight.squeeze(-1) * (self.domain.lower - offset))
            layers.append(_Layer(log_weight, weight, offset))
        return layers, log_softmax(parts["mixture"], dim=-1)

    def _log_differences(self, layers: list[_Layer], log_mixture: Tensor, points: Tensor, *, tangent: bool) -> Tensor:
        """Logs of phi's differences over [a, x_1, ..., x_m, b], and of phi'(x_1) as a last column.

        `points` is (*b, m) and increasing; the result (*b, m + 1 (+ 1)). All terms are positive and none is
        found by subtraction.
        """
        columns, rates = self._first_layer(layers[0], points, tangent)
        for layer in layers[1:]:
            pushed = log_matvec(layer.weight, columns)
            columns = self._hidden_layer(layer, pushed, points.shape[-1], tangent)
        logs = torch.logsumexp(columns + log_mixture.unsqueeze(-1), dim=-2)
        if self.epsilon == 0:
            return logs
        return torch.logaddexp(logs, rates + math.log(self.epsilon))

    def _first_layer(self, layer: _Layer, points: Tensor, tangent: bool) -> tuple[Tensor, Tensor]:
        """Log-differences of the first hidden values (*b, width, columns) and of the epsilon term (*b, columns)."""
        log_weight, weight = layer.log_weight, layer.weight  # (*b, width, 1)
        location = layer.offset.unsqueeze(-1)
        z = weight * (points.unsqueeze(-2) - location)
        up = logsigmoid(z)
        down = up - z
        gaps = points[..., 1:] - points[..., :-1]
        if self.domain.whole_line:
            first, last = up[..., :1], down[..., -1:]
            g_up = logsigmoid(points)
            rates = [g_up[..., :1], (g_up - points)[..., -1:]]
            g_slope = (2 * g_up - points)[..., :1]
        else:
            lower, upper = self.domain.lower, self.domain.upper
            log_first, log_last = torch.log(points[..., :1] - lower), torch.log(upper - points[..., -1:])
            z_low, z_high = weight * (lower - location), weight * (upper - location)
            first = up[..., :1] + logsigmoid(-z_low) + _log_rise(log_weight, log_first)
            last = down[..., -1:] + logsigmoid(z_high) + _log_rise(log_weight, log_last)
            rates = [log_first, log_last]
            g_slope = torch.zeros_like(log_first)
        columns = [first, last]
        if gaps.shape[-1]:
            columns.insert(1, up[..., 1:] + down[..., :-1] + _log_rise(log_weight, torch.log(gaps)))
            rates.insert(1, self._log_rate(points, gaps))
        if tangent:
            columns.append((up + down + log_weight)[..., :1])
            rates.append(g_slope)
        return torch.cat(columns, dim=-1), torch.cat(rates, dim=-1)

    def _log_rate(self, points: Tensor, gaps: Tensor) -> Tensor:
        """Log-difference of the epsilon term's G between neighbouring points."""
        log_gaps = torch.log(gaps)
        if self.domain.bounded:
            return log_gaps
        up = logsigmoid(points)
        return up[..., 1:] + (up - points)[..., :-1] + log_one_minus_exp(log_gaps)

    @staticmethod
    def _hidden_layer(layer: _Layer, pushed: Tensor, points: int, tangent: bool) -> Tensor:
        """Push log-differences of pre-activations (*b, width, columns) through the sigmoid."""
        steps = pushed[..., : points + 1]
        ends = layer.offset.unsqueeze(-1) + torch.cumsum(torch.exp(steps), dim=-1)
        z = torch.cat([layer.offset.unsqueeze(-1).expand_as(ends[..., :1]), ends], dim=-1)
        up = logsigmoid(z)
        down = up - z
        columns = up[..., 1:] + down[..., :-1] + log_one_minus_exp(steps)
        if not tangent:
            return columns
        slope = pushed[..., points + 1 :] + (up + down)[..., 1:2]
        return torch.cat([columns, slope], dim=-1)


def _promoted(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, theta.dtype)
    return x.to(dtype), theta.to(dtype)


def _places(mask: Tensor) -> tuple[Tensor, ...]:
    """Indices where a mask holds; on the meta device nowhere."""
    if mask.is_meta:
        return tuple(torch.empty(0, dtype=torch.long, device=mask.device) for _ in mask.shape)
    return mask.nonzero(as_tuple=True)


def _log_rise(log_weight: Tensor, log_gap: Tensor) -> Tensor:
    """log(1 - exp(-A gap)) per unit, from logs: (*b, width, 1) and (*b, columns)."""
    return log_one_minus_exp(log_weight + log_gap.unsqueeze(-2))


class _BoundNet:
    """A monotone net with decoded weights, evaluated without the tangent."""

    def __init__(self, net: MonotoneNet, layers: list[_Layer], log_mixture: Tensor) -> None:
        self.net = net
        self.layers = layers
        self.log_mixture = log_mixture

    def __call__(self, x: Tensor) -> Tensor:
        low, high = self.net._computable(x.dtype)
        points = x.clamp(low, high).unsqueeze(-1)
        logs = self.net._log_differences(self.layers, self.log_mixture, points, tangent=False)
        return logs[..., 0] - logs[..., 1]

    def select(self, rows: Tensor) -> _BoundNet:
        layers = [_Layer(*(part[rows] for part in layer)) for layer in self.layers]
        return _BoundNet(self.net, layers, self.log_mixture[rows])
