"""Models compared on the same rows: paired tests of their scores, and a table with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from scipy import stats
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.bits import Difference, Estimate

BEST, LEVEL_WITH_BEST = "*", "~"


def paired_t(first: Tensor, second: Tensor) -> Difference:
    """Paired t test of two models' scores of the same, independent rows: mean of `first - second`, both (rows,).

    `t = mean / (s / sqrt(n))` against the t law with n - 1 degrees of freedom, two-sided: exact for normal differences
    (Student 1908). Where scores are infinite the difference is, with a standard error and a p-value of NaN.
    Raises `DataError` for other lengths, fewer than two rows or a NaN.

    >>> difference = paired_t(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 1.5, 2.5]))
    >>> round(difference.value, 4), round(difference.p_value, 4)
    (1.0, 0.0742)
    """
    return diebold_mariano(first, second, lags=0)


def diebold_mariano(first: Tensor, second: Tensor, *, lags: int | None = None) -> Difference:
    """Paired test for rows in the order of time, whose differences may depend on their neighbours (Diebold & Mariano).

    Mean of `first - second` over its `newey_west` standard error with `lags` lags, against the t law with n - 1 degrees
    of freedom, two-sided. `lags=0` is the paired t test; without `lags` it is `default_lags(n)`, and for forecasts h
    steps ahead give at least h - 1. Raises as `paired_t`, and `OptionError` for lags outside [0, n).
    References: Diebold & Mariano, J. Business & Economic Statistics 13, 1995; Newey & West, Econometrica 55, 1987.

    >>> trend = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 2.0, 2.0])
    >>> steps = [diebold_mariano(trend, torch.zeros(8), lags=lags) for lags in (0, 2)]
    >>> steps[0].standard_error < steps[1].standard_error  # the rows say less than eight independent ones
    True
    """
    first, second = _scores("first", first), _scores("second", second)
    if first.shape != second.shape:
        raise DataError(f"second: {len(second)} rows came, {len(first)} were expected; score the same rows.")
    difference = first - second
    if bool(torch.isnan(difference).any()):
        raise DataError("first, second: both are infinite in the same rows, where they have no difference; drop these.")
    value, error = newey_west(difference, lags=lags)
    if error == 0:
        return Difference(value, 0.0, 1.0 if value == 0 else 0.0)
    return Difference(value, error, float(2 * stats.t.sf(abs(value) / error, len(difference) - 1)))


def newey_west(values: Tensor, *, lags: int | None = None) -> Estimate:
    """Mean of a series (rows,) with a standard error that allows for dependence up to `lags` rows apart.

    `sqrt((g_0 + 2 sum_{k=1}^L (1 - k / (L + 1)) g_k) / (n - 1))` with the autocovariances `g_k`, sums over n; the
    weights of Bartlett keep it from being negative. `lags=0` is the usual standard error; without `lags` it is
    `default_lags(n)`. An infinite row makes the mean infinite and the error NaN.
    Raises `DataError` for fewer than two rows or a NaN, `OptionError` for lags outside [0, n).

    >>> print(newey_west(torch.tensor([-1.0, -3.0]), lags=0))
    -2.0000 +- 1.0000
    """
    values = _scores("values", values)
    count = len(values)
    lags = default_lags(count) if lags is None else lags
    if not 0 <= lags < count:
        raise OptionError(f"lags: {lags} came for {count} rows, an integer from 0 to {count - 1} was expected.")
    mean = values.mean()
    if not bool(torch.isfinite(mean)):
        return Estimate(float(mean), math.nan)
    offset = values - mean
    variance = offset.square().sum()
    for lag in range(1, lags + 1):
        variance = variance + 2 * (1 - lag / (lags + 1)) * (offset[lag:] * offset[:-lag]).sum()
    return Estimate(float(mean), math.sqrt(max(float(variance), 0.0) / (count * (count - 1))))


def default_lags(rows: int) -> int:
    """Lags that grow with the series, `floor(4 (n / 100)^(2/9))`, and at most n - 1 (Newey & West 1994).

    >>> default_lags(100), default_lags(1000)
    (4, 6)
    """
    return max(0, min(rows - 1, int(4 * math.pow(rows / 100, 2 / 9))))


class ScoreTable:
    """Mean scores of several models on the same rows, with standard errors and marks; less is better.

    `scores` holds each model's scores by name, (rows,) each, as `PredictiveScores.columns` gives them; a model may lack
    some. In every column `*` marks the least mean, and `~` each model that a paired test does not tell from it:
    `diebold_mariano` with `lags` (0, the t test, for independent rows), p above `false_alarm` divided by the number of
    models compared with it (Bonferroni). Columns of `indicators`, such as coverage, are shown without marks.
    Raises `DataError` where rows differ in number or a score is NaN, `OptionError` for no model or no column.

    >>> rows = torch.arange(8.0)
    >>> print(ScoreTable({"a": {"CRPS": rows}, "b": {"CRPS": rows + 1}}))
    model             CRPS
    a      3.5000 (0.8660) *
    b      4.5000 (0.8660)
    """

    def __init__(
        self,
        scores: Mapping[str, Mapping[str, Tensor]],
        *,
        indicators: Mapping[str, Mapping[str, Tensor]] | None = None,
        lags: int | None = 0,
        false_alarm: float = 0.05,
    ) -> None:
        if not 0 < false_alarm < 1:
            raise OptionError(f"false_alarm: {false_alarm} came, a probability in (0, 1) was expected.")
        self.lags, self.false_alarm = lags, false_alarm
        self.scores = {model: dict(columns) for model, columns in scores.items()}
        self.indicators = {model: dict(columns) for model, columns in (indicators or {}).items()}
        self.ranked = list(dict.fromkeys(name for columns in self.scores.values() for name in columns))
        self.unranked = list(dict.fromkeys(name for columns in self.indicators.values() for name in columns))
        if not self.ranked:
            raise OptionError("scores: none came, one model with one score at least was expected.")
        unknown = set(self.indicators) - set(self.scores)
        if unknown or set(self.ranked) & set(self.unranked):
            raise OptionError("indicators: they name a model or a column that `scores` does not leave to them.")
        lengths = {len(values) for values in self._all_values()}
        if len(lengths) > 1:
            raise DataError(f"scores: {sorted(lengths)} rows came; score all models at the same rows.")

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order given."""
        return list(self.scores)

    def estimate(self, model: str, column: str) -> Estimate | None:
        """Mean and standard error of a column, or None where the model lacks it."""
        values = self._values(model).get(column)
        return None if values is None else newey_west(values, lags=self.lags)

    def estimates(self, *columns: str) -> dict[str, dict[str, Estimate]]:
        """Means with errors of `columns` (by default all scores) by model, as `plot.score_table` draws them.

        Raises `OptionError` where a model lacks one.
        """
        found: dict[str, dict[str, Estimate]] = {}
        for model in self.models:
            means = {column: self.estimate(model, column) for column in columns or self.ranked}
            known = {column: mean for column, mean in means.items() if mean is not None}
            if len(known) < len(means):
                raise OptionError(f"columns: '{model}' lacks some of {list(means)}; name those that all models have.")
            found[model] = known
        return found

    def versus(self, first: str, second: str, column: str) -> Difference:
        """Paired test of two models: mean of `first - second`, below 0 where the first is better."""
        pair = [self._values(model).get(column) for model in (first, second)]
        if pair[0] is None or pair[1] is None:
            raise OptionError(f"column: '{column}' is not known of both '{first}' and '{second}'.")
        return diebold_mariano(pair[0], pair[1], lags=self.lags)

    def best(self, column: str) -> str:
        """The model of least mean in a column of scores."""
        means = {model: self.estimate(model, column) for model in self.models}
        known = {model: mean.value for model, mean in means.items() if mean is not None}
        if column not in self.ranked or not known:
            raise OptionError(f"column: '{column}' came, one of {', '.join(self.ranked)} was expected.")
        return min(known, key=lambda model: known[model])

    def mark(self, model: str, column: str) -> str:
        """`*` for the best of a column, `~` for one not told from it, else nothing."""
        if column not in self.ranked or self.estimate(model, column) is None:
            return ""
        best = self.best(column)
        if model == best:
            return BEST
        rivals = sum(column in columns for columns in self.scores.values()) - 1
        mean = self.estimate(model, column)
        if mean is None or math.isinf(mean.value):
            return ""
        return LEVEL_WITH_BEST if self.versus(model, best, column).p_value > self.false_alarm / rivals else ""

    def rows(self) -> list[dict[str, str | float | None]]:
        """One dictionary for each model and column: model, score, mean, standard_error, mark, and against the best.

        `difference` from the best, its `difference_error` and `p_value` (not corrected) are None in columns that are
        not ranked, and where the model is the best itself.
        """
        found: list[dict[str, str | float | None]] = []
        for model in self.models:
            for column in (*self.ranked, *self.unranked):
                mean = self.estimate(model, column)
                if mean is None:
                    continue
                against = None
                if column in self.ranked and self.best(column) != model and math.isfinite(mean.value):
                    against = self.versus(model, self.best(column), column)
                found.append(
                    {
                        "model": model,
                        "score": column,
                        "mean": mean.value,
                        "standard_error": mean.standard_error,
                        "mark": self.mark(model, column),
                        "difference": None if against is None else against.value,
                        "difference_error": None if against is None else against.standard_error,
                        "p_value": None if against is None else against.p_value,
                    }
                )
        return found

    def markdown(self, digits: int = 4) -> str:
        """The table in Markdown, the best of a column in bold and models not told from it followed by `~`."""
        lines = [["model", *self.ranked, *self.unranked]]
        for model in self.models:
            cells = [self._cell(model, column, digits) for column in lines[0][1:]]
            marks = [self.mark(model, column) for column in lines[0][1:]]
            shown = [f"**{cell}**" if mark == BEST else cell for cell, mark in zip(cells, marks, strict=True)]
            shown = [f"{cell} ~" if mark == LEVEL_WITH_BEST else cell for cell, mark in zip(shown, marks, strict=True)]
            lines.append([model, *shown])
        rule = "| --- |" + " ---: |" * (len(lines[0]) - 1)
        text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        return "\n".join([text[0], rule, *text[1:]])

    def __str__(self) -> str:
        columns = [*self.ranked, *self.unranked]
        lines = [["model", *columns]]
        for model in self.models:
            lines.append([model, *(self._cell(model, column, 4) for column in columns)])
        marks = [[""] * (len(columns) + 1)]
        marks += [["", *(self.mark(model, column) for column in columns)] for model in self.models]
        widths = [max(len(line[place]) for line in lines) for place in range(len(columns) + 1)]
        text = []
        for line, mark in zip(lines, marks, strict=True):
            cells = [line[0].ljust(widths[0])]
            cells += [f"{line[place].rjust(widths[place])} {mark[place]:1}" for place in range(1, len(line))]
            text.append("  ".join(cells).rstrip())
        return "\n".join(text)

    def _cell(self, model: str, column: str, digits: int) -> str:
        mean = self.estimate(model, column)
        return "-" if mean is None else f"{mean.value:.{digits}f} ({mean.standard_error:.{digits}f})"

    def _values(self, model: str) -> dict[str, Tensor]:
        if model not in self.scores:
            raise OptionError(f"model: '{model}' came, one of {', '.join(self.models)} was expected.")
        return self.scores[model] | self.indicators.get(model, {})

    def _all_values(self) -> Sequence[Tensor]:
        return [_scores(name, values) for model in self.models for name, values in self._values(model).items()]


def _scores(name: str, values: Tensor) -> Tensor:
    values = torch.as_tensor(values).detach().double().cpu()
    if values.ndim != 1 or len(values) < 2:
        raise DataError(f"{name}: shape {tuple(values.shape)} came, at least two rows (rows,) were expected.")
    missing = torch.isnan(values).nonzero().squeeze(-1).tolist()
    if missing:
        raise DataError(
            f"{name}: NaN came in {len(missing)} rows ({', '.join(map(str, missing[:5]))}); drop rows without a score."
        )
    return values
