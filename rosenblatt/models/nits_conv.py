"""NITS-Conv: the CDF of every channel of every pixel is a network, whose weights a causal convolutional one emits.

    P(x) = prod_i [ F_i(u(x_i) | x_<i) - F_i(l(x_i) | x_<i) ],   F_i a positive network

in the order of reading, the channels of a pixel one after the other. With `levels` the model is one of whole numbers,
and `log_prob` their exact log-probability; without, it is a continuous density like NITS on tables.
Exact: probabilities, CDFs, sampling (one pass from pixel to pixel in all). Reference: Li & Kluger, Neural Inverse
Transform Sampler, ICML 2022, with the network of Salimans et al., PixelCNN++, ICLR 2017.
Published sizes: CDF nets [10, 1] or [16, 16, 1] on [-5, 5], 160 filters, 5 blocks a stage.

What differs from the published code: its windows only reach back and nothing is normalised over places, where there a
later group normalisation lets pixels see the future; weights of CDF nets depend freely on earlier channels, where there
they enter the CDF net itself, increasing in it; and no floor stands inside a logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.layers.discretised import SPAN
from rosenblatt.layers.pixels import pixels


@register(
    "nits_conv",
    summary="NITS on images: networks that are CDFs of pixels, from causal convolutions; exact probabilities of levels",
    citation="Li & Kluger, Neural Inverse Transform Sampler, ICML 2022, PMLR 162:12813-12825.",
    facts=Facts(
        formula=r"z_i = \mathrm{logit}\, F_i(x_i; x_{<i}), \quad F_i \text{ a positive network, } i \text{ a pixel}",
        forward="1 pass",
        inverse="1 pass in all, D root searches",
        determinant="D",
        universal="yes, by widths",
    ),
)
def nits_conv(
    features: int,
    context: int = 0,
    *,
    image: Sequence[int] | None = None,
    levels: int | None = None,
    widths: Sequence[int] = (16, 16, 1),
    interval: Sequence[float] | None = None,
    epsilon: float = 1e-5,
    filters: int = 32,
    blocks: int = 1,
    stages: int = 1,
    heads: int = 0,
    dropout: float = 0.0,
    patch: int = 1,
) -> Density:
    """Build NITS for images, rows of `features` numbers in the order channel, row, column.

    `image` is [channels, height, width]; without it a row is a line of pixels. `levels` makes it a model of whole
    numbers 0 .. levels - 1 (256 for images of 8 bits); without, of continuous numbers of about unit scale.
    `widths`, `interval` and `epsilon` are those of the CDF nets; with `levels`, `interval=[a, b]` counts in units in
    which the levels fill [-1, 1]. `filters`, `blocks`, `stages`, `heads` (of attention), `dropout` and `patch` are
    those of the convolutional network, `PixelCNN`. Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> model = nits_conv(12, image=[3, 2, 2], levels=256, filters=8)
    >>> model.log_prob(torch.randint(256, (5, 12))).shape
    torch.Size([5])
    """
    lower, upper = -math.inf, math.inf
    if interval is not None:
        if len(interval) != 2:
            raise OptionError(f"interval: {list(interval)} came, two ends [a, b] were expected.")
        unit = 1.0 if levels is None else SPAN
        lower, upper = unit * interval[0], unit * interval[1]
    return pixels(
        MonotoneNet(widths, lower=lower, upper=upper, epsilon=epsilon),
        features,
        context,
        image=image,
        levels=levels,
        filters=filters,
        blocks=blocks,
        stages=stages,
        heads=heads,
        dropout=dropout,
        patch=patch,
    )


def paper_config(dataset: str) -> dict[str, Any]:
    """Return the published options and training settings for "cifar10".

    From the authors' public script: Adam at 1e-3 (betas 0.95 and 0.9995, a decay of 5e-6 a step, which is left out
    here), no clipping, batches of 20, averaged weights, rows scaled to [-1, 1]; three stages are those of PixelCNN++.
    """
    if dataset != "cifar10":
        raise OptionError(f"dataset: '{dataset}' came; settings are known for cifar10.")
    return {
        "model": {
            "image": [3, 32, 32],
            "levels": 256,
            "widths": [10, 1],
            "interval": [-5.0, 5.0],
            "epsilon": 1e-7,
            "filters": 160,
            "blocks": 5,
            "stages": 3,
            "dropout": 0.5,
        },
        "fit": {
            "learning_rate": 1e-3,
            "schedule": "constant",
            "batch_size": 20,
            "clip_norm": None,
            "ema_decay": 0.99995,
        },
    }
