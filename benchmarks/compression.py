"""Sizes of one set of images: by a model's likelihood, by its compressed file, as PNG and as lossless WebP.

python -m benchmarks compression RUN [IMAGES] [--limit N]

RUN is a folder of `rosenblatt fit IMAGES`; IMAGES are the bundled digits by default. Pictures of other programs are
counted twice: one file an image, as such programs are used, and all images on one sheet, whose header they share.
Grey levels other than 256 are stored as they are, in the low bits.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rosenblatt.cli.use_images import images_for
from rosenblatt.compression import compress, decompress
from rosenblatt.data import Images, digits
from rosenblatt.image_runs import restore_images
from rosenblatt.train import RunFolder

RIVALS = {
    "PNG": {"format": "PNG", "optimize": True},
    "WebP": {"format": "WEBP", "lossless": True, "method": 6, "quality": 100},
}


def picture_bytes(pixels: np.ndarray, options: dict[str, object]) -> int:
    """Bytes of one picture (channels, height, width)."""
    array = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(array).save(file, **options)
    return len(file.getvalue())


def sheet_of(pixels: np.ndarray) -> np.ndarray:
    """All images below one another, (channels, count height, width)."""
    count, channels, height, width = pixels.shape
    return pixels.transpose(1, 0, 2, 3).reshape(channels, count * height, width)


def measure(run: Path, source: Path | None, limit: int | None) -> dict[str, object]:
    """Sizes in bytes and times in seconds."""
    store = RunFolder.open(run)
    images = digits() if source is None else images_for(store, source)
    images = Images(images.pixels[:limit], levels=images.levels)
    model = restore_images(store).double()
    with torch.no_grad():
        nats = torch.cat([model.log_prob(batch.x.double()) for batch in images.ordered_batches(256)])
    started = time.perf_counter()
    file = compress(model, images)
    middle = time.perf_counter()
    same = torch.equal(decompress(model, file).pixels, images.pixels)
    ended = time.perf_counter()
    pixels = images.pixels.numpy()
    sizes: dict[str, object] = {
        "images": len(images),
        "numbers": images.pixels.numel(),
        "likelihood": -float(nats.sum()) / math.log(2) / 8,
        "file": len(file),
        "bit for bit": same,
        "compress s": middle - started,
        "decompress s": ended - middle,
    }
    for name, options in RIVALS.items():
        sizes[f"{name}, one a file"] = sum(picture_bytes(image, options) for image in pixels)
        sheet = sheet_of(pixels)
        if name == "PNG" or sheet.shape[1] < 16384:  # the largest side of a WebP
            sizes[f"{name}, one sheet"] = picture_bytes(sheet, options)
    return sizes


def main(words: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks compression")
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--limit", type=int)
    asked = parser.parse_args(words)
    sizes = measure(asked.run, asked.images, asked.limit)
    numbers, file = int(str(sizes["numbers"])), float(str(sizes["file"]))
    print(f"{sizes['images']:,} images, {numbers:,} numbers; given back bit for bit: {sizes['bit for bit']}")
    print(f"compressed in {sizes['compress s']:.1f} s, decompressed in {sizes['decompress s']:.1f} s, on one core")
    print("| | bytes | bits per dimension | of our file |\n| --- | ---: | ---: | ---: |")
    for name, size in sizes.items():
        if name in ("likelihood", "file") or "," in name:
            number = float(str(size))
            print(f"| {name} | {number:,.0f} | {8 * number / numbers:.4f} | {number / file:.3f} |")


if __name__ == "__main__":
    main()
