"""Models of images in run folders: built for a set of images, fitted, restored and reported."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from typing import Any

import torch

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt._version import __version__
from rosenblatt.assembly import checked, load_weights, refusal
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import build
from rosenblatt.data import Images
from rosenblatt.layers.discretised import Discretised
from rosenblatt.train import FitConfig, RunFolder

KIND = "images"
MODELS = ("nits_conv", "pixelcnn_mol")
MOST_NUMBERS = 1 << 20  # in one image


def image_model(
    name: str, images: Images, *, options: Mapping[str, Any] | None = None, seed: int | None = None
) -> Discretised:
    """Build a model of images with exact probabilities, for the shape and the levels of `images`.

    Raises `OptionError` for a model that is not one of `MODELS`, and as its builder does.

    >>> from rosenblatt.data import digits
    >>> image_model("pixelcnn_mol", digits(), options={"filters": 4}, seed=0).levels
    17
    """
    return _built(name, images.shape, images.levels, options, seed)


def _built(
    name: str, shape: tuple[int, ...], levels: int, options: Mapping[str, Any] | None, seed: int | None
) -> Discretised:
    if name not in MODELS:
        raise OptionError(f"model: '{name}' has no exact probabilities of images; choose among {', '.join(MODELS)}.")
    chosen = {**dict(options or {}), "image": list(shape), "levels": levels}
    model = build(name, math.prod(shape), options=chosen, seed=seed)
    assert isinstance(model, Discretised)
    return model


def config_of_images(
    name: str,
    images: Images,
    fit: FitConfig,
    *,
    options: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a fit in JSON values, from which `restore_images` builds the model again."""
    return {
        "kind": KIND,
        "model": name,
        "options": dict(options or {}),
        "shape": list(images.shape),
        "levels": images.levels,
        "dtype": fit.dtype,
        "fit": fit.to_dict(),
        "data": dict(data or {}),
        "versions": {"rosenblatt": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "provenance": dict(provenance or {}),
    }


def holds_images(run: RunFolder) -> bool:
    """Whether a run is one of a model of images."""
    return run.config.get("kind") == KIND


def restore_images(run: RunFolder) -> Discretised:
    """Load the best weights of a run that `rosenblatt fit IMAGES` made; in eval mode.

    Sizes are held against the weights file before any memory is taken. Raises `CheckpointError` for whatever is wrong
    with the folder.
    """
    if not holds_images(run):
        raise refusal(run, "the run is not of a model of images")
    return load_weights(run, lambda: _blank(run))


def _blank(run: RunFolder) -> Discretised:
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
