"""Training a sampler by comparing its draws with rows: neither density nor determinant nor inverse is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Batch
from rosenblatt.objectives.rules import energy_score

SCORES = ("energy", "sliced", "kernel")
EVAL_FACTOR = 4  # more draws where no gradient is taken, so that validation is less noisy


class BlockSampler(Protocol):
    """A model that draws blocks of columns in turn, each given the blocks before it."""

    features: int
    sizes: Sequence[int]
    training: bool

    def standardised(self, x: Tensor) -> Tensor:
        """Rows (*batch, features) in the units that the blocks are drawn in."""

    def forced(self, noise: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Draws (n, *batch, features) from `noise`, each block given the true blocks before it in standardised `x`."""


class TwoSampleScore:
    """Score of the draws of every block, given the true blocks before it: `loss_i = sum_b S(P_b(. | x_i,<b), x_i,b)`.

    Each S is estimated without bias from `draws` draws of the block, in standard deviations of the columns:

    "energy": `E|X - x|^beta - E|X - X'|^beta / 2`, whose excess is half the energy distance;
    "sliced": the same along `projections` random directions v, `c E_v S(v'X, v'x)` with
        `c = sqrt(pi) G((d + beta) / 2) / (G(d / 2) G((beta + 1) / 2))`: equal to "energy" in the mean over directions;
    "kernel": `(E k(X, X') - 2 E k(X, x) + 1) / 2`, k the mean of Gaussian kernels of `bandwidths`; the excess is half
        the squared maximum mean discrepancy.

    The loss of least mean is the true law's, for beta in (0, 2). Shape (rows,); a row that is not finite answers NaN.
    Raises `OptionError` for another score or numbers out of range. References: Si, Chen, Sahoo, Schiff & Kuleshov,
    Semi-Autoregressive Energy Flows, ICML 2023; Gneiting & Raftery, JASA 102, 2007; Gretton et al., JMLR 13, 2012.

    >>> from rosenblatt.models.energy_flow import energy_flow
    >>> model = energy_flow(2, hidden=8)
    >>> TwoSampleScore("sliced")(model, Batch(torch.zeros(3, 2)), torch.Generator().manual_seed(0)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        score: str = "energy",
        *,
        draws: int = 2,
        beta: float = 1.0,
        projections: int = 16,
        bandwidths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    ) -> None:
        if score not in SCORES:
            raise OptionError(f"score: '{score}' came, one of {', '.join(SCORES)} was expected.")
        if draws < 2 or projections < 1:
            raise OptionError(f"draws={draws}, projections={projections}: at least 2 and 1 were expected.")
        if not 0 < beta < 2:
            raise OptionError(f"beta: {beta} came, a number in (0, 2) was expected; elsewhere the score is not proper.")
        if not bandwidths or not all(0 < width < math.inf for width in bandwidths):
            raise OptionError(f"bandwidths: {list(bandwidths)} came, positive numbers were expected.")
        self.score, self.draws, self.beta, self.projections = score, draws, beta, projections
        self.bandwidths = tuple(bandwidths)
        self.measure = f"minus {score} score in standard units"

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the losses of `batch`; noise and directions come from `generator`."""
        sampler: BlockSampler = model  # type: ignore[assignment]
        x, context = batch.x, batch.context
        finite = torch.isfinite(x).all(dim=-1)
        if context is not None:
            known = torch.isfinite(context)
            finite = finite & known.all(dim=-1)
            context = torch.where(known, context, 0.0)
        x = sampler.standardised(torch.where(finite.unsqueeze(-1), x, 0.0))
        count = self.draws if model.training else EVAL_FACTOR * self.draws
        noise = torch.randn(count, *x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
        drawn = sampler.forced(noise, x, context)
        sizes = list(sampler.sizes)
        losses = torch.zeros_like(x[..., 0])
        for samples, rows in zip(drawn.split(sizes, dim=-1), x.split(sizes, dim=-1), strict=True):
            losses = losses + self._of_block(samples, rows, generator)
        return torch.where(finite, losses, torch.nan)

    def _of_block(self, samples: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.score == "energy":
            return energy_score(samples, x, self.beta)
        if self.score == "sliced":
            return sliced_energy_score(samples, x, self.beta, projections=self.projections, generator=generator)
        return kernel_score(samples, x, self.bandwidths)


def sliced_energy_score(
    samples: Tensor, y: Tensor, beta: float = 1.0, *, projections: int = 16, generator: torch.Generator
) -> Tensor:
    """Energy score by random projections, `c E_v S(v'X, v'y)` over directions v; equal to it in the mean.

    For v uniform on the sphere `E|v'x|^beta = |x|^beta / c`,
    `c = sqrt(pi) G((d + beta) / 2) / (G(d / 2) G((beta + 1) / 2))`; every row has directions of its own.
    Shapes: `samples` (n, *batch, d), `y` (*batch, d), result (*batch). Raises what `energy_score` does.

    >>> points = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    >>> y, generator = torch.ones(1, 2), torch.Generator().manual_seed(0)
    >>> score = sliced_energy_score(points, y, projections=4000, generator=generator)
    >>> bool((score - energy_score(points, y)).abs() < 0.1)
    True
    """
    features = y.shape[-1]
    shape = (*y.shape, projections)
    directions = torch.randn(shape, generator=generator, dtype=y.dtype, device=generator.device).to(y.device)
    directions = directions / directions.norm(dim=-2, keepdim=True)
    drawn, outcome = ((part.unsqueeze(-2) @ directions).squeeze(-2) for part in (samples, y))
    # One number each, as the energy score of one feature takes them.
    along = energy_score(drawn.unsqueeze(-1), outcome.unsqueeze(-1), beta)
    return norm_factor(features, beta) * along.mean(dim=-1)


def norm_factor(features: int, beta: float = 1.0) -> float:
    """`c` with `|x|^beta = c E_v |v'x|^beta`, v uniform on the sphere of so many dimensions.

    >>> norm_factor(1), round(norm_factor(3), 12)
    (1.0, 2.0)
    """
    logs = (features + beta) / 2, features / 2, (beta + 1) / 2
    top, below, power = map(math.lgamma, logs)
    return 1.0 if features == 1 else math.sqrt(math.pi) * math.exp(top - below - power)


def kernel_score(samples: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Kernel score `(E k(X, X') - 2 E k(X, y) + 1) / 2` with `k = mean_h exp(-|x - x'|^2 / (2 h^2))`, unbiased.

    Proper, strictly among all laws, and at least 0 in the mean. Shapes: `samples` (n, *batch, d) with n >= 2,
    `y` (*batch, d), result (*batch). Reference: Gneiting & Raftery, JASA 102, 2007.

    >>> kernel_score(torch.zeros(2, 1, 3), torch.zeros(1, 3), [1.0])
    tensor([0.])
    """
    count = len(samples)
    first, second = torch.triu_indices(count, count, 1, device=samples.device)
    within = _kernel(samples[first] - samples[second], bandwidths).mean(dim=0)
    across = _kernel(samples - y, bandwidths).mean(dim=0)
    return 0.5 * (within + 1) - across


def _kernel(difference: Tensor, bandwidths: Sequence[float]) -> Tensor:
    squared = difference.square().sum(dim=-1)
    total = torch.zeros_like(squared)
    for width in bandwidths:
        total = total + torch.exp(squared / (-2 * width**2))
    return total / len(bandwidths)
