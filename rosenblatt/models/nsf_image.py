"""NSF of images: the steps of Glow in several scales, with a rational-quadratic spline where Glow has an affine map.

A convolutional residual network of half of the channels emits the knots of a spline for every number of the others:

    x -> squeeze -> [ ActNorm -> W (1x1, P L U) -> y_B = spline(x_B; theta(x_A)), y_A = x_A ],   repeated in each scale

Exact: density and sampling, both closed, one network pass per step each. Outside [-bound, bound] a spline is the
identity, with the slope 1 on both sides of the border; ActNorm keeps nearly all numbers inside. Like Glow's, the
channels that leave do so behind a last spline that those which stay condition. For whole-number pixels see
`models/dequantised.py`, whose bound was published for it.
Reference: Durkan, Bekasov, Murray & Papamakarios, Neural Spline Flows, NeurIPS 2019, RQ-NSF (C) on images.
Published sizes: 7 steps a scale, 3 or 4 scales, 3 residual blocks of 64 or 96 channels, 2 to 8 bins, bound 3. The
published networks have batch normalisation; these have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.layers.couplings import image_couplings
from rosenblatt.layers.shape import image_shape


@register(
    "nsf_image",
    summary="neural spline flow of images: Glow's steps in several scales, with rational-quadratic splines",
    citation="Durkan, Bekasov, Murray & Papamakarios, Neural Spline Flows, NeurIPS 2019.",
    facts=Facts(
        formula=r"z_B = \mathrm{RQ}_{\theta(x_A)}(x_B), \quad z_A = x_A \text{ behind } Wx",
        forward="1 pass a layer",
        inverse="1 pass a layer, closed",
        determinant="D",
        universal="in a weak sense, by layers",
    ),
)
def nsf_image(
    features: int,
    context: int = 0,
    *,
    image: Sequence[int] | None = None,
    levels: int = 1,
    multi_scale: bool = True,
    transforms: int = 7,
    bins: int = 4,
    bound: float = 3.0,
    hidden: int = 64,
    blocks: int = 3,
    dropout: float = 0.0,
    linear: str = "plu",
    convolution: str = "1x1",
) -> Flow:
    """Build a neural spline flow for images, rows of `features` numbers in the order channel, row, column.

    `image` is [channels, height, width]; without it a row is one pixel and its numbers are the channels. There are
    `levels` scales of `transforms` steps; each squeezes 2 x 2 pixels into channels (a single pixel is not squeezed any
    more), and between two of them half of the channels leave to the base, or with `multi_scale=False` none. `bins` and
    `bound` are those of the splines, `hidden`, `blocks` and `dropout` those of the networks; `linear` and `convolution`
    are as in `glow`. Raises `OptionError` for another name, sizes that make no model, sides that cannot be halved.

    >>> import torch
    >>> model = nsf_image(64, image=[1, 8, 8], levels=2, transforms=1, hidden=8, blocks=1)
    >>> model.log_prob(torch.zeros(4, 64)).shape
    torch.Size([4])
    """
    steps = image_couplings(
        lambda: RationalQuadraticSpline(bins=bins, bound=bound),
        (features, 1, 1) if image is None else image_shape(image, features),
        levels,
        transforms,
        net={"hidden": hidden, "blocks": blocks, "context": context, "dropout": dropout, "free": False},
        linear=linear,
        convolution=convolution,
        leaving=multi_scale,
    )
    return Flow(Compose(steps), StandardNormal(features), context=context)


def paper_config(dataset: str) -> dict[str, Any]:
    """Return the published options and training settings for CIFAR-10 and ImageNet64 in 5 or 8 bits.

    `dataset` is "cifar10_5bit", "cifar10_8bit", "imagenet64_5bit" or "imagenet64_8bit". "data" says what the model is
    trained on, dequantised uniformly: `bits` of each number, and whether images are turned left to right at random.
    """
    sizes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "cifar10_5bit": ({"hidden": 64, "bins": 2, "dropout": 0.2}, {"max_steps": 100_000}),
        "cifar10_8bit": ({"hidden": 96, "bins": 4, "dropout": 0.2}, {"max_steps": 200_000}),
        "imagenet64_5bit": ({"hidden": 96, "bins": 8, "dropout": 0.1}, {"max_steps": 100_000}),
        "imagenet64_8bit": ({"hidden": 96, "bins": 8, "dropout": 0.0}, {"max_steps": 200_000}),
    }
    if dataset not in sizes:
        raise OptionError(f"dataset: '{dataset}' came; settings are known for {', '.join(sizes)}.")
    model, fit = sizes[dataset]
    small = dataset.startswith("cifar10")
    side = 32 if small else 64
    scales = {"image": [3, side, side], "levels": 3 if small else 4, "multi_scale": not small}
    return {
        "model": {**scales, "transforms": 7, "blocks": 3, "bound": 3.0, **model},
        "fit": {
            "learning_rate": 5e-4,
            "schedule": "cosine",
            "batch_size": 512 if small else 256,
            "epochs": 10_000,  # never reached: the steps are the limit
            "patience": None,
            "validation_fraction": 0.01,
            **fit,
        },
        "data": {"bits": int(dataset[-4]), "flip": small},
    }
