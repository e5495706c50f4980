"""PNG and JPEG pictures, read to the last bit or not at all, and written as a grid."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rosenblatt.core.errors import DataError, OptionError

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]
SUFFIXES = (".png", ".jpg", ".jpeg")
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
JPEG_START = b"\xff\xd8\xff"
LARGEST = 1 << 26  # pixels of one picture that are decoded; more is refused before it takes memory
LARGEST_FILE = 1 << 29  # bytes
DEPTH = 24  # where a PNG file says how many bits its channels have
DROPPED_ALPHA = {"LA": "L", "RGBA": "RGB"}


def read_picture(path: Path) -> Pixels:
    """Pixels (channels, height, width) of a PNG or JPEG picture, 1 channel for grey and 3 for colours.

    Palettes are looked up, and 1, 2 and 4 bits of grey fill the range 0 .. 255. Raises `DataError` for a picture that
    is damaged, transparent, animated, of 16 bits a channel, too large, in other colours than grey and RGB, or none.
    """
    from PIL import Image

    with picture_errors(path):
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise DataError(f"{path}: the file has {size} bytes, at most {LARGEST_FILE} are read; cut the picture.")
        data = path.read_bytes()
        if not data.startswith((PNG_START, JPEG_START)):
            raise DataError(f"{path}: this is neither a PNG nor a JPEG picture; convert it or take it away.")
        if data.startswith(PNG_START):
            if data[DEPTH : DEPTH + 1] == b"\x10":
                raise DataError(f"{path}: a PNG of 16 bits a channel came, 8 were expected; convert it.")
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
                _check_size(path, picture)
                picture.verify()  # check sums, which decoding leaves out
            if PNG_END not in data:
                raise DataError(f"{path}: the end of the PNG is missing; the file is damaged.")
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            _check_size(path, picture)
            if getattr(picture, "n_frames", 1) > 1:
                raise DataError(f"{path}: a picture of several frames came, one was expected; save them one by one.")
            array = np.asarray(_plain(path, picture))
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _check_size(path: Path, picture: Image.Image) -> None:
    if picture.width * picture.height > LARGEST:
        raise DataError(
            f"{path}: a picture of {picture.width} x {picture.height} came, at most {LARGEST} pixels are decoded; "
            "cut it."
        )


def _plain(path: Path, picture: Image.Image) -> Image.Image:
    """The picture as grey or RGB."""
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode in ("P", "PA") or "transparency" in picture.info:
        colours = picture.mode if picture.mode not in ("P", "PA") else "RGB"
        has_alpha = picture.mode == "PA" or "transparency" in picture.info
        picture = picture.convert("RGBA" if has_alpha else colours)
    if picture.mode in DROPPED_ALPHA:
        if picture.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{path}: a picture with transparent pixels came; lay it on a background and save that.")
        return picture.convert(DROPPED_ALPHA[picture.mode])
    if picture.mode not in ("L", "RGB"):
        raise DataError(f"{path}: a picture in {picture.mode} came, grey or RGB of 8 bits was expected; convert it.")
    return picture


def read_folder(folder: Path) -> Pixels:
    """Pixels (count, channels, height, width) of all pictures in a folder and the folders in it, by path in order.

    Only files that end in .png, .jpg or .jpeg and are not hidden count. Raises `DataError` as `read_picture` does, and
    for a folder without pictures or with pictures of several sizes.
    """
    paths = [
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]
    if not paths:
        raise DataError(f"{folder}: the folder holds no picture ({', '.join(SUFFIXES)}); check the path.")
    return read_pictures(sorted(paths))


def read_pictures(paths: Sequence[Path]) -> Pixels:
    """Pixels (count, channels, height, width) of these pictures, which are of one size."""
    first = read_picture(paths[0])
    try:
        out = np.empty((len(paths), *first.shape), dtype=np.uint8)
    except MemoryError:
        raise DataError(f"{paths[0]}: {len(paths)} pictures of its size do not fit in memory; bring fewer.") from None
    out[0] = first
    for index, path in enumerate(paths[1:], start=1):
        pixels = read_picture(path)
        if pixels.shape != first.shape:
            raise DataError(
                f"{path}: {_size(pixels)} came after {_size(first)} of {paths[0].name}; all pictures must have one "
                "size and the same colours, so scale or cut them before."
            )
        out[index] = pixels
    return out


def _size(pixels: Pixels) -> str:
    channels, height, width = pixels.shape
    return f"{width} x {height} in {'grey' if channels == 1 else 'colours'}"


def read_sheet(path: Path, shape: Sequence[int]) -> Pixels:
    """Images (count, *shape) of a PNG whose rows are one image each, pixels in the order of reading.

    Raises `DataError` as `read_picture` does, and where the sheet has another width or other colours.
    """
    channels, height, width = shape
    sheet = read_picture(path)
    if sheet.shape[0] != channels or sheet.shape[2] != height * width:
        raise DataError(
            f"{path}: a sheet of {sheet.shape[2]} pixels a row and {sheet.shape[0]} channels came, {height * width} "
            f"and {channels} were expected for images of shape {tuple(shape)}; correct `shape`."
        )
    return np.ascontiguousarray(sheet.transpose(1, 0, 2)).reshape(-1, channels, height, width)


def write_grid(path: str | Path, pixels: Any, *, levels: int = 256, columns: int | None = None, gap: int = 1) -> None:
    """Write images (count, channels, height, width) of levels 0 .. levels - 1 side by side as one PNG.

    `columns` is as near to a square as can be by default; between images there are `gap` pixels of white. Raises
    `DataError` for other shapes or a place that cannot be written, `OptionError` for sizes out of range.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_grid(folder + "/grid.png", np.zeros((6, 1, 8, 8), dtype=np.uint8), columns=3)
    ...     read_picture(Path(folder, "grid.png")).shape
    (1, 17, 26)
    """
    from PIL import Image

    images = np.asarray(pixels)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.size == 0:
        raise DataError(f"pixels: shape {images.shape} came, (count, 1 or 3, height, width) was expected.")
    count, channels, height, width = images.shape
    columns = int(np.ceil(np.sqrt(count))) if columns is None else columns
    if columns < 1 or gap < 0 or not 2 <= levels <= 256:
        raise OptionError(f"columns={columns}, gap={gap}, levels={levels}: at least 1, 0, and 2 to 256 were expected.")
    rows = -(-count // columns)
    sheet = np.full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = np.rint(image * (255 / (levels - 1)))
    picture = Image.fromarray(sheet[0] if channels == 1 else np.ascontiguousarray(sheet.transpose(1, 2, 0)))
    try:
        picture.save(path, format="PNG")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); check folder, rights and free space."
        ) from error


@contextlib.contextmanager
def picture_errors(path: Path) -> Iterator[None]:
    """Turn what a damaged picture makes its reader raise into one sentence."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # A warning about a huge picture comes as it is opened; its size is judged here, by one limit.
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{path}: the picture has more pixels than the {LARGEST} that are decoded; cut it.") from None
    except (OSError, EOFError, ValueError, SyntaxError, IndexError, OverflowError, MemoryError, struct.error) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[:1]
        shown = text if isinstance(text, str) else "".join(text).replace(f" {path}", "")[:150]
        raise DataError(f"{path}: cannot be read as a picture ({shown}); the file is damaged or foreign.") from error
