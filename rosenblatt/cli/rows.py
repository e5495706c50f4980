"""From the options of a fit to checked rows: read, spread over their grid, split into fit and test rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from rosenblatt.cli.options import pairs
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Support
from rosenblatt.data import POWER_STEPS, Table, power
from rosenblatt.preparation import DEQUANTISE, TEST_SPLIT, grid_steps, parse_supports, require_finite, spread
from rosenblatt.train.runtime import seeded_generator

BUNDLED_SOURCE = "bundled power set"


@dataclass(frozen=True)
class RowsOptions:
    """Which rows to fit to and to test on."""

    table: Annotated[Positional[Path | None], arg(metavar="TABLE")] = None
    """File of rows; the bundled power set if left out."""
    target: str | None = None
    """Targets, as y1,y2, whose density given the other columns is fitted; without it, that of all columns."""
    columns: str | None = None
    """Columns to model (or to be given), in order, as a,b,c; all by default."""
    missing: Literal["error", "indicate"] = "error"
    """Missing values in given columns: an error, or the mean beside a column that says where."""
    weight: str | None = None
    """Column of row weights, which is then not modelled."""
    support: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="COLUMN=JSON")] = ()
    """Support of a column, such as price=[0,null]; the density is zero outside."""
    dequantise: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="COLUMN=STEP")] = ()
    """Spread a rounded column evenly over cells of this width, such as minute=1."""
    dequantise_auto: bool = False
    """Spread every column on a grid that the data check warns of over that grid's cells."""
    test: Annotated[Path | None, arg(metavar="TABLE")] = None
    """File of test rows; by default a random part of TABLE."""
    test_fraction: float = 0.1
    """Part of the rows held out for the test; 0 for none."""


@dataclass(frozen=True)
class Rows:
    """Rows to fit (validation rows among them) and to test on, and where they came from."""

    fit: Table
    test: Table | None
    source: str
    digest: str
    steps: dict[str, float]
    supports: dict[str, Support]
    notes: list[str]
    warnings: list[str]

    @property
    def test_rows(self) -> int:
        """Number of test rows."""
        return 0 if self.test is None else len(self.test)


def prepare(options: RowsOptions, seed: int) -> Rows:
    """Read, check and split; `DataError` or `OptionError` says what no density can be fitted to."""
    if not 0 <= options.test_fraction < 1:
        raise OptionError(f"--test-fraction: {options.test_fraction} came, at least 0 and below 1 was expected.")
    table, source = _read(options)
    table.check()
    steps = _steps(options, table)
    noisy = table.dequantise(steps, seeded_generator(seed, DEQUANTISE))
    supports = parse_supports(pairs(options.support, "support"), table.columns)
    warnings = noisy.check(support=supports)
    digest = table.digest()
    test = None
    if options.test is not None:
        test = _read_test(options, table.columns, steps, seed)
    elif options.test_fraction:
        noisy, test = _hold_out(noisy, options.test_fraction, seed)
    return Rows(noisy, test, source, digest, steps, supports, _notes(options, steps), warnings)


def _read(options: RowsOptions) -> tuple[Table, str]:
    columns = None if options.columns is None else [name.strip() for name in options.columns.split(",")]
    if options.table is None:
        return Table.from_any(power(dequantised=False), columns=columns, weight=options.weight), BUNDLED_SOURCE
    return Table.from_any(options.table, columns=columns, weight=options.weight), str(options.table)


def _read_test(options: RowsOptions, columns: tuple[str, ...], steps: Mapping[str, float], seed: int) -> Table:
    wanted = None if options.columns is None else columns
    test = Table.from_any(options.test, columns=wanted, weight=options.weight).align(columns)
    require_finite(test, str(options.test), least=2)
    return spread(test, steps, seed)


def _hold_out(table: Table, fraction: float, seed: int) -> tuple[Table, Table]:
    if round(fraction * len(table)) < 2 or round((1 - fraction) * len(table)) < 2:
        raise DataError(
            f"table: {len(table)} rows are too few to hold out a test part of {fraction:g}; bring more rows, "
            "or set --test-fraction 0."
        )
    fit, test = table.split((1 - fraction, fraction), seeded_generator(seed, TEST_SPLIT))
    return fit, test


def _steps(options: RowsOptions, table: Table) -> dict[str, float]:
    bundled = POWER_STEPS if options.table is None else {}
    steps = {name: step for name, step in bundled.items() if name in table.columns}
    steps |= grid_steps("auto" if options.dequantise_auto else None, table)
    return steps | grid_steps(pairs(options.dequantise, "dequantise"), table)


def _notes(options: RowsOptions, steps: Mapping[str, float]) -> list[str]:
    if not steps:
        return []
    shown = ", ".join(f"{name} {json.dumps(step)}" for name, step in steps.items())
    recipe = ", as its README says," if options.table is None else ""
    return [f"rounding: uniform noise of one cell{recipe} was added to {shown}; scores are per unit of these columns"]
