"""Images of whole-number pixels: the data that a model of images is fitted to."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Batch
from rosenblatt.data import checks
from rosenblatt.data.image_files import image_array

NUMBERS_AT_ONCE = 1 << 20  # pixels times channels in one batch of an ordered pass
NUMBERS_TO_START = 1 << 22  # and in the choice of images that a model starts from


class Images:
    """Images (count, channels, height, width) of whole numbers 0 .. levels - 1, kept as uint8.

    As rows they are vectors of `features = channels height width` numbers in that order, in float32 and not scaled:
    what discretised and dequantised models take. With `flip`, each image of a shuffled pass is turned left to right
    with probability 1/2; ordered passes show the images as they are.
    Raises `DataError` for pixels of another dtype, shape or range, `OptionError` for levels outside 1 .. 256.

    >>> from rosenblatt.data import digits
    >>> from rosenblatt.models.dequantised import dequantised
    >>> images = digits()
    >>> images
    Images(1797 of 1 x 8 x 8; 17 levels)
    >>> flow = dequantised(images.features, levels=images.levels, options={"image": list(images.shape), "hidden": 8})
    >>> flow.log_prob(images.rows(4).x).shape
    torch.Size([4])
    """

    def __init__(self, pixels: Tensor, *, levels: int = 256, flip: bool = False) -> None:
        if not 1 <= levels <= 256:
            raise OptionError(f"levels: {levels} came, an integer from 1 to 256 was expected.")
        if pixels.ndim != 4 or pixels.dtype != torch.uint8 or min(pixels.shape[1:]) < 1:
            raise DataError(
                f"pixels: {pixels.dtype} of shape {tuple(pixels.shape)} came, torch.uint8 of shape (count, channels, "
                "height, width) was expected; use Images.from_any."
            )
        if pixels.numel() and int(pixels.max()) >= levels:
            raise DataError(
                f"pixels: the value {int(pixels.max())} came, values below {levels} were expected; give more `levels`."
            )
        self.pixels = pixels
        self.levels = levels
        self.flip = flip

    @classmethod
    def from_any(
        cls,
        source: object,
        *,
        member: str | None = None,
        shape: Sequence[int] | None = None,
        layout: Literal["NCHW", "NHWC"] | None = None,
        levels: int = 256,
        flip: bool = False,
    ) -> Images:
        """Read images from a folder, a file, several of them, or an array; the source is copied, never changed.

        Sources, told apart by what a file holds, not by its name:

        - a folder of PNG and JPEG pictures, those of its folders too, in the order of their paths; hidden files and
          all other files are left out; a folder with data_batch_*.bin is CIFAR-10, of which it gives the training set;
        - one picture; or, with `shape`, a PNG sheet that holds one image in each of its rows, channels as colours;
        - an .npz or .npy array of whole numbers, (count, height, width), with channels (1 or 3) second or last, or with
          `shape` flat rows; `member` names the array where an archive has several;
        - a binary file of CIFAR-10, or a file of MNIST (idx3, plain or .gz);
        - a NumPy array or tensor of the same shapes, an `Images`, or a list of paths, whose images follow one another.

        `shape` is (channels, height, width); `layout` is needed where both ends of an array look like channels.
        Pictures have 1 channel (grey) or 3 (colours; palettes are looked up); an alpha channel without effect is
        dropped. All images must be of one size. Pixels are as stored: no scaling, no turning by EXIF.
        Raises `DataError` for what is damaged, transparent, of 16 bits, of mixed sizes, no image or not there.

        >>> import numpy as np
        >>> Images.from_any(np.zeros((5, 28, 28), dtype=np.uint8))
        Images(5 of 1 x 28 x 28; 256 levels)
        """
        if isinstance(source, Images):
            return cls(source.pixels.clone(), levels=source.levels, flip=flip)
        if isinstance(source, Tensor):
            source = source.detach().cpu().numpy()
        pixels = image_array(source, member=member, shape=shape, layout=layout)
        return cls(torch.tensor(pixels), levels=levels, flip=flip)

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        return f"Images({len(self)} of {' x '.join(map(str, self.shape))}; {self.levels} levels)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @property
    def features(self) -> int:
        """Numbers in one image."""
        return math.prod(self.shape)

    def near(self, device: torch.device) -> Images:
        """These images in the memory of a CUDA device, where they take less than a quarter of what is free."""
        if device.type != "cuda" or 4 * self.pixels.numel() >= torch.cuda.mem_get_info(device)[0]:
            return self
        return self._like(self.pixels.to(device))

    def reduced(self, bits: int) -> Images:
        """The same images in `bits` bits a number, the highest ones: levels 0 .. 2^bits - 1 (Kingma & Dhariwal 2018).

        Raises `OptionError` unless the images have 256 levels and `bits` is from 1 to 8.

        >>> Images(torch.tensor([[[[0, 7, 8, 255]]]], dtype=torch.uint8)).reduced(5).pixels.flatten().tolist()
        [0, 0, 1, 31]
        """
        if self.levels != 256 or not 1 <= bits <= 8:
            raise OptionError(
                f"bits: {bits} came for images of {self.levels} levels; from 1 to 8 for images of 256 were expected."
            )
        return Images(self.pixels >> (8 - bits), levels=1 << bits, flip=self.flip)

    def split(self, fractions: Sequence[float], generator: torch.Generator) -> tuple[Images, ...]:
        """Cut the images at random into disjoint parts that together hold every image.

        `fractions` are positive and add up to one. Raises `OptionError` where they do not, `DataError`
        where a part would be empty.
        """
        parts = checks.cuts(len(self), fractions, "images", "image")
        order = self._shuffled(generator)
        return tuple(self._like(self.pixels[order[start:stop]]) for start, stop in parts)

    def batches(self, size: int, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """One pass over the images in an order drawn from `generator`, `size` a batch, the last shorter.

        Order and flips are drawn when this is called. `start` leaves out that many batches of the same pass, so it is
        resumed exactly by the same generator state.
        """
        if size < 1 or start < 0:
            raise OptionError(f"size={size}, start={start}: size must be at least 1 and start at least 0.")
        order = self._shuffled(generator)
        turned = None
        if self.flip:
            turned = torch.randint(2, (len(self),), generator=generator, device=generator.device, dtype=torch.uint8)
            turned = turned.bool().to(self.pixels.device)
        return (self._batch(order[first : first + size], turned) for first in range(start * size, len(self), size))

    def ordered_batches(self, size: int) -> Iterator[Batch]:
        """One pass in the images' own order, `size` a batch or as many as make a million numbers, if that is fewer."""
        if size < 1:
            raise OptionError(f"size={size}: a batch needs at least one image.")
        size = min(size, max(1, NUMBERS_AT_ONCE // self.features))
        return (Batch(_rows(self.pixels[first : first + size])) for first in range(0, len(self), size))

    def rows(self, limit: int | None = None) -> Batch:
        """All images, or at most `limit` (and four million numbers) spread evenly over them."""
        if limit is not None and limit < 1:
            raise OptionError(f"limit: {limit} came, at least 1 was expected.")
        if limit is None:
            return Batch(_rows(self.pixels))
        limit = min(limit, len(self), max(1, NUMBERS_TO_START // self.features))
        return self._batch(torch.arange(limit, device=self.pixels.device) * len(self) // max(limit, 1), None)

    def check(self) -> list[str]:
        """Raise `DataError` for images that no density can be fitted to; return warnings, one sentence each.

        Errors: no or one image, all of them alike. Warnings: copies, and levels of which less than half are used.
        """
        if len(self) < 2:
            raise DataError(f"images: {len(self)} came, at least 2 were expected; bring more images.")
        distinct = len({image.tobytes() for image in self.pixels.cpu().numpy()})
        if distinct == 1:
            raise DataError(f"images: all {len(self)} are the same; bring images that differ.")
        warnings = []
        if distinct < len(self):
            warnings.append(f"{len(self) - distinct} of {len(self)} images are copies of others.")
        largest = int(self.pixels.max())
        if 2 * (largest + 1) < self.levels:
            warnings.append(
                f"the largest pixel is {largest} of {self.levels} levels; give levels={largest + 1} if no larger one "
                "can come."
            )
        return warnings

    def digest(self) -> str:
        """SHA-256 of shape, levels and pixels, to say which data a model has seen."""
        digest = hashlib.sha256(json.dumps([list(self.pixels.shape), self.levels]).encode())
        digest.update(np.ascontiguousarray(self.pixels.cpu().numpy()).data)
        return digest.hexdigest()

    def _like(self, pixels: Tensor) -> Images:
        return Images(pixels, levels=self.levels, flip=self.flip)

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        return order.to(self.pixels.device)

    def _batch(self, index: Tensor, turned: Tensor | None) -> Batch:
        chosen = self.pixels.index_select(0, index)
        if turned is not None:
            chosen = torch.where(turned[index].reshape(-1, 1, 1, 1), chosen.flip(-1), chosen)
        return Batch(_rows(chosen))


def _rows(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).to(torch.float32)
