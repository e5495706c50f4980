"""`rosenblatt score`: log-density and p-values of rows, chunk by chunk at constant memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from rosenblatt.cli.options import parse
from rosenblatt.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from rosenblatt.assembly import TableFlow
    from rosenblatt.data import Table

PROG = "rosenblatt score"


@dataclass(frozen=True)
class ScoreOptions:
    """Score the rows of TABLE (CSV, Parquet, NPZ, NPY) by a fitted run, in the order of the file.

    Writes `log_density`, in nats and in the units of the columns (-inf outside a declared support), and for each column
    p_COLUMN = 2 min(u, 1 - u), the two-sided p-value of its Rosenblatt transform u: uniform if the model is right, near
    0 for a value that is extreme given the columns read before it. The table may be larger than memory.
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


def run(_command: str, words: Sequence[str]) -> int:
    """Run the command."""
    options = parse(ScoreOptions, words, PROG)
    from rosenblatt.cli.runs import open_flow
    from rosenblatt.cli.stream import write_rows

    flow, config = open_flow(options.run)
    steps = config["dequantise"]
    _say_about_grid(options, steps)
    scored = Scored(flow, config["columns"], steps if options.dequantise else {}, options)
    names = ["log_density", *(f"p_{name}" for name in config["columns"] if scored.has_cdf)]
    started = time.monotonic()
    write_rows(options.out, names, iter(scored))
    seconds = max(time.monotonic() - started, 1e-9)
    print(
        f"scored {scored.rows:,} rows in {seconds:.1f} s ({scored.rows / seconds:,.0f} rows/s)"
        + (f", {scored.bad_rows:,} of them without a score" if scored.bad_rows else ""),
        file=sys.stderr,
    )
    return 0


class Scored:
    """The scores of a table, made chunk by chunk while they are iterated."""

    def __init__(
        self, flow: TableFlow, columns: Sequence[str], steps: Mapping[str, float], options: ScoreOptions
    ) -> None:
        from rosenblatt.core.density import FactorisedDensity

        self.flow, self.columns, self.steps, self.options = flow, columns, steps, options
        self.has_cdf = isinstance(flow.base, FactorisedDensity)
        self.rows = self.bad_rows = 0

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (rows, 1 + columns) scores."""
        from rosenblatt.data import iter_table
        from rosenblatt.preparation import SPREAD
        from rosenblatt.train.runtime import seeded_generator

        noise = seeded_generator(self.options.seed, SPREAD)
        wanted = self.columns if self.options.reorder else None
        for table in iter_table(self.options.table, columns=wanted):
            aligned = self._aligned(table)
            self._look_for_bad_rows(aligned.values)
            yield self.flow.by_rows(self._scores, aligned.dequantise(self.steps, noise).values)
            self.rows += len(table)

    def _aligned(self, table: Table) -> Table:
        try:
            return table.align(self.columns)
        except DataError as error:
            if set(self.columns) - set(table.columns):
                raise DataError(f"{self.options.table}: {error}") from None
            cure = "on the command line, --reorder takes the model's columns by name."
            raise DataError(f"{self.options.table}: {str(error).rstrip('.')}; {cure}") from None

    def _look_for_bad_rows(self, values: Tensor) -> None:
        import torch

        bad = ~torch.isfinite(values).all(dim=1)
        if not bad.any():
            return
        self.bad_rows += int(bad.sum())
        if not self.options.keep_bad_rows:
            row = int(bad.nonzero()[0])
            column = self.columns[int((~torch.isfinite(values[row])).nonzero()[0])]
            raise DataError(
                f"{self.options.table}: row {self.rows + row} (counted from 0) has a missing or infinite value in "
                f"column '{column}'; drop or fill it, or add --keep-bad-rows for empty scores."
            )

    def _scores(self, x: Tensor) -> Tensor:
        import torch

        if self.has_cdf:
            log_prob, below, above = self.flow.log_prob_and_uniform(x)
            scores = torch.cat([log_prob.unsqueeze(1), 2 * torch.minimum(below, above)], dim=1)
        else:
            scores = self.flow.log_prob(x).unsqueeze(1)
        bad = ~torch.isfinite(x).all(dim=1, keepdim=True)
        return torch.where(bad, torch.nan, scores)


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
