"""Draw the bundled POWER sample from the full file: `python make_bundled_power.py SOURCE.npz OUT.parquet`."""

from __future__ import annotations

import sys

import numpy as np

from rosenblatt.data import POWER_STEPS, write_table

ROWS = 60_000
SEED = 0


def main(source: str, out: str) -> None:
    """Choose training rows at random and store them in their order, before any noise, in physical units."""
    with np.load(source, allow_pickle=False) as file:
        readings = {name: file[f"train_{name}"] for name in ("gap_w", "voltage_cv", "sub_metering", "minute")}
    chosen = np.sort(np.random.default_rng(SEED).choice(len(readings["minute"]), ROWS, replace=False))
    rows = np.column_stack(
        [
            readings["gap_w"][chosen] / 1e3,
            readings["voltage_cv"][chosen] / 1e2,
            readings["sub_metering"][chosen],
            readings["minute"][chosen],
        ]
    )
    write_table(out, list(POWER_STEPS), rows)


if __name__ == "__main__":
    main(*sys.argv[1:3])
