"""Energy flow: a sampler without a determinant, whose blocks of columns are drawn in turn by networks of any kind.

Each block of columns is a function of noise and of the blocks before it, with any Jacobian inside the block. It is
trained by comparing its draws, given the true blocks before, with the rows:

    x_b = f_b(z_b; x_<b),   loss = sum_b E|f_b(Z; x_<b) - x_b| - 1/2 E|f_b(Z; x_<b) - f_b(Z'; x_<b)|

One block is a plain energy flow; one column a block makes it autoregressive; B blocks cost B passes a sample. Neither
inverse nor density is known (`Likelihood.NONE`): `log_prob` raises, and so does all that needs one. Published likewise:
where such a map is invertible its likelihood is generally very poor, though its samples are good.
Reference: Si, Chen, Sahoo, Schiff & Kuleshov, Semi-Autoregressive Energy Flows, ICML 2023. Published sizes for MNIST:
blocks of 4 x 4 pixels, 3 residual blocks of 128, two draws, beta 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

import torch
from torch import Tensor, nn

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.types import Likelihood
from rosenblatt.layers.scaling import ActNorm
from rosenblatt.nets import MLP, DenselyConnected
from rosenblatt.objectives.two_sample import TwoSampleScore

NETWORKS = ("densely_connected", "residual", "plain")


class EnergyFlow(Density):
    """A sampler of blocks of columns: `x_b = f_b(z_b; x_<b, context)` with `f_b = z_b + net_b`, z standard normal.

    `nets` are networks (*batch, inputs) -> (*batch, size), one for each of the blocks of `sizes` columns; their inputs
    are the block's noise, the blocks before it and the context. Columns are standardised by the first rows it is shown.
    `log_prob` and `sample_and_log_prob` raise `OptionError`: there is no density.
    """

    def __init__(self, sizes: Sequence[int], nets: Sequence[nn.Module], *, context: int = 0) -> None:
        super().__init__()
        if len(sizes) != len(nets) or not sizes or min(sizes) < 1:
            raise OptionError(f"sizes: {list(sizes)} came for {len(nets)} networks, one size >= 1 each was expected.")
        self.sizes = tuple(sizes)
        self.nets = nn.ModuleList(nets)
        self.features, self.context = sum(sizes), context
        self.noise = StandardNormal(self.features)
        self.scaling = ActNorm(self.features).requires_grad_(False)

    @property
    def likelihood(self) -> Likelihood:
        """None at all."""
        return Likelihood.NONE

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Raise `OptionError`: there is no density."""
        self._refuse("log_prob")

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Raise `OptionError`: there is no density; `sample` draws."""
        self._refuse("sample_and_log_prob")

    def sample(self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` vectors, or `n` for each row of `context`, block by block: (n, *batch, features)."""
        self.check_context(context)
        batch = () if context is None else tuple(context.shape[:-1])
        noise = self.noise.sample(n * math.prod(batch), generator=generator).reshape(n, *batch, self.features)
        drawn = noise[..., :0]
        for number in range(len(self.sizes)):
            drawn = torch.cat([drawn, self._block(number, noise, drawn, context)], dim=-1)
        return self.scaling.inverse(drawn).value

    def standardised(self, x: Tensor) -> Tensor:
        """Rows (*batch, features) in the units that the blocks are drawn in."""
        value: Tensor = self.scaling(x).value
        return value

    def forced(self, noise: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Draws (n, *batch, features) from `noise`, each block given the true blocks before it in standardised `x`."""
        return torch.cat([self._block(number, noise, x, context) for number in range(len(self.sizes))], dim=-1)

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Standardise the columns from training rows; raises `DataError` for one that is constant or not finite."""
        self.scaling.initialise(x, context, weight)

    def _block(self, number: int, noise: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """Block `number` (n, *batch, size), given the columns of `x` before it."""
        start = sum(self.sizes[:number])
        own = noise[..., start : start + self.sizes[number]]
        given = [x[..., :start]] if context is None else [x[..., :start], context.to(own.dtype)]
        seen = [part.expand(*own.shape[:-1], part.shape[-1]) for part in given]
        pushed: Tensor = self.nets[number](torch.cat([own, *seen], dim=-1))
        return own + pushed

    def _refuse(self, what: str) -> NoReturn:
        raise OptionError(
            f"{what}: an energy flow has no density (likelihood: none), it can only be sampled; choose a model with an "
            "exact log-density, such as 'quantile_flow', where one is wanted."
        )


@register(
    "energy_flow",
    summary="sampler by blocks of columns, any network inside, trained without determinants; samples only, no density",
    citation=(
        "Si, Chen, Sahoo, Schiff & Kuleshov, Semi-Autoregressive Energy Flows: Exploring Likelihood-Free Training of "
        "Normalizing Flows, ICML 2023, arXiv:2206.06672."
    ),
    facts=Facts(
        formula=r"x_b = z_b + f_b(z_b; x_{<b}), \quad \min \sum_b E|X_b - x_b| - \tfrac12 E|X_b - X_b'|",
        forward="none: there is no density",
        inverse="1 pass a block",
        determinant="none",
        universal="yes in law, by hidden units",
    ),
)
def energy_flow(
    features: int,
    context: int = 0,
    *,
    parts: int = 2,
    network: str = "densely_connected",
    hidden: int = 128,
    blocks: int = 3,
    score: str = "energy",
    beta: float = 1.0,
    draws: int = 2,
    projections: int = 16,
    bandwidths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
) -> EnergyFlow:
    """Build an energy flow for `features` columns; train it with `Fitter`, then `sample`.

    parts: runs of neighbouring columns, of nearly equal length, drawn one after the other (at most one a column): few
    are fast to sample, many are easier to learn. network: "densely_connected", "residual" or "plain", `blocks` of
    `hidden` units each. score, beta, draws, projections, bandwidths: the loss, see `TwoSampleScore`.
    Raises `OptionError` for another network or score, or sizes that make no model.

    >>> import torch
    >>> energy_flow(5, parts=2, hidden=16).sample(4).shape
    torch.Size([4, 5])
    """
    if parts < 1:
        raise OptionError(f"parts: {parts} came, an integer >= 1 was expected.")
    if network not in NETWORKS:
        raise OptionError(f"network: '{network}' came, one of {', '.join(NETWORKS)} was expected.")
    count = min(parts, features)
    starts = [number * features // count for number in range(count + 1)]
    nets: list[nn.Module] = []
    for start, stop in pairwise(starts):
        nets.append(_network(network, stop + context, stop - start, hidden, blocks))
    model = EnergyFlow([stop - start for start, stop in pairwise(starts)], nets, context=context)
    model.objective = TwoSampleScore(
        score, draws=draws, beta=beta, projections=projections, bandwidths=list(bandwidths)
    )
    return model


def _network(kind: str, inputs: int, outputs: int, hidden: int, blocks: int) -> nn.Module:
    net: MLP | DenselyConnected
    if kind == "densely_connected":
        net = DenselyConnected(inputs, outputs, hidden=hidden, blocks=blocks)
    else:
        net = MLP(inputs, outputs, hidden=hidden, blocks=blocks, residual=kind == "residual")
    net.start_at(torch.zeros(outputs))
    return net
