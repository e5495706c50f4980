"""Flows on spheres, in coordinates that keep areas: heights in [-1, 1] and a longitude in [-pi, pi].

Each step bends the heights by splines of the interval, each given those before it, and then the longitude by a map of
the circle given all heights. On S^2 a rotation goes in front, so that no axis is special:

    (h, l) -> rotation -> (f(h), g(l; h)),   p = f'(h) g'(l; h) / (4 pi) with respect to area

Parameters of g (and of later heights) are multiplied by sqrt(1 - h^2): at the poles, where all longitudes are one
point, g is the identity, and the density is continuous. The published flows correct for the area of the cylinder by
(1 - r^2)^(D/2 - 1) at height r; here the heights are such that the correction is 1 (Archimedes on S^2), and
`layers/sphere.py` goes from unit vectors, or degrees, to these coordinates and back.
Exact: density, sampling (splines in closed form, Moebius maps by a root search). log p is -inf outside the box.
Reference: Rezende et al., Normalizing Flows on Tori and Spheres, ICML 2020; rotations and fading are additions.
"""

from __future__ import annotations

import math
from typing import Any

from rosenblatt.bases import Box
from rosenblatt.conditioners.fading import Fading
from rosenblatt.conditioners.independent import Independent
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.core.types import Support
from rosenblatt.elementwise.circular import circle_map
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.sphere import SphereRotation
from rosenblatt.layers.staged import Staged


@register(
    "sphere",
    summary="heights by splines and longitudes by maps of the circle, with rotations between; densities by area",
    citation="Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan & Cranmer, "
    "Normalizing Flows on Tori and Spheres, ICML 2020.",
    facts=Facts(
        formula=r"(h, \ell) \mapsto (f(h),\, g_{\theta(h)}(\ell)), \quad h \in [-1, 1],\ \ell \in [-\pi, \pi]",
        forward="1 pass a layer",
        inverse="1 pass in all a layer; Moebius maps by search",
        determinant="D",
        universal="yes on the sphere, by bins or components",
    ),
)
def sphere(
    features: int,
    context: int = 0,
    *,
    circle: str = "spline",
    transforms: int = 4,
    bins: int = 16,
    components: int = 16,
    hidden: int = 64,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
    rotations: bool = True,
) -> Flow:
    """Build a flow on the sphere S^`features`: `features` - 1 heights, then the longitude.

    `circle` is "spline" (`bins`, which the heights have too) or "moebius" (`components`). `rotations` are of S^2 only.
    `layers.sphere.OnSphere` makes it a density of unit vectors. Raises `OptionError` for another `circle`, or sizes
    that make no model.

    >>> import torch
    >>> sphere(2, transforms=1, hidden=16).log_prob(torch.tensor([[0.5, 1.0], [1.5, 1.0]])).shape
    torch.Size([2])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    net: dict[str, Any] = {"hidden": hidden, "blocks": blocks, "residual": residual, "dropout": dropout}
    steps: list[Transform] = []
    heights = features - 1
    for _ in range(transforms):
        bend = circle_map(circle, bins, components)
        size = bend.spec.size
        if not heights:
            steps.append(Conditional(bend, Independent(1, size, context=context, **net)))
            continue
        if rotations and features == 2:
            steps.append(SphereRotation())
        spline = RationalQuadraticSpline(bins, bound=1.0, tails="none")
        before = Conditional(spline, Fading(Masked(heights, spline.spec.size, context=context, **net)))
        after = Conditional(bend, Fading(Independent(1, size, context=heights + context, **net), heights=heights))
        steps.append(Staged(before, after, first=heights))
    supports = [*[Support(-1.0, 1.0)] * heights, Support(-math.pi, math.pi)]
    base = Box(features, bound=[own.upper for own in supports])
    return Flow(Compose(steps), base, context=context, supports=supports)
