"""Pictures of a fitted model of images: samples beside images, where the bits go, calibration, training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rosenblatt.core.errors import DataError
from rosenblatt.data import Images
from rosenblatt.eval import LevelScores, bits_per_number, level_scores
from rosenblatt.layers.discretised import Discretised
from rosenblatt.layers.surjection import Dequantised
from rosenblatt.objectives import measure_of
from rosenblatt.plot.calibration import LABEL, TITLE, pit_reliability
from rosenblatt.plot.files import write
from rosenblatt.plot.training import training_curve

SIDE = 6  # images across and down a panel
MOST_IMAGES = 500  # whose bits are averaged
MASSES = 1 << 21  # of all levels of all numbers that are looked at: some seconds
FEWEST_IMAGES = 4
SURE = 0.05  # bits: numbers the model is surer of say nothing about it
GROUPS = 3
LEAST_IN_A_GROUP = 100


def image_grids(
    images: Images, drawn: Images, *, names: tuple[str, str] = ("images", "drawn from the model")
) -> Figure:
    """Draw images beside images drawn from a model, 36 of each at most, spread evenly over those that come.

    Raises `DataError` for no images, images of two shapes, or other numbers of channels than 1 and 3.

    >>> from rosenblatt.data import digits
    >>> len(image_grids(digits(), digits()).axes)
    2
    """
    if images.shape != drawn.shape or not len(images) or not len(drawn):
        raise DataError(
            f"drawn: {len(drawn)} images of shape {drawn.shape} came for {len(images)} of {images.shape}; as many "
            "numbers in each and at least one were expected."
        )
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    for axes, name, shown in zip(figure.subplots(1, 2), names, (images, drawn), strict=True):
        axes.imshow(_sheet(shown), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=TITLE)
        axes.set_axis_off()
    return figure


def bits_by_place(model: Discretised, images: Images) -> Figure:
    """Draw where the bits of images go, and where they are more or fewer than the model itself expects.

    Left: the mean of `-log2 P` of the numbers of each pixel, its channels added up, over 500 images at most; all pixels
    add up to the bits of an image. Right: these less their mean under the model, its entropy. Red pixels take more bits
    than the model expects, since it is too sure of them, blue ones fewer; single pixels are noisy, and the title has
    the mean over all numbers with its standard error under the model. That looks at the masses of all levels, so it is
    for fewer images, which the title counts. Raises `DataError` for images that do not fit the model or none.

    >>> from rosenblatt.data import digits
    >>> from rosenblatt.image_runs import image_model
    >>> model = image_model("pixelcnn_mol", digits(), options={"filters": 4}, seed=0)
    >>> len(bits_by_place(model, Images(digits().pixels[:20], levels=17)).axes)  # two maps and their scales
    4
    """
    chosen = _chosen(model, images, _affordable(model))
    return _bits_by_place(model, images, chosen, level_scores(model, chosen.rows().x))


def level_calibration(model: Discretised, images: Images, *, seed: int = 0) -> Figure:
    """Draw the reliability of what a model says of numbers, in three groups by how sure it is before it sees them.

    The randomised PIT of every number, `u = F(x_i-) + v P(x_i)`, is uniform for a right model and independent from
    number to number, whatever came before. Numbers that the model is sure of (an entropy below 0.05 bits) are left out:
    of these u is uniform by v alone. The others are cut in three by their entropy. Shares are those of
    `pit_reliability`; `seed` draws v. Raises as `bits_by_place`.

    >>> from rosenblatt.data import digits
    >>> from rosenblatt.image_runs import image_model
    >>> model = image_model("pixelcnn_mol", digits(), options={"filters": 4}, seed=0)
    >>> len(level_calibration(model, Images(digits().pixels[:20], levels=17)).axes)
    2
    """
    chosen = _chosen(model, images, _affordable(model))
    generator = torch.Generator().manual_seed(seed)
    return _level_calibration(chosen, level_scores(model, chosen.rows().x, generator=generator))


def save_image_plots(
    model: Discretised | Dequantised,
    images: Images,
    folder: str | Path,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
) -> list[Path]:
    """Write images.png, bits.png, calibration.png and, with records of training, training.png into `folder`.

    See `image_grids`, `bits_by_place`, `level_calibration` and `training_curve`, in bits per dimension. `images` were
    held out of the fit; `seed` draws the samples. A flow of dequantised images has no probabilities of single numbers,
    which bits.png and calibration.png show: for it these two are left out. Returns the files written. Raises
    `DataError` for images that do not fit the model or a folder that cannot be written to.
    """
    chosen = _chosen(model, images, _affordable(model))
    figures: dict[str, Figure] = {}
    if isinstance(model, Discretised):
        scores = level_scores(model, chosen.rows().x, generator=torch.Generator().manual_seed(seed))
        figures["bits"] = _bits_by_place(model, images, chosen, scores)
        figures["calibration"] = _level_calibration(chosen, scores)
    with torch.no_grad():
        drawn = model.sample(SIDE * SIDE, generator=torch.Generator().manual_seed(seed))
    pixels = drawn.to("cpu", torch.uint8).reshape(-1, *images.shape)
    if images.shape[0] in (1, 3):
        figures["images"] = image_grids(images, Images(pixels, levels=model.levels))
    if metrics:
        figures["training"] = training_curve(metrics, measure=measure_of(model), dimensions=model.features)
    return write(figures, folder)


def _affordable(model: Discretised | Dequantised) -> int:
    return max(FEWEST_IMAGES, MASSES // (model.features * model.levels))


def _chosen(model: Discretised | Dequantised, images: Images, most: int) -> Images:
    """At most so many images, spread evenly; checked against the model."""
    if images.features != model.features or images.levels > model.levels or not len(images):
        raise DataError(
            f"images: {len(images)} of {images.features} numbers and {images.levels} levels came, some of "
            f"{model.features} numbers and {model.levels} levels were expected."
        )
    count = min(most, len(images))
    return Images(images.pixels[torch.arange(count) * len(images) // count].cpu(), levels=images.levels)


def _bits_by_place(model: Discretised, images: Images, chosen: Images, scores: LevelScores) -> Figure:
    many = _chosen(model, images, MOST_IMAGES)
    taken = scores.bits if len(many) == len(chosen) else bits_per_number(model, many.rows().x)
    excess = scores.bits - scores.expected
    error = float(scores.variance.sum().sqrt()) / excess.numel()
    places = _by_pixel(excess.mean(dim=0), images)
    largest = float(torch.where(places.isfinite(), places.abs(), 0.0).max())
    figure = Figure(figsize=(10.4, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    title = f"bits of each pixel, mean of {len(many):,} images\n{float(taken.mean()):.4f} bits a number"
    _map(figure, left, _by_pixel(taken.mean(dim=0), images), title, cmap="viridis", vmin=0.0)
    title = f"less the bits that the model expects, {len(chosen):,} images\n"
    title += f"{float(excess.mean()):+.4f} +- {error:.4f} bits a number, 0 if the model is right"
    _map(figure, right, places, title, cmap="RdBu_r", vmin=-(largest or 1.0), vmax=largest or 1.0)
    return figure


def _level_calibration(chosen: Images, scores: LevelScores) -> Figure:
    entropy, u = scores.expected.flatten(), scores.pit.flatten()
    unsure = entropy >= SURE
    if int(unsure.sum()) < LEAST_IN_A_GROUP:
        unsure = torch.ones_like(unsure)
    entropy, u = entropy[unsure], u[unsure]
    groups = GROUPS if len(u) >= GROUPS * LEAST_IN_A_GROUP else 1
    order, size = entropy.argsort(stable=True), len(u) // groups
    parts = [order[group * size : (group + 1) * size] for group in range(groups)]
    names = [f"entropy {float(entropy[part[0]]):.2f} to {float(entropy[part[-1]]):.2f} bits" for part in parts]
    figure = pit_reliability(torch.stack([u[part] for part in parts], dim=1), names=names)
    figure.suptitle(
        f"randomised PIT of {len(u):,} numbers that the model was unsure of, of {len(scores.pit) * chosen.features:,} "
        f"in {len(chosen):,} images\ngrey: 99.9 % band of a right model",
        fontsize=TITLE,
    )
    for axes, label in zip(figure.axes, ("share of numbers at or below it", "share less level"), strict=False):
        axes.set_ylabel(label, fontsize=LABEL)
    return figure


def _by_pixel(numbers: Tensor, images: Images) -> Tensor:
    """Numbers of an image, channels added up, as (height, width)."""
    return numbers.reshape(images.shape).sum(dim=0)


def _map(figure: Figure, axes: Axes, values: Tensor, title: str, **colours: Any) -> None:
    shown = axes.imshow(values.cpu().numpy(), interpolation="nearest", **colours)
    axes.set_title(title, fontsize=LABEL + 1)
    axes.set_axis_off()
    figure.colorbar(shown, ax=axes, shrink=0.85)


def _sheet(images: Images) -> npt.NDArray[np.float64]:
    """Images side by side in shares of the largest level, white between them."""
    channels, height, width = images.shape
    if channels not in (1, 3):
        raise DataError(f"images: {channels} channels came, 1 or 3 can be shown.")
    count = min(SIDE * SIDE, len(images))
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    sheet = np.ones((down * (height + 1) - 1, across * (width + 1) - 1, channels))
    pixels = images.pixels[torch.arange(count) * len(images) // count].cpu().numpy().transpose(0, 2, 3, 1)
    for index, pixel in enumerate(pixels / max(1, images.levels - 1)):
        top, left = index // across * (height + 1), index % across * (width + 1)
        sheet[top : top + height, left : left + width] = pixel
    return sheet[:, :, 0] if channels == 1 else sheet
