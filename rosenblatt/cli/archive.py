"""`rosenblatt compress` and `decompress`: images into a file as long as a run's likelihood says, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rosenblatt.cli.options import parse
from rosenblatt.core.errors import DataError, OptionError


@dataclass(frozen=True)
class CompressOptions:
    """Compress IMAGES with the model of a run that `rosenblatt fit IMAGES` made: without loss, as slow as sampling."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a fitted run."""
    images: Annotated[Positional[Path], arg(metavar="IMAGES")]
    """Folder, file or array of images, as for fit."""
    out: Annotated[Path, arg(metavar="FILE")]
    """File to write."""
    batch: int = 256
    """Images computed together; more is faster and takes more memory."""


@dataclass(frozen=True)
class DecompressOptions:
    """Give back the images of a file that `rosenblatt compress` made, with the same run, as one .npy array."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of the run that compressed them."""
    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """File to read."""
    out: Annotated[Path, arg(metavar="FILE.npy")]
    """Array (count, channels, height, width) of uint8 to write."""


def run(command: str, words: Sequence[str]) -> int:
    """Run the command."""
    prog = f"rosenblatt {command}"
    if command == "compress":
        return _compress(parse(CompressOptions, words, prog))
    return _decompress(parse(DecompressOptions, words, prog))


def _compress(options: CompressOptions) -> int:
    from rosenblatt.cli.use_images import images_for
    from rosenblatt.compression import compress
    from rosenblatt.image_runs import restore_images
    from rosenblatt.train import RunFolder

    store = RunFolder.open(options.run)
    model = restore_images(store)
    images = images_for(store, options.images)
    file = compress(model, images, batch=options.batch)
    _write(options.out, file)
    bits = 8 * len(file) / max(1, len(images) * images.features)
    raw = len(images) * images.features * math.log2(images.levels) / 8
    print(
        f"{options.out}: {len(images):,} images in {len(file):,} bytes, {bits:.4f} bits per dimension ({raw:,.0f} raw)"
    )
    return 0


def _decompress(options: DecompressOptions) -> int:
    import io

    import numpy as np

    from rosenblatt.compression import decompress
    from rosenblatt.data import Images
    from rosenblatt.image_runs import restore_images
    from rosenblatt.train import RunFolder

    if options.out.suffix.lower() != ".npy":
        raise OptionError(f"--out: {options.out} came, a name that ends in .npy was expected.")
    model = restore_images(RunFolder.open(options.run))
    try:
        data = options.file.read_bytes()
    except OSError as error:
        raise DataError(f"{options.file}: cannot be read ({error.strerror}); check the path.") from None
    images = decompress(model, data)
    if not isinstance(images, Images):
        raise DataError(f"{options.file}: holds rows of a table, not images; decompress it in Python.")
    array = io.BytesIO()
    np.save(array, images.pixels.numpy(), allow_pickle=False)
    _write(options.out, array.getvalue())
    print(f"{options.out}: {len(images):,} images of {' x '.join(map(str, images.shape))}")
    return 0


def _write(path: Path, data: bytes) -> None:
    from rosenblatt.train.storage import replace_bytes

    try:
        replace_bytes(path, data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); check folder, rights and free space.") from None
