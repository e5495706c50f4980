"""Parameters that vanish at the poles of a sphere, where all longitudes are one point."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rosenblatt.conditioners.base import Conditioner
from rosenblatt.core.errors import OptionError

NEAREST = 1e-12  # of 1 - h^2: nearer to a pole the root is replaced by a straight line, whose slope is finite


class Fading(Conditioner):
    """The thetas of another conditioner, times the distances from the axes of the heights they depend on.

    `theta_i = inner_i prod_j rho(x_j) prod_k rho(c_k)`, `rho(h) = sqrt(1 - h^2)`, over the coordinates x_j before i and
    the first `heights` numbers c_k of the context, all of them heights in [-1, 1]. Where theta = 0 is the identity, a
    height of +-1 leaves the later coordinates alone, and so a density on the sphere is continuous at its poles.
    Raises `OptionError` when the inner conditioner has levels of several coordinates.

    >>> from rosenblatt.conditioners.independent import Independent
    >>> fading = Fading(Independent(1, 2, context=1), heights=1)
    >>> fading(torch.zeros(1), torch.tensor([1.0])).abs().max().item()
    0.0
    """

    def __init__(self, inner: Conditioner, *, heights: int = 0) -> None:
        levels = [level.tolist() for level in inner.levels]
        if any(len(level) > 1 for level in levels) or not 0 <= heights <= inner.context:
            raise OptionError(
                f"inner, heights: levels {levels}, {inner.context} contexts and {heights} heights among them came; one "
                "coordinate in each level and no more heights than contexts were expected."
            )
        super().__init__(levels, inner.params, inner.context)
        self.inner, self.heights = inner, heights

    def start_at(self, theta: Tensor) -> None:
        """Start the inner conditioner there."""
        self.inner.start_at(theta)

    def parts(self, x: Tensor, context: Tensor | None = None) -> Iterator[Tensor]:
        """The inner parts, each times its factors."""
        before = torch.cat([torch.ones_like(x[..., :1]), axis_distance(x[..., :-1])], dim=-1)
        factors = torch.cumprod(before, dim=-1)
        if self.heights and context is not None:
            factors = factors * axis_distance(context[..., : self.heights]).prod(dim=-1, keepdim=True)
        start = 0
        for part in self.inner.parts(x, context):
            stop = start + part.shape[-2]
            yield part * factors[..., start:stop].unsqueeze(-1)
            start = stop


def axis_distance(height: Tensor) -> Tensor:
    """`sqrt(1 - h^2)` on the unit sphere, 0 beyond the poles, with a finite gradient everywhere.

    >>> axis_distance(torch.tensor([0.6, 1.0]))
    tensor([0.8000, 0.0000])
    """
    height = height.clamp(-1.0, 1.0)
    square = (1 - height) * (1 + height)
    near = square < NEAREST
    return torch.where(near, square / NEAREST**0.5, torch.sqrt(torch.where(near, 1.0, square)))
