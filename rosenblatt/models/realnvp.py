"""RealNVP, and NICE: affine or additive couplings, as fast to sample as to score.

Half of the columns shift and scale the other half, and the halves change places from layer to layer:

    z_B = (x_B - mu(x_A)) exp(s(x_A)),   log p(x) = log N(z; 0, 1) + sum over layers of s

Exact: density and sampling, one network pass per layer each. Every layer also shifts and scales its first half, by
free numbers. NICE (`additive`) leaves the scales out, so that the couplings keep volume, and closes with one scale per
column. As in MAF, all layers together contract by at most e^3.5 and stretch by at most e^10.
On images (`image`) the networks are convolutional, and each scale has couplings of a checkerboard, squeezes 2 x 2
pixels into channels, has couplings of channels, and lets half of the channels leave to the base.
References: Dinh, Krueger & Bengio, NICE, ICLR 2015 workshop; Dinh, Sohl-Dickstein & Bengio, Density Estimation using
Real NVP, ICLR 2017. Sizes published for tables: 5 or 10 layers, one or two hidden layers of 100 to 1024 units; for
images: 3 couplings before and after each squeeze, 4 at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rosenblatt.bases import choose
from rosenblatt.conditioners.conv_coupling import ConvCoupling
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.additive import Additive
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.layers.batch_norm import BatchNorm
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.couplings import couplings
from rosenblatt.layers.scaling import ActNorm
from rosenblatt.layers.shape import Shape, Squeeze, image_shape, multi_scale


@register(
    "realnvp",
    summary="affine couplings (or additive ones: NICE); density and samples in one pass each",
    citation=(
        "Dinh, Sohl-Dickstein & Bengio, Density Estimation using Real NVP, ICLR 2017; "
        "Dinh, Krueger & Bengio, NICE: Non-linear Independent Components Estimation, ICLR 2015 workshop."
    ),
    facts=Facts(
        formula=r"z_B = (x_B - t(x_A))\, e^{-s(x_A)}, \quad z_A = x_A",
        forward="1 pass a layer",
        inverse="1 pass a layer",
        determinant="D",
        universal="in a weak sense, by layers",
    ),
)
def realnvp(
    features: int,
    context: int = 0,
    *,
    additive: bool = False,
    transforms: int = 8,
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
    batch_norm: bool = False,
    image: Sequence[int] | None = None,
    levels: int = 1,
    base: str = "normal",
) -> Flow:
    """Build a RealNVP for `features` columns, or NICE with `additive`; even and odd columns condition in turn.

    With `residual=False`, `blocks` counts plain hidden layers. `base` is a name known to `rosenblatt.bases.choose`
    ("resampled": Stimper et al. 2022). With `batch_norm` batch normalisation follows every coupling; wherever the
    density is used, its statistics are those of all training rows. `image` is [channels, height, width] of a row; then
    there are `levels` scales, with `transforms` couplings before a squeeze and as many after it, and one more at the
    end, where nothing is squeezed. Raises `OptionError` for another base, sizes that make no model, sides that cannot
    be halved, or `batch_norm` with an image.

    >>> import torch
    >>> realnvp(3, transforms=2, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    >>> realnvp(16, transforms=1, hidden=16, image=[1, 4, 4], levels=2).log_prob(torch.zeros(4, 16)).shape
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
    steps: list[Transform] = []
    if image is not None and batch_norm:
        raise OptionError("batch_norm: this is for tables; leave it out with image.")
    if image is not None:
        steps = _image_steps(image_shape(image, features), levels, transforms, additive=additive, net=net)
    elif levels != 1:
        raise OptionError("levels: these are for images; pass image=[channels, height, width] with them.")
    else:
        maps = [_map(additive, transforms) for _ in range(transforms)]
        for layer in couplings(maps, features, **net):
            steps.extend([layer, BatchNorm(features)] if batch_norm else [layer])
    if additive:
        steps.append(ActNorm(features))
    return Flow(Compose(steps), choose(base, features, context), context=context)


def _map(additive: bool, layers: int) -> Elementwise:
    return Additive() if additive else Affine.one_of(layers)


def _image_steps(shape: Shape, levels: int, transforms: int, *, additive: bool, net: dict[str, Any]) -> list[Transform]:
    layers = 2 * transforms * (levels - 1) + transforms + 1  # what a channel of the last scale goes through

    def couplings(shape: Shape, count: int, mask: str) -> list[Transform]:
        steps: list[Transform] = []
        for number in range(count):
            elementwise = _map(additive, layers)
            turned = mask + "_turned" if number % 2 else mask
            conditioner = ConvCoupling(shape, elementwise.spec.size, mask=turned, **net)
            steps.append(Conditional(elementwise, conditioner))
        return steps

    def scale(shape: Shape, last: bool) -> tuple[list[Transform], Shape]:
        if last:
            return couplings(shape, transforms + 1, "checkerboard"), shape
        steps: list[Transform] = couplings(shape, transforms, "checkerboard")
        if shape[1] * shape[2] > 1:
            squeeze = Squeeze(shape)
            steps, shape = [*steps, squeeze], squeeze.after
        return [*steps, *couplings(shape, transforms, "channels")], shape

    return multi_scale(shape, levels, scale)


def paper_config(dataset: str) -> dict[str, Any]:
    """Return the options and training settings published for RealNVP(5) on one of the five UCI tables.

    As run by Papamakarios et al. (2017): Adam at a constant 1e-4, batches of 100, weight decay 1e-6, patience of 30
    epochs; the tanh in the networks of the scales is left out.
    """
    sizes = {"power": 100, "gas": 100, "hepmass": 512, "miniboone": 512, "bsds300": 1024}
    if dataset not in sizes:
        raise OptionError(f"dataset: '{dataset}' came; settings are known for {', '.join(sizes)}.")
    return {
        "model": {"transforms": 5, "hidden": sizes[dataset], "blocks": 2, "residual": False, "batch_norm": True},
        "fit": {"learning_rate": 1e-4, "schedule": "constant", "batch_size": 100},
    }
