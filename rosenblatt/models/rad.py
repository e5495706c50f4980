"""RAD, real and discrete: a flow whose last step folds space, so that noise has several preimages and a gate chooses.

A fold sends both sides of a plane to one, by `z = a_+ x` or `z = -a_- x`. What is forgotten, the side k, is a discrete
variable with its own probability given z, and no sum is needed, for x lies in one piece only:

    p(x) = p_Z(z) prod_j p(k_j | z) a_kj,   z_j = a_kj |x_j|,   p(k_j = + | z) = s(h_j(z))

Where the pieces meet, `h_j = log(a_- / a_+)` makes both sides agree, so that the density is continuous; away from
there the gate is a network and may empty one side, which leaves gaps that a flow alone cannot make. Affine couplings
and linear layers in front bend the planes.
Exact: density, sampling. There is no Rosenblatt transform, because the folded base has no CDF of single coordinates.
Reference: Dinh, Sohl-Dickstein, Larochelle & Pascanu, A RAD Approach to Deep Mixture Models, 2019. Published folds have
three pieces and more; these have two for each column, 2^D in all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Density, Flow, fresh_generator
from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import soft_bound
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.closed import signed
from rosenblatt.layers.couplings import couplings
from rosenblatt.layers.linear import LU
from rosenblatt.layers.scaling import ActNorm
from rosenblatt.nets import MLP

LOG_2 = 0.6931471805599453
LOG_STRETCH_BOUND = 2.0


class Folded(Density):
    """Standard normal noise that is folded open: every column gets a side, with a probability that all |z| decide.

    `log p(x) = sum_j log 2 + log N(z_j; 0, 1) + log s(k_j h_j(z)) + k_j t_j`, `z_j = exp(k_j t_j) |x_j|`,
    k_j = sign x_j, `h_j(z) = -2 t_j + tanh(z_j) net_j(z, context)`; t is bounded to (-2, 2). The standard
    normal at the start. Raises `OptionError` for sizes below 1.

    >>> Folded(2, hidden=8).log_prob(torch.zeros(2))
    tensor(-1.8379, grad_fn=<...>)
    """

    def __init__(self, features: int, *, context: int = 0, hidden: int = 64, blocks: int = 1) -> None:
        super().__init__()
        self.features, self.context = features, context
        self.noise = StandardNormal(features)
        self.raw_stretch = nn.Parameter(torch.zeros(features))
        self.gate = MLP(features + context, features, hidden=hidden, blocks=blocks)
        self.gate.start_at(torch.zeros(features))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats; -inf for a row with an infinity, NaN for a row with NaN."""
        self.check(x, context)
        size = x.detach().abs().amax(dim=-1)
        finite = size < torch.inf
        side, distance = signed(torch.where(finite.unsqueeze(-1), x, 0.0))
        stretch = side * self._stretch()
        z = torch.exp(stretch) * distance
        pieces = (logsigmoid(side * self._logit(z, context)) + stretch + LOG_2).sum(dim=-1)
        return torch.where(finite, self.noise.log_prob(z) + pieces, -size)

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw z, then its sides; differentiable except in the sides."""
        batch = () if context is None else tuple(context.shape[:-1])
        rows = torch.Size((n, *batch)).numel()
        home = self.raw_stretch.device
        generator = fresh_generator(home) if generator is None else generator
        z = self.noise.sample(rows, generator=generator).abs().reshape(n, *batch, self.features)
        uniform = torch.rand(z.shape, generator=generator, device=generator.device, dtype=torch.float64).to(home)
        side = torch.where(uniform < torch.sigmoid(self._logit(z, context)), 1.0, -1.0).to(z)
        x = side * torch.exp(-side * self._stretch()) * z
        return x, self.log_prob(x, context)

    def _stretch(self) -> Tensor:
        return soft_bound(self.raw_stretch, LOG_STRETCH_BOUND)

    def _logit(self, z: Tensor, context: Tensor | None) -> Tensor:
        seen = z
        if context is not None and self.context:
            seen = torch.cat([z, context.expand(*z.shape[:-1], self.context)], dim=-1)
        logit: Tensor = torch.tanh(z) * self.gate(seen) - 2 * self._stretch()
        return logit


@register(
    "rad",
    summary="affine couplings in front of a base that folds space, with a gate for the side: gaps between modes",
    citation=(
        "Dinh, Sohl-Dickstein, Larochelle & Pascanu, A RAD Approach to Deep Mixture Models, arXiv:1903.07714, 2019."
    ),
    facts=Facts(
        formula=r"p(x) = p_Z(z)\, p(k \mid z)\, |\det f_k'(x)|, \quad z = f_k(x),\ x \in A_k",
        forward="1 pass a layer",
        inverse="1 pass a layer",
        determinant="D",
        universal="in a weak sense, by layers",
    ),
)
def rad(
    features: int,
    context: int = 0,
    *,
    transforms: int = 6,
    hidden: int = 128,
    blocks: int = 2,
    dropout: float = 0.0,
) -> Flow:
    """Build a RAD flow of `transforms` affine couplings, a linear layer before each, for `features` columns.

    Raises `OptionError` for sizes that make no model.

    >>> rad(3, transforms=2, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    maps = [Affine.one_of(transforms) for _ in range(transforms)]
    steps: list[Transform] = [ActNorm(features)]
    for layer in couplings(maps, features, context, hidden=hidden, blocks=blocks, dropout=dropout):
        steps.extend([LU(features), layer] if features > 1 else [layer])
    return Flow(Compose(steps), Folded(features, context=context, hidden=hidden, blocks=blocks), context=context)
