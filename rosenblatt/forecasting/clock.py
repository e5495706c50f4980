"""Regular times: the clock of a table whose rows are steps, and what the calendar says of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rosenblatt.core.errors import DataError, OptionError

Floats = npt.NDArray[np.float64]
SECOND = 10**9  # nanoseconds
HOUR, DAY = 3600 * SECOND, 86400 * SECOND
YEAR = 365.2425 * DAY
MONTH = YEAR / 12
CALENDAR = ("hour", "weekday", "year")
DAY_HARMONICS, YEAR_HARMONICS = 4, 3


@dataclass(frozen=True)
class Clock:
    """Times `start + i step`, i = 0, 1, ...

    unit: "ns" counts nanoseconds since 1970, "M" months since then (`offset` nanoseconds into each), "number" the units
    of a column of numbers, "row" nothing but rows.

    >>> Clock.of(np.array(["2024-01-31T00", "2024-01-31T06"], dtype="datetime64[h]"), "date").at([2])
    array(['2024-01-31T12:00:00.000000000'], dtype='datetime64[ns]')
    """

    unit: str = "row"
    start: float = 0
    step: float = 1
    offset: int = 0

    @classmethod
    def of(cls, times: npt.NDArray[Any], name: str) -> Clock:
        """The clock of a column of times; raises `DataError` where these are not regular."""
        if len(times) < 2:
            raise DataError(f"time column '{name}': {len(times)} rows came, at least 2 are needed to see the step.")
        if times.dtype.kind != "M":
            return cls._of_numbers(times.astype(np.float64), name)
        if np.isnat(times).any():
            raise DataError(f"time column '{name}': {int(np.isnat(times).sum())} times are missing; fill or drop them.")
        stamps = times.astype("datetime64[ns]")
        months = stamps.astype("datetime64[M]")
        within = (stamps - months.astype("datetime64[ns]")).astype(np.int64)
        steps = np.diff(months.astype(np.int64))
        if (within == within[0]).all() and steps[0] > 0 and (steps == steps[0]).all():
            return cls("M", int(months[0].astype(np.int64)), int(steps[0]), int(within[0]))
        count = stamps.astype(np.int64)
        step = _regular_step(count, stamps, name)
        return cls("ns", int(count[0]), int(step))

    @classmethod
    def _of_numbers(cls, times: Floats, name: str) -> Clock:
        if not np.isfinite(times).all():
            raise DataError(f"time column '{name}': {int((~np.isfinite(times)).sum())} times are missing; fill them.")
        return cls("number", float(times[0]), _regular_step(times, times, name))

    @property
    def dated(self) -> bool:
        """Whether steps have a date."""
        return self.unit in ("ns", "M")

    @property
    def nanoseconds(self) -> float:
        """Length of a step (months: on average); infinite where steps have no date."""
        return {"ns": self.step, "M": self.step * MONTH}.get(self.unit, math.inf)

    def at(self, index: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Times of the steps `index`."""
        number = np.asarray(index, dtype=np.int64)
        if self.unit == "ns":
            return (int(self.start) + number * int(self.step)).astype("datetime64[ns]")
        if self.unit == "M":
            months = (int(self.start) + number * int(self.step)).astype("datetime64[M]")
            return months.astype("datetime64[ns]") + np.timedelta64(self.offset, "ns")
        times: npt.NDArray[Any] = self.start + number * self.step
        return times if self.unit == "number" else number

    def index_of(self, time: object) -> int:
        """The step at `time`, a whole number being the step itself; raises `DataError` for a time between steps."""
        if isinstance(time, int | np.integer) and not isinstance(time, bool):
            return int(time)
        try:
            if self.dated:
                stamp = np.datetime64(str(time) if not isinstance(time, np.datetime64) else time).astype("M8[ns]")
                guess = round(float((stamp - self.at([0])[0]).astype(np.int64)) / self.nanoseconds)
                near = np.arange(guess - 1, guess + 2)
                found = near[self.at(near) == stamp]
            else:
                number = (float(str(time)) - self.start) / self.step
                found = np.array([round(number)])[np.isclose(number, [round(number)], rtol=0, atol=1e-6)]
        except ValueError:
            raise DataError(f"start: {time!r} is no time; give a step or a time such as {self.at([0])[0]}.") from None
        if not len(found):
            raise DataError(
                f"start: {time} is not a step of the table, whose first are {', '.join(map(str, self.at([0, 1])))}."
            )
        return int(found[0])

    def season(self) -> int | None:
        """Steps of the usual season: a day of times within it, a week of days, a year of months; None for others."""
        length = self.nanoseconds
        for period, shortest in ((DAY, 0), (7 * DAY, DAY), (YEAR, 25 * DAY)):
            steps = round(period / length) if math.isfinite(length) else 0
            if steps >= 2 and length >= shortest and abs(steps * length / period - 1) < 0.02:
                return steps
        return None

    def parts(self, calendar: bool | Sequence[str], rows: int) -> tuple[str, ...]:
        """Which parts of the calendar to tell a model of; `rows` is the length of the table.

        True takes the hour for steps within a day, the weekday for steps of at most a day, and the time of the year
        where the table is at least a year long. Raises `OptionError` for parts that are not known or without dates.
        """
        if isinstance(calendar, bool):
            span = self.nanoseconds * rows
            takes = {"hour": self.nanoseconds < DAY, "weekday": self.nanoseconds <= DAY}
            takes["year"] = self.nanoseconds < YEAR / 2 and span >= YEAR
            return tuple(part for part in CALENDAR if calendar and self.dated and takes[part])
        unknown = [part for part in calendar if part not in CALENDAR]
        if unknown or isinstance(calendar, str):
            raise OptionError(f"calendar: {calendar!r} came; give True, False or a list from {', '.join(CALENDAR)}.")
        if calendar and not self.dated:
            raise OptionError(
                "calendar: the table has no dates; name its column of dates as time=, or set calendar=False."
            )
        return tuple(calendar)

    def features(self, index: npt.NDArray[np.int64], parts: Sequence[str]) -> Floats:
        """Calendar of the steps `index` (n,) as numbers, (n, width): waves of hour and year, one column a weekday."""
        if not parts:
            return np.empty((len(index), 0))
        stamps = self.at(index).astype("datetime64[ns]")
        columns: list[Floats] = []
        if "hour" in parts:
            since = (stamps - stamps.astype("datetime64[D]").astype("datetime64[ns]")).astype(np.int64)
            columns += _waves(since / DAY, DAY_HARMONICS)
        if "weekday" in parts:
            weekday = (stamps.astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970-01-01 was a Thursday
            columns += [(weekday == day).astype(np.float64) for day in range(7)]
        if "year" in parts:
            since = (stamps - stamps.astype("datetime64[Y]").astype("datetime64[ns]")).astype(np.int64)
            columns += _waves(since / YEAR, YEAR_HARMONICS)
        return np.column_stack(columns)


def _waves(turns: Floats, harmonics: int) -> list[Floats]:
    angles = [2 * math.pi * order * turns for order in range(1, harmonics + 1)]
    return [wave(angle) for angle in angles for wave in (np.sin, np.cos)]


def _regular_step(count: npt.NDArray[Any], shown: npt.NDArray[Any], name: str) -> Any:
    """The one step of `count`; raises `DataError` that says where and how the times leave it."""
    steps = np.diff(count)
    for bad, what in ((steps == 0, "repeated times"), (steps < 0, "times that go back")):
        if bad.any():
            raise DataError(
                f"time column '{name}': {int(bad.sum())} {what} came, the first at {shown[1:][bad][0]}; sort the rows "
                "by time and keep one for each time."
            )
    step = np.median(steps)
    irregular = np.abs(steps - step) > 1e-6 * step
    if irregular.any():
        raise DataError(
            f"time column '{name}': {int(irregular.sum())} of {len(steps)} steps differ from the usual one, the first "
            f"after {shown[:-1][irregular][0]}; fill the gaps, or leave the column "
            "out (time=None) if each row is one step."
        )
    return step
