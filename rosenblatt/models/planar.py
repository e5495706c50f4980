"""Planar and radial flows: many simple layers, each a bend across a plane or a swelling around a point.

    planar:  z = x + u tanh(w.x + b),      log|det| = log(1 + u.w sech^2(w.x + b))
    radial:  z = x + (s - 1) q (x - c),    log|det| = (D - 1) log(1 + (s - 1) q) + log(1 + (s - 1) q^2),
             q = a / (a + |x - c|)

Exact: density (one pass), sampling (one root search in one number per planar layer, closed for radial ones). Each layer
adds only one bend, so tables of many columns need many layers; the method is a classic rather than a strong baseline.
With `context`, a network of the context emits all parameters.
Reference: Rezende & Mohamed, Variational Inference with Normalizing Flows, ICML 2015. Published sizes: 2 to 80 layers.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Inverse, Transform
from rosenblatt.layers.planar import Planar, Radial


@register(
    "planar",
    summary="many planar (or radial) bends; exact by the matrix determinant lemma, a small classic",
    citation="Rezende & Mohamed, Variational Inference with Normalizing Flows, ICML 2015.",
    facts=Facts(
        formula=r"z = x + u \tanh(w^\top x + b)",
        forward="D a layer",
        inverse="1 root search a layer",
        determinant="D",
        universal="no (limited per layer)",
    ),
)
def planar(
    features: int,
    context: int = 0,
    *,
    transforms: int = 16,
    radial: bool = False,
    inverted: bool = False,
    hidden: int = 64,
) -> Flow:
    """Build a stack of planar layers for `features` columns, or of radial ones.

    With `inverted`, layers lead from noise to data, as published for variational inference: samples are explicit, and
    the density of given rows needs the root searches. `hidden` is the width of the network of the context.
    Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> planar(3, transforms=2).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    make: type[Planar] | type[Radial] = Radial if radial else Planar
    layers: list[Transform] = [make(features, context=context, hidden=hidden) for _ in range(transforms)]
    steps: list[Transform] = [Inverse(layer) for layer in layers] if inverted else layers
    return Flow(Compose(steps), StandardNormal(features), context=context)
