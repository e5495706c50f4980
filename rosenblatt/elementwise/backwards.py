"""An increasing map run the other way round, so that its cheap direction is the one that samples."""

from __future__ import annotations

from torch import Tensor

from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Mapped
from rosenblatt.elementwise.base import Elementwise


class Backwards(Elementwise):
    """`y = g^-1(x; theta)` for a family g of increasing maps of the line: `log_det = -log g'(y)`.

    What g computes in closed form is here the inverse, from noise to data: g is then a quantile function and needs no
    search to be sampled, while the density takes g's own inverse, closed or searched, with implicit gradients.
    Raises `OptionError` unless g maps the whole line onto itself.

    >>> import torch
    >>> from rosenblatt.elementwise.affine import Affine
    >>> Backwards(Affine()).inverse(torch.tensor([3.0]), torch.tensor([[1.0, 0.0]])).value
    tensor([2.0000])
    """

    def __init__(self, wrapped: Elementwise) -> None:
        super().__init__()
        if not wrapped.domain.whole_line:
            raise OptionError(
                f"wrapped: {type(wrapped).__name__} lives on an interval, a map of the line was expected."
            )
        self.wrapped = wrapped
        self.spec = wrapped.spec

    def start(self) -> Tensor:
        """The start of the wrapped family, which is (nearly) the identity in both directions."""
        return self.wrapped.start()

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Invert the wrapped map; raises `InverseError` where its search did not converge."""
        return self.wrapped.inverse(x, theta)

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Run the wrapped map."""
        mapped: Mapped = self.wrapped(y, theta)
        return mapped
