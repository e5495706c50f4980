"""Scores of a fitted density at rows it has not seen, a number for each row: what a comparison of models is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.density import Density, fresh_generator
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.quadrature import gauss_legendre
from rosenblatt.core.types import Batch, Likelihood
from rosenblatt.objectives import rules
from rosenblatt.objectives.closed import closed_crps
from rosenblatt.objectives.scores import draws_for

METHODS = ("auto", "closed", "quantile", "samples")
NODES = 32  # of each of the two integrals that a CRPS by quantiles is made of
DRAWS = 399  # so that the order statistics fall on the levels of 50, 80, 90 and 95 % intervals
CLOSED = 2048  # numbers a row that a formula may hold together
NUMBERS_AT_ONCE = 1 << 20  # rows times draws times features held together


def crps(
    density: Density,
    y: Tensor,
    context: Tensor | None = None,
    *,
    method: str = "auto",
    draws: int = DRAWS,
    generator: torch.Generator | None = None,
) -> Tensor:
    """CRPS of each feature of `y` (rows, features) under `density` given `context`, (rows, features), in units of y.

    - "closed": by formula; one feature, a law that `closed_law` knows.
    - "quantile": `2 int a (y - q(a)) da` up to F(y) plus `2 int (1 - a) (q(a) - y) da` beyond, by Gauss-Legendre rules
      of 32 nodes each that crowd towards the ends; one feature, `to_uniform` and `from_uniform`.
    - "samples": unbiased, from `draws` draws of each row; every model, each feature's own law.
    - "auto": the first of these that the model has.

    Nothing is differentiable; see `objectives.CRPS` for that. Raises `OptionError` for another method, or one the
    model does not have, `DataError` for rows that do not fit. Reference: Matheson & Winkler, Management Science 22,
    1976; Gneiting & Raftery, JASA 102, 2007.

    >>> from rosenblatt.bases import StandardNormal
    >>> crps(StandardNormal(1), torch.zeros(1, 1, dtype=torch.float64)).round(decimals=6)
    tensor([[0.2337]], dtype=torch.float64)
    """
    if method not in METHODS:
        raise OptionError(f"method: '{method}' came, one of {', '.join(METHODS)} was expected.")
    batch = _rows_of(density, y, context)
    with torch.no_grad():
        if method in ("auto", "closed"):
            exact = [closed_crps(density, part.x, part.context) for part in _pieces(batch, CLOSED)]
            known = [part.unsqueeze(-1) for part in exact if part is not None]
            if known:
                return torch.cat(known)
        if method == "quantile" or (method == "auto" and _has_quantiles(density, batch)):
            return _crps_by_quantiles(density, batch)
        if method == "closed":
            raise OptionError(f'method: "closed" came, but no formula is known for this {_name(density)}; use "auto".')
        source = fresh_generator() if generator is None else generator
        return torch.cat(
            [rules.crps_from_samples(draws_for(density, part, draws, source), part.x) for part in _pieces(batch, draws)]
        )


@dataclass(frozen=True)
class PredictiveScores:
    """Scores of the rows of a test set, less being better; `log` is None for a model without an exact density.

    Shapes: `log`, `energy` (rows,), `variogram` (rows,) or None with one feature, `crps` (rows, features), `pinball`
    (rows, features, levels), `inside` (0 or 1) and `width` (rows, features, coverages) of the central intervals.
    """

    log: Tensor | None
    crps: Tensor
    energy: Tensor
    variogram: Tensor | None
    pinball: Tensor
    inside: Tensor
    width: Tensor
    levels: tuple[float, ...]
    coverages: tuple[float, ...]

    def columns(self) -> dict[str, Tensor]:
        """The scores by name, (rows,) each: means over features where there is one for each."""
        named = {"log score": self.log, "CRPS": self.crps.mean(dim=-1)}
        if self.variogram is not None:  # with one feature the energy score is the CRPS
            named |= {"energy score": self.energy, "variogram score": self.variogram}
        named |= {f"pinball {level:g}": loss for level, loss in _last(self.pinball, self.levels)}
        return {name: values for name, values in named.items() if values is not None}

    def indicators(self) -> dict[str, Tensor]:
        """Coverage and width of the central intervals by name, (rows,) each: to be read, not to be ranked."""
        inside = {f"inside {level:.0%}": share for level, share in _last(self.inside, self.coverages)}
        return inside | {f"width {level:.0%}": width for level, width in _last(self.width, self.coverages)}


def score_rows(
    density: Density,
    y: Tensor,
    context: Tensor | None = None,
    *,
    draws: int = DRAWS,
    beta: float = 1.0,
    p: float = 0.5,
    levels: Sequence[float] = (0.1, 0.5, 0.9),
    coverages: Sequence[float] = (0.5, 0.8, 0.95),
    generator: torch.Generator | None = None,
) -> PredictiveScores:
    """Score rows `y` (rows, features) under `density` given `context` (rows, context).

    The log score is exact; the CRPS is what `crps` finds ("auto"); energy and variogram score are unbiased estimates of
    order `beta` and `p` from `draws` draws of each row. Quantiles are the model's own where there is one feature and a
    quantile function, else order statistics of the draws at `level (draws + 1)`, between which an outcome of the same
    law falls just as often as said. Raises `OptionError` for levels outside (0, 1) or ones that so few draws cannot
    tell, `DataError` for rows that do not fit.

    >>> from rosenblatt.models.gaussian import gaussian
    >>> scores = score_rows(gaussian(1), torch.zeros(5, 1))
    >>> scores.width[0, 0].round(decimals=2)  # of the standard normal's 50, 80 and 95 % intervals
    tensor([1.3500, 2.5600, 3.9200])
    """
    batch = _rows_of(density, y, context)
    if not all(0 < level < 1 for level in (*levels, *coverages)):
        raise OptionError(f"levels={list(levels)}, coverages={list(coverages)}: probabilities in (0, 1) were expected.")
    source = fresh_generator() if generator is None else generator
    with torch.no_grad():
        options = _Options(draws, beta, p, tuple(levels), tuple(coverages))
        parts = [_score_piece(density, part, source, options) for part in _pieces(batch, draws)]
    fields = {name: [getattr(part, name) for part in parts] for name in PredictiveScores.__dataclass_fields__}
    joined: dict[str, Any] = {
        name: torch.cat(values) if isinstance(values[0], Tensor) else values[0] for name, values in fields.items()
    }
    return PredictiveScores(**joined)


class _Options(NamedTuple):
    draws: int
    beta: float
    p: float
    levels: tuple[float, ...]
    coverages: tuple[float, ...]


def _score_piece(density: Density, batch: Batch, generator: torch.Generator, options: _Options) -> PredictiveScores:
    """Scores of as many rows as are held in memory together."""
    draws, beta, p, levels, coverages = options
    wanted = [*levels, *((1 - c) / 2 for c in coverages), *((1 + c) / 2 for c in coverages)]
    drawn = draws_for(density, batch, draws, generator)
    if _has_quantiles(density, batch):
        quantiles, ranked = _own_quantiles(density, batch, wanted), crps(density, batch.x, batch.context)
    else:
        exact = closed_crps(density, batch.x, batch.context)
        quantiles = order_quantiles(drawn, wanted)
        ranked = rules.crps_from_samples(drawn, batch.x) if exact is None else exact.unsqueeze(-1)
    x = batch.x.unsqueeze(-1)
    at_levels, lower, upper = quantiles.split([len(levels), len(coverages), len(coverages)], dim=-1)
    inside = ((lower <= x) & (x <= upper)).to(x.dtype)
    exact_density = density.likelihood is Likelihood.EXACT
    return PredictiveScores(
        log=rules.log_score(density.log_prob(batch.x, batch.context)) if exact_density else None,
        crps=ranked,
        energy=rules.energy_score(drawn, batch.x, beta),
        variogram=rules.variogram_score(drawn, batch.x, p) if density.features > 1 else None,
        pinball=rules.pinball(x - at_levels, x.new_tensor(levels)),
        inside=torch.where(torch.isnan(x + lower + upper), torch.nan, inside),
        width=upper - lower,
        levels=levels,
        coverages=coverages,
    )


def order_quantiles(samples: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles of draws (n, *batch) at `levels`: the order statistics at `level (n + 1)`, (*batch, levels).

    The k-th smallest of n draws lies above another draw with probability k / (n + 1) for every continuous law; between
    neighbours it is a straight line. Raises `OptionError` for levels outside [1 / (n + 1), n / (n + 1)].
    Reference: Hyndman & Fan, Sample quantiles in statistical packages, American Statistician 50, 1996 (type 6).

    >>> order_quantiles(torch.tensor([3.0, 1.0, 2.0]), [0.25, 0.5, 0.625])
    tensor([1.0000, 2.0000, 2.5000])
    """
    count = len(samples)
    _check_levels(levels, count)
    place = (torch.tensor(levels, dtype=torch.float64) * (count + 1) - 1).clamp(0, count - 1)
    ordered = samples.sort(dim=0).values
    below = (place + 1e-9).floor().long().to(samples.device)
    share = (place.to(samples.device) - below).to(samples.dtype).reshape(-1, *[1] * (samples.ndim - 1))
    lower, upper = ordered[below], ordered[(below + 1).clamp(max=count - 1)]
    return torch.where(share > 1e-6, torch.lerp(lower, upper, share), lower).movedim(0, -1)


def _rows_of(density: Density, y: Tensor, context: Tensor | None) -> Batch:
    y = torch.as_tensor(y)
    y = y if y.is_floating_point() else y.to(torch.get_default_dtype())
    if y.ndim != 2 or y.shape[1] != density.features or len(y) == 0:
        raise DataError(f"y: shape {tuple(y.shape)} came, (rows, {density.features}) was expected; check the targets.")
    if context is not None:
        context = torch.as_tensor(context)
        context = context if context.is_floating_point() else context.to(torch.get_default_dtype())
        if context.ndim != 2 or len(context) != len(y):
            raise DataError(f"context: shape {tuple(context.shape)} came, ({len(y)}, {density.context}) was expected.")
    return Batch(y, context)


def _has_quantiles(density: Any, batch: Batch) -> bool:
    """Whether the one feature of `density` has a CDF and a quantile function."""
    if density.features != 1 or not hasattr(density, "from_uniform") or not hasattr(density, "to_uniform"):
        return False
    try:
        with torch.no_grad():
            density.to_uniform(batch.x[:1], None if batch.context is None else batch.context[:1])
    except OptionError:  # the base has no CDF
        return False
    return True


def _crps_by_quantiles(density: Density, batch: Batch) -> Tensor:
    if not _has_quantiles(density, batch):
        raise OptionError(
            f'method: "quantile" came, but this {_name(density)} of {density.features} features has no quantile '
            'function; use "samples".'
        )
    nodes, weights = gauss_legendre(NODES)
    nodes, weights = (part.to(batch.x.device).unsqueeze(-1) for part in (nodes, weights))
    return torch.cat([_split_integral(density, part, nodes, weights) for part in _pieces(batch, 2 * NODES)])


def _split_integral(density: Any, batch: Batch, nodes: Tensor, weights: Tensor) -> Tensor:
    """The CRPS of rows by levels `F(y) s` on one side of y and `1 - (1 - F(y)) s` on the other, s = s(t) in (0, 1).

    `s = t^3 (10 - 15 t + 6 t^2)` is flat at both ends, where quantiles may grow without bound.
    """
    given_y = batch.x.double()
    finite = torch.isfinite(given_y)
    y = torch.where(finite, given_y, 0.0)
    context = None if batch.context is None else batch.context.double()
    below = density.to_uniform(y, context).squeeze(-1)
    sides = torch.cat([below.expand(NODES, -1), (1 - below).expand(NODES, -1)])
    t = torch.cat([nodes, nodes])
    tail = sides * t**3 * (10 - 15 * t + 6 * t.square())
    measure = sides * 30 * (t * (1 - t)).square() * torch.cat([weights, weights])
    level = torch.cat([tail[:NODES], 1 - tail[NODES:]]).clamp(2.0**-1022, 1 - 2.0**-53)
    level = torch.where(measure > 0, level, 0.5)  # a side without mass is not computed at its end
    given = None if context is None else context.expand(len(level), *context.shape)
    quantile = density.from_uniform(level.unsqueeze(-1), given).squeeze(-1)
    score = 2 * (measure * tail * (quantile - y.squeeze(-1)).abs()).sum(dim=0).unsqueeze(-1)
    return torch.where(finite | torch.isnan(score), score, given_y.abs()).to(batch.x.dtype)


def _own_quantiles(density: Any, batch: Batch, levels: Sequence[float]) -> Tensor:
    """The model's quantiles (rows, 1, levels) of its one feature."""
    level = torch.tensor(levels, dtype=torch.float64, device=batch.x.device).reshape(-1, 1, 1)
    given = None if batch.context is None else batch.context.double().expand(len(levels), *batch.context.shape)
    quantiles: Tensor = density.from_uniform(level.expand(-1, len(batch.x), 1), given).movedim(0, -1)
    return quantiles.to(batch.x.dtype)


def _pieces(batch: Batch, each: int) -> Iterator[Batch]:
    """Rows, a part at a time, so few that `each` vectors of every row are held in memory together."""
    rows = max(1, NUMBERS_AT_ONCE // (each * batch.x.shape[1]))
    for start in range(0, len(batch.x), rows):
        part = slice(start, start + rows)
        yield Batch(batch.x[part], None if batch.context is None else batch.context[part])


def _last(values: Tensor, names: Sequence[float]) -> list[tuple[float, Tensor]]:
    """Means over features, a (rows,) tensor for each name on the last axis."""
    return list(zip(names, values.mean(dim=1).unbind(dim=-1), strict=True))


def _check_levels(levels: Sequence[float], draws: int) -> None:
    if not all(1 - 1e-9 <= level * (draws + 1) <= draws + 1e-9 for level in levels):
        raise OptionError(
            f"levels: {[round(level, 6) for level in levels]} came, with {draws} draws these must lie in "
            f"[1 / {draws + 1}, {draws} / {draws + 1}]; draw more for levels nearer to 0 and 1."
        )


def _name(density: Density) -> str:
    return type(density).__name__
