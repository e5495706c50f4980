"""Sylvester flows: layers of several planar bends each, coupled by triangles.

    z = x + Q R tanh(P Q^T x + b),   log|det| = sum_i log(1 + R_ii P_ii sech^2(.)_i)

Q has orthonormal columns, R and P are upper triangles, so one layer does the work of `width` planar ones.
Exact: density (one pass), sampling (`width` root searches in one number per layer). Q is a product of reflections, as
in the published Householder variant. With `context`, a network of the context emits R, P and b.
Reference: van den Berg, Hasenclever, Tomczak & Welling, Sylvester Normalizing Flows for Variational Inference, 2018.
Usual sizes: 4 to 16 layers, all columns wide for the Householder variant.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Inverse, Transform
from rosenblatt.layers.sylvester import Sylvester


@register(
    "sylvester",
    summary="several planar bends per layer, coupled by triangles; exact by Sylvester's identity",
    citation=(
        "van den Berg, Hasenclever, Tomczak & Welling, Sylvester Normalizing Flows for Variational Inference, UAI 2018."
    ),
    facts=Facts(
        formula=r"z = x + Q R \tanh(\tilde R Q^\top x + b)",
        forward="M D a layer",
        inverse="M root searches a layer",
        determinant="M (M the rank)",
        universal="no (limited per layer)",
    ),
)
def sylvester(
    features: int,
    context: int = 0,
    *,
    transforms: int = 4,
    width: int | None = None,
    inverted: bool = False,
    hidden: int = 64,
) -> Flow:
    """Build a stack of Sylvester layers for `features` columns with `width` bends each (default: as many as columns).

    With `inverted`, layers lead from noise to data, as published for variational inference: samples are explicit, and
    the density of given rows needs the root searches. `hidden` is the width of the network of the context.
    Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> sylvester(3, transforms=2, width=2).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    layers: list[Transform] = [Sylvester(features, width, context=context, hidden=hidden) for _ in range(transforms)]
    steps: list[Transform] = [Inverse(layer) for layer in layers] if inverted else layers
    return Flow(Compose(steps), StandardNormal(features), context=context)
