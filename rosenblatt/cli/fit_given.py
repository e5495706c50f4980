"""`rosenblatt fit TABLE --target y`: the density of targets given the other columns, fitted, tested and kept."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rosenblatt.cli.options import pairs, to_mapping
from rosenblatt.conditional import Pairs, compare_given
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Table
from rosenblatt.data.frames import read_frame
from rosenblatt.estimators import ConditionalFlow
from rosenblatt.estimators.common import FIT_ARGUMENTS
from rosenblatt.eval import Estimate, coverage, crps, mean_log_prob
from rosenblatt.predictive import Predictive
from rosenblatt.preparation import TEST_SPLIT
from rosenblatt.summary import REPORT, Summary, forget_run, write_summary
from rosenblatt.train import FitConfig, RunFolder
from rosenblatt.train.runtime import seeded_generator

if TYPE_CHECKING:
    from rosenblatt.cli.fit import FitOptions

COVERAGES = (0.5, 0.8, 0.95)
PLOTTED_ROWS = 5000  # of several targets a tenth: each row of theirs takes 1,024 draws


@dataclass(frozen=True)
class GivenRows:
    """Rows of a regression: a pyarrow table of the given columns, targets, and perhaps weights."""

    given: Any
    targets: Table
    weight: Any = None

    def take(self, index: torch.Tensor) -> GivenRows:
        """The rows at `index`."""
        rows = index.numpy()
        targets = Table(self.targets.values[index], self.targets.columns)
        return GivenRows(self.given.take(rows), targets, None if self.weight is None else self.weight[index])

    def __len__(self) -> int:
        return len(self.targets)


def fit_given(options: FitOptions, folder: Path) -> int:
    """Run the command for options that name targets; returns its exit code."""
    started = time.monotonic()
    if options.table is None:
        raise OptionError("--target: the bundled set has none; give a TABLE.")
    rows, test = _rows(options)
    given = ", ".join(rows.given.column_names[:8]) + (", ..." if rows.given.num_columns > 8 else "")
    held = "" if test is None else f" and {len(test):,} held out as test rows"
    print(f"table: {options.table}, {', '.join(rows.targets.columns)} given {rows.given.num_columns} columns ({given})")
    print(f"rows: {len(rows):,} to fit (validation rows among them){held}", flush=True)
    flow = _estimator(options, folder)
    source = {"source": str(options.table), "is_file": True, "test_rows": 0 if test is None else len(test)}
    store = None if options.resume is None else RunFolder.open(folder)
    try:
        flow.fit_rows(rows.given, rows.targets, rows.weight, source=source, folder=store)
    except BaseException:
        _forget_empty(folder)
        raise
    report, run = flow.report_, flow.run_
    assert report is not None
    assert run is not None
    if report.signal is not None:
        again = shlex.join(["rosenblatt", "fit", "--resume", str(folder)])
        print(f"rosenblatt: stopped at step {report.steps} and saved; go on with: {again}", file=sys.stderr)
        return 128 + report.signal
    steps = "" if report.stopped == "closed form" else f" after {report.steps:,} steps in {report.seconds:.0f} s"
    print(f"fitted: stopped by {report.stopped}{steps}")
    if test is None:
        if flow.validation_score_ is not None:
            print(f"validation log-likelihood: {flow.validation_score_} nats per row (no test rows)")
    else:
        _test(options.model, flow, rows, test, run)
    files = [REPORT]
    if options.plots:
        files += [path.name for path in draw_given(flow, rows if test is None else test, run, run.path)]
    print(f"run folder: {folder} ({', '.join(files)}), {time.monotonic() - started:.0f} s in all")
    print("next:", *_next_steps(folder, str(options.table)), sep="\n  ")
    print(f"the same run again: {run.config['provenance']['command']}")
    return 0


def draw_given(flow: ConditionalFlow, rows: GivenRows, run: RunFolder, folder: Path) -> list[Path]:
    """Save the pictures of a regression as PNG, of some rows spread evenly where they are many."""
    from rosenblatt.plot import save_conditional_plots

    most = PLOTTED_ROWS if len(flow.columns_) == 1 else PLOTTED_ROWS // 10
    if len(rows) > most:
        rows = rows.take(torch.arange(most) * len(rows) // most)
    return save_conditional_plots(flow, rows.given, rows.targets, folder, metrics=run.read_metrics())


def plot_given(store: RunFolder, data: Path | None, folder: Path) -> list[Path]:
    """Draw a run that targets were fitted in: by the rows of a file, or by its own test rows."""
    from rosenblatt.cli.fit import stored_options

    flow = ConditionalFlow.load(store.path)
    options = stored_options(store, "draw it in Python by plot.save_conditional_plots")
    given = list(flow.encoder_.columns)
    if data is not None:
        names = dataclasses.replace(options, columns=",".join(given), weight=None)
        return draw_given(flow, _read(names, data), store, folder)
    rows, test = _rows(options)
    return draw_given(flow, rows if test is None else test, store, folder)


def _rows(options: FitOptions) -> tuple[GivenRows, GivenRows | None]:
    """Rows to fit to, validation rows among them, and rows to test on."""
    if not 0 <= options.test_fraction < 1:
        raise OptionError(f"--test-fraction: {options.test_fraction} came, at least 0 and below 1 was expected.")
    assert options.table is not None
    rows = _read(options, options.table)
    if options.test is not None:
        return rows, _read(options, options.test)
    if not options.test_fraction:
        return rows, None
    numbers = Table(torch.arange(len(rows), dtype=torch.float64).unsqueeze(1), ["row"])
    fraction = options.test_fraction
    if round(fraction * len(rows)) < 2 or round((1 - fraction) * len(rows)) < 2:
        raise DataError(
            f"table: {len(rows)} rows are too few to hold out a test part of {fraction:g}; bring more rows, or set "
            "--test-fraction 0."
        )
    parts = numbers.split((1 - fraction, fraction), seeded_generator(options.fit.seed, TEST_SPLIT))
    fit, test = (rows.take(part.values[:, 0].long()) for part in parts)
    return fit, test


def _read(options: FitOptions, path: Path) -> GivenRows:
    targets = [name.strip() for name in (options.target or "").split(",")]
    wanted = None if options.columns is None else [name.strip() for name in options.columns.split(",")]
    weights = [] if options.weight is None else [options.weight]
    needed = None if wanted is None else list(dict.fromkeys([*wanted, *targets, *weights]))
    frame = read_frame(path, columns=needed)
    for flag, name in [*(("target", name) for name in targets), *(("weight", name) for name in weights)]:
        if name not in frame.column_names:
            known = ", ".join(frame.column_names[:12])
            raise DataError(f"--{flag}: there is no column '{name}' in {path}; the columns are {known}.")
    others = [name for name in wanted or frame.column_names if name not in (*targets, options.weight)]
    if not others:
        raise DataError(f"{path}: no column is left to be given besides --target {options.target}; bring some.")
    columns = Table.from_any(frame.select(targets))
    weight = None if options.weight is None else Table.from_any(frame.select([options.weight])).values[:, 0]
    return GivenRows(frame.select(others), columns, weight)


def _estimator(options: FitOptions, folder: Path) -> ConditionalFlow:
    fit = options.fit.to_dict()
    seed = fit.pop("seed")
    support, steps = pairs(options.support, "support"), pairs(options.dequantise, "dequantise")
    place = {name: str(path.absolute()) for name in ("table", "test") if (path := getattr(options, name)) is not None}
    from rosenblatt.cli.fit import command_line, storable

    stored = {**to_mapping(storable(options)), **place}
    return ConditionalFlow(
        options.model,
        model_options=pairs(options.model_options, "option"),
        missing=options.missing,
        support=support or None,
        dequantise="auto" if options.dequantise_auto else steps or None,
        members=options.members,
        noise=options.noise,
        given_noise=options.given_noise,
        **{name: fit.pop(name) for name in FIT_ARGUMENTS},
        fit_options={name: value for name, value in fit.items() if value != getattr(FitConfig, name)} or None,
        run=folder,
        overwrite=options.overwrite,
        verbose=1,
        random_state=seed,
        provenance={"options": stored, "command": command_line(options)},
    )


def _forget_empty(folder: Path) -> None:
    """Remove a run that failed before its first checkpoint."""
    if (folder / "config.json").is_file():
        forget_run(RunFolder.open(folder))


def _test(model: str, flow: ConditionalFlow, rows: GivenRows, test: GivenRows, run: RunFolder) -> None:
    """Score the test rows beside the linear Gaussian regression, keep that, and say it."""
    fitted = flow.pairs(rows.given, rows.targets, rows.weight)
    held_out = flow.pairs(test.given, test.targets, test.weight)
    scores = compare_given(flow.model_, fitted, held_out)
    assert flow.report_ is not None
    write_summary(run, Summary(flow.report_, flow._comparison, scores))
    width = max(len(model), len("linear gaussian")) + 18
    print(f"held-out log-likelihood, nats per row +- standard error, {len(test):,} test rows:")
    names = (model, "linear gaussian", f"{model} - linear gaussian")
    for name, score in zip(names, scores, strict=True):
        if score is not None:
            print(f"  {name:<{width}} {score.value:10.4f} +- {score.standard_error:.4f}")
    for name, crps_score, shares in _marginal_scores(flow, held_out):
        print(f"{name}: CRPS {crps_score.value:.4g} +- {crps_score.standard_error:.2g}{shares}", flush=True)


def _marginal_scores(flow: ConditionalFlow, held_out: Pairs) -> list[tuple[str, Estimate, str]]:
    """Each target's CRPS, in its units, and what its central intervals hold."""
    density, values, given = flow.model_, *held_out.rows()[:2]
    assert given is not None
    generator = seeded_generator(flow.seed_, TEST_SPLIT)
    each = crps(density, values, given, generator=generator).T
    shares = [""] * len(each)
    if density.has_cdf:
        found = coverage(Predictive(density).cdf(values, given), COVERAGES).share
        said = " / ".join(f"{level:.0%}" for level in COVERAGES)
        shares = [
            f"; central intervals of {said} hold {' / '.join(f'{share:.1%}' for share in column)}"
            for column in found.reshape(len(COVERAGES), -1).T.tolist()
        ]
    scores = [mean_log_prob(column, held_out.table.weight) for column in each]
    return list(zip(flow.columns_, scores, shares, strict=True))


def _next_steps(folder: Path, table: str) -> list[str]:
    commands = [
        ["score", str(folder), table, "--out", "scores.csv"],
        ["sample", str(folder), "-n", "5", "--given", table],
        ["quantiles", str(folder), table, "--levels", "0.05,0.5,0.95", "--out", "quantiles.csv"],
        ["info", str(folder)],
    ]
    return [shlex.join(["rosenblatt", *words]) for words in commands]
