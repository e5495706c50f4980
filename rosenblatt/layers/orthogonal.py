"""Linear maps with a built-in inverse: reflections, Cayley rotations, matrix exponentials, QR and SVD."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.core.types import Mapped
from rosenblatt.layers.linear import (
    LOG_DIAGONAL_BOUND,
    LU,
    Permutation,
    Rotation,
    infinities_kept,
    multiply,
    require_features,
)
from rosenblatt.layers.scaling import ActNorm

EXPONENT_BOUND = 7.0
MIXINGS = ("plu", "householder", "cayley", "rotation", "exponential", "qr", "svd")


class Orthogonal(Transform):
    """`y = Q x` with an orthogonal Q that a subclass gives: `log_det = 0`, and the inverse is the transpose."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Q (features, features) in float64, so that it is orthogonal to the last digit of the dtype in use."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Multiply."""
        return Mapped(multiply(x, self.matrix().to(x.dtype)), x.new_zeros(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Multiply by the transpose."""
        return Mapped(multiply(y, self.matrix().mT.to(y.dtype)), y.new_zeros(y.shape[:-1]))


class Householder(Orthogonal):
    """Product of an even number of reflections, `Q = H_1 .. H_M`, `H = 1 - 2 v v^T / |v|^2`; starts as the identity.

    `reflections` is M, by default the columns rounded up to an even number, which reaches every rotation. Pairs of
    equal random vectors cancel at the start. Raises `OptionError` unless features >= 1 and M is even and >= 2.
    Reference: Tomczak & Welling, Improving Variational Auto-Encoders using Householder Flow, 2016.

    >>> round(Householder(3)(torch.tensor([3.0, 0.0, 4.0])).value.norm().item(), 4)
    5.0
    """

    def __init__(self, features: int, reflections: int | None = None) -> None:
        super().__init__()
        require_features(features)
        count = features + features % 2 if reflections is None else reflections
        if count < 2 or count % 2:
            raise OptionError(f"reflections: {count} came, an even number >= 2 was expected (a rotation needs pairs).")
        self.vectors = nn.Parameter(torch.randn(count // 2, features).repeat_interleave(2, dim=0))

    def matrix(self) -> Tensor:
        """Return the product of the reflections."""
        return reflections_of(self.vectors)


class Cayley(Orthogonal):
    """Rotation `Q = (1 + A)^-1 (1 - A)` with a skew A: all but half turns, cheaper than the exponential; starts at 1.

    Raises `OptionError` unless features >= 1. Reference: Cayley 1846.

    >>> Cayley(2)(torch.tensor([1.0, 2.0])).value
    tensor([1., 2.], grad_fn=<...>)
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        require_features(features)
        self.generator = nn.Parameter(torch.zeros(features, features))

    def matrix(self) -> Tensor:
        """Solve for Q; 1 + A is invertible, because a skew matrix has imaginary eigenvalues."""
        upper = self.generator.double().triu(1)
        skew = upper - upper.mT
        unit = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        matrix: Tensor = torch.linalg.solve(unit + skew, unit - skew)
        return matrix


class MatrixExponential(Transform):
    """`y = exp(A) x + bias` with a free square A: `log_det = tr A`, inverse `exp(-A)`; starts as the identity.

    A = G / sqrt(1 + |G|^2 / 49) has a Frobenius norm below 7, so exp(A) stretches and contracts by less than e^7.
    Raises `OptionError` unless features >= 1.
    Reference: Xiao & Liu, Generative Flows with Matrix Exponential, ICML 2020.

    >>> MatrixExponential(2)(torch.tensor([1.0, 2.0])).value
    tensor([1., 2.], grad_fn=<...>)
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        require_features(features)
        self.generator = nn.Parameter(torch.zeros(features, features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Multiply and shift."""
        exponent = self._exponent()
        value = multiply(x, torch.linalg.matrix_exp(exponent).to(x.dtype)) + self.bias
        return Mapped(value, exponent.trace().to(x.dtype).expand(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Shift and multiply back, in float64."""
        exponent = self._exponent()
        value = multiply(y.double() - self.bias.double(), torch.linalg.matrix_exp(-exponent))
        return Mapped(value.to(y.dtype), -exponent.trace().to(y.dtype).expand(y.shape[:-1]))

    def _exponent(self) -> Tensor:
        generator = self.generator.double()
        return generator / torch.sqrt(1 + generator.square().sum() / EXPONENT_BOUND**2)


class Triangular(Transform):
    """`y = R x + bias`, R upper triangular with a positive diagonal; starts as the identity.

    `log_det = sum_i log R_ii`, smoothly bounded to [-7, 7] each; the inverse is a triangular solve in float64.
    Raises `OptionError` unless features >= 1.

    >>> Triangular(2)(torch.tensor([1.0, 2.0])).value
    tensor([1., 2.], grad_fn=<...>)
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        require_features(features)
        self.upper = nn.Parameter(torch.zeros(features, features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Multiply and shift."""
        matrix, log_diagonal = self._matrix(x.dtype)
        return Mapped(multiply(x, matrix) + self.bias, log_diagonal.sum().expand(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Shift back and solve."""
        matrix, log_diagonal = self._matrix(torch.float64)

        def solved(rows: Tensor) -> Tensor:
            rows = (rows - self.bias.double()).reshape(-1, y.shape[-1])
            found: Tensor = torch.linalg.solve_triangular(matrix.mT, rows, upper=False, left=False)
            return found.reshape(y.shape)

        value = infinities_kept(y.double(), solved).to(y.dtype)
        return Mapped(value, -log_diagonal.sum().to(y.dtype).expand(y.shape[:-1]))

    def _matrix(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        log_diagonal = soft_bound(self.log_diagonal.to(dtype), LOG_DIAGONAL_BOUND)
        return self.upper.to(dtype).triu(1) + torch.diag(torch.exp(log_diagonal)), log_diagonal


def qr(features: int) -> Compose:
    """`y = Q (R x + bias)`: an upper triangle, then reflections (Hoogeboom et al. 2019); starts as the identity."""
    return Compose([Triangular(features), Householder(features)])


def svd(features: int) -> Compose:
    """`y = U S V^T x`, shifted: reflections, a diagonal, reflections (Zhang et al. 2018); starts as the identity.

    The diagonal is an `ActNorm`, so that it can take its start from data.
    """
    return Compose([Householder(features), ActNorm(features), Householder(features)])


def mixing(kind: str, features: int) -> list[Transform]:
    """Steps of an invertible linear map by name; none for a single column, which has nothing to mix with.

    "plu" is a random permutation and LU factors; the others are "householder", "cayley", "rotation" (matrix exponential
    of a skew matrix), "exponential" (of any matrix), "qr" and "svd". Raises `OptionError` for another name.

    >>> [type(step).__name__ for step in mixing("plu", 3)]
    ['Permutation', 'LU']
    """
    if kind not in MIXINGS:
        raise OptionError(f"linear: '{kind}' came; choose one of {', '.join(MIXINGS)}.")
    if features == 1:
        return []
    if kind == "plu":
        return [Permutation(torch.randperm(features).tolist()), LU(features)]
    if kind in ("qr", "svd"):
        return (qr if kind == "qr" else svd)(features).steps
    makes: dict[str, type[Householder | Cayley | Rotation | MatrixExponential]] = {
        "householder": Householder,
        "cayley": Cayley,
        "rotation": Rotation,
        "exponential": MatrixExponential,
    }
    return [makes[kind](features)]


def reflections_of(vectors: Tensor) -> Tensor:
    """Product `H_1 .. H_M` of the reflections at `vectors` (M, features), in float64; a zero vector reflects nothing.

    In one solve: `Q = 1 - U^T S^-1 U` with unit rows U and S the strict upper triangle of `U U^T` plus 1/2 on the
    diagonal (Joffrain et al. 2006).
    """
    unit = _unit(vectors.double())
    halves = torch.full((len(unit),), 0.5, dtype=unit.dtype, device=unit.device)
    triangle = (unit @ unit.mT).triu(1) + torch.diag(halves)
    inner = torch.linalg.solve_triangular(triangle, unit, upper=True)
    product: Tensor = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device) - unit.mT @ inner
    return product


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length 1, or 0 where there is no direction."""
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1.0)  # squares neither under- nor overflow
    square = scaled.square().sum(dim=-1, keepdim=True)
    unit: Tensor = scaled / torch.where(square > 0, square, 1.0).sqrt()
    return unit
