"""Linear maps of whole vectors: permutations, LU factors, rotations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped

LOG_DIAGONAL_BOUND = 7.0


class Permutation(Transform):
    """Reorder the coordinates: `y_i = x_order[i]`, `log_det = 0`.

    The order is part of the state dict, so a random one is restored with the weights.
    Raises `OptionError` when `order` is no permutation of 0..features-1.

    >>> Permutation([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0])).value
    tensor([12., 10., 11.])
    """

    order: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        order = [int(i) for i in order]
        if not order or sorted(order) != list(range(len(order))):
            raise OptionError(f"order: {order} came, a permutation of 0..features-1 was expected.")
        self.register_buffer("order", torch.tensor(order))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Reorder."""
        return Mapped(x.index_select(-1, self.order), x.new_zeros(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Restore the order."""
        return Mapped(y.index_select(-1, torch.argsort(self.order)), y.new_zeros(y.shape[:-1]))


class Reverse(Permutation):
    """Turn the order of the coordinates around: `y_i = x_{features-1-i}`.

    >>> Reverse(3)(torch.tensor([1.0, 2.0, 3.0])).value
    tensor([3., 2., 1.])
    """

    def __init__(self, features: int) -> None:
        super().__init__(list(range(features))[::-1])


class LU(Transform):
    """Invertible linear map `y = L U x + bias`, L unit lower and U upper triangular; starts as the identity.

    `log_det = sum_i log U_ii`, the log-diagonal smoothly bounded to [-7, 7]; the inverse is two triangular solves in
    float64 (Oliva et al. 2018; Kingma & Dhariwal 2018). Raises `OptionError` unless features >= 1.

    >>> LU(2)(torch.tensor([1.0, 2.0])).value
    tensor([1., 2.], grad_fn=<...>)
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        require_features(features)
        self.factors = nn.Parameter(torch.zeros(features, features))  # L below the diagonal, U above it
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Multiply."""
        lower, upper, log_diagonal = self._triangles(x.dtype)
        value = multiply(x, lower, upper) + self.bias
        return Mapped(value, log_diagonal.sum().expand(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Solve."""
        lower, upper, log_diagonal = self._triangles(torch.float64)

        def solved(rows: Tensor) -> Tensor:
            rows = (rows - self.bias.double()).reshape(-1, y.shape[-1])
            rows = torch.linalg.solve_triangular(lower.mT, rows, upper=True, left=False, unitriangular=True)
            found: Tensor = torch.linalg.solve_triangular(upper.mT, rows, upper=False, left=False)
            return found.reshape(y.shape)

        value = infinities_kept(y.double(), solved).to(y.dtype)
        return Mapped(value, -log_diagonal.sum().to(y.dtype).expand(y.shape[:-1]))

    def _triangles(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        factors = self.factors.to(dtype)
        log_diagonal = soft_bound(self.log_diagonal.to(dtype), LOG_DIAGONAL_BOUND)
        unit = torch.eye(len(factors), dtype=dtype, device=factors.device)
        return factors.tril(-1) + unit, factors.triu(1) + torch.diag(torch.exp(log_diagonal)), log_diagonal


class Rotation(Transform):
    """Rotation `y = Q x` with `Q = exp(A - A^T)`, determinant 1; starts as the identity.

    `log_det = 0` and the inverse is the transpose. Raises `OptionError` unless features >= 1.

    >>> Rotation(2)(torch.tensor([1.0, 2.0])).value
    tensor([1., 2.], grad_fn=<...>)
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        require_features(features)
        self.generator = nn.Parameter(torch.zeros(features, features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Rotate."""
        return Mapped(multiply(x, self._matrix().to(x.dtype)), x.new_zeros(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Rotate back."""
        return Mapped(multiply(y, self._matrix().mT.to(y.dtype)), y.new_zeros(y.shape[:-1]))

    def _matrix(self) -> Tensor:
        # In float64, so that Q is orthogonal to the last digit of the dtype in use.
        generator = self.generator.double().triu(1)
        matrix: Tensor = torch.linalg.matrix_exp(generator - generator.mT)
        return matrix


def multiply(x: Tensor, *factors: Tensor) -> Tensor:
    """Product of the matrices times every vector; a row with an infinity (outside a support) becomes infinite."""
    # Autocast would round the data to half precision.
    device = "cpu" if x.is_meta else x.device.type  # the meta device knows no autocast
    with torch.autocast(device, enabled=False):
        matrix = functools.reduce(torch.matmul, factors)
        return infinities_kept(x, lambda rows: rows @ matrix.mT)


def infinities_kept(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of rows that mixes their numbers; a row with an infinity becomes infinite, where sums would be NaN."""
    usable = ~torch.isinf(x)
    value = function(torch.where(usable, x, 0.0))
    return torch.where(usable.all(dim=-1, keepdim=True), value, torch.inf)


def require_features(features: int) -> None:
    """Raise `OptionError` unless there is a column."""
    if features < 1:
        raise OptionError(f"features: {features} came, an integer >= 1 was expected.")
