"""`rosenblatt plot` and `audit` of runs of models of images."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rosenblatt.cli.fit_images import held_images
from rosenblatt.core.errors import OptionError
from rosenblatt.data import Images
from rosenblatt.image_runs import restore_image_model, restore_images
from rosenblatt.layers.discretised import Discretised
from rosenblatt.train import RunFolder

if TYPE_CHECKING:
    from rosenblatt.cli.inspect import AuditOptions, PlotOptions
    from rosenblatt.testing import AuditRow

MOST_IMAGES = 256  # that the audit chooses its rows from
FEW = 4  # images compressed


def plot_images(store: RunFolder, options: PlotOptions, folder: Path) -> int:
    """Draw the plots of a run into `folder` and say which."""
    from rosenblatt.plot import save_image_plots

    _refuse_as_is(options.as_is)
    model, images = restore_image_model(store), held_images(store, options.data)
    folder.mkdir(parents=True, exist_ok=True)
    print(*save_image_plots(model, images, folder, metrics=store.read_metrics()), sep="\n")
    return 0


def audit_images(store: RunFolder, options: AuditOptions) -> int:
    """Check a run on images and print the table; returns the exit code."""
    from rosenblatt.testing import AuditReport, audit
    from rosenblatt.testing.report import run_checks

    _refuse_as_is(options.as_is)
    model, images = restore_images(store), held_images(store, options.data)
    generator = torch.Generator().manual_seed(options.seed)
    checked = audit(model, images.rows(MOST_IMAGES).x, generator=generator, seconds=options.seconds)
    few = Images(images.pixels[:FEW], levels=images.levels)
    report = AuditReport([*checked.rows, *run_checks([("R1", "compressed and given back", _file)], (model, few)).rows])
    print(report)
    return 0 if report.passed else 1


def _file(subject: tuple[Discretised, Images]) -> AuditRow:
    """Compress a few images and give them back."""
    from rosenblatt.compression import compress, decompress
    from rosenblatt.testing import AuditRow

    model, few = subject
    if find_spec("constriction") is None:
        return AuditRow("", "", "-", "-", None, 'needs the extra: pip install "rosenblatt[compress]".')
    file = compress(model, few, batch=len(few))
    back = decompress(model, file)
    alike = isinstance(back, Images) and bool((back.pixels == few.pixels).all())
    shown = f"{'alike' if alike else 'others'}, {len(file):,} bytes"
    return AuditRow("", "", shown, f"alike ({len(few)} images)", alike, "files do not hold what was compressed.")


def _refuse_as_is(as_is: bool) -> None:
    if as_is:
        raise OptionError("--as-is: is for tables, not for images; leave it out.")
