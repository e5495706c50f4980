"""The product that carries the house: an elementwise map whose parameters a conditioner emits."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.conditioners.base import Conditioner
from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import InverseError, OptionError
from rosenblatt.core.laws import Law
from rosenblatt.core.precision import full_precision
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped
from rosenblatt.elementwise.base import Elementwise


class Conditional(Transform):
    """`y_i = g(x_i; theta_i(x_<i, context))`: elementwise map times conditioner.

    `log_det = sum_i log g'(x_i; theta_i)`, exact because the Jacobian is triangular. `forward` is one pass of
    the conditioner; `inverse` goes level by level and solves only the coordinates of that level.
    """

    def __init__(self, elementwise: Elementwise, conditioner: Conditioner) -> None:
        super().__init__()
        if conditioner.params != elementwise.spec.size:
            raise OptionError(
                f"conditioner: emits {conditioner.params} numbers per coordinate, the elementwise map "
                f"{type(elementwise).__name__} takes {elementwise.spec.size}; build it with params=spec.size."
            )
        self.elementwise = elementwise
        self.conditioner = conditioner
        conditioner.start_at(elementwise.start())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Map every coordinate, a part of the parameters after the other."""
        x = self.conditioner.arrange(x)
        values, log_dets, start = [], [], 0
        for theta in self.conditioner.parts(x, context):
            stop = start + theta.shape[-2]
            with full_precision(x):
                mapped: Mapped = self.elementwise(x[..., start:stop], theta.to(x.dtype))
            values.append(mapped.value)
            log_dets.append(mapped.log_det.sum(dim=-1))
            start = stop
        value = values[0] if len(values) == 1 else torch.cat(values, dim=-1)
        return Mapped(self.conditioner.restore(value), sum(log_dets[1:], start=log_dets[0]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Solve level by level; raises `InverseError` if a root is not found."""
        if torch.is_grad_enabled() or not runs_eagerly():
            return self._inverse_with_tape(y, context)
        features = y.shape[-1]
        flat = y.reshape(-1, features)
        given = None if context is None else context.expand(*y.shape[:-1], -1).reshape(-1, context.shape[-1])
        # Columns in level order, each contiguous: what a level solves is written where the next one reads it.
        columns = flat.t() if self.conditioner.in_order else flat.t().index_select(0, self.conditioner.order)
        # Zeros, because a conditioner without a walk of its own also looks at what is not solved yet.
        solved = torch.zeros_like(columns, memory_format=torch.contiguous_format)
        log_det = y.new_zeros(len(flat))
        walk = self.conditioner.column_walk(given, len(flat))
        start = 0
        for number, size in enumerate(self.conditioner.sizes):
            stop = start + size
            x, level_log_det = self._solve(number, columns[start:stop].t(), walk.theta(number, solved))
            solved[start:stop] = x.t()
            log_det += level_log_det.squeeze(-1) if size == 1 else level_log_det.sum(dim=-1)
            start = stop
        if not self.conditioner.in_order:
            solved = solved.index_select(0, self.conditioner.position)
        return Mapped(solved.t().reshape(y.shape), log_det.reshape(y.shape[:-1]))

    def closed_law(self, law: Law, context: Tensor | None = None) -> Law | None:
        """Ask the elementwise map of the one column, whose parameters depend on `context` alone."""
        if self.conditioner.features != 1:
            return None
        like = self._numbers() if context is None else context
        batch = () if context is None else context.shape[:-1]
        theta = self.conditioner(like.new_zeros(*batch, 1), context)
        return self.elementwise.closed_law(law, theta.squeeze(-2))

    def _numbers(self) -> Tensor:
        """Some numbers of the dtype and on the device that this layer works with."""
        tensors = (*self.conditioner.parameters(), *self.conditioner.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(1))

    def _inverse_with_tape(self, y: Tensor, context: Tensor | None) -> Mapped:
        x = torch.zeros_like(y)
        log_det = y.new_zeros(y.shape[:-1])
        walk = self.conditioner.walk(context)
        for number, level in enumerate(self.conditioner.levels):
            solved, level_log_det = self._solve(number, y.index_select(-1, level), walk.theta(number, x))
            x = x.index_copy(-1, level, solved)
            log_det = log_det + level_log_det.sum(dim=-1)
        return Mapped(x, log_det)

    def _solve(self, number: int, y: Tensor, theta: Tensor) -> Mapped:
        """Invert the elementwise map of one level."""
        try:
            return self.elementwise.inverse(y, theta)
        except InverseError as error:
            level = self.conditioner.levels[number].tolist()
            rows = sorted({index // len(level) for index in error.rows})
            raise InverseError(f"{error.reason} at coordinates {level}", rows) from None
