"""`rosenblatt score` and `sample` for runs of models of images."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Images, write_grid, write_table
from rosenblatt.eval import bits_per_dim
from rosenblatt.image_runs import inpaint, restore_image_model, restore_images
from rosenblatt.train import RunFolder
from rosenblatt.train.storage import replace_bytes

if TYPE_CHECKING:
    from rosenblatt.cli.sample import SampleOptions
    from rosenblatt.cli.score import ScoreOptions

ROWS = 256  # images scored or drawn together
DRAWS = 8  # of each image that is completed, unless told otherwise
MOST_LINES = 16  # images completed in a picture; more are too small to look at
GREY = 128


def read_images(path: Path, *, shape: Sequence[int] | None, levels: int) -> Images:
    """Images of a path, or of one array of an archive for FILE.npz:NAME."""
    whole, colon, member = str(path).rpartition(":")
    if colon and not path.exists() and Path(whole).is_file():
        return Images.from_any(whole, member=member, shape=shape, levels=levels)
    return Images.from_any(path, shape=shape, levels=levels)


def images_for(store: RunFolder, path: Path) -> Images:
    """Images read as those of the run were; raises `DataError` where they are of another shape."""
    images = read_images(path, shape=store.config["data"].get("shape"), levels=store.config["levels"])
    if list(images.shape) != store.config["shape"]:
        raise DataError(f"{path}: images of shape {images.shape} came, the model has {tuple(store.config['shape'])}.")
    return images


def score_images(store: RunFolder, options: ScoreOptions) -> int:
    """Say the bits per dimension of images, and write the log-probability of each to --out."""
    model = restore_image_model(store).to(getattr(torch, options.dtype))
    rows = images_for(store, options.table).rows().x.to(getattr(torch, options.dtype))
    if len(rows) < 2:
        raise DataError(f"{options.table}: {len(rows)} images came, at least 2 were expected.")
    with torch.no_grad():
        log_prob = torch.cat([model.log_prob(part) for part in rows.split(ROWS)])
    print(f"{len(rows):,} images: {bits_per_dim(model, rows)}", file=sys.stderr)
    if options.out is not None:
        write_table(options.out, ["log_prob"], log_prob.double().unsqueeze(1))
    return 0


def sample_images(store: RunFolder, options: SampleOptions) -> int:
    """Draw images, or the rest of given ones, and write them as a grid (PNG) or as one array (NPY)."""
    suffix = "" if options.out is None else options.out.suffix.lower()
    if options.out is None or suffix not in (".png", ".npy"):
        raise OptionError(f"--out: {options.out} came; images are drawn to a file that ends in .png or .npy.")
    if options.given is not None:
        return _complete_images(store, options, options.given, options.out)
    if options.known is not None:
        raise OptionError("--known: says what is kept of images; add --given IMAGES, or leave --known out.")
    count = options.count()
    if count < 1:
        raise OptionError(f"--rows: {count} came, 1 or more was expected.")
    model = restore_image_model(store)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        drawn = [model.sample(min(ROWS, count - first), generator=generator) for first in range(0, count, ROWS)]
    pixels = torch.cat(drawn).to(torch.uint8).reshape(-1, *store.config["shape"])
    if suffix == ".png":
        write_grid(options.out, pixels, levels=store.config["levels"])
    else:
        _write_array(options.out, pixels)
    print(f"drew {count:,} images", file=sys.stderr)
    return 0


def _complete_images(store: RunFolder, options: SampleOptions, given: Path, out: Path) -> int:
    """Draw what is below the known rows of images, and write it."""
    height, draws = store.config["shape"][1], options.count(DRAWS)
    if options.known is None:
        raise OptionError(f"--known: is missing; say how many of the {height} rows of pixels of {given} are kept.")
    if not 1 <= options.known < height:
        raise OptionError(f"--known: {options.known} came, from 1 to {height - 1} of {height} rows were expected.")
    if draws < 1:
        raise OptionError(f"--rows: {draws} came, 1 or more draws for each image of --given were expected.")
    images = images_for(store, given)
    model = restore_images(store)
    whole = len(images)
    if out.suffix.lower() == ".png" and whole > MOST_LINES:
        images = Images(images.pixels[torch.arange(MOST_LINES) * whole // MOST_LINES], levels=images.levels)
    generator = torch.Generator().manual_seed(options.seed)
    drawn = inpaint(model, images, options.known, draws, generator=generator)
    if out.suffix.lower() == ".png":
        write_grid(out, _lines(images, drawn, options.known), columns=draws + 2)
    else:
        _write_array(out, drawn)
    print(f"completed {len(images):,} of {whole:,} images, {draws:,} draws each", file=sys.stderr)
    return 0


def _lines(images: Images, drawn: Tensor, known: int) -> Tensor:
    """Pictures of 256 levels, image after image: what is known on grey, the draws, the image as it was."""
    shown = torch.cat([images.pixels.unsqueeze(1), drawn, images.pixels.unsqueeze(1)], dim=1).double()
    shown = (shown * (255 / (images.levels - 1))).round().to(torch.uint8)
    shown[:, 0, :, known:] = GREY
    return shown.flatten(0, 1)


def _write_array(path: Path, pixels: Tensor) -> None:
    array = io.BytesIO()
    np.save(array, pixels.numpy(), allow_pickle=False)
    try:
        replace_bytes(path, array.getvalue())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); check folder and rights.") from None
