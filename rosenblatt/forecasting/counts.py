"""Lags and other whole numbers, chosen or checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rosenblatt.core.errors import OptionError
from rosenblatt.forecasting.clock import DAY, Clock


def default_lags(clock: Clock, season: int | None) -> tuple[int, ...]:
    """Lags 1 to 8, about one season back, and for times within a day a week back.

    >>> default_lags(Clock("ns", 0, 3600 * 10**9), 24)
    (1, 2, 3, 4, 5, 6, 7, 8, 23, 24, 25, 168)
    """
    found = set(range(1, 9))
    if season is not None:
        found |= {season - 1, season, season + 1}
        if clock.dated and clock.nanoseconds < DAY:
            found.add(7 * season)
    return tuple(sorted(found - {0}))


def chosen_lags(lags: int | Sequence[int]) -> tuple[int, ...]:
    """The lags of a number (1 to so many) or a list, each once; raises `OptionError` for what are no lags."""
    listed = list(range(1, count("lags", lags) + 1)) if isinstance(lags, int | np.integer) else list(lags)
    for lag in listed:
        count("lags", lag)
    return tuple(sorted(set(map(int, listed))))


def count(name: str, value: Any, least: int = 1) -> int:
    """`value` as a whole number; raises `OptionError` where it is none of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise OptionError(f"{name}: {value!r} came, a whole number of at least {least} was expected.")
    return int(value)
