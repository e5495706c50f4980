"""Integrals of positive functions: sums of squared polynomials (SOS) and networks (UMNN)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.quadrature import gauss_legendre
from rosenblatt.core.types import Mapped, ParamSpec
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.decoded import Decoded
from rosenblatt.elementwise.elf import shrunk, smooth_constant

SMALLEST_SLOPE = 1e-3  # of a sum of squares, which may vanish: keeps the polynomial strictly increasing
COEFFICIENT_BOUND = 10.0
START_TILT = 0.1  # linear coefficients of the squares at the start, so that they differ
STEEPEST = 1.5  # change of log g over one cell; up to 1.59 the quadrature is certain to increase
OUTER_BOUND = 10.0
LOG_SLOPE_BOUND = 3.0  # of log g(0)
SHARPEST = 2.0  # steepness of a tanh times the width of a cell, so that the quadrature resolves it


class SumOfSquares(Elementwise):
    """Polynomial `y = shift + int_0^x p(t) dt`, `p = m + (1 - m) sum_k q_k(t)^2`, of degree 2 r + 1.

    `q_k(t) = K^-1/2 + sum_{i=0..r} a_ki t^i / sqrt(i!)` for K squares, each a_ki smoothly bounded to [-10, 10], and
    m = 1e-3, since a sum of squares alone may vanish. The integral is the closed one of its coefficients and
    `log_det = log p(x)`. Beyond |x| = bound the map goes on as the straight line with the slope of the end, so that
    far points neither overflow nor lose their digits. theta = 0 is the identity. The inverse is a root search.
    Raises `OptionError` unless squares and degree are >= 1 and bound > 0.
    Reference: Jaini, Selby & Yu, Sum-of-Squares Polynomial Flow, ICML 2019.

    >>> sos = SumOfSquares(squares=2, degree=2)
    >>> theta = sos.spec.join(shift=torch.ones(()), coefficients=torch.zeros(2, 3))
    >>> round(float(sos(torch.tensor(3.0), theta).value), 5)
    4.0
    """

    def __init__(self, squares: int = 3, degree: int = 3, *, bound: float = 3.0) -> None:
        super().__init__()
        _require("squares", squares)
        _require("degree", degree)
        if not 0 < bound < math.inf:
            raise OptionError(f"bound: {bound} came, a positive number was expected.")
        self.squares = squares
        self.degree = degree
        self.bound = float(bound)
        self.spec = ParamSpec(shift=(), coefficients=(squares, degree + 1))

    def start(self) -> Tensor:
        """Nearly the identity: squares of slightly tilted lines, for equal squares could never become different."""
        coefficients = torch.zeros(self.squares, self.degree + 1)
        if self.squares > 1:
            coefficients[:, 1] = START_TILT * torch.linspace(-1, 1, self.squares)
        return self.spec.join(shift=torch.zeros(()), coefficients=coefficients)

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Evaluate the integral, and log p of the squares themselves, which cannot cancel."""
        value, slope = self._value_and_slope(x, *self._decode(theta.to(x.dtype)))
        return Mapped(value, torch.log(slope))

    def bind(self, theta: Tensor) -> Decoded:
        """Decode once for a root search."""
        return Decoded(lambda x, *parts: self._value_and_slope(x, *parts)[0], self._decode(theta))

    def _value_and_slope(self, x: Tensor, shift: Tensor, roots: Tensor, powers: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.bound, self.bound)
        squares = _polynomial(roots, inside.unsqueeze(-1)).square().sum(dim=-1)
        slope = SMALLEST_SLOPE + (1 - SMALLEST_SLOPE) * squares
        return shift + inside * _polynomial(powers, inside) + slope * (x - inside), slope

    def _decode(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shift (*batch), the coefficients of each q_k (*batch, squares, r + 1), and those of the integral over x."""
        parts = self.spec.split(theta)
        size = self.degree + 1
        scales = theta.new_tensor([math.factorial(i) ** -0.5 for i in range(size)])
        level = theta.new_tensor([self.squares**-0.5] + [0.0] * self.degree)
        roots = level + scales * soft_bound(parts["coefficients"], COEFFICIENT_BOUND)
        products = [pad(roots[..., i : i + 1] * roots, (i, self.degree - i)) for i in range(size)]
        square = torch.stack(products).sum(dim=0).sum(dim=-2)
        floor = theta.new_tensor([SMALLEST_SLOPE] + [0.0] * (2 * self.degree))
        orders = theta.new_tensor([1.0 + i for i in range(2 * self.degree + 1)])
        return parts["shift"], roots, (floor + (1 - SMALLEST_SLOPE) * square) / orders


class IntegratedNet(Elementwise):
    """Integral of a positive network by Gauss-Legendre sums: `y = shift + int_0^x g(t) dt`, `g = exp(h) > 0`.

    `h(t) = s + sum_k v_k (tanh(a_k (t - m_k)) - tanh(-a_k m_k))`, so that log g(0) = s, smoothly bounded to [-3, 3].
    The line between -bound and bound is cut into `cells` of width d. With w, t the nodes on [0, 1] and x = e + u in the
    cell that begins at e, the map that runs is

        y = Y_e + u sum_k w_k g(e + u t_k),   dy/dx = sum_k w_k g(e + u t_k) (1 + u t_k h'(e + u t_k)),

    Y_e being sums over whole cells; `log_det` is the log of that derivative of the *sum*, not of g. It is positive for
    every theta because |h'| < 1.5 / d (v is shrunk by the Lipschitz constant of the network, as in
    `ExactLipschitz`): then the derivative is at least a positive multiple of `sum_k w_k exp(z t_k) (1 - z t_k)`,
    z = 1.5, which is positive. The map is continuous; its slope jumps at the ends of cells by the error of the
    quadrature. Beyond the bound it goes on as a straight line. More cells allow steeper networks. theta = 0 is the
    identity to rounding. The inverse is a root search.

    Raises `OptionError` unless units and nodes are >= 1, cells is even and >= 2, and bound > 0.
    Reference: Wehenkel & Louppe, Unconstrained Monotonic Neural Networks, NeurIPS 2019, where one quadrature runs from
    0 to x and the integrand stands for its derivative.

    >>> net = IntegratedNet(units=4)
    >>> round(float(net(torch.tensor(2.0), net.start()).value), 5)
    2.0
    """

    def __init__(self, units: int = 16, *, bound: float = 4.0, cells: int = 24, nodes: int = 4) -> None:
        super().__init__()
        _require("units", units)
        _require("nodes", nodes)
        if cells < 2 or cells % 2:
            raise OptionError(f"cells: {cells} came, an even integer >= 2 was expected.")
        if not 0 < bound < math.inf:
            raise OptionError(f"bound: {bound} came, a positive number was expected.")
        self.units = units
        self.bound = float(bound)
        self.cells = cells
        self.width = 2 * self.bound / cells
        places, weights = gauss_legendre(nodes)
        self.places: list[float] = places.tolist()
        self.weights: list[float] = weights.tolist()
        self.spec = ParamSpec(shift=(), log_slope=(), outer=(units,), sharpness=(units,), location=(units,))

    def start(self) -> Tensor:
        """The identity, with hidden units spread over the data."""
        levels = (torch.arange(self.units) + 0.5) / self.units
        return self.spec.join(
            shift=torch.zeros(()),
            log_slope=torch.zeros(()),
            outer=torch.zeros(self.units),
            sharpness=torch.ones(self.units),
            location=torch.logit(levels),
        )

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Add up whole cells and the part of one, and differentiate that sum."""
        value, slope = self._value_and_slope(x, *self._decode(theta.to(x.dtype)))
        return Mapped(value, torch.log(slope))

    def bind(self, theta: Tensor) -> Decoded:
        """Decode once, whole cells included, for a root search."""
        return Decoded(lambda x, *parts: self._value_and_slope(x, *parts)[0], self._decode(theta))

    def _value_and_slope(self, x: Tensor, shift: Tensor, begun: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.bound, self.bound)
        cell = self._cell(inside)
        begin = (cell - self.cells // 2).to(x.dtype) * self.width
        reach = inside - begin
        places, share = (x.new_tensor(values) for values in (self.places, self.weights))
        step = reach.unsqueeze(-1) * places
        log_height, rise = _Integrand(*weights).log_and_slope(begin.unsqueeze(-1) + step)
        height = share * torch.exp(log_height)
        slope = (height * (1 + step * rise)).sum(dim=-1)
        return shift + _at(begun, cell) + reach * height.sum(dim=-1) + slope * (x - inside), slope

    def _cell(self, inside: Tensor) -> Tensor:
        """Which cell a point lies in; a NaN in the middle."""
        cell = (inside.detach() / self.width).nan_to_num(0.0).floor().long() + self.cells // 2
        return cell.clamp(0, self.cells - 1)

    def _decode(self, theta: Tensor) -> tuple[Tensor, ...]:
        """Shift (*batch), integral from 0 to where each cell begins (*batch, cells), and the weights of h."""
        parts = self.spec.split(theta)
        sharpness = soft_bound(parts["sharpness"], SHARPEST / self.width)
        outer = soft_bound(parts["outer"], OUTER_BOUND)
        outer = shrunk(outer, smooth_constant(sharpness, outer), STEEPEST / self.width)
        location = parts["location"]
        middle = (outer * torch.tanh(-sharpness * location)).sum(dim=-1)
        net = _Integrand(soft_bound(parts["log_slope"], LOG_SLOPE_BOUND) - middle, outer, sharpness, location)
        places, share = (theta.new_tensor(values) for values in (self.places, self.weights))
        begins = theta.new_tensor([(n - self.cells // 2) * self.width for n in range(self.cells)])
        log_height, _ = net.log_and_slope((begins.unsqueeze(-1) + self.width * places).reshape(-1))
        height = torch.exp(log_height).unflatten(-1, (self.cells, len(self.places)))
        mass = self.width * (share * height).sum(dim=-1)
        # Added from the middle outwards: differences of sums from one end would lose the digits near 0.
        below, above = mass.split(self.cells // 2, dim=-1)
        left = -below.flip(-1).cumsum(dim=-1).flip(-1)
        right = above.cumsum(dim=-1)[..., :-1]
        begun = torch.cat([left, torch.zeros_like(left[..., :1]), right], dim=-1)
        return parts["shift"], begun, *net


class _Integrand(NamedTuple):
    """Weights of h: the constant (*batch), the others (*batch, units)."""

    constant: Tensor
    outer: Tensor
    sharpness: Tensor
    location: Tensor

    def log_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """h and h' at `t` (*batch, points)."""
        sharpness = self.sharpness.unsqueeze(-2)
        hidden = torch.tanh(sharpness * (t.unsqueeze(-1) - self.location.unsqueeze(-2)))
        outer = self.outer.unsqueeze(-2)
        log_height = self.constant.unsqueeze(-1) + (outer * hidden).sum(dim=-1)
        return log_height, (outer * sharpness * (1 - hidden.square())).sum(dim=-1)


def _polynomial(coefficients: Tensor, t: Tensor) -> Tensor:
    """`sum_i coefficients_i t^i` by Horner's rule, coefficients along the last axis."""
    *lower, value = coefficients.unbind(dim=-1)
    for coefficient in reversed(lower):
        value = coefficient + value * t
    return value


def _at(table: Tensor, number: Tensor) -> Tensor:
    """Entry `number` (*batch) of each `table` (*batch, entries), either of which may broadcast."""
    shape = torch.broadcast_shapes(table.shape[:-1], number.shape)
    return table.expand(*shape, -1).gather(-1, number.expand(shape).unsqueeze(-1)).squeeze(-1)


def _require(name: str, value: int) -> None:
    if value < 1:
        raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
