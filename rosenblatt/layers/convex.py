"""Gradients of strongly convex functions: layers whose Jacobian is a symmetric positive definite matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.types import Likelihood, Mapped
from rosenblatt.layers.searched import Searched
from rosenblatt.layers.traces import Probes, log_det_by_lanczos, signs

LOG_ALPHA_BOUND = 3.0  # a layer contracts by no more, so that a row's digits come back from float32
LOG_OUTPUT_BOUND = 7.0
EXACT_FEATURES = 32  # "auto" trains with the exact determinant up to here


class ConvexGradient(Searched["ConvexPass"]):
    """`y = grad F(x)`, `F(x) = alpha/2 |x|^2 + a.x + w.h_L(x)` with an input-convex network; starts near the identity.

    `h_1 = s(V_1 x + b_1)`, `h_k = s(W_k h_(k-1) + V_k x + b_k)` with s = softplus and W, w > 0 (Amos, Xu & Kolter
    2017), so F is strongly convex for all weights and the map is onto. Its Jacobian is `alpha + sum_k P_k^T D_k P_k`
    with positive diagonals D. `alpha` stays between e^-3 and e^3, and no entry of w exceeds e^7 / hidden.

    In eval mode `log_det` is exact, by the Cholesky factor of the Jacobian. In training `log_det` is "exact";
    "estimate", from one random vector of signs and `steps` products with the Jacobian (Lanczos quadrature for the
    value, conjugate gradients for its gradient); or "auto", exact up to 32 features. An estimate of at least as many
    steps as features is unbiased; fewer steps leave an error that falls geometrically.

    The inverse minimises `F(x) - x.y`, by a Newton search in float64, and raises `InverseError` where that fails. With
    `context`, a network of it emits alpha, a, b and w. Raises `OptionError` for another `log_det` or sizes below 1.
    Reference: Huang, Chen, Tsirigotis & Courville, Convex Potential Flows, ICLR 2021.

    >>> layer = ConvexGradient(2, hidden=8)
    >>> x = torch.tensor([1.0, 2.0])
    >>> (layer.inverse(layer(x).value).value - x).abs().max().item() < 1e-6
    True
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: int = 64,
        depth: int = 2,
        log_det: str = "auto",
        steps: int = 10,
        context: int = 0,
    ) -> None:
        if log_det not in ("auto", "exact", "estimate"):
            raise OptionError(f"log_det: '{log_det}' came, 'auto', 'exact' or 'estimate' was expected.")
        for name, value in {"features": features, "hidden": hidden, "depth": depth, "steps": steps}.items():
            if value < 1:
                raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
        super().__init__(depth * hidden + features + 1 + hidden, context, hidden)
        self.features, self.hidden, self.depth, self.steps = features, hidden, depth, steps
        trained = "exact" if features <= EXACT_FEATURES else "estimate"
        self.log_det = trained if log_det == "auto" else log_det
        self.across = nn.ParameterList([torch.randn(hidden, features) / features**0.5 for _ in range(depth)])
        self.raw_weights = nn.ParameterList([torch.randn(hidden, hidden) for _ in range(depth - 1)])
        self.probes = Probes()
        self.conditioner.start_at(torch.cat([torch.randn(depth * hidden), torch.zeros(features + 1 + hidden)]))

    @property
    def likelihood(self) -> Likelihood:
        """Exact, except in training with an estimate of the log-determinant."""
        return Likelihood.ESTIMATE if self.training and self.log_det != "exact" else Likelihood.EXACT

    def placed(self, theta: Tensor, dtype: torch.dtype) -> ConvexNet:
        """The potential with these parameters."""
        *shifts, slope, log_alpha, log_output = theta.split(
            [*[self.hidden] * self.depth, self.features, 1, self.hidden], dim=-1
        )
        return ConvexNet(
            across=[part.to(dtype) for part in self.across],
            weights=[_softplus(raw.to(dtype)) / self.hidden for raw in self.raw_weights],
            shifts=[shift.to(dtype) for shift in shifts],
            slope=slope.to(dtype),
            alpha=torch.exp(soft_bound(log_alpha, LOG_ALPHA_BOUND)).to(dtype),
            output=(torch.exp(soft_bound(log_output, LOG_OUTPUT_BOUND)) / self.hidden).to(dtype),
        )

    def mapped(self, run: ConvexPass) -> Mapped:
        """Value and log-determinant of one pass."""
        if self.likelihood is Likelihood.EXACT:
            factor = torch.linalg.cholesky_ex(run.jacobian()).L
            return Mapped(run.value, 2 * torch.log(factor.diagonal(dim1=-2, dim2=-1)).sum(dim=-1))
        probe = signs(run.value, self.probes.generator())
        return Mapped(run.value, log_det_by_lanczos(run.times, probe, self.steps))

    def potential(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The convex function F (*batch) whose gradient the layer is."""
        return self.placed(self._theta(x, context), x.dtype).potential(x)


@dataclass(frozen=True)
class ConvexNet:
    """A convex potential with its parameters in place: the map `x -> grad F(x)` to a root search."""

    across: list[Tensor]
    weights: list[Tensor]
    shifts: list[Tensor]
    slope: Tensor
    alpha: Tensor
    output: Tensor

    @property
    def size(self) -> int:
        """Numbers per row that the Jacobian takes."""
        hidden, features = self.across[0].shape
        return features * max(features, hidden)

    def potential(self, x: Tensor) -> Tensor:
        """Evaluate F at `x` (*batch, features)."""
        quadratic = 0.5 * self.alpha.squeeze(-1) * x.square().sum(dim=-1) + (self.slope * x).sum(dim=-1)
        return quadratic + (self.output * _softplus(self._heights(x)[-1])).sum(dim=-1)

    def run(self, x: Tensor) -> ConvexPass:
        """Evaluate grad F at `x` (*batch, features), and keep what derivatives are made of."""
        heights = self._heights(x)
        slopes = [torch.sigmoid(z) for z in heights]
        value, reach, bends = self.alpha * x + self.slope, self.output, []
        for number in reversed(range(len(heights))):
            change = reach * slopes[number]
            bends.append(change * torch.sigmoid(-heights[number]))
            value = value + change @ self.across[number]
            if number:
                reach = change @ self.weights[number - 1]
        return ConvexPass(self, value, slopes, bends[::-1])

    def value(self, x: Tensor) -> Tensor:
        """Evaluate grad F."""
        return self.run(x).value

    def derive(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate grad F and the Hessian of F."""
        run = self.run(x)
        return run.value, run.jacobian()

    def attempt(self, number: int, newton: Tensor, residual: Tensor) -> Tensor:
        """Newton's step, a half of it, a quarter, and so on."""
        return newton * 0.5**number

    def progress(self, x: Tensor, y: Tensor, residual: Tensor, step: Tensor, left: Tensor) -> Tensor:
        """Whether `F(x) - x.y` falls, by its slopes and, to rounding, its values (Hager & Zhang 2005).

        The slopes along the step are -residual.step before and -left.step after it. If the second is not positive, the
        function, being convex, has fallen all the way. Otherwise it may not have risen as steeply as it fell.
        """
        before, after = (residual * step).sum(dim=-1), (left * step).sum(dim=-1)
        start, end = self.potential(x), self.potential(x + step)
        pulled = (y * step).sum(dim=-1)
        noise = 16 * torch.finfo(x.dtype).eps * (start.abs() + end.abs() + pulled.abs())
        falls: Tensor = (after >= 0) | ((end - start - pulled <= noise) & (after >= -0.8 * before))
        return falls

    def select(self, rows: Tensor) -> ConvexNet:
        """Keep the parameters of `rows`, where each row has its own."""
        *shifts, slope, alpha, output = (
            part if part.ndim == 1 else part[rows] for part in (*self.shifts, self.slope, self.alpha, self.output)
        )
        return ConvexNet(self.across, self.weights, shifts, slope, alpha, output)

    def _heights(self, x: Tensor) -> list[Tensor]:
        """What enters the units of each layer."""
        heights = [x @ self.across[0].mT + self.shifts[0]]
        for weight, across, shift in zip(self.weights, self.across[1:], self.shifts[1:], strict=True):
            heights.append(_softplus(heights[-1]) @ weight.mT + x @ across.mT + shift)
        return heights


@dataclass(frozen=True)
class ConvexPass:
    """What one evaluation leaves behind: grad F, the slope of each unit, and how much its bend counts in F."""

    net: ConvexNet
    value: Tensor
    slopes: list[Tensor]
    bends: list[Tensor]

    def jacobian(self) -> Tensor:
        """Hessian of F (*batch, features, features): alpha and a sum of squares."""
        net = self.net
        unit = torch.eye(net.across[0].shape[1], dtype=self.value.dtype, device=self.value.device)
        hessian, tangent = net.alpha.unsqueeze(-1) * unit, net.across[0].mT
        for number, bend in enumerate(self.bends):
            if number:
                # Transposed, a row for each input, so that all products with weights are one product of matrices.
                tangent = tangent * self.slopes[number - 1].unsqueeze(-2)
                tangent = tangent @ net.weights[number - 1].mT + net.across[number].mT
            hessian = hessian + (tangent * bend.unsqueeze(-2)) @ tangent.mT
        return hessian

    def times(self, vector: Tensor) -> Tensor:
        """Product of the Hessian with vectors (*batch, features), at the price of two passes."""
        net = self.net
        moved: list[Tensor] = []
        for number, across in enumerate(net.across):
            tangent = vector @ across.mT
            if number:
                tangent = tangent + (moved[-1] * self.slopes[number - 1]) @ net.weights[number - 1].mT
            moved.append(tangent)
        product, reach = net.alpha * vector, torch.zeros_like(moved[-1])
        for number in reversed(range(len(moved))):
            change = self.bends[number] * moved[number] + self.slopes[number] * reach
            product = product + change @ net.across[number]
            if number:
                reach = change @ net.weights[number - 1]
        return product


def _softplus(z: Tensor) -> Tensor:
    return -logsigmoid(-z)  # torch's softplus jumps by 2e-9 at 20
