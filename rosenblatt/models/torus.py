"""Flows on the torus: every column is an angle, and the density is continuous all around.

Each layer bends every angle by a map of the circle whose parameters depend on cosines and sines of the angles before:

    z_i = g(x_i; theta_i(cos x_<i, sin x_<i)),   p(x) = (2 pi)^-D prod over layers and i of g'

Columns are angles in [-pi, pi], both ends the same point; log p is -inf outside, never wrapped. In a table, declare the
turn of each column, as support={"phi": [-180, 180]} for degrees: it is carried straight onto [-pi, pi]. Exact: density
(one pass), sampling (level by level; splines in closed form, Moebius maps by a root search). Every map keeps -pi and pi
where they are and has equal slopes there, so the density takes the same value on both sides of the seam.
Reference: Rezende et al., Normalizing Flows on Tori and Spheres, ICML 2020.
"""

from __future__ import annotations

import math
from typing import Any

from rosenblatt.bases import Box
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose
from rosenblatt.core.types import Support
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.circular import circle_map
from rosenblatt.layers.autoregressive import alternating
from rosenblatt.layers.couplings import couplings


@register(
    "torus",
    summary="circular splines or Moebius maps of angles, autoregressive or coupling; continuous across the seam",
    citation="Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan & Cranmer, "
    "Normalizing Flows on Tori and Spheres, ICML 2020.",
    facts=Facts(
        formula=r"z_i = g_{\theta_i}(x_i), \quad \theta_i(\cos x_{<i}, \sin x_{<i}), \quad x_i \in [-\pi, \pi]",
        forward="1 pass a layer",
        inverse="1 pass in all a layer, level by level; Moebius maps by search",
        determinant="D",
        universal="yes on the torus, by bins or components (autoregressive)",
    ),
)
def torus(
    features: int,
    context: int = 0,
    *,
    circle: str = "spline",
    transforms: int = 2,
    bins: int = 16,
    components: int = 16,
    coupling: bool = False,
    hidden: int = 64,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
) -> Flow:
    """Build a flow for `features` angles in [-pi, pi].

    `circle` is "spline" (`bins`) or "moebius" (`components`); `coupling` lets half of the angles condition the other
    half in turn, which samples in two passes a layer. Raises `OptionError` for another `circle`, or sizes that make no
    model.

    >>> import torch
    >>> from rosenblatt.core.registry import build
    >>> flow = build("torus", 2, options={"transforms": 1, "hidden": 16}, seed=0)
    >>> flow.log_prob(torch.tensor([[-math.pi, 1.0], [math.pi, 1.0], [3.2, 1.0]]))  # near log (2 pi)^-2 at the start
    tensor([-3.6..., -3.6...,    -inf], grad_fn=...)
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    maps: list[Elementwise] = [circle_map(circle, bins, components) for _ in range(transforms)]
    net: dict[str, Any] = {"hidden": hidden, "blocks": blocks, "residual": residual, "dropout": dropout}
    net["angles"] = range(features)
    if coupling:
        layers = couplings(maps, features, context, **net)
    else:
        layers = alternating(maps, features, context, activation="relu", **net)
    supports = [Support(-math.pi, math.pi)] * features
    return Flow(Compose(layers), Box(features, bound=math.pi), context=context, supports=supports)
