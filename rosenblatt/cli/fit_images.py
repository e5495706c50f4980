"""`rosenblatt fit IMAGES --model nits_conv`, or a flow: a model of images, fitted, tested in bits, and kept."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rosenblatt.cli.options import pairs, to_mapping
from rosenblatt.cli.outputs import count_parameters
from rosenblatt.cli.rows import RowsOptions
from rosenblatt.cli.use_images import images_for, read_images
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Images, digits, write_grid
from rosenblatt.eval import bits_per_dim
from rosenblatt.image_runs import ImageModel, config_of_images, image_model
from rosenblatt.objectives import measure_of
from rosenblatt.preparation import TEST_SPLIT
from rosenblatt.summary import REPORT, Summary, new_run, write_summary
from rosenblatt.train import Fitter, LocalRuntime, Processes, RunFolder
from rosenblatt.train.runtime import seeded_generator

if TYPE_CHECKING:
    from rosenblatt.cli.fit import FitOptions

SAMPLES, MOST_SAMPLES = "samples.png", 64
BUNDLED_SOURCE = "bundled digits"
USED = ("table", "test", "test_fraction")  # options of rows that images have too


def fit_images(options: FitOptions, folder: Path, processes: Processes) -> int:
    """Run the command; returns its exit code."""
    started = time.monotonic()
    _refuse_options_of_tables(options)
    chosen = pairs(options.model_options, "option")
    shape, levels, flip = chosen.pop("image", None), chosen.pop("levels", None), chosen.pop("flip", False)
    images = read_source(options.table, shape, levels)
    images.check()
    images.flip = flip is True
    fit, test = _split(options, images, shape, levels)
    source = BUNDLED_SOURCE if options.table is None else str(options.table)
    held = "" if test is None else f", {len(test):,} held out to test"
    print(f"images: {source}, {len(fit):,} of {' x '.join(map(str, fit.shape))}, {fit.levels} levels{held}", flush=True)
    model = image_model(options.model, fit, options=chosen, seed=options.fit.seed)
    print(f"model: {options.model}, {count_parameters(model):,} weights", flush=True)
    runtime = LocalRuntime(options.fit.device, amp=options.fit.amp, processes=processes)
    store = _open_run(options, folder, images, chosen, shape) if processes.first else None
    from rosenblatt.cli.fit import Lines, no_empty_run

    with no_empty_run(store):
        report = Fitter(options.fit, runtime=runtime, loggers=[Lines(measure_of(model))]).fit(
            model, fit, run=store, resume=options.resume is not None
        )
    if report.signal is not None:
        again = shlex.join(["rosenblatt", "fit", "--resume", str(folder)])
        print(f"rosenblatt: stopped at step {report.steps} and saved; go on with: {again}", file=sys.stderr)
        return 128 + report.signal
    if store is None:
        return 0
    model.cpu()
    print(f"fitted: stopped by {report.stopped} after {report.steps:,} steps in {report.seconds:.0f} s")
    bits = None if test is None else bits_per_dim(model, test.rows().x.to(getattr(torch, options.fit.dtype)))
    if bits is not None:
        print(f"held-out images: {bits}", flush=True)
    files = _draw(options, model, fit, fit if test is None else test, store) if options.plots else []
    write_summary(store, Summary(report, bits=bits))
    print(f"run folder: {folder} ({', '.join([*files, REPORT])}), {time.monotonic() - started:.0f} s in all")
    return 0


def read_source(path: Path | None, shape: Any = None, levels: Any = None) -> Images:
    """Images of a path, or the bundled ones."""
    if path is None:
        if (shape or [1, 8, 8]) != [1, 8, 8] or (levels or 17) != 17:
            raise OptionError("--option: the bundled digits are [1, 8, 8] with 17 levels; leave image and levels out.")
        return digits()
    return read_images(path, shape=shape, levels=256 if levels is None else levels)


def draw_samples(model: ImageModel, like: Images, count: int, seed: int, path: Path) -> None:
    """Write a grid of images drawn from the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        drawn = model.sample(count, generator=generator)
    write_grid(path, drawn.reshape(count, *like.shape), levels=like.levels)


def held_images(store: RunFolder, data: Path | None) -> Images:
    """Images to hold a run against: those of `data`, or the run's own test images."""
    if data is not None:
        return images_for(store, data)
    from rosenblatt.cli.fit import stored_options

    options = stored_options(store, "give the images to use with --data")
    chosen = pairs(options.model_options, "option")
    shape, levels = chosen.get("image"), chosen.get("levels")
    images = read_source(options.table, shape, levels)
    if images.digest() != store.config["data"]["digest"]:
        raise DataError(
            f"{options.table or BUNDLED_SOURCE}: the images changed since the run {store.path} began; give the images "
            "to use with --data."
        )
    fit, test = _split(options, images, shape, levels)
    return fit if test is None else test


def _draw(options: FitOptions, model: ImageModel, fit: Images, held: Images, store: RunFolder) -> list[str]:
    """Write a grid of samples, and the plots; returns their names."""
    from rosenblatt.plot import save_image_plots

    files = []
    if options.samples:
        draw_samples(model, fit, min(options.samples, MOST_SAMPLES), options.fit.seed, store.path / SAMPLES)
        files.append(SAMPLES)
    return files + [path.name for path in save_image_plots(model, held, store.path, metrics=store.read_metrics())]


def _refuse_options_of_tables(options: FitOptions) -> None:
    usual = RowsOptions()
    for field in dataclasses.fields(RowsOptions):
        if field.name not in USED and getattr(options, field.name) != getattr(usual, field.name):
            raise OptionError(f"--{field.name.replace('_', '-')}: is for tables, not for images; leave it out.")


def _split(options: FitOptions, images: Images, shape: Any, levels: Any) -> tuple[Images, Images | None]:
    if not 0 <= options.test_fraction < 1:
        raise OptionError(f"--test-fraction: {options.test_fraction} came, at least 0 and below 1 was expected.")
    if options.test is not None:
        test = read_source(options.test, shape, levels)
        if test.shape != images.shape:
            raise DataError(f"--test: images of shape {test.shape} came, {images.shape} was expected.")
        return images, test
    if not options.test_fraction:
        return images, None
    fractions = (1 - options.test_fraction, options.test_fraction)
    fit, test = images.split(fractions, seeded_generator(options.fit.seed, TEST_SPLIT))
    return (fit, test) if len(test) > 1 else (images, None)


def _open_run(options: FitOptions, folder: Path, images: Images, chosen: dict[str, Any], shape: Any) -> RunFolder:
    if options.resume is not None:
        store = RunFolder.open(folder)
        if store.config.get("data", {}).get("digest") != images.digest():
            raise DataError(
                f"the images changed since the run {folder} began; bring the same ones, or start a new run."
            )
        return store
    from rosenblatt.cli.fit import command_line, storable

    place = {name: str(path.absolute()) for name in ("table", "test") if (path := getattr(options, name)) is not None}
    config = config_of_images(
        options.model,
        images,
        options.fit,
        options=chosen,
        data={
            "source": place.get("table", BUNDLED_SOURCE),
            "shape": shape,
            "rows": len(images),
            "digest": images.digest(),
        },
        provenance={"options": {**to_mapping(storable(options)), **place}, "command": command_line(options)},
    )
    return new_run(folder, config, overwrite=options.overwrite)
