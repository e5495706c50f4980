"""Layers that know a vector as an image: squeezing, work on every pixel, and channels that leave early.

A vector of `C * H * W` numbers holds an image of C channels in the order channel, row, column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rosenblatt.core.density import initialise_in_turn
from rosenblatt.core.errors import OptionError
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.core.types import Likelihood, Mapped
from rosenblatt.layers.linear import Permutation

Shape = tuple[int, int, int]


def image_shape(image: Sequence[int], features: int | None = None) -> Shape:
    """Check `[channels, height, width]`; raises `OptionError` unless they are >= 1 and hold `features` numbers.

    >>> image_shape([3, 2, 2], 12)
    (3, 2, 2)
    """
    if len(image) != 3 or min(image) < 1:
        raise OptionError(f"image: {list(image)} came, three integers [channels, height, width] >= 1 were expected.")
    channels, height, width = (int(side) for side in image)
    if features is not None and channels * height * width != features:
        raise OptionError(
            f"image: {list(image)} holds {channels * height * width} numbers, the model has {features} features; "
            "give the channels, height and width of one row."
        )
    return channels, height, width


class Squeeze(Permutation):
    """Blocks of two by two pixels become channels: `(C, H, W) -> (4 C, H / 2, W / 2)`, `log_det = 0`.

    `y[4 c + 2 a + b, i, j] = x[c, 2 i + a, 2 j + b]`; a side of 1 stays 1, so that a line of pixels squeezes along its
    length. `after` is the shape of the result. Raises `OptionError` when a side is odd, or nothing is left to squeeze.
    Reference: Dinh, Sohl-Dickstein & Bengio, Density Estimation using Real NVP, ICLR 2017.

    >>> Squeeze((1, 2, 4))(torch.arange(8.0)).value.reshape(4, 1, 2).tolist()
    [[[0.0, 2.0]], [[1.0, 3.0]], [[4.0, 6.0]], [[5.0, 7.0]]]
    """

    def __init__(self, shape: Sequence[int]) -> None:
        channels, height, width = image_shape(shape)
        tall, wide = min(height, 2), min(width, 2)
        if height % tall or width % wide or tall * wide == 1:
            raise OptionError(
                f"image: {channels} channels of {height} x {width} pixels came to be squeezed; even sides (or one side "
                "of 1) were expected; choose fewer scales or pad the images."
            )
        index = torch.arange(channels * height * width)
        blocks = index.reshape(channels, height // tall, tall, width // wide, wide)
        super().__init__(blocks.permute(0, 2, 4, 1, 3).flatten().tolist())
        self.after: Shape = (channels * tall * wide, height // tall, width // wide)


class PerPixel(Transform):
    """A transform of the channels, applied at every pixel: `y[:, i, j] = f(x[:, i, j])`, log-dets summed over pixels.

    With a linear map it is the 1x1 convolution, with `ActNorm` the normalisation of channels over rows and pixels.
    Raises `OptionError` for a shape that is none.
    Reference: Kingma & Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions, NeurIPS 2018.

    >>> from rosenblatt.layers.linear import Reverse
    >>> PerPixel(Reverse(2), (2, 1, 3))(torch.arange(6.0)).value
    tensor([3., 4., 5., 0., 1., 2.])
    """

    def __init__(self, transform: Transform, shape: Sequence[int]) -> None:
        super().__init__()
        self.transform = transform
        channels, height, width = image_shape(shape)
        self.channels, self.pixels = channels, height * width

    @property
    def likelihood(self) -> Likelihood:
        """What the transform of the channels claims."""
        return self.transform.likelihood

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Let the transform of the channels start from the pixels of the rows `x`."""
        steps = self.transform.steps if isinstance(self.transform, Compose) else [self.transform]
        pixels = self._pixels(x)
        if weight is not None:
            weight = weight.unsqueeze(-1).expand(pixels.shape[:-1])
        initialise_in_turn(steps, pixels, self._context(context), weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Map the channels of every pixel."""
        return self._whole(self.transform(self._pixels(x), self._context(context)))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Map the channels of every pixel back."""
        return self._whole(self.transform.inverse(self._pixels(y), self._context(context)))

    def _pixels(self, x: Tensor) -> Tensor:
        pixels: Tensor = x.unflatten(-1, (self.channels, self.pixels)).mT
        return pixels

    def _whole(self, mapped: Mapped) -> Mapped:
        return Mapped(mapped.value.mT.flatten(-2), mapped.log_det.sum(dim=-1))

    def _context(self, context: Tensor | None) -> Tensor | None:
        if context is None:
            return None
        return context.unsqueeze(-2).expand(*context.shape[:-1], self.pixels, context.shape[-1])


class FactorOut(Transform):
    """The first `staying` coordinates go on through `rest`; the others leave to the base: `y = (rest(x_A), x_B)`.

    `log_det` is that of `rest`. In the order channel, row, column the first coordinates are the first channels, so half
    of them leaves with `staying = C / 2 * H * W`. Raises `OptionError` unless staying >= 1.
    Reference: Dinh, Sohl-Dickstein & Bengio, Density Estimation using Real NVP, ICLR 2017.

    >>> from rosenblatt.layers.linear import Reverse
    >>> FactorOut(Reverse(2), 2)(torch.arange(4.0)).value
    tensor([1., 0., 2., 3.])
    """

    def __init__(self, rest: Transform, staying: int) -> None:
        super().__init__()
        if staying < 1:
            raise OptionError(f"staying: {staying} came, an integer >= 1 was expected.")
        self.rest, self.staying = rest, staying

    @property
    def likelihood(self) -> Likelihood:
        """What `rest` claims."""
        return self.rest.likelihood

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Let the steps of `rest` start from what reaches them."""
        steps = self.rest.steps if isinstance(self.rest, Compose) else [self.rest]
        initialise_in_turn(steps, x[..., : self.staying], context, weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Map what stays."""
        value, log_det = self.rest(x[..., : self.staying], context)
        return Mapped(torch.cat([value, x[..., self.staying :]], dim=-1), log_det)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Map what stayed back."""
        value, log_det = self.rest.inverse(y[..., : self.staying], context)
        return Mapped(torch.cat([value, y[..., self.staying :]], dim=-1), log_det)


Scale = Callable[[Shape, bool], tuple[list[Transform], Shape]]


def multi_scale(shape: Shape, levels: int, scale: Scale, *, leaving: bool = True) -> list[Transform]:
    """Steps of `levels` scales, between which the second half of the channels leaves to the base.

    `scale(shape, last)` makes the steps of one scale and says which shape they end in. Without `leaving` all channels
    go on. Raises `OptionError` unless levels >= 1, and for fewer than two channels where half of them should leave.

    >>> steps = multi_scale((1, 4, 4), 2, lambda shape, last: ([Squeeze(shape)], Squeeze(shape).after))
    >>> [type(step).__name__ for step in steps], steps[1].staying
    (['Squeeze', 'FactorOut'], 8)
    """
    if levels < 1:
        raise OptionError(f"levels: {levels} came, an integer >= 1 was expected.")
    steps, (channels, height, width) = scale(shape, levels == 1)
    if levels == 1:
        return steps
    if not leaving:
        return [*steps, *multi_scale((channels, height, width), levels - 1, scale, leaving=False)]
    if channels < 2:
        raise OptionError("levels: a single channel cannot leave by half; squeeze before, or choose one level.")
    staying = (channels + 1) // 2
    rest = multi_scale((staying, height, width), levels - 1, scale)
    return [*steps, FactorOut(Compose(rest), staying * height * width)]
