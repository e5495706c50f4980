"""Interleaved rounds and what is said of them: medians, and ratios taken within a round."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Series = list[float | None]  # one figure per round; None where the contestant sat the round out


@dataclass(frozen=True)
class Effort:
    """How many rounds; a contestant whose warm call takes longer than `slow_seconds` takes part in fewer."""

    rounds: int = 7
    slow_rounds: int = 3
    slow_seconds: float = 5.0
    seed: int = 0


def interleave(contestants: dict[str, Callable[[], float]], effort: Effort) -> dict[str, Series]:
    """Call every contestant once to warm up, then once per round in a random order."""
    shuffler = random.Random(effort.seed)
    warm = {name: measure() for name, measure in contestants.items()}
    series: dict[str, Series] = {name: [] for name in contestants}
    for number in range(effort.rounds):
        names = list(contestants)
        shuffler.shuffle(names)
        for name in names:
            sits_out = warm[name] > effort.slow_seconds and number >= effort.slow_rounds
            series[name].append(None if sits_out else contestants[name]())
    return series


def summary(rounds: Series) -> dict[str, Any]:
    """Median, range and number of the rounds taken part in."""
    taken = [value for value in rounds if value is not None]
    return {"seconds": statistics.median(taken), "seconds_range": [min(taken), max(taken)], "rounds": len(taken)}


def ratio(over: Series, under: Series, name: str = "ratio") -> dict[str, Any]:
    """Median and range, over the rounds that both took part in, of one figure divided by the other."""
    ratios = [a / b for a, b in zip(over, under, strict=True) if a is not None and b is not None]
    return {name: statistics.median(ratios), f"{name}_range": [min(ratios), max(ratios)]}
