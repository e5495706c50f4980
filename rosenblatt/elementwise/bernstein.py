"""Increasing Bernstein polynomials: the map of Bernstein flows and of conditional transformation models."""

from __future__ import annotations

import math
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor
from torch.nn.functional import pad

from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import REAL, Mapped, ParamSpec, Support
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.box import nothing_outside, refuse_outside
from rosenblatt.elementwise.spline import SMALLEST_SLOPE, _slopes

LARGEST_STEP = 1e300  # from the box to a point: times a slope of zero an infinity would be NaN


class BernsteinPolynomial(Elementwise):
    """Increasing Bernstein polynomial on the box [-bound, bound] (Sick et al. 2020; Ramasinghe et al. 2022).

    With t = (x + bound) / (2 bound), n = degree and increasing coefficients c_k:
    `y = sum_k c_k C(n, k) t^k (1 - t)^(n - k)`,
    `dy/dx = sum_k e_k C(n - 1, k) t^k (1 - t)^(n - 1 - k)`, e_k = n (c_{k+1} - c_k) / (2 bound).
    The same e_k, the slopes of the control polygon, are what theta sets; all being positive, the sum for the slope
    loses nothing. theta = 0 is the identity. What is evaluated is `y - x`, in float64.

    `tails="linear"`: e_k is the exponential of a smooth squash onto [log 1e-3, log 30]; a shift moves the middle of the
    two end coefficients. Outside the box the map goes on as a straight line with the slope of that end, so that it is
    smooth and onto the whole line; n + 1 parameters.
    `tails="none"`: a map of the box onto itself, e_k a softmax with a floor of 1e-3; `log_det = -inf` outside; n
    parameters; `inverse` raises `InverseError` outside the box.
    The inverse is a root search. Raises `OptionError` for other tails, degree outside 1..100 or bound <= 0.

    >>> polynomial = BernsteinPolynomial(degree=6)
    >>> polynomial(torch.tensor([2.5, 7.0]), torch.zeros(2, polynomial.spec.size)).value
    tensor([2.5000, 7.0000])
    """

    def __init__(self, degree: int = 16, bound: float = 3.0, tails: str = "linear") -> None:
        super().__init__()
        if not 1 <= degree <= 100:
            raise OptionError(f"degree: {degree} came, 1 to 100 were expected.")
        if not 0 < bound < math.inf:
            raise OptionError(f"bound: {bound} came, a positive number was expected.")
        if tails not in ("linear", "none"):
            raise OptionError(f"tails: '{tails}' came, 'linear' or 'none' was expected.")
        self.degree = degree
        self.bound = bound
        self.tails = tails
        self.step = 2 * bound / degree  # between the coefficients of the identity
        if tails == "linear":
            self.domain = REAL
            self.spec = ParamSpec(slopes=(degree,), shift=())
        else:
            self.domain = Support(-bound, bound)
            self.spec = ParamSpec(shares=(degree,))

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Evaluate the polynomial, its tails and the slope of either."""
        return self._evaluate(x, *self._decode(theta.double()))

    def bind(self, theta: Tensor) -> _BoundPolynomial:
        """Decode once for a root search."""
        return _BoundPolynomial(self, *self._decode(theta.double()))

    def inverse(self, y: Tensor, theta: Tensor) -> Mapped:
        """Search the root.

        Raises `InverseError` outside the box when there are no tails.
        """
        if self.tails == "none":
            refuse_outside(y, self.bound)
        return super().inverse(y, theta)

    def _decode(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of `y - x` and of `dy/dx - 1`, each (*batch, degree + 1): exactly 0 at theta = 0."""
        parts = self.spec.split(theta)
        if self.tails == "linear":
            excess = _slopes(parts["slopes"])[0] - 1
            sums = excess.cumsum(dim=-1)
            middle = parts["shift"].unsqueeze(-1) - 0.5 * self.step * sums[..., -1:]
            deviation = middle + self.step * pad(sums, (1, 0))
        else:
            raw = parts["shares"]
            powers = torch.exp(raw - raw.amax(dim=-1, keepdim=True).detach())
            total = powers.sum(dim=-1, keepdim=True)
            excess = (1 - SMALLEST_SLOPE) * (self.degree * powers - total) / total
            deviation = self.step * pad(excess.cumsum(dim=-1)[..., :-1], (1, 1))  # the ends of the box stay
        # The slope is raised to the degree of the value, so that one basis serves both.
        share = torch.arange(self.degree + 1, dtype=theta.dtype, device=theta.device) / self.degree
        return deviation, share * pad(excess, (1, 0)) + (1 - share) * pad(excess, (0, 1))

    def _evaluate(self, x: Tensor, deviation: Tensor, excess: Tensor) -> Mapped:
        here = x.clamp(-self.bound, self.bound)
        basis = self._basis(here.double())
        rise = (excess * basis).sum(dim=-1)
        beyond = (x - here).double().clamp(-LARGEST_STEP, LARGEST_STEP)
        value = x.double() + ((deviation * basis).sum(dim=-1) + rise * beyond)
        mapped = Mapped(value.to(x.dtype), torch.log1p(rise).to(x.dtype))
        return mapped if self.tails == "linear" else nothing_outside(x, here == x, *mapped, self.bound)

    def _basis(self, x: Tensor) -> Tensor:
        """Bernstein basis at `x` (*batch) inside the box, (*batch, degree + 1), by products of positive numbers."""
        n = self.degree
        t, rest = (x + self.bound) / (2 * self.bound), (self.bound - x) / (2 * self.bound)
        rising = list(accumulate([t] * n, mul, initial=torch.ones_like(t)))
        falling = list(accumulate([rest] * n, mul, initial=torch.ones_like(t)))
        count = t.new_tensor([math.comb(n, k) for k in range(n + 1)])
        return count * torch.stack(rising, dim=-1) * torch.stack(falling[::-1], dim=-1)


class _BoundPolynomial:
    """Values only, of polynomials decoded for each row."""

    def __init__(self, polynomial: BernsteinPolynomial, deviation: Tensor, excess: Tensor) -> None:
        self.polynomial = polynomial
        self.deviation = deviation
        self.excess = excess

    def __call__(self, x: Tensor) -> Tensor:
        return self.polynomial._evaluate(x, self.deviation, self.excess).value

    def select(self, rows: Tensor) -> _BoundPolynomial:
        return _BoundPolynomial(self.polynomial, self.deviation[rows], self.excess[rows])
