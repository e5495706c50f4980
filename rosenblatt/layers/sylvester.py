"""Sylvester layers: several planar bends at once, coupled by triangles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Mapped
from rosenblatt.elementwise.tanh_bump import TanhBump, rise_of, squared_sech, steepness_of
from rosenblatt.layers.linear import multiply, require_features
from rosenblatt.layers.orthogonal import reflections_of
from rosenblatt.layers.planar import Residual


class Sylvester(Residual):
    """`y = x + Q R tanh(P Q^T x + b)`: Q has orthonormal columns, R and P are upper triangles; starts as the identity.

    `log_det = sum_i log(1 + R_ii P_ii sech^2(.))` by Sylvester's determinant identity. `P_ii` and `R_ii P_ii + 1` are
    steepness and slope of a `TanhBump`, so every theta gives an invertible map. `width` is the number of bends (columns
    of Q, all of them by default). The inverse goes from the last bend to the first: each is a root search in one
    number, and `InverseError` says where one fails. Q is a product of reflections; with `context`, R, P and b are a
    network of it.
    Raises `OptionError` unless 1 <= width <= features.
    Reference: van den Berg, Hasenclever, Tomczak & Welling, Sylvester Normalizing Flows, UAI 2018.

    >>> Sylvester(2)(torch.tensor([1.0, 2.0])).value
    tensor([1., 2.], grad_fn=<...>)
    """

    def __init__(self, features: int, width: int | None = None, *, context: int = 0, hidden: int = 64) -> None:
        require_features(features)
        width = features if width is None else width
        if not 1 <= width <= features:
            raise OptionError(f"width: {width} came, an integer between 1 and {features} features was expected.")
        super().__init__(width * (width + 3), context, hidden)
        self.width = width
        self.bump = TanhBump()
        self.vectors = nn.Parameter(torch.randn(features, features))
        bumps = torch.stack([torch.zeros(width), torch.zeros(width), torch.randn(width)], dim=-1)
        self.conditioner.start_at(torch.cat([bumps.flatten(), torch.zeros(width * width)]))

    def bend(self, x: Tensor, theta: Tensor) -> Mapped:
        """Bend along the columns of Q."""
        columns, (bumps, before, after) = self._columns().to(x.dtype), self._triangles(theta.to(x.dtype))
        rise, steepness = rise_of(bumps[..., 0]), steepness_of(bumps[..., 1])
        inner = multiply(x, columns.mT)
        z = _times(before, inner) + steepness * inner + bumps[..., 2]
        bent = torch.tanh(z)
        value = x + multiply(_times(after, bent) + rise / steepness * bent, columns)
        return Mapped(value, torch.log1p(rise * squared_sech(z)).sum(dim=-1))

    def straighten(self, y: Tensor, theta: Tensor) -> Mapped:
        """Solve for the bends, the last one first, in float64."""
        columns, (bumps, before, after) = self._columns(), self._triangles(theta)
        rise, steepness = rise_of(bumps[..., 0]), steepness_of(bumps[..., 1])
        wide = y.double()
        inner = multiply(wide, columns.mT)
        log_det = inner.new_zeros(inner.shape[:-1])
        solved, bent = inner[..., :0], inner[..., :0]  # of the later bends
        for number in reversed(range(self.width)):
            offset = bumps[..., number, 2] + (before[..., number, number + 1 :] * solved).sum(dim=-1)
            target = inner[..., number] - (after[..., number, number + 1 :] * bent).sum(dim=-1)
            raw = bumps[..., number, :2].expand(*offset.shape, 2)
            height, bend_log_det = self.bump.inverse(target, torch.cat([raw, offset.unsqueeze(-1)], dim=-1))
            solved = torch.cat([height.unsqueeze(-1), solved], dim=-1)
            turned = torch.tanh(steepness[..., number] * height + offset)
            bent = torch.cat([turned.unsqueeze(-1), bent], dim=-1)
            log_det = log_det + bend_log_det
        value = wide - multiply(_times(after, bent) + rise / steepness * bent, columns)
        return Mapped(value.to(y.dtype), log_det.to(y.dtype))

    def _columns(self) -> Tensor:
        """Q (features, width) in float64."""
        return reflections_of(self.vectors)[:, : self.width]

    def _triangles(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw parameters (width, 3) of the bumps, and the strict upper triangles of P and R."""
        bumps, square = theta.split([3 * self.width, self.width * self.width], dim=-1)
        square = square.unflatten(-1, (self.width, self.width))  # P above its diagonal, R below
        return bumps.unflatten(-1, (self.width, 3)), square.triu(1), square.mT.triu(1)


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Product of one matrix, or of a matrix for each row, with every row."""
    if matrix.ndim == 2:
        return multiply(vectors, matrix)
    return (matrix * vectors.unsqueeze(-2)).sum(dim=-1)
