"""Some columns first, the others given them."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.core.errors import OptionError
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Likelihood, Mapped


class Staged(Transform):
    """`y_1 = f(x_1; context)`, `y_2 = g(x_2; x_1, context)`: two transforms of different kinds side by side.

    x_1 are the first `first` columns. g takes them in front of its own context. The Jacobian is block-triangular, so
    `log_det` is the sum of both. Raises `OptionError` unless first >= 1.

    >>> from rosenblatt.core.transform import Identity
    >>> Staged(Identity(), Identity(), first=1)(torch.zeros(5, 3)).value.shape
    torch.Size([5, 3])
    """

    def __init__(self, before: Transform, after: Transform, *, first: int) -> None:
        super().__init__()
        if first < 1:
            raise OptionError(f"first: {first} came, an integer >= 1 was expected.")
        self.before, self.after, self.first = before, after, first

    @property
    def likelihood(self) -> Likelihood:
        """What the weaker of both can claim."""
        return Likelihood.weakest(self.before.likelihood, self.after.likelihood)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Map the first columns, and the others given the first."""
        x_1, x_2 = x[..., : self.first], x[..., self.first :]
        y_1, log_det = self.before(x_1, context)
        y_2, rest = self.after(x_2, _joined(x_1, context))
        return Mapped(torch.cat([y_1, y_2], dim=-1), log_det + rest)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Find the first columns, then the others."""
        x_1, log_det = self.before.inverse(y[..., : self.first], context)
        x_2, rest = self.after.inverse(y[..., self.first :], _joined(x_1, context))
        return Mapped(torch.cat([x_1, x_2], dim=-1), log_det + rest)


def _joined(x: Tensor, context: Tensor | None) -> Tensor:
    if context is None:
        return x
    return torch.cat([x, context.expand(*x.shape[:-1], context.shape[-1])], dim=-1)
