"""Rational-quadratic splines of the circle onto itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rosenblatt.core.types import Mapped, ParamSpec, Support
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.box import nothing_outside
from rosenblatt.elementwise.spline import RationalQuadraticSpline


class CircularSpline(Elementwise):
    """Rational-quadratic spline of angles in [-pi, pi], whose density is continuous across +-pi (Rezende et al. 2020).

    A `RationalQuadraticSpline(tails="none")` on [-pi, pi] with equal slopes at both ends: `f(+-pi) = +-pi`,
    `f'(-pi) = f'(pi)`; 3 bins parameters, theta = 0 is the identity. Behind it belongs `Box(bound=pi)`, the uniform
    density of the circle.

    `phase=True` turns the circle first, by one parameter more: `y = f(x - phase mod 2 pi)`, so that the fixed point may
    lie anywhere. Such a map increases around the circle, but jumps by 2 pi at the angle that is turned to pi.

    Angles outside [-pi, pi] have `log_det = -inf`; `inverse` raises `InverseError` there. Raises `OptionError` for bins
    outside 2..500.

    >>> circle = CircularSpline(bins=4, phase=True)
    >>> theta = torch.tensor([0.0] * 12 + [1.0])
    >>> circle(torch.tensor([0.5, -3.0]), theta).value  # -4 is 2 pi - 4
    tensor([-0.5000,  2.2832])
    """

    domain = Support(-math.pi, math.pi)

    def __init__(self, bins: int = 8, phase: bool = False) -> None:
        super().__init__()
        self.spline = RationalQuadraticSpline(bins, bound=math.pi, tails="none")
        self.phase = phase
        shapes: dict[str, tuple[int, ...]] = {"widths": (bins,), "heights": (bins,), "slopes": (bins,)}
        self.spec = ParamSpec(**shapes, phase=()) if phase else ParamSpec(**shapes)

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Turn, then bend."""
        parts, tied = self._decode(theta)
        if not self.phase:
            return self.spline.forward(x, tied)
        here = x.clamp(-math.pi, math.pi)
        value, log_det = self.spline.forward(_wrapped(here - parts["phase"].to(x.dtype)), tied)
        return nothing_outside(x, here == x, value, log_det, math.pi)

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Bend back, then turn back."""
        parts, tied = self._decode(theta)
        mapped = self.spline.inverse(y, tied)
        if not self.phase:
            return mapped
        return Mapped(_wrapped(mapped.value + parts["phase"].to(y.dtype)), mapped.log_det)

    def _decode(self, theta: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The parts, and the parameters of the spline with the slope of both ends tied."""
        parts = self.spec.split(theta)
        slopes = parts["slopes"]
        return parts, torch.cat([parts["widths"], parts["heights"], slopes, slopes[..., :1]], dim=-1)


def _wrapped(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi]."""
    turns = torch.floor((angle + math.pi) / (2 * math.pi))
    return (angle - 2 * math.pi * turns).clamp(-math.pi, math.pi)  # against the last rounding
