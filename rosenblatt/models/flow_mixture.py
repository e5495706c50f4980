"""A mixture of flows: several RealNVPs, each with a share of the data that a softmax or a gate of the context decides.

A single flow is one continuous map and has to stretch bridges between clusters; a mixture need not:

    p(x | c) = sum_k w_k(c) N(f_k(x; c); 0, 1) |det f_k'|

Components start at different places, equally weighted. Exact: density (all components), sampling (one each).
References: Dinh, Sohl-Dickstein & Bengio, Density Estimation using Real NVP, ICLR 2017, for the components;
Papamakarios et al., Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, section 3.
"""

from __future__ import annotations

from torch import nn

from rosenblatt.bases import Mixture, StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose
from rosenblatt.elementwise.affine import Affine
from rosenblatt.layers.couplings import couplings
from rosenblatt.layers.scaling import ActNorm


@register(
    "flow_mixture",
    summary="a mixture of RealNVPs, with weights that the context may gate",
    citation=(
        "Papamakarios, Nalisnick, Rezende, Mohamed & Lakshminarayanan, Normalizing Flows for Probabilistic Modeling "
        "and Inference, JMLR 2021; Dinh, Sohl-Dickstein & Bengio, Density Estimation using Real NVP, ICLR 2017."
    ),
    facts=Facts(
        formula=r"p(x) = \sum_k w_k\, p_Z(f_k(x))\, |\det f_k'(x)|",
        forward="1 pass a layer of each component",
        inverse="1 pass a layer of one component",
        determinant="D a component",
        universal="yes, by components",
    ),
)
def flow_mixture(
    features: int,
    context: int = 0,
    *,
    components: int = 4,
    transforms: int = 4,
    hidden: int = 64,
    blocks: int = 1,
    dropout: float = 0.0,
) -> Flow:
    """Build a mixture of `components` RealNVPs of `transforms` layers for `features` columns.

    Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> flow_mixture(3, components=2, transforms=2, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if components < 1 or transforms < 1:
        raise OptionError(f"components={components}, transforms={transforms} came, integers >= 1 were expected.")
    flows = []
    for _ in range(components):
        first = ActNorm(features)
        nn.init.normal_(first.shift)  # equal components would stay equal for long
        maps = [Affine.one_of(transforms) for _ in range(transforms)]
        layers = couplings(maps, features, context, hidden=hidden, blocks=blocks, dropout=dropout)
        flows.append(Flow(Compose([first, *layers]), StandardNormal(features), context=context))
    return Flow(ActNorm(features), Mixture(flows, context=context, hidden=hidden), context=context)
