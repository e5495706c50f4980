"""`rosenblatt score` and `sample` for runs of models of images."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Images, write_grid, write_table
from rosenblatt.eval import bits_per_dim
from rosenblatt.image_runs import restore_images
from rosenblatt.train import RunFolder
from rosenblatt.train.storage import replace_bytes

if TYPE_CHECKING:
    from rosenblatt.cli.sample import SampleOptions
    from rosenblatt.cli.score import ScoreOptions

ROWS = 256  # images scored or drawn together


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
    model = restore_images(store).to(getattr(torch, options.dtype))
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
    """Draw images and write them as a grid (PNG) or as one array (NPY)."""
    if options.given is not None:
        raise OptionError(f"--given: {store.path} holds a model of images, given nothing; leave --given out.")
    suffix = "" if options.out is None else options.out.suffix.lower()
    if options.out is None or suffix not in (".png", ".npy"):
        raise OptionError(f"--out: {options.out} came; images are drawn to a file that ends in .png or .npy.")
    if options.rows < 1:
        raise OptionError(f"--rows: {options.rows} came, 1 or more was expected.")
    model = restore_images(store)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        drawn = [
            model.sample(min(ROWS, options.rows - first), generator=generator) for first in range(0, options.rows, ROWS)
        ]
    pixels = torch.cat(drawn).to(torch.uint8).reshape(-1, *store.config["shape"])
    if suffix == ".png":
        write_grid(options.out, pixels, levels=store.config["levels"])
    else:
        array = io.BytesIO()
        np.save(array, pixels.numpy(), allow_pickle=False)
        try:
            replace_bytes(options.out, array.getvalue())
        except OSError as error:
            raise DataError(f"{options.out}: cannot be written ({error.strerror}); check folder and rights.") from None
    print(f"drew {options.rows:,} images", file=sys.stderr)
    return 0
