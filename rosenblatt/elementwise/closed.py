"""Elementwise maps with closed formulas both ways, computed in float64 whatever the dtype of the rows."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import InverseError
from rosenblatt.core.logspace import logit_difference
from rosenblatt.core.types import Mapped
from rosenblatt.elementwise.base import Elementwise, UnitElementwise

LOG_2 = math.log(2)


class ClosedForm(Elementwise):
    """An elementwise map whose subclass gives `evaluate` and `solve` in float64.

    Powers and exponentials of a few numbers per coordinate are cheap beside the network that emits them, and in float64
    they neither overflow nor lose the digits of a tail before the result is rounded once.
    """

    @abstractmethod
    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Map `x` by differentiable operations, all in float64."""

    @abstractmethod
    def solve(self, y: Tensor, theta: Tensor) -> Mapped:
        """Invert `evaluate`."""

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Map `x` and return the log-derivative of the map that ran."""
        value, log_det = self.evaluate(x.double(), theta.double())
        return Mapped(value.to(x.dtype), log_det.to(x.dtype))

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Invert by the closed formula; raises `InverseError` where the answer leaves the range of `y`'s dtype."""
        value, log_det = self.solve(y.double(), theta.double())
        value = value.to(y.dtype)
        if runs_eagerly() and not y.is_meta:
            _raise_beyond(torch.isinf(value) & torch.isfinite(y), y.dtype)
        return Mapped(value, log_det.to(y.dtype))


class ClosedUnitForm(ClosedForm, UnitElementwise):
    """A family of CDFs with closed formulas, carried as logits."""

    def _log_interval(self, lower: Tensor, upper: Tensor, theta: Tensor) -> Tensor:
        # Two logits of a far tail differ by less than float32 can tell.
        wide = theta.double()
        ends = (self.evaluate(end.double(), wide).value for end in (upper, lower))
        return logit_difference(*ends).to(lower.dtype)


def signed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sign (1 at 0) and size of `x`; unlike those of torch their product has slope 1 at 0 as well."""
    positive = x >= 0
    sign = torch.where(positive, 1.0, -1.0).to(x.dtype)
    size = torch.where(positive, x, -x)  # NaN stays NaN
    return sign, size


def log_cosh(x: Tensor) -> Tensor:
    """`log cosh x` without overflow, smooth at 0."""
    return x - logsigmoid(2 * x) - LOG_2


def _raise_beyond(beyond: Tensor, dtype: torch.dtype) -> None:
    if bool(beyond.any()):
        rows = beyond.reshape(-1).nonzero().squeeze(-1).tolist()
        raise InverseError(f"have an inverse beyond the range of {dtype}", rows)
