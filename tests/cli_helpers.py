"""Small tables and fast settings for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rosenblatt.data import write_table

COLUMNS = ("length", "mass", "price")
QUICK = ("--option", "hidden=8", "--option", "widths=[4,1]", "--max-steps", "30", "--batch-size", "32")
PLAIN = (*QUICK, "--no-plots", "--samples", "20")


def rows(count: int = 300, seed: int = 0) -> np.ndarray:
    """Three dependent columns in unlike units."""
    noise = np.random.default_rng(seed).normal(size=(count, 3))
    length = 1.7 + 0.1 * noise[:, 0]
    mass = 70 + 40 * (length - 1.7) + 5 * noise[:, 1]
    return np.column_stack([length, mass, np.exp(0.5 * noise[:, 2])])


def write(path: Path, values: np.ndarray | None = None, columns: tuple[str, ...] = COLUMNS) -> str:
    """Write a table and return its path as a word of a command."""
    write_table(path, columns, rows() if values is None else values)
    return str(path)


def one_sentence(text: str) -> str:
    """The complaint on standard error, after checking that it is one line and no traceback."""
    complaints = [line for line in text.splitlines() if not line.startswith("rosenblatt: warning")]
    assert len(complaints) == 1, text
    assert complaints[0].startswith("rosenblatt: "), text
    assert "Traceback" not in text
    assert "unexpected error" not in text
    return complaints[0]
