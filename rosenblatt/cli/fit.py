"""`rosenblatt fit`: from a table to a run folder with model, samples, plots and a report."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from rosenblatt.assembly import TableFlow, TableRuntime, assemble, config_of
from rosenblatt.cli.options import Json, from_mapping, pairs, parse, read_toml, to_mapping, to_toml, to_words
from rosenblatt.cli.outputs import count_parameters, next_steps, result, write_outputs
from rosenblatt.cli.rows import Rows, RowsOptions, prepare
from rosenblatt.core.errors import CheckpointError, DataError, OptionError
from rosenblatt.data import Table
from rosenblatt.objectives import measure_of
from rosenblatt.preparation import hold_out
from rosenblatt.summary import Summary, compare, forget_run, new_run
from rosenblatt.train import FitConfig, Fitter, Processes, RunFolder, joined

PROG = "rosenblatt fit"
SECONDS_BETWEEN_LINES = 10.0
# Of `image_runs`, without loading it: models of nothing but images, and flows of them.
IMAGE_MODELS, IMAGE_FLOWS = ("nits_conv", "pixelcnn_mol", "nsf_image"), ("glow", "nsf_image", "realnvp")
# An image has many numbers, and causal networks learn from many short steps; the bundled digits in about two minutes.
IMAGE_FLOW: Json = {"batch_size": 64}
IMAGE_PIXELS: Json = {"batch_size": 32, "learning_rate": 3e-3}
BUNDLED_IMAGES: Json = {"epochs": 40, "time_limit": 180.0}
# Enough for the bundled set in about two minutes on one core.
BUNDLED: Json = {"fit": {"epochs": 16, "time_limit": 180.0, "learning_rate": 2e-3}}
BUNDLED_SUPPORT: Json = {"minute_of_day": [0, 1440]}
# The minute of the day explains the meters better than they explain it, so it is read first.
BUNDLED_NITS: Json = {"order": [5, 4, 3, 2, 1, 0]}


@dataclass(frozen=True)
class FitOptions(RowsOptions):
    """Fit a density to TABLE (CSV, Parquet, NPZ, NPY; without it the bundled power set) and keep all in a run folder.

    The folder gets checkpoints, samples.csv, plots and report.json. A test part of the rows is never used for training
    or early stopping and gives the held-out log-likelihood, beside that of a full-covariance Gaussian. With `--target`
    it is the density of these columns given the others, which may hold text, beside the linear Gaussian regression, and
    no samples are drawn. With `--model nits_conv`, `pixelcnn_mol` or `nsf_image` TABLE is a folder, file or array of
    images (FILE.npz:NAME for one array of several; the bundled digits by default), the result is in bits per dimension,
    and `--option` also takes levels, image (shape) and flip. `glow` and `realnvp` take images too; the bits of a flow
    are an upper bound, and `--option` takes scales, noise=variational (uniform by default) and samples of noise for
    each image. `--config FILE` takes the same options from TOML; flags override it. `torchrun --nproc-per-node N -m
    rosenblatt fit ...` trains on N GPUs or processors.
    """

    out: Annotated[Path | None, arg(metavar="RUN")] = None
    """Folder of the new run."""
    model: str = "nits"
    """Model name, see `rosenblatt models`."""
    model_options: Annotated[UseAppendAction[tuple[str, ...]], arg(name="option", metavar="NAME=JSON")] = ()
    """Model option such as hidden=256 or widths=[16,16,1]."""
    members: int = 1
    """Fits to average, each with rows of its own held out; with --target."""
    noise: float = 0.0
    """Noise on the targets in training, as a share of their spread; with --target."""
    given_noise: float = 0.0
    """Noise on the given columns in training, as a share of their spread; with --target."""
    samples: int = 5000
    """Rows of samples.csv; 0 for none."""
    plots: bool = True
    """Draw the plots."""
    overwrite: bool = False
    """Replace an earlier run in the same folder."""
    resume: Annotated[Path | None, arg(metavar="RUN")] = None
    """Go on with an interrupted run, bit for bit."""
    config: Annotated[Path | None, arg(metavar="FILE")] = None
    """TOML file with any of these options."""
    print_config: bool = False
    """Print the options as TOML and stop."""
    fit: OmitArgPrefixes[FitConfig] = field(default_factory=FitConfig)
    """Training; --seed also fixes the test split, the rounding noise and the samples."""


def run(_command: str, words: Sequence[str]) -> int:
    """Run the command, alone or as one of the processes that torchrun started, of which the first one speaks."""
    with joined() as processes, nullcontext() if processes.first else _silent():
        return _fit(read_options(words), processes)


def _fit(options: FitOptions, processes: Processes) -> int:
    if options.print_config:
        print(to_toml(to_mapping(dataclasses.replace(options, print_config=False, config=None))), end="")
        return 0
    folder = options.resume or options.out
    if folder is None:
        raise OptionError("--out: the folder of the new run is missing; add --out RUN.")
    if options.samples < 0:
        raise OptionError(f"--samples: {options.samples} came, 0 or more was expected.")
    if _of_images(options):
        from rosenblatt.cli.fit_images import fit_images

        return fit_images(options, folder, processes)
    if options.target is not None:
        if processes.count > 1:
            raise OptionError(f"--target: is fitted in one process, {processes.count} came; start it without torchrun.")
        from rosenblatt.cli.fit_given import fit_given

        return fit_given(options, folder)
    _refuse_options_of_targets(options)
    return _fit_table(options, folder, processes)


def _refuse_options_of_targets(options: FitOptions) -> None:
    if options.missing != "error":
        raise OptionError(
            "--missing: is for columns that targets are given; add --target, or drop rows without values."
        )
    for name, usual in (("members", 1), ("noise", 0.0), ("given_noise", 0.0)):
        if getattr(options, name) != usual:
            raise OptionError(
                f"--{name.replace('_', '-')}: is for densities of targets; add --target, or leave it out."
            )


def _fit_table(options: FitOptions, folder: Path, processes: Processes) -> int:
    started = time.monotonic()
    rows = prepare(options, options.fit.seed)
    train, validation = _hold_out(options, rows)
    _announce_rows(rows)
    model_options = pairs(options.model_options, "option")
    flow = assemble(options.model, rows.fit, options=model_options, supports=rows.supports, seed=options.fit.seed)
    print(f"model: {options.model}, {count_parameters(flow):,} weights, {_shown(model_options)}", flush=True)
    runtime = TableRuntime(options.fit.device, amp=options.fit.amp, processes=processes)
    store = _open_run(options, rows, flow, folder) if processes.first else None
    with no_empty_run(store):
        report = Fitter(options.fit, runtime=runtime, loggers=[Lines(measure_of(flow))]).fit(
            flow, train, validation=validation, run=store, resume=options.resume is not None
        )
    if report.signal is not None:
        again = shlex.join(["rosenblatt", "fit", "--resume", str(folder)])
        print(f"rosenblatt: stopped at step {report.steps} and saved; go on with: {again}", file=sys.stderr)
        return 128 + report.signal
    if store is None:
        return 0
    flow.cpu().double()
    summary = Summary(
        report,
        None if validation is None else compare(flow, train, validation),
        None if rows.test is None else compare(flow, rows.fit, rows.test),
    )
    print(result(options.model, summary, rows), flush=True)
    files = write_outputs(store, flow, rows, summary, samples=options.samples, plots=options.plots)
    print(f"run folder: {folder} ({', '.join(files)}), {time.monotonic() - started:.0f} s in all")
    print("next:", *next_steps(folder, rows), sep="\n  ")
    print(f"the same run again: {store.config['provenance']['command']}")
    return 0


def read_options(words: Sequence[str]) -> FitOptions:
    """Options from the run to resume or from the bundled set's defaults, then the TOML file, then the flags."""
    asked = parse(FitOptions, words, PROG)
    if asked.resume is not None:
        return _resumed_options(words, asked.resume)
    toml = read_toml(asked.config) if asked.config is not None else {}
    where = str(asked.config)
    filed = from_mapping(FitOptions, toml, where, PROG)
    for name in ("config", "resume", "print_config"):
        if name in toml:
            raise OptionError(f"{where}: '{name}' is a flag only; remove it from the file.")
    merged = parse(FitOptions, words, PROG, default=filed)
    usual = from_mapping(FitOptions, _usual(merged), "the usual options", PROG)
    return parse(FitOptions, words, PROG, default=from_mapping(FitOptions, toml, where, PROG, default=usual))


def _of_images(options: FitOptions) -> bool:
    """Whether the fit is one of images: by its model, or for a flow that tables have too by what TABLE holds."""
    if options.model in IMAGE_MODELS or options.model not in IMAGE_FLOWS or options.table is None:
        return options.model in IMAGE_MODELS
    from rosenblatt.data.image_files import looks_like_images

    return looks_like_images(options.table)


def _usual(options: FitOptions) -> Json:
    """What stands in for the general defaults, by model and data."""
    if _of_images(options):
        usual = IMAGE_FLOW if options.model in IMAGE_FLOWS else IMAGE_PIXELS
        return {"fit": usual if options.table is not None else usual | BUNDLED_IMAGES}
    if options.table is not None:
        return {}
    bundled = dict(BUNDLED)
    if options.columns is None:
        bundled |= {"support": BUNDLED_SUPPORT, "model_options": BUNDLED_NITS if options.model == "nits" else {}}
    return bundled


def stored_options(store: RunFolder, cure: str) -> FitOptions:
    """Read the options that a run was started with from its config; without them the error says `cure`."""
    provenance = store.config.get("provenance")
    stored = provenance.get("options") if isinstance(provenance, dict) else None
    if not isinstance(stored, dict):
        raise CheckpointError(f"{store.path}: was not made by `rosenblatt fit`, so its table is unknown; {cure}.")
    mapping = {**stored, "fit": store.config.get("fit", {})}
    return from_mapping(FitOptions, mapping, str(store.path / "config.json"), PROG)


def _resumed_options(words: Sequence[str], folder: Path) -> FitOptions:
    store = RunFolder.open(folder)
    estimator = "ImageDensity" if store.config.get("kind") == "images" else "FlowDensity"
    before = stored_options(store, f"resume it in Python by {estimator}.resume")
    options = parse(FitOptions, words, PROG, default=before)
    kept = dataclasses.replace(
        before, resume=options.resume, fit=options.fit, samples=options.samples, plots=options.plots
    )
    changed = [f.name for f in dataclasses.fields(kept) if getattr(kept, f.name) != getattr(options, f.name)]
    if changed:
        raise OptionError(
            f"--resume: '{changed[0]}' cannot change in a resumed run; leave it out or start a new run with --out."
        )
    return options


def _open_run(options: FitOptions, rows: Rows, flow: TableFlow, folder: Path) -> RunFolder:
    if options.resume is not None:
        store = RunFolder.open(folder)
        if store.config.get("data", {}).get("digest") != rows.digest:
            raise DataError(
                f"{rows.source}: the table changed since the run {folder} began (its SHA-256 differs); bring the "
                "same rows back or start a new run with --out."
            )
        return store
    place = {name: str(path.absolute()) for name in ("table", "test") if (path := getattr(options, name)) is not None}
    stored = {**to_mapping(storable(options)), **place}
    config = config_of(
        options.model,
        flow,
        rows.fit,
        options.fit,
        options=pairs(options.model_options, "option"),
        dequantise=rows.steps,
        data={
            "source": rows.source,
            "digest": rows.digest,
            "rows": len(rows.fit),
            "test_rows": rows.test_rows,
            "named": True,
            "warnings": rows.warnings,
        },
        provenance={"options": stored, "command": command_line(options)},
    )
    return new_run(folder, config, overwrite=options.overwrite)


def storable(options: FitOptions) -> FitOptions:
    """The options that a run keeps: not where it stands nor how it was asked for."""
    return dataclasses.replace(options, out=None, overwrite=False, config=None)


def command_line(options: FitOptions) -> str:
    """The command that repeats the run."""
    return shlex.join(["rosenblatt", "fit", *to_words(FitOptions, to_mapping(options))])


def _hold_out(options: FitOptions, rows: Rows) -> tuple[Table, Table | None]:
    """Training and validation rows; refuses a split that leaves too few before anything is written."""
    train, validation = hold_out(rows.fit, options.fit)
    fraction = options.fit.validation_fraction
    if fraction and validation is None:
        raise DataError(
            f"table: {len(rows.fit)} rows are too few to hold out a part of {fraction:g} for validation; bring more "
            "rows or set --validation-fraction 0."
        )
    return train, validation


class Lines:
    """A line per validation where there is no terminal, at most one every ten seconds."""

    def __init__(self, measure: str) -> None:
        self.measure = measure
        self._last = time.monotonic()

    def log(self, record: dict[str, Any]) -> None:
        """Print the record when it is time."""
        now = time.monotonic()
        if sys.stdout.isatty() or now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        parts = [f"{name} {record[name]:.3f}" for name in ("train", "validation") if record[name] is not None]
        print(
            f"  step {record['step']}  epoch {record['epoch']:.1f}  {'  '.join(parts)} {self.measure}  "
            f"{record['seconds']:.0f} s",
            flush=True,
        )


@contextmanager
def no_empty_run(store: RunFolder | None) -> Iterator[None]:
    """Leave no run folder behind that failed before its first checkpoint."""
    try:
        yield
    except BaseException:
        if store is not None:
            forget_run(store)
        raise


@contextmanager
def _silent() -> Iterator[None]:
    """Print nothing; an error on the way out is still said."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _announce_rows(rows: Rows) -> None:
    names = ", ".join(rows.fit.columns[:8]) + (", ..." if rows.fit.features > 8 else "")
    test = f" and {rows.test_rows:,} held out as test rows" if rows.test is not None else ""
    print(f"table: {rows.source}, {rows.fit.features} columns ({names})")
    print(f"rows: {len(rows.fit):,} to fit (validation rows among them){test}")
    print(*rows.notes, sep="\n", end="\n" if rows.notes else "", flush=True)
    for warning in rows.warnings:
        print(f"rosenblatt: warning: {warning}", file=sys.stderr)


def _shown(options: Json) -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in options.items()) or "default options"
