"""`rosenblatt score`: log-density and p-values of rows, chunk by chunk at constant memory, on all cores."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from rosenblatt.cli.options import parse
from rosenblatt.core.errors import DataError

PROG = "rosenblatt score"


@dataclass(frozen=True)
class ScoreOptions:
    """Score the rows of TABLE (CSV, Parquet, NPZ, NPY) by a fitted run, in the order of the file.

    Writes `log_density`, in nats and in the units of the columns (-inf outside a declared support), and for each column
    p_COLUMN = 2 min(u, 1 - u), the two-sided p-value of its Rosenblatt transform u: uniform if the model is right, near
    0 for a value that is extreme given the columns read before it. Of a run with targets it is their log-density given
    the other columns, and pit_TARGET = u itself; columns are then taken by name. Of a model of images, TABLE holds
    images and the scores are their log-probabilities. The table may be larger than memory.
    Finished parts are kept in FILE.parts until all are done: after Ctrl-C or a crash, the same command goes on where it
    stopped.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a fitted run."""
    table: Annotated[Positional[Path], arg(metavar="TABLE")]
    """File of rows with the columns of the model."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """CSV or Parquet file to write; CSV on standard output by default."""
    reorder: bool = False
    """Take the model's columns by name from a table that has them in another order or has more."""
    keep_bad_rows: bool = False
    """Give rows with missing or infinite values empty scores instead of stopping."""
    dequantise: bool = False
    """Spread rounded columns over their cells first, as the fit did; samples need no spreading."""
    seed: int = 0
    """Seed of that spreading."""
    processes: int | None = None
    """Processes to use at most, each some 0.3 GB; one for every core by default. The scores do not depend on it."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of the computation. float32 is two to three times as fast; on the bundled set its log-densities are off
    by 1e-6 typically and 1e-4 at worst, its p-values by 1e-5 of themselves."""


def run(_command: str, words: Sequence[str]) -> int:
    """Run the command."""
    options = parse(ScoreOptions, words, PROG)
    from rosenblatt.cli.runs import open_flow
    from rosenblatt.cli.scoring import CHUNK_ROWS, ScoreJob, Scorer
    from rosenblatt.cli.stream import stream
    from rosenblatt.data.chunks import file_chunks
    from rosenblatt.train import RunFolder

    store = RunFolder.open(options.run)
    if store.config.get("kind") == "images":
        from rosenblatt.cli.use_images import score_images

        return score_images(store, options)
    if "given" in store.config:
        return _score_given(options)
    flow, config = open_flow(options.run)
    columns, steps = tuple(config["columns"]), config["dequantise"]
    _say_about_grid(options, steps)
    names, chunks = file_chunks(options.table, CHUNK_ROWS, columns=columns if options.reorder else None)
    _check_columns(options.table, names, columns)
    job = ScoreJob(
        options.run,
        RunFolder.open(options.run).digest(),
        options.table,
        columns,
        steps if options.dequantise else {},
        options.dtype,
        options.keep_bad_rows,
        options.seed,
    )
    scorer = Scorer(job, flow)
    written = stream(
        job,
        scorer,
        chunks,
        out=options.out,
        columns=["log_density", *(f"p_{name}" for name in columns if scorer.has_cdf)],
        processes=options.processes,
        facts=job.facts,
    )
    without = f", {written.empty:,} of them without a score" if written.empty else ""
    print(f"scored {written}{without}", file=sys.stderr)
    return 0


def _score_given(options: ScoreOptions) -> int:
    """Score targets given the other columns, all taken by name."""
    from rosenblatt.cli.given import ScoreTask, answer_rows, open_conditional

    _, _, config = open_conditional(options.run)
    _say_about_grid(options, config["dequantise"])
    steps = tuple(config["dequantise"].items()) if options.dequantise else ()
    task = ScoreTask(tuple(config["columns"]), steps, options.dtype, options.keep_bad_rows, options.seed)
    written = answer_rows(
        options.run, options.table, task, out=options.out, processes=options.processes, read_targets=True
    )
    without = f", {written.empty:,} of them without a score" if written.empty else ""
    print(f"scored {written}{without}", file=sys.stderr)
    return 0


def _check_columns(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse a table whose columns are not those of the model, in their order."""
    import torch

    from rosenblatt.data import Table

    try:
        Table(torch.empty(0, len(names)), names).align(columns)
    except DataError as error:
        if set(columns) - set(names):
            raise DataError(f"{path}: {error}") from None
        cure = "on the command line, --reorder takes the model's columns by name."
        raise DataError(f"{path}: {str(error).rstrip('.')}; {cure}") from None


def _say_about_grid(options: ScoreOptions, steps: Mapping[str, float]) -> None:
    if not steps:
        return
    names = ", ".join(steps)
    told = (
        "are spread over their cells" if options.dequantise else "are scored as they stand (--dequantise spreads them)"
    )
    print(
        f"rosenblatt: the fit spread the rounded columns {names} over their cells; rows here {told}.", file=sys.stderr
    )
