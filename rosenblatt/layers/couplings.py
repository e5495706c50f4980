"""Stacks of couplings: of columns, even and odd ones conditioning in turn, and of images in several scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rosenblatt.conditioners.conv_coupling import ConvCoupling
from rosenblatt.conditioners.coupling import Coupling
from rosenblatt.core.errors import OptionError
from rosenblatt.core.transform import Transform
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.convolution import convolution_steps
from rosenblatt.layers.scaling import ActNorm
from rosenblatt.layers.shape import PerPixel, Shape, Squeeze, multi_scale


def couplings(
    maps: Iterable[Elementwise],
    features: int,
    context: int,
    *,
    hidden: int,
    blocks: int,
    dropout: float,
    residual: bool = True,
    angles: Sequence[int] = (),
) -> list[Conditional]:
    """One coupling for each of `maps`, with a network of its own.

    The first conditions odd columns (1, 3, ..) on even ones, the next the other way round. Columns in `angles` enter
    the networks as cosine and sine. Raises `OptionError` for sizes that make no network.

    >>> from rosenblatt.elementwise.affine import Affine
    >>> stack = couplings([Affine(), Affine()], 3, 0, hidden=8, blocks=1, dropout=0.0)
    >>> [[level.tolist() for level in layer.conditioner.levels] for layer in stack]
    [[[0, 2], [1]], [[1], [0, 2]]]
    """
    layers = []
    for number, elementwise in enumerate(maps):
        conditioner = Coupling(
            features,
            elementwise.spec.size,
            mask="odd" if number % 2 else "even",
            hidden=hidden,
            blocks=blocks,
            context=context,
            dropout=dropout,
            residual=residual,
            angles=angles,
        )
        layers.append(Conditional(elementwise, conditioner))
    return layers


def image_couplings(
    make: Callable[[], Elementwise],
    shape: Shape,
    levels: int,
    transforms: int,
    *,
    net: Mapping[str, Any],
    linear: str = "plu",
    convolution: str = "1x1",
    leaving: bool = True,
) -> list[Transform]:
    """The steps of Glow for images of `shape`: `levels` scales of `transforms` couplings of channels each.

    Each scale squeezes 2 x 2 pixels into channels (a single pixel stays as it is). Each of its steps normalises the
    channels (`ActNorm`), mixes them by an invertible `convolution` (see `convolution_steps`), and lets the first half
    of them condition the map `make()` of the others. Between scales half of the channels leave to the base, behind one
    more coupling that the other half conditions; without `leaving` all go on. `net` holds options of `ConvCoupling`.
    Raises `OptionError` for levels or transforms below 1, and as the parts do.
    Reference: Kingma & Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions, NeurIPS 2018.

    >>> from rosenblatt.elementwise.affine import Affine
    >>> steps = image_couplings(Affine, (1, 4, 4), 2, 1, net={"hidden": 8})
    >>> [type(step).__name__ for step in steps]
    ['Squeeze', 'PerPixel', 'PerPixel', 'PerPixel', 'Conditional', 'Conditional', 'FactorOut']
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")

    def coupling(shape: Shape) -> Conditional:
        elementwise = make()
        return Conditional(elementwise, ConvCoupling(shape, elementwise.spec.size, **net))

    def scale(shape: Shape, last: bool) -> tuple[list[Transform], Shape]:
        steps: list[Transform] = []
        if shape[1] * shape[2] > 1:
            squeeze = Squeeze(shape)
            steps, shape = [squeeze], squeeze.after
        for _ in range(transforms):
            mixed = convolution_steps(convolution, shape, linear)
            steps.extend([PerPixel(ActNorm(shape[0]), shape), *mixed, coupling(shape)])
        return [*steps, coupling(shape)] if leaving and not last else steps, shape

    return multi_scale(shape, levels, scale, leaving=leaving)
