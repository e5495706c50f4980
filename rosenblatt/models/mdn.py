"""MDN, the mixture density network: weights, means and covariances of a Gaussian mixture are functions of the context.

    p(x | c) = sum_k w_k(c) N(x; m_k(c), S_k(c)),   S_k^-1 = A_k' A_k,   A_k = diag(a_k) (1 + B_k), B_k strictly lower

One network of the context emits everything; without context the numbers are free, and the model is a plain mixture.
The conditionals p(x_i | x_<i, c) are Gaussian mixtures too, so this is a flow of one layer with exact CDFs, quantiles
and samples. Standard deviations stay within exp(-7) and exp(7) of unit scale, so a component cannot collapse on a row.
Reference: Bishop, Mixture Density Networks, Technical report NCRG/94/004, Aston University, 1994 (round Gaussians;
full covariances as in Williams, Using Neural Networks to Model Conditional Multivariate Densities, 1996).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rosenblatt.conditioners.gaussian_mixture import Components, MixtureSource
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.types import ParamSpec
from rosenblatt.layers.gaussian_mixture import GaussianMixtureFlow
from rosenblatt.nets import MLP


class _Emitted(MixtureSource):
    """Components that a residual network emits, or free ones."""

    rows: Tensor
    columns: Tensor

    def __init__(
        self, features: int, context: int, components: int, *, full: bool, hidden: int, blocks: int, dropout: float
    ) -> None:
        super().__init__()
        self.features, self.context, self.components = features, context, components
        pairs = features * (features - 1) // 2 if full else 0
        self.spec = ParamSpec(
            logits=(components,),
            locations=(features, components),
            raw_slopes=(features, components),
            regression=(pairs, components),
        )
        rows, columns = torch.tril_indices(features, features, -1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        if context:
            self.net = MLP(context, self.spec.size, hidden=hidden, blocks=blocks, dropout=dropout)
        else:
            self.free = nn.Parameter(torch.zeros(self.spec.size))

    def start_at(self, theta: Tensor) -> None:
        """Every column gets the components of `theta`, each in an order of its own: a Latin square."""
        logits, locations, raw_slopes = theta.reshape(3, self.components)
        orders = torch.stack([torch.randperm(self.components) for _ in range(self.features)])
        start = self.spec.join(
            logits=logits,
            locations=locations[orders],
            raw_slopes=raw_slopes[orders],
            regression=torch.zeros(self.spec.shapes["regression"]),
        )
        if self.context:
            self.net.start_at(start)
        else:
            with torch.no_grad():
                self.free.copy_(start)

    def forward(self, context: Tensor | None = None) -> Components:
        """Unpack what the network emits."""
        parts = self.spec.split(self.net(context) if self.context else self.free)
        below = parts["regression"]
        regression = None
        if below.shape[-2]:
            lead = below.shape[:-2]
            square = below.new_zeros(*lead, self.features * self.features, self.components)
            place = self.rows * self.features + self.columns
            square = square.index_copy(-2, place, below)
            regression = square.reshape(*lead, self.features, self.features, self.components)
        return Components(parts["logits"], parts["locations"], parts["raw_slopes"], regression)


@register(
    "mdn",
    summary="mixture density network: a Gaussian mixture whose weights, means and covariances follow the context",
    citation="Bishop, Mixture Density Networks, Technical report NCRG/94/004, Aston University, 1994.",
    facts=Facts(
        formula=r"p(x \mid c) = \sum_k w_k(c)\, N(x;\, m_k(c), \Sigma_k(c))",
        forward="1 pass",
        inverse="1 pass in all, D root searches",
        determinant="K D^2",
        universal="yes, by components",
    ),
)
def mdn(
    features: int,
    context: int = 0,
    *,
    components: int = 10,
    covariance: str = "full",
    hidden: int = 128,
    blocks: int = 2,
    dropout: float = 0.0,
) -> Flow:
    """Build a mixture of `components` Gaussians for `features` columns, a function of `context` numbers if there are.

    `covariance="full"` lets the network emit about `components * features^2 / 2` numbers, "diagonal" twice
    `components * features`. `hidden`, `blocks` and `dropout` are those of the network. Raises `OptionError` for sizes
    that make no model or another covariance.

    >>> mdn(2, context=1, components=3, hidden=8).log_prob(torch.zeros(4, 2), torch.zeros(4, 1)).shape
    torch.Size([4])
    """
    if components < 1:
        raise OptionError(f"components: {components} came, an integer >= 1 was expected.")
    if covariance not in ("full", "diagonal"):
        raise OptionError(f"covariance: '{covariance}' came; choose 'full' or 'diagonal'.")
    full = covariance == "full"
    source = _Emitted(features, context, components, full=full, hidden=hidden, blocks=blocks, dropout=dropout)
    return GaussianMixtureFlow(source)
