"""`rosenblatt plot` and `audit` of runs of models of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rosenblatt.cli.fit_images import held_images
from rosenblatt.core.errors import OptionError
from rosenblatt.image_runs import restore_images
from rosenblatt.train import RunFolder

if TYPE_CHECKING:
    from rosenblatt.cli.inspect import PlotOptions


def plot_images(store: RunFolder, options: PlotOptions, folder: Path) -> int:
    """Draw the plots of a run into `folder` and say which."""
    from rosenblatt.plot import save_image_plots

    _refuse_as_is(options.as_is)
    model, images = restore_images(store), held_images(store, options.data)
    folder.mkdir(parents=True, exist_ok=True)
    print(*save_image_plots(model, images, folder, metrics=store.read_metrics()), sep="\n")
    return 0


def _refuse_as_is(as_is: bool) -> None:
    if as_is:
        raise OptionError("--as-is: is for tables, not for images; leave it out.")
