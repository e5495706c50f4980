"""NAF, the neural autoregressive flow: a masked network emits the weights of a small increasing network per column.

Each coordinate goes through layers of logistic mixtures carried as logits, whose weights depend on the coordinates
before it; the order turns around between transforms:

    z_i = f_i(x_i; x_<i),   f = logit(W s(a * (U h) + b)) from layer to layer,   W, U rows of softmaxes, a > 0

Exact: density (one pass, logarithms of slopes throughout); sampling (a root search whose bracket grows as far as it
must). `dense=False` passes one number between layers (DSF), `dense=True` passes `units` (DDSF).
Reference: Huang, Krueger, Lacoste & Courville, Neural Autoregressive Flows, ICML 2018.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.dense_sigmoid import DenseSigmoid
from rosenblatt.elementwise.sigmoid_mixture import DeepSigmoid
from rosenblatt.layers.autoregressive import alternating


@register(
    "naf",
    summary="autoregressive increasing networks of sigmoid mixtures, deep or dense; any shape, searched inverse",
    citation="Huang, Krueger, Lacoste & Courville, Neural Autoregressive Flows, ICML 2018, PMLR 80:2078-2087.",
    facts=Facts(
        formula=r"z_i = \mathrm{logit} \sum_k w_k\, \sigma(a_k x_i + b_k), \quad (w, a, b)(x_{<i})",
        forward="1 pass a layer",
        inverse="1 pass in all and D root searches a layer",
        determinant="D",
        universal="yes, by units",
    ),
)
def naf(
    features: int,
    context: int = 0,
    *,
    transforms: int = 2,
    units: int = 8,
    layers: int = 2,
    dense: bool = False,
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
    activation: str = "relu",
) -> Flow:
    """Build a neural autoregressive flow for `features` columns, its increasing nets with `layers` of `units`.

    With `residual=False`, `blocks` counts plain hidden layers. Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> naf(3, transforms=1, dense=True, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    maps: list[Elementwise] = [
        DenseSigmoid(units, layers) if dense else DeepSigmoid(units, layers) for _ in range(transforms)
    ]
    stack = alternating(
        maps,
        features,
        context,
        hidden=hidden,
        blocks=blocks,
        residual=residual,
        dropout=dropout,
        activation=activation,
    )
    return Flow(Compose(stack), StandardNormal(features), context=context)
