"""Do stated intervals hold as many rows as they claim, over all rows and in every group of them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.pits import checked_pit, doubles

LEVELS = (0.5, 0.8, 0.95)


class Coverage(NamedTuple):
    """Share of rows inside central intervals: level (levels,), all others (levels, targets).

    low, high: exact confidence interval of the true share, at each level and target for itself.
    """

    level: Tensor
    share: Tensor
    low: Tensor
    high: Tensor


def clopper_pearson(successes: Any, trials: Any, *, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Exact confidence interval of a probability: quantiles of Beta(k, n - k + 1) and Beta(k + 1, n - k).

    Holds the truth with probability at least `confidence` for any truth and any n (Clopper & Pearson 1934).
    `successes` k and `trials` n broadcast. Raises `DataError` unless 0 <= k <= n and n >= 1, `OptionError` for a
    confidence outside (0, 1).

    >>> [round(float(end), 4) for end in clopper_pearson(8, 10)]
    [0.4439, 0.9748]
    """
    k, n = (doubles(part).numpy() for part in (successes, trials))
    if not bool(np.all((k >= 0) & (k <= n) & (n >= 1))):
        raise DataError("successes, trials: 0 <= successes <= trials and trials >= 1 were expected.")
    _check_probability("confidence", confidence)
    tail = (1 - confidence) / 2
    # The beta laws degenerate at k = 0 and k = n, where the interval ends at 0 and 1; maximum keeps scipy from NaN.
    low = np.where(k > 0, stats.beta.ppf(tail, np.maximum(k, 1), n - k + 1), 0.0)
    high = np.where(k < n, stats.beta.isf(tail, k + 1, np.maximum(n - k, 1)), 1.0)
    return torch.as_tensor(low), torch.as_tensor(high)


def coverage(pit: Any, levels: Sequence[float] = LEVELS, *, confidence: float = 0.95) -> Coverage:
    """Share of rows in the central interval of each level: `mean_i 1[(1 - level) / 2 <= pit_i <= (1 + level) / 2]`.

    `pit` is (rows,) or (rows, targets). Raises `DataError` as `checked_pit`, `OptionError` for a level outside (0, 1).

    >>> coverage(torch.linspace(0.005, 0.995, 100), [0.5]).share.item()
    0.5
    """
    u = checked_pit(pit)
    if not levels:
        raise OptionError("levels: none came, at least one probability in (0, 1) was expected.")
    for level in levels:
        _check_probability("levels", level)
    at = torch.tensor(list(levels), dtype=torch.float64)
    inside = torch.stack([within(u, level).sum(dim=0) for level in levels])
    low, high = clopper_pearson(inside, len(u), confidence=confidence)
    return Coverage(at, inside.double() / len(u), low, high)


def within(pit: Tensor, interval: float | tuple[float, float]) -> Tensor:
    """Where `pit` lies in an interval: that between two levels, or the central one of a level."""
    low, high = _ends(interval)
    return (pit >= low) & (pit <= high)


@dataclass(frozen=True)
class GroupCoverage:
    """Coverage of one interval in groups of rows.

    names: the groups; rows: (groups,); share, low, high, p_value: (groups, targets), with exact confidence intervals,
    each for itself, and p-values corrected for the number of groups and targets (Holm); nominal: what the interval
    claims; false_alarm: probability that a right model has any group called off.
    """

    names: tuple[str, ...]
    rows: Tensor
    share: Tensor
    low: Tensor
    high: Tensor
    p_value: Tensor
    nominal: float
    false_alarm: float

    @property
    def off(self) -> Tensor:
        """Which groups are off, (groups, targets)."""
        return self.p_value <= self.false_alarm

    @property
    def calibrated(self) -> bool:
        """Whether no group of any target is off."""
        return not bool(self.off.any())

    def __str__(self) -> str:
        lines = [f"Coverage of {self.nominal:.4g} in {len(self.names)} groups, false alarm {self.false_alarm:g}"]
        for group, name in enumerate(self.names):
            for target in range(self.share.shape[1]):
                of = f", target {target}" if self.share.shape[1] > 1 else ""
                share, low, high, p_value = (
                    float(part[group, target]) for part in (self.share, self.low, self.high, self.p_value)
                )
                lines.append(
                    f"  {name}{of}: {share:.3f} ({low:.3f} to {high:.3f}) of {int(self.rows[group])} rows, "
                    f"p {p_value:.3g}, {'off' if self.off[group, target] else 'ok'}"
                )
        return "\n".join(lines)


def coverage_by_group(
    pit: Any,
    groups: Any,
    *,
    interval: float | tuple[float, float] = 0.8,
    bins: int | None = None,
    confidence: float = 0.95,
    false_alarm: float = 0.05,
) -> GroupCoverage:
    """Coverage of one interval in each group of rows, and which groups are off.

    `groups` are labels, one a row, or with `bins` a column of numbers, cut into that many groups of about equal size.
    `interval` is the level of a central interval, or two levels: (0, 0.5) asks whether the median is right in each
    group, which a central interval hardly sees. A group's p-value is twice the smaller tail of the binomial law; all
    are corrected by Holm (1979), so that a right model has any group off with probability at most `false_alarm`,
    however the groups depend. The groups must not be chosen by looking at y. Raises `DataError` as `checked_pit` or for
    labels that do not fit the rows, `OptionError` for bad numbers.

    >>> found = coverage_by_group(torch.linspace(0.005, 0.995, 100), ["low"] * 50 + ["high"] * 50)
    >>> found.names, found.share.flatten().tolist(), found.calibrated
    (('high', 'low'), [0.8, 0.8], True)
    >>> coverage_by_group(torch.full((40,), 0.5), torch.arange(40.0), bins=2).off.flatten().tolist()
    [True, True]
    """
    u = checked_pit(pit)
    _check_probability("false_alarm", false_alarm)
    start, end = _ends(interval)
    names, place = _binned(groups, bins, len(u)) if bins is not None else _labelled(groups, len(u))
    count = torch.bincount(place, minlength=len(names)).double()
    inside = torch.zeros(len(names), u.shape[1], dtype=torch.float64)
    inside.index_add_(0, place, within(u, (start, end)).double())
    trials = count.unsqueeze(-1)
    low, high = clopper_pearson(inside, trials, confidence=confidence)
    law = stats.binom(trials.numpy(), end - start)
    tails = np.minimum(law.cdf(inside.numpy()), law.sf(inside.numpy() - 1))
    p_value = holm(torch.from_numpy(np.minimum(2 * tails, 1.0)))
    return GroupCoverage(names, count.long(), inside / trials, low, high, p_value, end - start, false_alarm)


def holm(p_value: Tensor) -> Tensor:
    """Correct p-values of any shape for their number: calling all below a off has family-wise error a (Holm 1979).

    `q_(k) = max_{j <= k} min(1, (m - j + 1) p_(j))` over the m ordered p-values.

    >>> holm(torch.tensor([0.01, 0.04, 0.03], dtype=torch.float64)).tolist()
    [0.03, 0.06, 0.06]
    """
    ordered, order = p_value.flatten().sort()
    many = len(ordered)
    corrected = (ordered * torch.arange(many, 0, -1)).cummax(dim=0).values.clamp(max=1.0)
    return torch.empty_like(ordered).index_copy_(0, order, corrected).reshape(p_value.shape)


def _labelled(groups: Any, rows: int) -> tuple[tuple[str, ...], Tensor]:
    labels = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if labels.shape != (rows,):
        raise DataError(f"groups: shape {labels.shape} came, ({rows},) was expected: one label a row.")
    if labels.dtype.kind == "f":
        if bool(np.isnan(labels).any()):
            raise DataError("groups: NaN came; give the rows with a missing value a label of their own.")
    elif labels.dtype.kind == "O":
        labels = np.array([str(label) for label in labels])
    found, place = np.unique(labels, return_inverse=True)
    return tuple(str(label) for label in found), torch.from_numpy(place.reshape(-1))


def _binned(groups: Any, bins: int, rows: int) -> tuple[tuple[str, ...], Tensor]:
    values = doubles(groups)
    if values.shape != (rows,) or not bool(torch.isfinite(values).all()):
        raise DataError(f"groups: shape {tuple(values.shape)} came, ({rows},) finite numbers were expected to cut.")
    if not 1 <= bins <= rows:
        raise OptionError(f"bins: {bins} came, an integer from 1 to the {rows} rows was expected.")
    # By middle ranks: equal numbers stay in one group, so ties may leave fewer groups than asked for.
    ranks = torch.from_numpy(stats.rankdata(values.numpy()) - 0.5)
    _, place = (ranks * bins / rows).long().unique(return_inverse=True)
    names = []
    for group in range(int(place.max()) + 1):
        members = values[place == group]
        low, high = float(members.min()), float(members.max())
        names.append(f"{low:.4g} to {high:.4g}" if high > low else f"{low:.4g}")
    return tuple(names), place


def _ends(interval: float | tuple[float, float]) -> tuple[float, float]:
    if isinstance(interval, tuple | list):
        low, high = interval
    else:
        low, high = (1 - interval) / 2, (1 + interval) / 2
    if not 0 <= low < high <= 1 or high - low >= 1:
        raise OptionError(f"interval: {interval} came, a level in (0, 1) or two increasing levels were expected.")
    return low, high


def _check_probability(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise OptionError(f"{name}: {value} came, a probability in (0, 1) was expected.")
