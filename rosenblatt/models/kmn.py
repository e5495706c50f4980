"""KMN, the kernel mixture network: Gaussians stand at training rows, and the context decides how much each weighs.

    p(x | c) = sum_k sum_s w_ks(c) prod_i N(x_i; r_ki, h_si^2),   r_1, r_2, ... rows of the training set

Only the weights depend on the context, so nothing can collapse and training is a softmax regression with soft labels;
the price is a resolution that is the same everywhere. `initialise` chooses the rows so that they lie apart (a row is
taken with a chance proportional to the squared distance from those taken before) and starts the bandwidths h at half,
and at twice, the typical distance between them; they are trained then. The conditionals of columns are Gaussian
mixtures, so CDFs, quantiles and samples are exact.
References: Ambrogioni, Guclu, van Gerven & Maris, The Kernel Mixture Network, arXiv:1705.07111, 2017; Arthur &
Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007, for the choice of rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rosenblatt.conditioners.gaussian_mixture import LOG_SLOPE_BOUND, Components, MixtureSource
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.layers.gaussian_mixture import GaussianMixtureFlow
from rosenblatt.nets import MLP

MOST_ROWS = 50_000  # among which centres are sought
LOG_SPREAD = math.log(2)  # bandwidths start between the typical distance of centres over 2 and times 2


class _Kernels(MixtureSource):
    """Fixed centres, free bandwidths, and weights from the context."""

    centres: Tensor

    def __init__(
        self, features: int, context: int, centres: int, scales: int, *, hidden: int, blocks: int, dropout: float
    ) -> None:
        super().__init__()
        self.features, self.context, self.components = features, context, centres * scales
        self.scales = scales
        self.register_buffer("centres", torch.randn(centres, features))
        self.raw_slopes = nn.Parameter(torch.zeros(features, scales))
        self._start_slopes(0.0)
        if context:
            self.net = MLP(context, self.components, hidden=hidden, blocks=blocks, dropout=dropout)
            self.net.start_at(torch.zeros(self.components))
        else:
            self.free = nn.Parameter(torch.zeros(self.components))

    def forward(self, context: Tensor | None = None) -> Components:
        """Components in the order of centres, each with all its bandwidths."""
        locations = self.centres.mT.repeat_interleave(self.scales, dim=-1)
        raw_slopes = self.raw_slopes.repeat(1, len(self.centres))
        return Components(self.net(context) if self.context else self.free, locations, raw_slopes, None)

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Choose rows that lie apart as centres (the same ones for the same rows) and start the bandwidths."""
        generator = torch.Generator().manual_seed(0)
        rows = x.detach().reshape(-1, self.features).double().cpu()
        share = torch.ones(len(rows), dtype=torch.float64) if weight is None else weight.detach().double().cpu()
        if len(rows) > MOST_ROWS:
            some = torch.randperm(len(rows), generator=generator)[:MOST_ROWS]
            rows, share = rows[some], share[some]
        chosen = _apart(rows, share, len(self.centres), generator)
        self.centres.copy_(chosen)
        gaps = torch.cdist(chosen, chosen)
        nearest = torch.where(gaps > 0, gaps, torch.inf).amin(dim=-1)
        nearest = nearest[torch.isfinite(nearest)]
        typical = float(nearest.median()) / math.sqrt(self.features) if len(nearest) else 1.0
        self._start_slopes(math.log(typical))

    def _start_slopes(self, log_typical: float) -> None:
        spread = torch.linspace(-1, 1, self.scales, dtype=torch.float64) if self.scales > 1 else torch.zeros(1)
        log_slope = (-log_typical - LOG_SPREAD * spread).clamp(-0.9 * LOG_SLOPE_BOUND, 0.9 * LOG_SLOPE_BOUND)
        raw = LOG_SLOPE_BOUND * torch.atanh(log_slope / LOG_SLOPE_BOUND)
        with torch.no_grad():
            self.raw_slopes.copy_(raw.expand_as(self.raw_slopes))


def _apart(rows: Tensor, share: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the rows, each drawn by weight times squared distance from the nearest one drawn before."""
    chosen = [rows[torch.multinomial(share, 1, generator=generator)]]
    distance = torch.full((len(rows),), torch.inf, dtype=torch.float64)
    for _ in range(count - 1):
        distance = torch.minimum(distance, (rows - chosen[-1]).square().sum(dim=-1))
        chance = share * distance
        chance = chance if bool(chance.sum() > 0) else share  # fewer different rows than centres
        chosen.append(rows[torch.multinomial(chance, 1, generator=generator)])
    return torch.cat(chosen)


@register(
    "kmn",
    summary="kernel mixture network: Gaussians at training rows, weighted by a network of the context",
    citation="Ambrogioni, Guclu, van Gerven & Maris, The Kernel Mixture Network, arXiv:1705.07111, 2017.",
    facts=Facts(
        formula=r"p(x \mid c) = \sum_{k,s} w_{ks}(c)\, N(x;\, r_k, h_s^2)",
        forward="1 pass",
        inverse="1 pass in all, D root searches",
        determinant="K D",
        universal="yes, by kernels",
    ),
)
def kmn(
    features: int,
    context: int = 0,
    *,
    centres: int = 50,
    scales: int = 2,
    hidden: int = 128,
    blocks: int = 2,
    dropout: float = 0.0,
) -> Flow:
    """Build a mixture of Gaussians at `centres` training rows, `scales` bandwidths each, for `features` columns.

    Until `initialise` has seen rows (any fit calls it) the centres are random. `hidden`, `blocks` and `dropout` are
    those of the network that weighs them. Raises `OptionError` for sizes that make no model.

    >>> model = kmn(1, context=1, centres=5, hidden=8)
    >>> model.initialise(torch.linspace(0, 4, 5).unsqueeze(-1))
    >>> model.log_prob(torch.tensor([[2.0]]), torch.zeros(1, 1)).shape
    torch.Size([1])
    """
    if centres < 1 or scales < 1:
        raise OptionError(f"centres={centres}, scales={scales} came, integers >= 1 were expected.")
    return GaussianMixtureFlow(
        _Kernels(features, context, centres, scales, hidden=hidden, blocks=blocks, dropout=dropout)
    )
