"""Maps of the circle onto itself: rational-quadratic splines and convex combinations of Moebius transformations.

Angles live in [-pi, pi], and every map here fixes both ends: it increases from -pi to pi and its slope at -pi is that
at pi. Behind it belongs `Box(bound=pi)`, the uniform density of the circle, which no rotation changes. So nothing is
lost by the fixed ends, the density is continuous across the seam, and `(value + pi) / 2 pi` is the CDF from -pi.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Mapped, ParamSpec, Support
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.box import nothing_outside, refuse_outside
from rosenblatt.elementwise.spline import RationalQuadraticSpline

TURN = 2 * math.pi
LARGEST_RADIUS = 0.99  # of the centres: slopes stay between 1/199 and 199
START_RADIUS = 0.5


class CircularSpline(Elementwise):
    """Rational-quadratic spline of angles in [-pi, pi], whose density is continuous across +-pi (Rezende et al. 2020).

    A `RationalQuadraticSpline(tails="none")` on [-pi, pi] with equal slopes at both ends: `f(+-pi) = +-pi`,
    `f'(-pi) = f'(pi)`; 3 bins parameters, theta = 0 is the identity. Behind it belongs `Box(bound=pi)`, the uniform
    density of the circle.

    `phase=True` lets the knots turn around the circle, by one parameter more. With f continued by
    `f(x + 2 pi) = f(x) + 2 pi`, `y = f(x - phase) - f(-pi - phase) - pi`: the slope is that of f turned by `phase`, the
    ends stay fixed.

    Angles outside [-pi, pi] have `log_det = -inf`; `inverse` raises `InverseError` there. Raises `OptionError` for bins
    outside 2..500.

    >>> circle = CircularSpline(bins=4, phase=True)
    >>> theta = torch.tensor([0.0] * 12 + [1.0])
    >>> circle(torch.tensor([0.5, -3.0]), theta).value  # f is the identity here, and so is f turned
    tensor([ 0.5000, -3.0000])
    """

    domain = Support(-math.pi, math.pi)

    def __init__(self, bins: int = 8, phase: bool = False) -> None:
        super().__init__()
        self.spline = RationalQuadraticSpline(bins, bound=math.pi, tails="none")
        self.phase = phase
        shapes: dict[str, tuple[int, ...]] = {"widths": (bins,), "heights": (bins,), "slopes": (bins,)}
        self.spec = ParamSpec(**shapes, phase=()) if phase else ParamSpec(**shapes)

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Bend, with the knots turned."""
        parts, tied = self._decode(theta)
        if not self.phase:
            return self.spline.forward(x, tied)
        phase, before, rise = self._turned(parts["phase"].to(x.dtype), tied)
        here = x.clamp(-math.pi, math.pi)
        point = here - phase
        turns = torch.floor((point + math.pi) / TURN)
        value, log_det = self.spline.forward(_clamped(point - TURN * turns), tied)
        return nothing_outside(x, here == x, value - rise + TURN * (turns - before), log_det, math.pi)

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Bend back."""
        parts, tied = self._decode(theta)
        if not self.phase:
            return self.spline.inverse(y, tied)
        refuse_outside(y, math.pi)
        phase, before, rise = self._turned(parts["phase"].to(y.dtype), tied)
        target = y + rise
        turns = torch.floor((target + math.pi) / TURN)
        value, log_det = self.spline.inverse(_clamped(target - TURN * turns), tied)
        return Mapped(_clamped(value + phase + TURN * (turns + before)), log_det)

    def _decode(self, theta: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The parts, and the parameters of the spline with the slope of both ends tied."""
        parts = self.spec.split(theta)
        slopes = parts["slopes"]
        return parts, torch.cat([parts["widths"], parts["heights"], slopes, slopes[..., :1]], dim=-1)

    def _turned(self, phase: Tensor, tied: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Phase in [-pi, pi); whole turns before `-pi - phase`; what f has risen from there to that point."""
        phase = phase - TURN * torch.floor(phase / TURN + 0.5)
        before = -(phase > 0).to(phase.dtype)
        first = _clamped(-math.pi - TURN * before - phase)
        return phase, before, self.spline.forward(first, tied).value + math.pi


class Moebius(Elementwise):
    """Convex combination of Moebius transformations of the circle, all with the end point -pi (Rezende et al. 2020).

    With centres w_k inside the unit disk, weights rho_k and z = exp(i x),
    `dy/dx = sum_k rho_k (1 - |w_k|^2) / |z - w_k|^2`, a mixture of wrapped Cauchy densities, and
    `y = x + 2 sum_k rho_k (g_k(x) - g_k(-pi))` with, for w_k = a + i b,
    `g_k(x) = atan2(a sin x - b cos x, 1 - a cos x - b sin x)`.

    Analytic all around the circle, so the seam is a point like any other. Centres are `0.99 v / sqrt(1 + |v|^2)` of the
    raw v; theta = 0 is the identity. Computed in float64. The inverse is a root search. Angles outside [-pi, pi] have
    `log_det = -inf`; `inverse` raises `InverseError` there. Raises `OptionError` unless components >= 1.

    >>> circle = Moebius(components=2)
    >>> circle(torch.tensor([0.5, 4.0]), torch.zeros(circle.spec.size)).log_det
    tensor([0., -inf])
    """

    domain = Support(-math.pi, math.pi)

    def __init__(self, components: int = 8) -> None:
        super().__init__()
        if components < 1:
            raise OptionError(f"components: {components} came, an integer >= 1 was expected.")
        self.components = components
        self.spec = ParamSpec(weights=(components,), centres=(components, 2))

    def start(self) -> Tensor:
        """Centres spread evenly on a ring, where they differ but all but cancel one another."""
        radius = min(START_RADIUS, 10.0 ** (-2 / self.components)) / LARGEST_RADIUS
        raw = radius / math.sqrt(1 - radius**2)
        angle = torch.arange(self.components) * (TURN / self.components)
        centres = raw * torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1)
        return self.spec.join(weights=torch.zeros(self.components), centres=centres)

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Add the angles that each transformation has turned since -pi."""
        here = x.clamp(-math.pi, math.pi)
        bound = _BoundMoebius(*self._decode(theta.double()))
        point = here.double()
        value, log_det = bound(point).to(x.dtype), bound.log_slope(point).to(x.dtype)
        return nothing_outside(x, here == x, value, log_det, math.pi)

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Search for the root."""
        refuse_outside(y, math.pi)
        return super().inverse(y, theta)

    def bind(self, theta: Tensor) -> _BoundMoebius:
        """Decode once for a root search."""
        return _BoundMoebius(*self._decode(theta))

    def _decode(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, centres (.., components, 2), and log(1 - |w|^2), which no subtraction rounds away."""
        parts = self.spec.split(theta)
        size = parts["centres"].square().sum(dim=-1)
        centres = LARGEST_RADIUS * parts["centres"] / torch.sqrt(1 + size).unsqueeze(-1)
        gap = torch.log1p((1 - LARGEST_RADIUS**2) * size) - torch.log1p(size)
        return torch.log_softmax(parts["weights"], dim=-1), centres, gap


class _BoundMoebius:
    """The map and its log-slope at decoded parameters."""

    def __init__(self, log_weight: Tensor, centres: Tensor, log_gap: Tensor) -> None:
        self.parts = (log_weight, centres, log_gap)
        self.log_weight, self.log_gap = log_weight, log_gap
        self.a, self.b = centres.unbind(dim=-1)
        self.weight = torch.exp(log_weight)
        self.first = torch.atan2(self.b, 1 + self.a)

    def __call__(self, x: Tensor) -> Tensor:
        cos, sin = torch.cos(x).unsqueeze(-1), torch.sin(x).unsqueeze(-1)
        turned = torch.atan2(self.a * sin - self.b * cos, 1 - self.a * cos - self.b * sin)
        return x + 2 * (self.weight * (turned - self.first)).sum(dim=-1)

    def log_slope(self, x: Tensor) -> Tensor:
        """Log-derivative at `x`."""
        cos, sin = torch.cos(x).unsqueeze(-1), torch.sin(x).unsqueeze(-1)
        distance = (cos - self.a).square() + (sin - self.b).square()
        return torch.logsumexp(self.log_weight + self.log_gap - torch.log(distance), dim=-1)

    def select(self, rows: Tensor) -> _BoundMoebius:
        """Keep only `rows`."""
        log_weight, centres, log_gap = (part[rows] for part in self.parts)
        return _BoundMoebius(log_weight, centres, log_gap)


def _clamped(angle: Tensor) -> Tensor:
    """Against the last rounding."""
    return angle.clamp(-math.pi, math.pi)


def circle_map(kind: str, bins: int, components: int) -> Elementwise:
    """The map of the circle called `kind`: "spline" with turning knots, or "moebius"; `OptionError` for others.

    >>> circle_map("moebius", 8, 3).spec.size
    9
    """
    if kind not in ("spline", "moebius"):
        raise OptionError(f"circle: '{kind}' came, 'spline' or 'moebius' was expected.")
    return CircularSpline(bins, phase=True) if kind == "spline" else Moebius(components)
