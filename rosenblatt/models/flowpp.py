"""Flow++ for tables: couplings whose map is the CDF of a mixture of logistics, with an affine map behind it.

Half of the columns emit, for each column of the other half, a mixture of logistics and an affine map behind its logit:

    x -> ActNorm -> W (P L U) -> z_B = logit( sum_k pi_k s((x_B - mu_k) / s_k) ) exp(a) + b,   pi, mu, s, a, b of x_A

Exact: density (one pass per step); sampling (one pass and a root search for each column per step). One such coupling
bends as often as it has components, where an affine one only shifts and scales. The first half goes through a map of
the same kind with free numbers.
Reference: Ho, Chen, Srinivas, Duan & Abbeel, Flow++: Improving Flow-Based Generative Models with Variational
Dequantization and Architecture Design, ICML 2019 (images; here its coupling, with the columns of a table in place of
channels and without dequantisation or attention). Published: 32 components.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
from rosenblatt.elementwise.stacked import Stacked
from rosenblatt.layers.couplings import couplings
from rosenblatt.layers.orthogonal import mixing
from rosenblatt.layers.scaling import ActNorm


@register(
    "flowpp",
    summary="couplings by mixture CDFs behind learned linear maps; expressive steps, searched inverse",
    citation=(
        "Ho, Chen, Srinivas, Duan & Abbeel, Flow++: Improving Flow-Based Generative Models with Variational "
        "Dequantization and Architecture Design, ICML 2019, PMLR 97:2722-2730."
    ),
    facts=Facts(
        formula=r"z_B = \mathrm{logit} \sum_k \pi_k\, \sigma((x_B - \mu_k) / s_k)\, e^{a} + b, \quad \theta(x_A)",
        forward="1 pass a layer",
        inverse="1 pass and D root searches a layer",
        determinant="D",
        universal="yes, by layers and components",
    ),
)
def flowpp(
    features: int,
    context: int = 0,
    *,
    transforms: int = 4,
    components: int = 8,
    linear: str = "plu",
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
) -> Flow:
    """Build a flow of mixture-CDF couplings for `features` columns.

    `linear` is what stands before each coupling, as in Glow: "plu" (random permutation and LU factors), "householder",
    "cayley", "rotation", "exponential", "qr" or "svd". With `residual=False`, `blocks` counts plain hidden layers.
    Raises `OptionError` for another `linear` or sizes that make no model.

    >>> import torch
    >>> flowpp(3, transforms=2, components=4, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    maps = [Stacked([LogisticMixture(components), Affine.one_of(transforms)]) for _ in range(transforms)]
    steps: list[Transform] = []
    for layer in couplings(maps, features, context, hidden=hidden, blocks=blocks, dropout=dropout, residual=residual):
        steps.extend([ActNorm(features), *mixing(linear, features), layer])
    return Flow(Compose(steps), StandardNormal(features), context=context)
