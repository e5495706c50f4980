"""Models of images in run folders: built for a set of images, fitted, restored and reported."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt._version import __version__
from rosenblatt.assembly import checked, load_weights, refusal
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.data import Images
from rosenblatt.layers.discretised import Discretised
from rosenblatt.layers.surjection import Dequantised
from rosenblatt.models.dequantised import dequantised
from rosenblatt.train import FitConfig, RunFolder

KIND = "images"
EXACT = ("nits_conv", "pixelcnn_mol")
FLOWS = ("glow", "nsf_image", "realnvp")  # of points, whose bound of whole numbers is what is fitted
MODELS = (*EXACT, *FLOWS)
NOISES: dict[str, dict[str, int] | None] = {"uniform": None, "variational": {}}
MOST_SCALES, SMALLEST_SIDE = 3, 4  # of a flow, unless told otherwise
MOST_NUMBERS = 1 << 20  # in one image
ROWS_AT_ONCE = 256  # images drawn together


ImageModel = Discretised | Dequantised


def image_model(
    name: str, images: Images, *, options: Mapping[str, Any] | None = None, seed: int | None = None
) -> ImageModel:
    """Build a model of whole numbers for the shape and the levels of `images`.

    "nits_conv" and "pixelcnn_mol" have exact probabilities. "glow", "nsf_image" and "realnvp" are flows of
    dequantised images, whose log-probabilities are lower bounds. For these `options` also hold `scales` (the `levels`
    of their builders; by default up to three, as often as sides can be halved down to 2 pixels), `noise` ("uniform",
    "variational" or options of `coupling_noise`) and `samples` of noise for each image.
    Raises `OptionError` for a model that is not one of `MODELS`, and as its builder does.

    >>> from rosenblatt.data import digits
    >>> image_model("pixelcnn_mol", digits(), options={"filters": 4}, seed=0).levels
    17
    >>> image_model("glow", digits(), options={"transforms": 1, "hidden": 4}, seed=0).likelihood.value
    'lower bound'
    """
    return _built(name, images.shape, images.levels, options, seed)


def _built(
    name: str, shape: tuple[int, ...], levels: int, options: Mapping[str, Any] | None, seed: int | None
) -> ImageModel:
    if name not in MODELS:
        raise OptionError(f"model: '{name}' has no probabilities of images; choose among {', '.join(MODELS)}.")
    chosen, size = {**dict(options or {}), "image": list(shape)}, math.prod(shape)
    if name in EXACT:
        model = build(name, size, options={**chosen, "levels": levels}, seed=seed)
        assert isinstance(model, Discretised)
        return model
    if "levels" in chosen:
        raise OptionError("levels: those of the images are known; the scales of a flow are the option scales here.")
    noise, samples = chosen.pop("noise", None), chosen.pop("samples", 1)
    scales = chosen.pop("scales", _scales_of(*shape[1:]))
    if isinstance(scales, bool) or not isinstance(scales, int) or scales < 1:
        raise OptionError(f"scales: {scales!r} came, an integer >= 1 was expected.")
    if isinstance(noise, str):
        if noise not in NOISES:
            raise OptionError(f"noise: '{noise}' came, {' or '.join(NOISES)}, or options of a noise, were expected.")
        noise = NOISES[noise]
    flow = {**chosen, "levels": scales}
    return dequantised(size, levels=levels, model=name, options=flow, noise=noise, samples=samples, seed=seed)


def _scales_of(height: int, width: int) -> int:
    """How often both sides of an image can be halved to 2 pixels or more, from 1 to `MOST_SCALES`."""
    scales = 0
    while scales < MOST_SCALES and height % 2 == width % 2 == 0 and min(height, width) >= SMALLEST_SIDE:
        scales, height, width = scales + 1, height // 2, width // 2
    return max(1, scales)


def inpaint(
    model: Discretised,
    images: Images,
    known_rows: int,
    draws: int = 8,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the rest of each image given its first rows of pixels: `x_i ~ P(x_i | x_<i)` for every number below them.

    The draws are exact, since the model reads its pixels in that very order. `known_rows` is from 0 (all is drawn) to
    the height; what `images` hold further down is not looked at. Returns uint8 (images, draws, channels, height,
    width), whose first `known_rows` rows are those of `images`, bit for bit. It takes as long as sampling does.
    Raises `DataError` for images of another size or more levels than the model's, `OptionError` for numbers out of
    range, or rows that the model does not read before the others, as with squares of pixels (`patch`).
    Reference: van den Oord, Kalchbrenner & Kavukcuoglu, Pixel Recurrent Neural Networks, ICML 2016.

    >>> from rosenblatt.data import digits
    >>> model = image_model("pixelcnn_mol", digits(), options={"filters": 4}, seed=0)
    >>> few = Images(digits().pixels[:3], levels=17)
    >>> drawn = inpaint(model, few, known_rows=4, draws=2, generator=torch.Generator().manual_seed(0))
    >>> drawn.shape, bool((drawn[:, 1, :, :4] == few.pixels[:, :, :4]).all())
    (torch.Size([3, 2, 1, 8, 8]), True)
    """
    channels, height, width = images.shape
    if draws < 1:
        raise OptionError(f"draws: {draws} came, an integer >= 1 was expected.")
    if not 0 <= known_rows <= height:
        raise OptionError(f"known_rows: {known_rows} came, a number from 0 to the height {height} was expected.")
    if images.features != model.features or images.levels > model.levels:
        raise DataError(
            f"images: {images.features} numbers of {images.levels} levels came, the model has {model.features} of "
            f"{model.levels} levels."
        )
    known = channels * known_rows * width
    possible = [rows for rows in range(height + 1) if _read_first(model, images.shape, rows)]
    if known_rows not in possible:
        raise OptionError(
            f"known_rows: {known_rows} came, but the model does not read these rows before all others; it can be given "
            f"{', '.join(map(str, possible))}."
        )
    weight = next(model.parameters())
    rows = images.pixels.flatten(1).repeat_interleave(draws, dim=0).to(weight)
    parts = [model.complete(part, known, generator=generator)[0] for part in rows.split(ROWS_AT_ONCE)]
    return torch.cat(parts).to(torch.uint8).reshape(len(images), draws, *images.shape)


def _read_first(model: Discretised, shape: tuple[int, int, int], rows: int) -> bool:
    """Whether the first rows of pixels are what the model reads first; of squares of pixels, not every number is."""
    first = torch.arange(math.prod(shape)).reshape(shape)[:, :rows].flatten()
    order = model.layer.conditioner.order[: len(first)].cpu()
    return bool((order.sort().values == first.sort().values).all())


def config_of_images(
    name: str,
    images: Images,
    fit: FitConfig,
    *,
    options: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a fit in JSON values, from which `restore_image_model` builds the model again."""
    return {
        "kind": KIND,
        "model": name,
        "options": dict(options or {}),
        "shape": list(images.shape),
        "levels": images.levels,
        "flip": images.flip,
        "dtype": fit.dtype,
        "fit": fit.to_dict(),
        "data": dict(data or {}),
        "versions": {"rosenblatt": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "provenance": dict(provenance or {}),
    }


def holds_images(run: RunFolder) -> bool:
    """Whether a run is one of a model of images."""
    return run.config.get("kind") == KIND


def restore_image_model(run: RunFolder) -> ImageModel:
    """Load the best weights of a run that `rosenblatt fit IMAGES` made; in eval mode.

    Sizes are held against the weights file before any memory is taken. Raises `CheckpointError` for whatever is wrong
    with the folder.
    """
    if not holds_images(run):
        raise refusal(run, "the run is not of a model of images")
    return load_weights(run, lambda: _blank(run))


def restore_images(run: RunFolder) -> Discretised:
    """`restore_image_model` for uses that need exact probabilities; raises `OptionError` for a run of a flow."""
    model = restore_image_model(run)
    if not isinstance(model, Discretised):
        raise OptionError(
            f"{run.path}: holds a flow ({run.config['model']}), which bounds probabilities of images and has none that "
            f"are exact, as this needs; bring a run of {' or '.join(EXACT)}."
        )
    return model


def _blank(run: RunFolder) -> ImageModel:
    config = run.config
    shape, levels = checked(run, config, "shape", list), checked(run, config, "levels", int)
    if len(shape) != 3 or not all(type(side) is int and side >= 1 for side in shape) or not 2 <= levels <= 256:
        raise refusal(run, f"images of shape {shape} and {levels} levels came")
    if math.prod(shape) > MOST_NUMBERS:
        raise refusal(run, f"images of shape {shape} came, at most {MOST_NUMBERS} numbers were expected")
    dtype = {"float32": torch.float32, "float64": torch.float64}.get(config.get("dtype", ""))
    if dtype is None:
        raise refusal(run, f"dtype {config.get('dtype')!r} came, float32 or float64 was expected")
    options = checked(run, config, "options", dict)
    return _built(checked(run, config, "model", str), tuple(shape), levels, options, seed=0).to(dtype)
