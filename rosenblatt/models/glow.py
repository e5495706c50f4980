"""Glow: steps of normalisation, an invertible linear map, and an affine coupling, for tables and images.

The linear map, learned with the rest, takes the place of a fixed change of halves:

    x -> ActNorm -> W (P L U) -> z_B = (x_B - mu(x_A)) exp(s(x_A)),   repeated

On images (`image`) W is a 1x1 convolution of the channels, or an emerging or periodic one, and the coupling's network
is convolutional. Each scale squeezes 2 x 2 pixels into channels, runs its steps, and lets half of the channels leave to
the base behind an affine map of theirs that the other half conditions (the learned prior of the published model).
Exact: density and sampling, one network pass per step each. ActNorm takes its start from the first rows.
`linear` offers other invertible maps: reflections, Cayley, matrix exponentials, QR and SVD.
References: Kingma & Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions, NeurIPS 2018 (images; for tables
the columns take the place of channels); Hoogeboom, van den Berg & Welling, Emerging Convolutions for Generative
Normalizing Flows, ICML 2019 (the other convolutions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.affine import Affine
from rosenblatt.layers.couplings import couplings, image_couplings
from rosenblatt.layers.orthogonal import mixing
from rosenblatt.layers.scaling import ActNorm
from rosenblatt.layers.shape import image_shape


@register(
    "glow",
    summary="ActNorm, learned linear maps and affine couplings; density and samples in one pass each",
    citation="Kingma & Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions, NeurIPS 2018.",
    facts=Facts(
        formula=r"z = s_\theta(x_A) \odot x_B + t_\theta(x_A) \text{ behind } Wx",
        forward="1 pass a layer",
        inverse="1 pass a layer",
        determinant="D",
        universal="in a weak sense, by layers",
    ),
)
def glow(
    features: int,
    context: int = 0,
    *,
    transforms: int = 8,
    linear: str = "plu",
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
    image: Sequence[int] | None = None,
    levels: int = 1,
    convolution: str = "1x1",
) -> Flow:
    """Build a Glow for `features` columns, or for images.

    `linear` is "plu" (random permutation and LU factors, as published), "householder", "cayley", "rotation",
    "exponential", "qr" or "svd". With `residual=False`, `blocks` counts plain hidden layers; for images, two of them
    are the published network. `image` is [channels, height, width] of a row; then there are `levels` scales of
    `transforms` steps each (a single pixel is not squeezed any more), and `convolution` is "1x1", "emerging" or
    "periodic". Raises `OptionError` for another name, sizes that make no model, sides that cannot be halved.

    >>> import torch
    >>> glow(3, transforms=2, hidden=16, linear="svd").log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    >>> glow(64, transforms=2, hidden=16, image=[1, 8, 8], levels=2).log_prob(torch.zeros(4, 64)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    net: dict[str, Any] = {
        "hidden": hidden,
        "blocks": blocks,
        "context": context,
        "dropout": dropout,
        "residual": residual,
    }
    if image is not None:
        layers = transforms * levels + levels - 1  # what a channel of the last scale goes through
        steps = image_couplings(
            lambda: Affine.one_of(layers),
            image_shape(image, features),
            levels,
            transforms,
            net=net,
            linear=linear,
            convolution=convolution,
        )
    elif levels != 1 or convolution != "1x1":
        raise OptionError("levels, convolution: these are for images; pass image=[channels, height, width] with them.")
    else:
        steps = _table_steps(features, transforms, linear, net)
    return Flow(Compose(steps), StandardNormal(features), context=context)


def _table_steps(features: int, transforms: int, linear: str, net: dict[str, Any]) -> list[Transform]:
    maps = [Affine.one_of(transforms) for _ in range(transforms)]
    steps: list[Transform] = []
    for layer in couplings(maps, features, **net):
        steps.extend([ActNorm(features), *mixing(linear, features), layer])
    return steps
