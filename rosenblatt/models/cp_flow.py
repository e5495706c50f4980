"""Convex potential flows: each layer is the gradient of a strongly convex function, as an optimal transport map is.

    z = grad F(x),   F(x) = alpha/2 |x|^2 + ICNN(x),   log p(x) = log N(z; 0, 1) + sum over layers of log det Hess F(x)

An input-convex network (softplus units, positive weights from layer to layer) makes F convex whatever its weights, so
the Jacobian is symmetric and positive definite: its determinant is exact by a Cholesky factor, and the inverse is a
convex minimisation, solved by Newton's method. One layer can be the optimal map between two densities (Brenier).
Scoring and sampling are exact. Training is exact for few columns, and for many takes an estimate of the log-determinant
with few products with the Hessian; `likelihood` says so. A shift and scale per column stands before every layer and
after the last. With `context`, a network of it emits the shifts and the positive outputs of the potential.
Reference: Huang, Chen, Tsirigotis & Courville, Convex Potential Flows: Universal Probability Distributions with Optimal
Transport and Convex Optimization, ICLR 2021.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.layers.convex import ConvexGradient
from rosenblatt.layers.scaling import ActNorm


@register(
    "cp_flow",
    summary="gradients of strongly convex networks; symmetric positive Jacobian, sampling by convex minimisation",
    citation=(
        "Huang, Chen, Tsirigotis & Courville, Convex Potential Flows: Universal Probability Distributions with "
        "Optimal Transport and Convex Optimization, ICLR 2021."
    ),
    facts=Facts(
        formula=r"z = \nabla F(x), \quad F(x) = \tfrac{\alpha}{2} |x|^2 + \mathrm{ICNN}(x)",
        forward="2 passes a layer",
        inverse="1 convex minimisation a layer",
        determinant="D passes + D^3 a layer; a few products with the Hessian for the estimate in training",
        universal="yes (Brenier), by width and depth",
    ),
)
def cp_flow(
    features: int,
    context: int = 0,
    *,
    transforms: int = 2,
    hidden: int = 64,
    depth: int = 2,
    log_det: str = "auto",
    steps: int = 10,
) -> Flow:
    """Build a convex potential flow for `features` columns.

    Each potential has `depth` hidden layers of `hidden` units. `log_det` is how training sees the determinant: "exact",
    "estimate" (`steps` products with the Hessian) or "auto" (exact up to 32 columns, an estimate beyond). Raises
    `OptionError` for options that make no model.

    >>> import torch
    >>> cp_flow(3, transforms=1, hidden=16).eval().log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    layers: list[Transform] = []
    for _ in range(transforms):
        layer = ConvexGradient(features, hidden=hidden, depth=depth, log_det=log_det, steps=steps, context=context)
        layers.extend([ActNorm(features), layer])
    layers.append(ActNorm(features))
    return Flow(Compose(layers), StandardNormal(features), context=context)
