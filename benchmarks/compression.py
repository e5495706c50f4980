"""Sizes of one set of images: by a model's likelihood, by its compressed file, as PNG and as lossless WebP.

    python -m benchmarks compression RUN [IMAGES] [--limit N] [--singles N] [--name NAME]

RUN is a folder of `rosenblatt fit IMAGES` or of `python -m benchmarks images`; IMAGES are the bundled digits by
default. All images make one file of ours, and one sheet of the other programs; beside that stand files of one image
each, for the first `--singles`. Grey levels other than 256 are stored as they are, in the low bits. The sizes go to
benchmarks/results/compression.json, under NAME.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rosenblatt.cli.use_images import images_for
from rosenblatt.compression import compress, decompress
from rosenblatt.data import Images, digits
from rosenblatt.image_runs import restore_images
from rosenblatt.train import RunFolder

RESULTS = Path(__file__).resolve().parent / "results" / "compression.json"
RIVALS = {
    "PNG": {"format": "PNG", "optimize": True},
    "WebP": {"format": "WEBP", "lossless": True, "method": 6, "quality": 100},
}
LARGEST_WEBP = 16383  # pixels a side


def picture_bytes(pixels: np.ndarray, options: dict[str, object]) -> int:
    """Bytes of one picture (channels, height, width)."""
    array = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(array).save(file, **options)
    return len(file.getvalue())


def sheets_of(pixels: np.ndarray) -> list[np.ndarray]:
    """All images below one another, (channels, height, width), on as few sheets as WebP allows."""
    at_once = LARGEST_WEBP // pixels.shape[2]
    parts = [pixels[first : first + at_once] for first in range(0, len(pixels), at_once)]
    return [part.transpose(1, 0, 2, 3).reshape(part.shape[1], -1, part.shape[3]) for part in parts]


def measure(run: Path, source: Path | None, *, limit: int | None, singles: int) -> dict[str, Any]:
    """Sizes in bytes and times in seconds of one core."""
    store = RunFolder.open(run)
    images = digits() if source is None else images_for(store, source)
    images = Images(images.pixels[:limit], levels=images.levels)
    model = restore_images(store).double()
    with torch.no_grad():
        nats = torch.cat([model.log_prob(batch.x.double()) for batch in images.ordered_batches(256)])
    started = time.process_time()
    file = compress(model, images)
    middle = time.process_time()
    same = torch.equal(decompress(model, file).pixels, images.pixels)
    ended = time.process_time()
    pixels = images.pixels.numpy()
    alone = [Images(images.pixels[number : number + 1], levels=images.levels) for number in range(singles)]
    return {
        "images": len(images),
        "numbers": images.pixels.numel(),
        "bit for bit": same,
        "seconds to compress": middle - started,
        "seconds to decompress": ended - middle,
        "one file": {
            "likelihood": -float(nats.sum()) / math.log(2) / 8,
            "rosenblatt": len(file),
            **{name: sum(picture_bytes(sheet, kind) for sheet in sheets_of(pixels)) for name, kind in RIVALS.items()},
        },
        "one file each": {
            "images": singles,
            "likelihood": -float(nats[:singles].sum()) / math.log(2) / 8,
            "rosenblatt": sum(len(compress(model, image)) for image in alone),
            **{name: sum(picture_bytes(image, kind) for image in pixels[:singles]) for name, kind in RIVALS.items()},
        },
    }


def table(sizes: dict[str, Any]) -> str:
    """Bytes, bits per dimension and the share of our file, as a table for people."""
    numbers = sizes["numbers"]
    lines = ["| | one file | bits per dimension | of our file | one file each, mean | of ours |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    whole, each = sizes["one file"], sizes["one file each"]
    for name, size in whole.items():
        mean = each[name] / max(1, each["images"])
        lines.append(
            f"| {name} | {size:,.0f} | {8 * size / numbers:.4f} | {size / whole['rosenblatt']:.3f} | {mean:,.1f} | "
            f"{each[name] / max(1, each['rosenblatt']):.3f} |"
        )
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    """Measure, print the table and write it down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compression", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--limit", type=int, help="compress the first images only")
    parser.add_argument("--singles", type=int, default=100, help="images that are compressed one by one")
    parser.add_argument("--name", default="digits", help="where the sizes go in the results")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    sizes = measure(asked.run, asked.images, limit=asked.limit, singles=asked.singles)
    print(f"{sizes['images']:,} images, {sizes['numbers']:,} numbers; given back bit for bit: {sizes['bit for bit']}")
    print(f"{sizes['seconds to compress']:.0f} s to compress, {sizes['seconds to decompress']:.0f} s back, on one core")
    print(table(sizes))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    option = "" if asked.limit is None else f" --limit {asked.limit}"
    source = "" if asked.images is None else f" {asked.images.name}"
    command = f"python -m benchmarks compression RUN{source}{option} --singles {asked.singles} --name {asked.name}"
    results[asked.name] = {"command": command, "run": asked.run.name, **sizes}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
