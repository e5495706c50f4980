"""Residual flows: a stack of layers that add a network which cannot stretch, and are invertible for that reason alone.

    z = x + g(x),   Lip(g) < c < 1,   log p(x) = log N(z; 0, 1) + sum over layers of log det(1 + dg/dx)

No order of the columns and no halves: every column sees every other in each layer. The bound holds for all weights, at
every call, because each weight matrix is divided by its exact largest singular value where that is too large.
Scoring and sampling are exact: Jacobians in closed form, and Newton searches. Training is exact for few columns; for
many it takes an unbiased estimate of the log-determinant (Residual Flow) or, by option, a truncated power series
(i-ResNet), and `likelihood` says so. A shift and scale per column stands before every layer and after the last. One
layer stretches by at most 1 + c and contracts by at least 1 - c, so strong deformations need several.
References: Behrmann, Grathwohl, Chen, Duvenaud & Jacobsen, Invertible Residual Networks, ICML 2019; Chen, Behrmann,
Duvenaud & Jacobsen, Residual Flows for Invertible Generative Modeling, NeurIPS 2019; `dense`: Perugachi-Diaz, Tomczak &
Bhulai, Invertible DenseNets with Concatenated LipSwish, NeurIPS 2021.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.layers.residual import Contractive
from rosenblatt.layers.scaling import ActNorm


@register(
    "residual_flow",
    summary="layers x + g(x) with a contractive network g; free-form Jacobian, exact scores, unbiased training",
    citation="Chen, Behrmann, Duvenaud & Jacobsen, Residual Flows for Invertible Generative Modeling, NeurIPS 2019.",
    facts=Facts(
        formula=r"z = x + g(x), \quad \mathrm{Lip}(g) < c < 1",
        forward="1 pass a layer",
        inverse="1 Newton search a layer",
        determinant="D passes + D^3 a layer; a few passes for the estimate in training",
        universal="open; dense among invertible residual maps, by layers and width",
    ),
)
def residual_flow(
    features: int,
    context: int = 0,
    *,
    transforms: int = 8,
    hidden: int = 64,
    depth: int = 2,
    lipschitz: float = 0.97,
    unit: str = "lipswish",
    dense: bool = False,
    log_det: str = "auto",
    terms: int = 4,
    survival: float = 0.5,
) -> Flow:
    """Build a residual flow for `features` columns.

    Each g has `depth` hidden layers of `hidden` units, "lipswish" or "tanh" by `unit`; with `dense`, each layer keeps
    what came before it. `log_det` is how training sees the determinant: "exact", "unbiased", "truncated", or "auto"
    (exact up to 16 columns, unbiased beyond); the estimates take `terms` terms of the power series, the unbiased one
    each further term with probability `survival`. Raises `OptionError` for options that make no model.

    >>> import torch
    >>> residual_flow(3, transforms=2, hidden=16).eval().log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    steps: list[Transform] = []
    for _ in range(transforms):
        layer = Contractive(
            features,
            hidden=hidden,
            depth=depth,
            lipschitz=lipschitz,
            unit=unit,
            dense=dense,
            log_det=log_det,
            terms=terms,
            survival=survival,
            context=context,
        )
        steps.extend([ActNorm(features), layer])
    steps.append(ActNorm(features))
    return Flow(Compose(steps), StandardNormal(features), context=context)
