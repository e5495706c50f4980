"""What every picture shares: colours, column names, drawn rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes

from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError
from rosenblatt.data import Table

Floats = npt.NDArray[np.float64]
DATA, MODEL, BAND = "#404040", "#1f6fb4", "#d9d9d9"
OFF = "#d55e00"  # what is off, or came true: apart from the blue of models for every kind of colour vision
FAN = (0.22, 0.65)  # strength of the blue of the widest and the narrowest interval
LONGEST_LABEL = 32
# Several curves differ by colour (Okabe & Ito 2008) and by the pattern of their line.
SERIES = (
    (MODEL, "-"),
    (OFF, "--"),
    ("#009e73", "-."),
    ("#cc79a7", ":"),
    ("#e69f00", (0, (6, 1, 1, 1, 1, 1))),
    ("#000000", (0, (1, 1))),
)
MOST_COLUMNS = 12  # more panels than this are too small to read
MOST_ROWS = 20_000  # more rows change no picture
ROWS_AT_ONCE = 2048


class FittedDensity(Protocol):
    """An estimator with a fitted flow, such as `FlowDensity`."""

    model_: Any
    columns_: tuple[str, ...]

    def spread(self, X: object) -> Floats:
        """Rows as the flow was trained on."""


class Subject(NamedTuple):
    """A flow, the rows to hold it against, and their column names."""

    flow: Flow
    rows: Floats
    columns: tuple[str, ...]

    @property
    def shown(self) -> int:
        """How many columns get a panel."""
        return min(len(self.columns), MOST_COLUMNS)

    @property
    def remark(self) -> str:
        """What to say when columns are left out."""
        total = len(self.columns)
        return f" (first {MOST_COLUMNS} of {total} columns)" if total > MOST_COLUMNS else ""


def subject(model: Flow | FittedDensity, data: object, most: int = MOST_ROWS) -> Subject:
    """Bring a flow or an estimator and a table of any kind to one form, with at most `most` rows spread evenly.

    Raises `DataError` when the table has no rows, rows that are not finite or another number of columns.
    """
    if isinstance(model, Flow):
        flow, table = model, Table.from_any(data)
    else:
        flow, table = model.model_, Table.from_any(model.spread(data), columns=model.columns_)
    rows = table.rows(min(most, max(len(table), 1))).x
    if len(rows) == 0 or table.features != flow.features or not bool(torch.isfinite(rows).all()):
        raise DataError(
            f"data: {len(table)} rows of {table.features} columns came, finite rows of {flow.features} columns were "
            "expected; pass rows of the table that the model was fitted to."
        )
    return Subject(flow, rows.numpy(), table.columns)


def drawn(flow: Flow, n: int, seed: int) -> Floats:
    """`n` rows of the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = [
            flow.sample(min(ROWS_AT_ONCE, n - first), generator=generator).double().cpu()
            for first in range(0, n, ROWS_AT_ONCE)
        ]
    rows: Floats = torch.cat(parts).numpy()
    return rows


def samples_of(held: Subject, samples: object, n: int, seed: int) -> Floats:
    """Rows drawn by the caller, or `n` drawn now; `DataError` when theirs have another number of columns."""
    if samples is None:
        return drawn(held.flow, n, seed)
    rows: Floats = Table.from_any(samples).values.double().numpy()
    if rows.shape[1] != len(held.columns):
        raise DataError(
            f"samples: {rows.shape[1]} columns came, {len(held.columns)} were expected; pass rows drawn from the model."
        )
    return rows


def limits(rows: Floats) -> list[tuple[float, float]]:
    """For each column the range that holds all but a thousandth of the rows at either end, and some air."""
    low, high = np.quantile(rows, [0.001, 0.999], axis=0)
    air = 0.05 * np.where(high > low, high - low, 1.0)
    return list(zip((low - air).tolist(), (high + air).tolist(), strict=True))


def series_styles() -> Iterator[dict[str, Any]]:
    """Colour and line of each of several curves, as keywords of `Axes.plot`."""
    return ({"color": colour, "linestyle": line} for colour, line in SERIES)


def shortened(label: object) -> str:
    """A label that leaves room for the picture: the middle of a long one gives way to dots.

    >>> shortened("a name of a column that nobody has ever shortened")
    'a name of a colu… ever shortened'
    """
    text = " ".join(str(label).split())
    half = LONGEST_LABEL // 2
    return text if len(text) <= LONGEST_LABEL + 1 else f"{text[:half]}…{text[-half + 1 :]}"


def tidy(axes: Axes) -> None:
    """Leave out what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
