"""Pictures as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from rosenblatt.core.errors import DataError

DOTS_PER_INCH = 110


def write(figures: Mapping[str, Figure], folder: str | Path) -> list[Path]:
    """Save each figure as NAME.png in `folder`; raises `DataError` where it cannot be written to."""
    written = []
    for name, figure in figures.items():
        path = Path(folder) / f"{name}.png"
        try:
            figure.savefig(path, dpi=DOTS_PER_INCH)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); choose another folder.") from None
        written.append(path)
    return written
