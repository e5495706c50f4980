"""From the columns of a user's table to the numbers that a model sees, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rosenblatt.core.laws import Law
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.core.types import Mapped, Support
from rosenblatt.layers.scaling import Standardise
from rosenblatt.layers.support import SupportMap

Bounds = tuple[float | None, float | None]


class Units(Transform):
    """From the user's columns to standardised numbers on the line: `z = (s(x) - location) / scale`.

    `s` maps declared supports onto the line. Everything here is float64 whatever the dtype of the model behind it, so
    that a column such as a time stamp (1.6e9 +- 1) keeps its digits; only `z` is cast to the model's dtype. A value
    outside its support becomes -inf or +inf, with log-determinant -inf. For a model with supports of its own, `onto`, s
    maps the declared ones straight onto these, and location is 0, scale 1.

    >>> units = Units([(None, None)], [1.0], torch.tensor([1e9]), torch.tensor([2.0]))
    >>> units(torch.tensor([1e9 + 4.0], dtype=torch.float64)).value
    tensor([2.])
    """

    follower: Tensor

    def __init__(
        self,
        supports: Sequence[Bounds],
        scales: Sequence[float],
        location: Tensor,
        scale: Tensor,
        onto: Sequence[Support] | None = None,
    ) -> None:
        super().__init__()
        bounded = any(end is not None for pair in supports for end in pair)
        standardise = Standardise(location.double(), scale.double())
        self.map = Compose([SupportMap(supports, scales, onto), standardise] if bounded else [standardise])
        # Follows the dtype of the model around it.
        self.register_buffer("follower", torch.zeros(()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Units:
        before = dict(self.map.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for path, moved in list(self.map.named_buffers()):
            owner, _, name = path.rpartition(".")
            exact = before[path] if moved.device == before[path].device else before[path].to(moved.device)
            self.map.get_submodule(owner).register_buffer(name, exact)
        return self

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Map rows of the user's columns; the log-determinant has the dtype of `x`."""
        value, log_det = self.map(x.double())
        return Mapped(value.to(self.follower.dtype), log_det.to(x.dtype))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Map back to the user's columns, in float64."""
        value, log_det = self.map.inverse(y.double())
        return Mapped(value, log_det)

    def closed_law(self, law: Law, context: Tensor | None = None) -> Law | None:
        """Carry `law` to the user's column, where no support bends it."""
        return self.map.closed_law(law)
