"""`rosenblatt quantiles`: quantiles of targets given the rows of a table, chunk by chunk at constant memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rosenblatt.cli.options import parse
from rosenblatt.core.errors import OptionError

PROG = "rosenblatt quantiles"


@dataclass(frozen=True)
class QuantileOptions:
    """Quantiles of the targets of RUN, which `rosenblatt fit --target` made, given each row of TABLE, in its order.

    Writes a column TARGET_LEVEL for each target and level. With one target they are exact; with several they are each
    target's own, of 1,024 draws per row. The table needs the columns that the targets are given, by name, and may have
    more and be larger than memory. Finished parts are kept in FILE.parts until all are done.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """Folder of a fitted run."""
    table: Annotated[Positional[Path], arg(metavar="TABLE")]
    """File of rows."""
    levels: str = "0.05,0.5,0.95"
    """Levels above 0 and below 1, with commas between."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """CSV or Parquet file to write; CSV on standard output by default."""
    processes: int | None = None
    """Processes to use at most, each some 0.3 GB; one for every core by default."""


def run(_command: str, words: Sequence[str]) -> int:
    """Run the command."""
    options = parse(QuantileOptions, words, PROG)
    levels = _levels(options.levels)
    from rosenblatt.cli.given import QuantileTask, answer_rows, open_conditional

    _, _, config = open_conditional(options.run)
    task = QuantileTask(levels, int(config["fit"]["seed"]))
    written = answer_rows(options.run, options.table, task, out=options.out, processes=options.processes)
    print(f"made quantiles of {written}", file=sys.stderr)
    return 0


def _levels(text: str) -> tuple[float, ...]:
    try:
        levels = tuple(float(word) for word in text.split(","))
    except ValueError:
        levels = ()
    if not levels or not all(0 < level < 1 for level in levels) or len(set(levels)) < len(levels):
        raise OptionError(f"--levels: '{text}' came, different numbers above 0 and below 1 were expected, as 0.1,0.9.")
    return levels
