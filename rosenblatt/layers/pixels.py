"""One causal layer over the pixels of an image, as a density of numbers or of levels."""

from __future__ import annotations

from collections.abc import Sequence

from rosenblatt.bases import StandardLogistic
from rosenblatt.conditioners.pixelcnn import PixelCNN
from rosenblatt.core.density import Density, Flow
from rosenblatt.elementwise.base import UnitElementwise
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.discretised import Discretised
from rosenblatt.layers.shape import image_shape


def pixels(
    cdf: UnitElementwise,
    features: int,
    context: int,
    *,
    image: Sequence[int] | None,
    levels: int | None,
    filters: int,
    blocks: int,
    stages: int,
    heads: int,
    dropout: float,
    patch: int,
) -> Density:
    """Give every number of an image the CDF `cdf`, whose parameters a causal convolutional network emits.

    `image` is [channels, height, width]; without it a row is a line of pixels. `levels` makes it a model of whole
    numbers 0 .. levels - 1; without, of continuous ones. The rest is that of `PixelCNN`, which raises `OptionError` for
    sizes that make no network.

    >>> import torch
    >>> from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
    >>> sizes = {"filters": 8, "blocks": 1, "stages": 1, "heads": 0, "dropout": 0.0, "patch": 1}
    >>> model = pixels(LogisticMixture(2), 12, 0, image=[3, 2, 2], levels=256, **sizes)
    >>> model.log_prob(torch.randint(256, (5, 12))).shape
    torch.Size([5])
    """
    network = PixelCNN(
        (1, 1, features) if image is None else image_shape(image, features),
        cdf.spec.size,
        filters=filters,
        blocks=blocks,
        stages=stages,
        heads=heads,
        context=context,
        dropout=dropout,
        patch=patch,
    )
    layer = Conditional(cdf, network)
    return Flow(layer, StandardLogistic(features), context=context) if levels is None else Discretised(layer, levels)
