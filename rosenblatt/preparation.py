"""From what a caller passes to the rows, seeds and plain values that a fit takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Support
from rosenblatt.data import Images, Table
from rosenblatt.train import FitConfig
from rosenblatt.train.runtime import seeded_generator
from rosenblatt.train.session import SPLIT

Rows = TypeVar("Rows", Table, Images)
# Random streams that are never shared, neither with each other nor with those of training.
TEST_SPLIT, DEQUANTISE, SPREAD, SAMPLES = range(100, 104)


class DataWarning(UserWarning):
    """Something about the data that makes the density mean less than it seems to."""


def weighted(table: Table, sample_weight: object) -> Table:
    """`table` with one weight per row, if any came; checked as scikit-learn does."""
    if sample_weight is None:
        return table
    from sklearn.utils.validation import _check_sample_weight

    weight = _check_sample_weight(sample_weight, table.values.numpy(), dtype=np.float64)
    return Table(table.values, table.columns, torch.tensor(weight))


def take_rows(table: Table, chosen: Tensor) -> Table:
    """The rows of `table` where `chosen` (rows,) is true."""
    return Table(table.values[chosen], table.columns, None if table.weight is None else table.weight[chosen])


def hold_out(table: Rows, config: FitConfig) -> tuple[Rows, Rows | None]:
    """Training and held-out rows or images, as the `Fitter` splits; none are held out where there would be one."""
    fraction = config.validation_fraction
    if len(table) - round((1 - fraction) * len(table)) < 2:
        return table, None
    train, held_out = table.split((1 - fraction, fraction), seeded_generator(config.seed, SPLIT))
    return train, held_out


def grid_steps(dequantise: Mapping[str, Any] | str | None, table: Table) -> dict[str, float]:
    """Cell widths by column; "auto" takes the columns on a grid that the data check warns of."""
    if dequantise is None:
        return {}
    if isinstance(dequantise, Mapping):
        for name, step in dequantise.items():
            if isinstance(step, bool) or not isinstance(step, int | float | np.number):
                raise OptionError(f"dequantise: {step!r} came for column '{name}', a number was expected, such as 1.")
        return {str(name): float(step) for name, step in dequantise.items()}
    if dequantise != "auto":
        raise OptionError(f'dequantise: {dequantise!r} came; give {{"column": cell width}}, "auto" or None.')
    warned = [text for text in table.check() if "dequantise=" in text]
    steps = {name: table.grid_step(name) for name in table.columns if any(f"column '{name}':" in w for w in warned)}
    return {name: step for name, step in steps.items() if step is not None}


def spread(table: Table, steps: Mapping[str, float], seed: int) -> Table:
    """Rows that a model was not fitted to, spread over their cells as those were that it was fitted to."""
    return table.dequantise(steps, seeded_generator(seed, SPREAD)) if steps else table


def require_finite(table: Table, name: str = "X", *, least: int = 0) -> None:
    """Raise `DataError` for fewer than `least` rows, or one that names the first value which is NaN or infinite."""
    if len(table) < least:
        raise DataError(f"{name}: {len(table)} rows came, at least {least} are needed; bring more rows.")
    bad = ~torch.isfinite(table.values)
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise DataError(
            f"{name}: {int(bad.sum())} values are NaN or infinite, the first in row {row}, column "
            f"'{table.columns[column]}'; drop or fill those rows."
        )


def require_same_images(images: Images, facts: Mapping[str, Any], path: Path) -> None:
    """Raise `DataError` unless `images` are what the run at `path` was started with, by what it wrote down."""
    if images.digest() != facts.get("digest"):
        raise DataError(
            f"X: {len(images)} images came that differ from the {facts.get('rows')} images the run {path} was started "
            "with (SHA-256); pass the same images, in the same order."
        )


def require_same_rows(table: Table, facts: Mapping[str, Any], path: Path) -> None:
    """Raise `DataError` unless `table` is what the run at `path` was started with, by what it wrote down."""
    if table.digest() != facts.get("digest"):
        raise DataError(
            f"X: {len(table)} rows came that differ from the {facts.get('rows')} rows the run {path} was started with "
            "(SHA-256); pass the same table, in the same order, with the same weights."
        )


def source_of(X: object) -> dict[str, Any]:
    """What to write down about where rows came from."""
    if isinstance(X, str | Path):
        return {"source": str(Path(X).resolve()), "is_file": True}
    return {"source": type(X).__name__, "is_file": False}


def seed_of(random_state: int | np.random.RandomState | None) -> int:
    """A whole number for `random_state`; None gives a fresh one."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    raise OptionError(f"random_state: {random_state!r} came, a whole number >= 0, a RandomState or None was expected.")


def plain(value: Any) -> Any:
    """Python values for NumPy scalars, which parameter grids hold, inside lists and dictionaries too."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def parse_supports(support: Mapping[str, Any] | Sequence[Any] | None, columns: Sequence[str]) -> dict[str, Support]:
    """Read `{"price": [0, None]}`, or one pair or None per column, into supports by column name.

    Raises `OptionError` for a name that is no column or a pair that is no interval.

    >>> parse_supports([None, (0, 1)], ["a", "b"])
    {'b': Support(lower=0.0, upper=1.0)}
    """
    if support is None:
        return {}
    if not isinstance(support, Mapping):
        if isinstance(support, str) or len(support) != len(columns):
            raise OptionError(
                f"support: {support!r} came for {len(columns)} columns; give one [lower, upper] or None per column."
            )
        support = dict(zip(columns, support, strict=True))
    parsed = {}
    for name, pair in support.items():
        if name not in columns:
            raise OptionError(f"support: there is no column '{name}'; the columns are {', '.join(columns)}.")
        if pair is not None:
            parsed[name] = pair if isinstance(pair, Support) else _interval(name, pair)
    return {name: interval for name, interval in parsed.items() if not interval.whole_line}


def _interval(name: str, pair: Any) -> Support:
    try:
        lower, upper = pair
        return Support(-math.inf if lower is None else float(lower), math.inf if upper is None else float(upper))
    except (TypeError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(
            f"support: {pair!r} came for column '{name}', a pair [lower, upper] was expected; None means no bound."
        ) from None
