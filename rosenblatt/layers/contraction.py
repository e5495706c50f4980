"""A network whose Lipschitz constant is below a bound for all weights, and its derivatives in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import soft_bound
from rosenblatt.nets import INPUT_LIMIT, limited

SHARPNESS = (
    4  # a norm of the bound itself is divided by 2^(1/8); far below and above, the bound is met to the 8th power
)
LOG_STEEPNESS_BOUND = 2.0


def bounded_norm(weight: Tensor, bound: float) -> Tensor:
    """Scale a matrix so that its largest singular value s stays below `bound`: `W / (1 + (s / bound)^8)^(1/8)`.

    Smaller ones hardly change; in float64, with the exact s at every call, so that the bound holds whatever
    happened to the weights.
    """
    wide = weight.double()
    # A weight that is no number reaches the result, but not the eigenvalue routine, which would stop with an error.
    measured = torch.where(torch.isfinite(wide), wide, 0.0)
    gram = measured @ measured.mT if weight.shape[0] <= weight.shape[1] else measured.mT @ measured
    square = torch.linalg.eigvalsh(gram)[-1]
    # From the square: the singular value itself has no derivative at the zero matrix.
    bounded: Tensor = wide * (1 + (square / bound**2) ** SHARPNESS) ** (-0.5 / SHARPNESS)
    return bounded


def _tanh(z: Tensor, steepness: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(z)
    return value, 1 - value.square()


def _lipswish(z: Tensor, steepness: Tensor) -> tuple[Tensor, Tensor]:
    """z sigmoid(k z) / 1.1, whose slope is at most 0.9999 for every k."""
    gate = torch.sigmoid(steepness * z)
    return z * gate / 1.1, gate * (1 + steepness * z * torch.sigmoid(-steepness * z)) / 1.1


UNITS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {"lipswish": _lipswish, "tanh": _tanh}


class Contraction(nn.Module):
    """Network `g(x) = W_L h_(L-1) + b_L`, `h_k = u(W_k h_(k-1) + b_k)`, with Lipschitz constant below `lipschitz`.

    Every W is scaled by its largest singular value to a norm below 1, the last to one below `lipschitz`, and no slope
    of u exceeds 1: "lipswish" (Chen et al. 2019) or "tanh". With `dense`, `h_k = (a h_(k-1), sqrt(1 - a^2) u(..))`
    keeps what came before, with a learned a (Perugachi-Diaz et al. 2021). The biases b come from outside: `shifts` of
    them, for each row its own if need be. Inputs saturate at +-1e6. Raises `OptionError` for sizes below 1, a bound
    outside (0, 1), or another `unit`.
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: int = 64,
        depth: int = 2,
        lipschitz: float = 0.97,
        unit: str = "lipswish",
        dense: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"features": features, "hidden": hidden, "depth": depth}.items():
            if value < 1:
                raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
        if not 0 < lipschitz < 1:
            raise OptionError(f"lipschitz: {lipschitz} came, a number between 0 and 1 was expected.")
        if unit not in UNITS:
            raise OptionError(f"unit: '{unit}' came, one of {', '.join(map(repr, UNITS))} was expected.")
        self.features, self.hidden, self.depth = features, hidden, depth
        self.lipschitz, self.unit, self.dense = lipschitz, unit, dense
        widths = [features + hidden * number if dense else hidden for number in range(1, depth + 1)]
        entries = [features, *(widths[:-1])]
        self.weights = nn.ParameterList([torch.randn(hidden, width) / width**0.5 for width in entries])
        # Nearly the zero map at first.
        self.last = nn.Parameter(1e-2 * torch.randn(features, widths[-1]) / widths[-1] ** 0.5)
        self.steepness = nn.Parameter(torch.zeros(depth))
        self.keep = nn.Parameter(torch.zeros(depth if dense else 0))

    @property
    def shifts(self) -> int:
        """How many biases there are: those of each hidden layer, then those of the outputs."""
        return self.depth * self.hidden + self.features

    def at(self, theta: Tensor, dtype: torch.dtype) -> BoundNet:
        """The network with biases `theta` (shifts,) or (*batch, shifts), its weights scaled once, in `dtype`."""
        steepness = torch.exp(soft_bound(self.steepness, LOG_STEEPNESS_BOUND)).to(dtype)
        share = torch.sigmoid(torch.stack([self.keep, -self.keep], dim=-1)).sqrt().to(dtype)
        return BoundNet(
            weights=[bounded_norm(weight, 1.0).to(dtype) for weight in self.weights],
            last=bounded_norm(self.last, self.lipschitz).to(dtype),
            shifts=list(theta.to(dtype).split([*[self.hidden] * self.depth, self.features], dim=-1)),
            steepness=list(steepness.unbind()),
            mixes=list(share.unbind()),
            unit=UNITS[self.unit],
            lipschitz=self.lipschitz,
        )


@dataclass(frozen=True)
class BoundNet:
    """A contraction with its weights in place: the map `x -> x + g(x)` to a root search."""

    weights: list[Tensor]
    last: Tensor
    shifts: list[Tensor]
    steepness: list[Tensor]
    mixes: list[Tensor]
    unit: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    lipschitz: float

    @property
    def size(self) -> int:
        """Numbers per row that the Jacobian takes."""
        return len(self.last) * max(self.last.shape)

    def run(self, x: Tensor) -> Pass:
        """Evaluate at `x` (*batch, features), and keep what derivatives are made of."""
        hidden, slopes = limited(x), []
        for number, weight in enumerate(self.weights):
            bent, slope = self.unit(hidden @ weight.mT + self.shifts[number], self.steepness[number])
            slopes.append(slope)
            if self.mixes:
                old, new = self.mixes[number]
                bent = torch.cat([old * hidden, new * bent], dim=-1)
            hidden = bent
        value = x + (hidden @ self.last.mT + self.shifts[-1])
        return Pass(self, value, slopes, (x.abs() < INPUT_LIMIT).to(x.dtype))

    def value(self, x: Tensor) -> Tensor:
        """Evaluate x + g(x)."""
        return self.run(x).value

    def derive(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate x + g(x) and its Jacobian."""
        run = self.run(x)
        return run.value, run.jacobian()

    def attempt(self, number: int, newton: Tensor, residual: Tensor) -> Tensor:
        """Newton's step, a half and a quarter of it, then the residual, as in a fixed-point iteration."""
        return newton * 0.5**number if number < 3 else residual

    def progress(self, x: Tensor, y: Tensor, residual: Tensor, step: Tensor, left: Tensor) -> Tensor:
        """Whether the residual falls, by at least what is certain of the fixed-point iteration."""
        before, after = (torch.linalg.vector_norm(vector, dim=-1) for vector in (residual, left))
        falls: Tensor = after <= self.lipschitz * before
        return falls

    def select(self, rows: Tensor) -> BoundNet:
        """Keep the biases of `rows`, where each row has its own."""
        shifts = [shift if shift.ndim == 1 else shift[rows] for shift in self.shifts]
        return replace(self, shifts=shifts)


@dataclass(frozen=True)
class Pass:
    """What one evaluation leaves behind: x + g(x), and the slopes that its derivatives are made of."""

    net: BoundNet
    value: Tensor
    slopes: list[Tensor]
    inside: Tensor

    def jacobian(self) -> Tensor:
        """Jacobian of x + g(x) (*batch, features, features)."""
        net = self.net
        unit = torch.eye(len(net.last), dtype=self.value.dtype, device=self.value.device)
        # Transposed, a row for each input, so that all products with weights are one product of matrices.
        tangent = unit
        for number, weight in enumerate(net.weights):
            bent = tangent @ weight.mT * self.slopes[number].unsqueeze(-2)
            if net.mixes:
                old, new = net.mixes[number]
                bent = torch.cat([(old * tangent).expand(*bent.shape[:-1], -1), new * bent], dim=-1)
            tangent = bent
        return unit + (tangent @ net.last.mT * self.inside.unsqueeze(-1)).mT

    def pull(self, vector: Tensor) -> Tensor:
        """Product of row vectors (*batch, features) with the Jacobian of g, at the price of one pass."""
        net = self.net
        vector = vector @ net.last
        for number in reversed(range(len(net.weights))):
            weight, slope = net.weights[number], self.slopes[number]
            if net.mixes:
                old, new = net.mixes[number]
                kept, bent = vector.split([weight.shape[1], weight.shape[0]], dim=-1)
                vector = old * kept + new * (bent * slope) @ weight
            else:
                vector = (vector * slope) @ weight
        return vector * self.inside
