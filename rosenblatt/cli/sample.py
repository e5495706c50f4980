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
    stopped. A run of images draws images, as a grid (PNG) or as an array (NPY: count, channels, height, width). With
    `--given IMAGES --known ROWS` it completes images of which the first rows of pixels are known: each line of the grid
    has what is known on grey, the draws, and the image as it was, of 16 images at most; the array is (images, draws,
    channels, height, width), of all.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a fitted run."""
    rows: Annotated[int | None, arg(aliases=["-n"], metavar="INT")] = None
    """Number of rows, or of draws for each row of --given; 1000 by default, for each image of --given 8."""
    given: Annotated[Path | None, arg(metavar="FILE")] = None
    """Rows that targets are drawn given, for a run that `rosenblatt fit --target` made; or images to complete."""
    known: Annotated[int | None, arg(metavar="ROWS")] = None
    """Rows of pixels, from the top, that are kept of each image of --given; those below are drawn given them."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """CSV or Parquet file to write; CSV on standard output by default. Of images: PNG of a grid, or NPY."""
    seed: int = 0
    """The same seed gives the same rows; another one gives others."""
    processes: int | None = None
    """Processes to use at most, each some 0.3 GB; one for every core by default. The rows do not depend on it."""

    def count(self, usual: int = 1000) -> int:
        """How many rows or draws are asked for."""
        return usual if self.rows is None else self.rows


def run(_command: str, words: Sequence[str]) -> int:
    """Run the command."""
    options = parse(SampleOptions, words, PROG)
    for name in ("rows", "seed"):
        if (getattr(options, name) or 0) < 0:
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
    if options.known is not None:
        raise OptionError(f"--known: is for images, {options.run} holds the density of a table; leave --known out.")
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
        row_chunks(options.count(), CHUNK_ROWS),
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

    draws = options.count()
    if draws < 1:
        raise OptionError(f"--rows: {draws} came, 1 or more draws for each row of --given were expected.")
    task = SampleTask(draws, options.seed)
    written = answer_rows(options.run, table, task, out=options.out, processes=options.processes, times=draws)
    if options.out is not None:
        print(f"drew {written}", file=sys.stderr)
    return 0
