"""Fitted runs, opened for use, and the rows that they were tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rosenblatt.assembly import TableFlow, restore
from rosenblatt.core.errors import DataError
from rosenblatt.data import Table
from rosenblatt.preparation import require_finite, spread
from rosenblatt.train import RunFolder


def open_flow(path: Path) -> tuple[TableFlow, dict[str, Any]]:
    """Load the best weights of a run; scores are made in float64, so that neighbouring rows do not matter."""
    flow, config = restore(RunFolder.open(path))
    return flow.double().eval(), config


def rows_for(store: RunFolder, data: Path | None, *, as_is: bool) -> Table:
    """Rows to hold a run against: a file's, spread over their grid as the fit did, or the run's own test rows."""
    from rosenblatt.cli.fit import stored_options
    from rosenblatt.cli.rows import prepare

    if data is not None:
        table = Table.from_any(data, columns=store.config["columns"])
        require_finite(table, str(data), least=2)
        return table if as_is else spread(table, store.config["dequantise"], store.config["fit"]["seed"])
    options = stored_options(store, "give the rows to use with --data")
    rows = prepare(options, options.fit.seed)
    if rows.digest != store.config["data"]["digest"]:
        raise DataError(
            f"{rows.source}: the table changed since the run {store.path} began; give the rows to use with --data."
        )
    return rows.fit if rows.test is None else rows.test
