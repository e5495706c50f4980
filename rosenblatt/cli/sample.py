"""`rosenblatt sample`: draw new rows, chunk by chunk at constant memory, on all cores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rosenblatt.cli.options import parse
from rosenblatt.core.errors import OptionError

PROG = "rosenblatt sample"


@dataclass(frozen=True)
class SampleOptions:
    """Draw rows from a fitted run, in the units of its columns, as CSV or Parquet; any number fits in memory.

    Finished parts are kept in FILE.parts until all are done: after Ctrl-C or a crash, the same command goes on where it
    stopped.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a fitted run."""
    rows: Annotated[int, arg(aliases=["-n"])] = 1000
    """Number of rows, or of draws for each row of --given."""
    given: Annotated[Path | None, arg(metavar="TABLE")] = None
    """Rows that targets are drawn given, for a run that `rosenblatt fit --target` made."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """CSV or Parquet file to write; CSV on standard output by default. Of images: PNG of a grid, or NPY."""
    seed: int = 0
    """The same seed gives the same rows; another one gives others."""
    processes: int | None = None
    """Processes to use at most, each some 0.3 GB; one for every core by default. The rows do not depend on it."""


def run(_command: str, words: Sequence[str]) -> int:
    """Run the command."""
    options = parse(SampleOptions, words, PROG)
    for name in ("rows", "seed"):
        if getattr(options, name) < 0:
            raise OptionError(f"--{name}: {getattr(options, name)} came, 0 or more was expected.")
    from rosenblatt.cli.runs import open_flow
    from rosenblatt.cli.sampling import CHUNK_ROWS, SampleJob, Sampler
    from rosenblatt.cli.stream import stream
    from rosenblatt.data.chunks import row_chunks
    from rosenblatt.train import RunFolder

    store = RunFolder.open(options.run)
    if store.config.get("kind") == "images":
        from rosenblatt.cli.use_images import sample_images

        return sample_images(store, options)
    conditional = "given" in store.config
    if conditional != (options.given is not None):
        raise OptionError(
            f"--given: {options.run} holds the density of targets given other columns; add --given TABLE."
            if conditional
            else f"--given: {options.run} holds the density of all its columns, given none; leave --given out."
        )
    if options.given is not None:
        return _sample_given(options, options.given)
    flow, config = open_flow(options.run)
    job = SampleJob(options.run, RunFolder.open(options.run).digest(), options.seed)
    written = stream(
        job,
        Sampler(flow, options.seed),
        row_chunks(options.rows, CHUNK_ROWS),
        out=options.out,
        columns=config["columns"],
        processes=options.processes,
        facts=job.facts,
    )
    if options.out is not None:
        print(f"drew {written}", file=sys.stderr)
    return 0


def _sample_given(options: SampleOptions, table: Path) -> int:
    """Draw targets for each row of `table`."""
    from rosenblatt.cli.given import SampleTask, answer_rows

    if options.rows < 1:
        raise OptionError(f"--rows: {options.rows} came, 1 or more draws for each row of --given were expected.")
    task = SampleTask(options.rows, options.seed)
    written = answer_rows(options.run, table, task, out=options.out, processes=options.processes, times=options.rows)
    if options.out is not None:
        print(f"drew {written}", file=sys.stderr)
    return 0
