"""BNAF, the block neural autoregressive flow: one network whose weights are triangular in blocks of coordinates.

Where NAF lets a second network emit the weights of an increasing network for every column, here all those networks are
the blocks of a single one: positive weights inside a column, free weights from the columns before it, none from later:

    z_i = a_i x_i + N_i(x_1, .., x_i),   dN_i/dx_i = product of exp(W_ii) and tanh' from layer to layer,   a_i > 0

Exact: density (one pass, the slopes as logarithms); sampling (a root search for one column after the other). The
published network ends behind a tanh and is bounded, so that part of the base's mass has no data; the line a_i x_i makes
the map onto. The order turns around between transforms.
Reference: De Cao, Titov & Aziz, Block Neural Autoregressive Flow, UAI 2019.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.layers.block_autoregressive import BlockAutoregressive
from rosenblatt.layers.linear import Reverse


@register(
    "bnaf",
    summary="one block-triangular network with positive diagonal blocks; small, any shape, searched inverse",
    citation="De Cao, Titov & Aziz, Block Neural Autoregressive Flow, UAI 2019, PMLR 115:1263-1273.",
    facts=Facts(
        formula=r"z_i = a_i x_i + N_i(x_{\le i}), \quad \partial N_i / \partial x_i > 0 \text{ by positive blocks}",
        forward="1 pass a layer",
        inverse="1 pass in all and D root searches a layer",
        determinant="D units^2",
        universal="yes, by units",
    ),
)
def bnaf(
    features: int,
    context: int = 0,
    *,
    transforms: int = 2,
    units: int = 8,
    layers: int = 2,
    gated: bool = False,
) -> Flow:
    """Build a block neural autoregressive flow for `features` columns.

    Every column owns `units` units in each of `layers` hidden layers, so a layer is `features * units` wide. With
    `gated`, line and network of a transform share one gate, `(1 - s(g)) x + s(g) N(x)`. Raises `OptionError` for sizes
    that make no model.

    >>> import torch
    >>> bnaf(3, transforms=1, units=4).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    steps: list[Transform] = []
    for number in range(transforms):
        if number:
            steps.append(Reverse(features))
        steps.append(BlockAutoregressive(features, units=units, layers=layers, context=context, gated=gated))
    return Flow(Compose(steps), StandardNormal(features), context=context)
