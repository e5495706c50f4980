"""Columns that live on an interval or a half-line, mapped onto the whole line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import log_one_minus_exp
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped, Support


class SupportMap(Transform):
    """Fixed increasing map of each column's declared support onto the line, or onto an interval.

    - (a, b): `y = log(x - a) - log(b - x)`, the logit of the position;
    - (a, inf): `y = log(expm1(u))`, u = (x - a) / scale, which is u itself far from the end;
    - (-inf, b): the mirror image, `y = -log(expm1((b - x) / scale))`;
    - no bounds: `y = x`.

    `onto` gives a model's own interval (c, d) for every column, for models that live on a box; a support (a, b) is then
    carried straight onto it, ends included: `y = c + (x - a) (d - c) / (b - a)`.

    Outside, value = -inf below and +inf above, log_det = -inf. A point exactly at a bound is taken as the nearest
    number inside, so its density is finite. `supports` holds one (lower, upper) per column, None for no bound;
    `scales` one positive number per column, used by half-lines.
    Raises `OptionError` for an empty interval, an open one where `onto` is given, or a scale that is not positive.

    >>> SupportMap([(0, 1), (0, None)])(torch.tensor([0.5, 100.0])).value
    tensor([  0., 100.])
    >>> SupportMap([(0, 360)], onto=[Support(-1, 1)])(torch.tensor([90.0])).value
    tensor([-0.5000])
    """

    def __init__(
        self,
        supports: Sequence[Sequence[float | None]],
        scales: Sequence[float] | None = None,
        onto: Sequence[Support] | None = None,
    ) -> None:
        super().__init__()
        # Kept as Python numbers: they are rounded to the dtype of the data like the data itself, so that a
        # value equal to its bound in the table is equal to it here.
        self.supports = [_support(pair) for pair in supports]
        self.scales = [1.0] * len(self.supports) if scales is None else [float(scale) for scale in scales]
        if len(self.scales) != len(self.supports) or not all(0 < scale < math.inf for scale in self.scales):
            raise OptionError(f"scales: {self.scales} came, {len(self.supports)} positive numbers were expected.")
        self.onto = None if onto is None else list(onto)
        if self.onto is not None and (
            len(self.onto) != len(self.supports) or not all(pair.bounded for pair in (*self.supports, *self.onto))
        ):
            raise OptionError(f"supports: {list(supports)} came, a bounded interval for every column was expected.")

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Map every column onto the line."""
        if self.onto is not None:
            return _straight(x, self.supports, self.onto)
        columns = list(x.unbind(dim=-1))
        log_det = x.new_zeros(x.shape[:-1])
        for i, (support, scale) in enumerate(zip(self.supports, self.scales, strict=True)):
            if not support.whole_line:
                columns[i], column_log_det = _to_line(columns[i], support, scale)
                log_det = log_det + column_log_det
        return Mapped(torch.stack(columns, dim=-1), log_det)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Map every column back into its support."""
        if self.onto is not None:
            return _straight(y, self.onto, self.supports)
        columns = list(y.unbind(dim=-1))
        log_det = y.new_zeros(y.shape[:-1])
        for i, (support, scale) in enumerate(zip(self.supports, self.scales, strict=True)):
            if not support.whole_line:
                columns[i], column_log_det = _from_line(columns[i], support, scale)
                log_det = log_det + column_log_det
        return Mapped(torch.stack(columns, dim=-1), log_det)


def _straight(x: Tensor, supports: Sequence[Support], onto: Sequence[Support]) -> Mapped:
    ends = [[pair.lower, pair.upper, other.lower, other.upper] for pair, other in zip(supports, onto, strict=True)]
    a, b, c, d = x.new_tensor(ends).unbind(dim=-1)
    share = (x.clamp(a, b) - a) / (b - a)
    value = torch.lerp(c, d, share).clamp(c, d)
    below, above = x < a, x > b
    value = torch.where(below, -torch.inf, torch.where(above, torch.inf, value))
    log_det = torch.log((d - c) / (b - a)).sum().expand(x.shape[:-1])
    return Mapped(value, torch.where((below | above).any(dim=-1), -torch.inf, log_det))


def _to_line(x: Tensor, support: Support, scale: float) -> Mapped:
    lower, upper = support.lower, support.upper
    below, above = x < lower, x > upper
    # Moved inside before anything is computed, so that no gradient is infinite.
    reach = upper - lower if support.bounded else scale
    x = torch.where(x <= lower, _inner_neighbour(x, lower, reach), x)
    x = torch.where(x >= upper, _inner_neighbour(x, upper, -reach), x)
    if support.bounded:
        to_lower, to_upper = torch.log(x - lower), torch.log(upper - x)
        value, log_det = to_lower - to_upper, math.log(upper - lower) - to_lower - to_upper
    else:
        sign, distance = (1, x - lower) if math.isfinite(lower) else (-1, upper - x)
        # From the logarithms, because distance / scale may underflow.
        log_share = log_one_minus_exp(torch.log(distance) - math.log(scale))
        value, log_det = sign * (distance / scale + log_share), -log_share - math.log(scale)
    value = torch.where(below, -torch.inf, torch.where(above, torch.inf, value))
    return Mapped(value, torch.where(below | above, -torch.inf, log_det))


def _from_line(y: Tensor, support: Support, scale: float) -> Mapped:
    lower, upper = support.lower, support.upper
    if support.bounded:
        width = upper - lower
        # Measured from the nearer end, where the other one would have lost the digits.
        value = torch.where(y < 0, lower + width * torch.sigmoid(y), upper - width * torch.sigmoid(-y))
        return Mapped(value, math.log(width) + logsigmoid(y) + logsigmoid(-y))
    if math.isfinite(lower):
        return Mapped(lower - scale * logsigmoid(-y), math.log(scale) + logsigmoid(y))
    return Mapped(upper + scale * logsigmoid(y), math.log(scale) + logsigmoid(-y))


def _inner_neighbour(x: Tensor, bound: float, reach: float) -> Tensor:
    """The point inside that stands for `bound` itself: an ulp of the column's size away, or of the bound's."""
    end = x.new_tensor(bound)
    if math.isinf(bound):
        return end
    inside = end + x.new_tensor(torch.finfo(x.dtype).eps * reach)
    neighbour = torch.nextafter(end, x.new_tensor(math.copysign(math.inf, reach)))
    return torch.maximum(inside, neighbour) if reach > 0 else torch.minimum(inside, neighbour)


def _support(pair: Sequence[float | None]) -> Support:
    if len(pair) != 2:
        raise OptionError(f"supports: {list(pair)} came, a (lower, upper) pair was expected for every column.")
    lower, upper = pair
    return Support(-math.inf if lower is None else float(lower), math.inf if upper is None else float(upper))
