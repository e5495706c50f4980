"""`rosenblatt sample`: draw new rows."""

from __future__ import annotations

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
    """Draw rows from a fitted run, in the units of its columns, as CSV or Parquet; any number fits in memory."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a fitted run."""
    rows: Annotated[int, arg(aliases=["-n"])] = 1000
    """Number of rows."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """CSV or Parquet file to write; CSV on standard output by default."""
    seed: int = 0
    """The same seed gives the same rows; another one gives others."""


def run(_command: str, words: Sequence[str]) -> int:
    """Run the command."""
    options = parse(SampleOptions, words, PROG)
    for name in ("rows", "seed"):
        if getattr(options, name) < 0:
            raise OptionError(f"--{name}: {getattr(options, name)} came, 0 or more was expected.")
    from rosenblatt.cli.outputs import sample_chunks
    from rosenblatt.cli.runs import open_flow
    from rosenblatt.cli.stream import write_rows
    from rosenblatt.preparation import SAMPLES
    from rosenblatt.train.runtime import seeded_generator

    flow, config = open_flow(options.run)
    chunks = sample_chunks(flow, options.rows, seeded_generator(options.seed, SAMPLES))
    write_rows(options.out, config["columns"], chunks)
    return 0
