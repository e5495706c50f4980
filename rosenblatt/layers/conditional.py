"""The product that carries the house: an elementwise map whose parameters a conditioner emits."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.conditioners.base import Conditioner
from rosenblatt.core.errors import InverseError, OptionError
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
        """Map every coordinate at once."""
        value, log_det = self.elementwise(x, self.conditioner(x, context))
        return Mapped(value, log_det.sum(dim=-1))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Solve level by level; raises `InverseError` if a root is not found."""
        x = torch.zeros_like(y)
        log_det = y.new_zeros(y.shape[:-1])
        walk = self.conditioner.walk(context)
        for number, level in enumerate(self.conditioner.levels):
            theta = walk.theta(number, x)
            try:
                solved, level_log_det = self.elementwise.inverse(y.index_select(-1, level), theta)
            except InverseError as error:
                rows = sorted({index // len(level) for index in error.rows})
                raise InverseError(f"{error.reason} at coordinates {level.tolist()}", rows) from None
            x = x.index_copy(-1, level, solved)
            log_det = log_det + level_log_det.sum(dim=-1)
        return Mapped(x, log_det)
