"""The density of one vector given another, in the units of both, learned from pairs of rows."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rosenblatt.assembly import TableFlow, assemble, blank_flow, rows_at_once
from rosenblatt.core.density import Density, FactorisedDensity, Objective
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.laws import Law
from rosenblatt.core.types import Batch, Likelihood, Support
from rosenblatt.data import Table
from rosenblatt.data.checks import location_scale
from rosenblatt.eval import mean_log_prob
from rosenblatt.layers.intervals import interval_log_prob
from rosenblatt.layers.units import Units
from rosenblatt.objectives.closed import closed_law
from rosenblatt.preparation import DataWarning
from rosenblatt.summary import Comparison
from rosenblatt.train import FitConfig, FitReport, Fitter, LocalRuntime, RunFolder


class Pairs:
    """Rows of values, each with the row it is given: a `Dataset` for the `Fitter`.

    The first `features` columns of `table` are the values, the others are what they are given.

    >>> pairs = Pairs(Table(torch.tensor([[1.0, 2.0, 3.0]]), ["theta", "x0", "x1"]), 1)
    >>> pairs.rows().context
    tensor([[2., 3.]])
    """

    def __init__(self, table: Table, features: int) -> None:
        self.table = table
        self.features = features

    def __len__(self) -> int:
        return len(self.table)

    def split(self, fractions: Sequence[float], generator: torch.Generator) -> tuple[Pairs, ...]:
        """Cut the pairs at random into disjoint parts."""
        return tuple(Pairs(part, self.features) for part in self.table.split(fractions, generator))

    def batches(self, size: int, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """One shuffled pass, without its first `start` batches."""
        return map(self._apart, self.table.batches(size, generator, start))

    def ordered_batches(self, size: int) -> Iterator[Batch]:
        """One pass in the order of the rows."""
        return map(self._apart, self.table.ordered_batches(size))

    def rows(self, limit: int | None = None) -> Batch:
        """All pairs, or `limit` of them spread evenly."""
        return self._apart(self.table.rows(limit))

    def _apart(self, batch: Batch) -> Batch:
        return Batch(batch.x[:, : self.features], batch.x[:, self.features :], batch.weight)


def joined(values: Table, given: Tensor) -> Table:
    """`values` and the rows they are given side by side, the latter under names that no column of `values` has."""
    names = [f"given {number}" for number in range(given.shape[1])]
    while set(names) & set(values.columns):
        names = [f"{name}'" for name in names]
    return Table(torch.cat([values.values, given], dim=1), [*values.columns, *names], values.weight)


class PairRuntime(LocalRuntime):
    """Hands both sides of a pair on in float64: their units cast them after standardising, where no digits are lost."""

    def to(self, batch: Batch, dtype: torch.dtype) -> Batch:
        """Move `batch` to the device."""
        return super().to(batch, torch.float64)


class EncodedObjective:
    """The loss that a flow names for itself, of what the flow is told of the given rows."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.measure = getattr(objective, "measure", "minus loss")

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Losses of `batch`, whose context is encoded first."""
        density = cast(ConditionalDensity, model)
        assert batch.context is not None
        return self.objective(density.flow, batch._replace(context=density.encode(batch.context)), generator)


class GivenDensity(Density):
    """What a regression leaves, alone or averaged: a density of vectors given others, in the units of both."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the density computes."""

    @property
    @abstractmethod
    def has_cdf(self) -> bool:
        """Whether `to_uniform` and `from_uniform` are there."""

    @abstractmethod
    def to_uniform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Rosenblatt transform of `x` given `context`: with one number its CDF."""

    @abstractmethod
    def from_uniform(self, u: Tensor, context: Tensor | None = None) -> Tensor:
        """Inverse of `to_uniform`: with one number its quantiles."""

    def by_rows(self, function: Callable[..., Tensor], values: Tensor, given: Tensor | None) -> Tensor:
        """`function`, made of this density, at any number of pairs: a part at a time, without gradients, to the CPU."""
        assert given is not None
        size = rows_at_once(self.features)
        with torch.no_grad():
            parts = zip(values.split(size), given.split(size), strict=True)
            return torch.cat([function(*(part.to(self.device) for part in pair)).cpu() for pair in parts])


class ConditionalDensity(GivenDensity):
    """Exact density of a vector given another, both in the user's units.

    `log p(v | g) = log p_flow(v | e((g - location) / scale))`, with an embedding network `e` or none. Outside the
    support of `v` it is -inf. `names` is what messages call the two. After a fit, `report` tells how it went.

    Shapes: v (*batch, features), g (*batch, context); a sample (n, *batch, features). Tensors and arrays may come.
    Raises `DataError` for rows of another width, and for a sample given numbers that are not finite.
    """

    report: FitReport | None = None

    def __init__(
        self,
        flow: TableFlow,
        given_units: Units,
        context: int,
        *,
        embedding: nn.Module | None = None,
        names: tuple[str, str] = ("x", "context"),
    ) -> None:
        super().__init__()
        self.flow = flow
        self.objective = None if flow.objective is None else EncodedObjective(flow.objective)
        self.given_units = given_units
        self.embedding = embedding
        self.features = flow.features
        self.context = context
        self.names = names

    @property
    def likelihood(self) -> Likelihood:
        """What the flow inside can claim."""
        return self.flow.likelihood

    @property
    def device(self) -> torch.device:
        """Where the flow computes."""
        return self.flow.device

    @property
    def has_cdf(self) -> bool:
        """Whether there are CDFs, coordinate by coordinate: the base has them."""
        return isinstance(self.flow.base, FactorisedDensity)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Exact log-density in the user's units; -inf outside the support, NaN where a number is missing."""
        x, context = self._rows(x), self._rows(context)
        self.check(x, context)
        return self.flow.log_prob(x, self.encode(context))

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` vectors for each row that is given, (n, *batch, features), and their log-densities."""
        context = self._rows(context)
        self._check_given(context)
        if not bool(torch.isfinite(context).all()):
            raise DataError(f"{self.names[1]}: a number that is not finite came; nothing can be drawn given it.")
        return self.flow.sample_and_log_prob(n, self.encode(context), generator=generator)

    def to_uniform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Rosenblatt transform of `x` given `context`; see `Flow.to_uniform`."""
        x, context = self._rows(x), self._rows(context)
        self.check(x, context)
        return self.flow.to_uniform(x, self.encode(context))

    def from_uniform(self, u: Tensor, context: Tensor | None = None) -> Tensor:
        """Inverse of `to_uniform`: with one number its quantiles; 0 and 1 give the ends of the support."""
        u, context = self._rows(u), self._rows(context)
        self.check(u, context)
        return self.flow.from_uniform(u, self.encode(context))

    def interval_log_prob(
        self, lower: Tensor, upper: Tensor, context: Tensor | None = None, *, at: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities of intervals of each column; see `layers.intervals.interval_log_prob`."""
        lower, upper, context = self._rows(lower), self._rows(upper), self._rows(context)
        self.check(lower, context)
        return interval_log_prob(
            self.flow, lower, upper, self.encode(context), at=None if at is None else self._rows(at)
        )

    def closed_law(self, context: Tensor | None = None) -> Law | None:
        """The law of the one feature given each row of `context`, where formulas for it are known."""
        return closed_law(self.flow, self.encode(self._rows(context)))

    def encode(self, context: Tensor) -> Tensor:
        """What the flow is told of the given rows; NaN for a row that holds a number which is not finite."""
        known = torch.isfinite(context).all(dim=-1, keepdim=True)
        z = self.given_units(torch.where(known, context, 0.0)).value
        if self.embedding is not None:
            z = self.embedding(z.reshape(-1, self.context)).reshape(*z.shape[:-1], -1)
        return torch.where(known, z, torch.nan)

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Let the flow start from the pairs as it sees them."""
        assert context is not None
        with torch.no_grad():
            self.flow.initialise(x, self.encode(context), weight)

    def refresh(self, batches: Iterable[Batch]) -> None:
        """Let the flow recompute its statistics from the pairs as it sees them."""
        self.flow.refresh(Batch(x, None if given is None else self.encode(given), w) for x, given, w in batches)

    def check(self, x: Tensor, context: Tensor | None = None) -> None:
        """Raise `DataError` unless both have the width of the rows that were learned from."""
        if x.shape[-1:] != (self.features,):
            raise DataError(f"{self.names[0]}: shape {tuple(x.shape)} came, (..., {self.features}) was expected.")
        self._check_given(context)

    def _check_given(self, context: Tensor | None) -> None:
        shape = () if context is None else tuple(context.shape)
        if shape[-1:] != (self.context,):
            raise DataError(
                f"{self.names[1]}: shape {shape} came, (..., {self.context}) was expected, as in the rows learned from."
            )

    def _rows(self, values: Any) -> Tensor:
        rows = torch.as_tensor(() if values is None else values, device=self.flow.device)
        return rows if rows.dtype in (torch.float32, torch.float64) else rows.double()


def conditional_density(
    model: str,
    values: Table,
    given: Tensor,
    *,
    options: Mapping[str, Any] | None = None,
    support: Mapping[str, Support] | None = None,
    embedding: nn.Module | None = None,
    names: tuple[str, str] = ("x", "context"),
    seed: int | None = None,
) -> ConditionalDensity:
    """Build registered model `model` as a density of `values` given the rows `given` (rows, context), untrained.

    `values` are mapped from their `support` to the line and standardised, `given` is standardised, both with the
    weights of `values`; a column of `given` that never changes is only shifted. `embedding` maps standardised
    (rows, context) to (rows, any width).
    Raises `OptionError` for an unknown model or option, `DataError` for rows that cannot be standardised.
    """
    given = given.double()
    location, scale = location_scale(given, values.weight)
    # A spread that rounding alone can make is none.
    moves = scale > 1e-12 * given.abs().amax(dim=0)
    width = given.shape[1]
    units = _given_units(location, torch.where(moves, scale, 1.0))
    flow = assemble(
        model, values, context=_embedded_width(embedding, width), options=options, supports=support, seed=seed
    )
    return ConditionalDensity(flow, units, width, embedding=embedding, names=names)


def blank_conditional(run: RunFolder, context: int, *, names: tuple[str, str] = ("x", "context")) -> ConditionalDensity:
    """Build the density of a run's config, without an embedding, for `assembly.load_weights`."""
    flow = blank_flow(run, context)
    units = _given_units(torch.zeros(context), torch.ones(context))
    return ConditionalDensity(flow, units, context, names=names).to(getattr(torch, run.config["dtype"]))


def compare_given(density: GivenDensity, train: Pairs, held_out: Pairs) -> Comparison:
    """Score `density` and the linear Gaussian regression fitted to `train` on the pairs `held_out`, at least two.

    The baseline is `gaussian` with a context: means linear in the given row, one covariance for all rows, by maximum
    likelihood on the training rows, in the units of the values and without regard to supports.
    """
    return compare_folds([(density, train, held_out)])


def compare_folds(folds: Sequence[tuple[GivenDensity, Pairs, Pairs]]) -> Comparison:
    """`compare_given` over folds, each with a density of its own: every row is judged by what has not seen it."""
    scores, baselines, weights = [], [], []
    for density, train, held_out in folds:
        values, given, _ = held_out.rows()
        scores.append(density.by_rows(density.log_prob, values, given))
        weights.append(held_out.table.weight)
        gaussian = _linear_gaussian(train)
        baselines.append(None if gaussian is None else gaussian.by_rows(gaussian.log_prob, values, given))
    log_prob, known = torch.cat(scores), [weight for weight in weights if weight is not None]
    weight = torch.cat(known) if known else None
    model, found = mean_log_prob(log_prob, weight), [baseline for baseline in baselines if baseline is not None]
    if len(found) < len(baselines):
        return Comparison(model)
    baseline = torch.cat(found)
    return Comparison(model, mean_log_prob(baseline, weight), mean_log_prob(log_prob - baseline, weight))


def _linear_gaussian(train: Pairs) -> ConditionalDensity | None:
    values, given, weight = train.rows()
    assert given is not None
    try:
        gaussian = conditional_density("gaussian", Table(values, train.table.columns[: train.features], weight), given)
        gaussian.double().initialise(values, given, weight)
    except DataError:  # too few rows for a covariance, or no Gaussian has one
        return None
    return gaussian


def fit_conditional(
    model: str,
    values: Table,
    given: Tensor,
    *,
    options: Mapping[str, Any] | None = None,
    support: Mapping[str, Support] | None = None,
    embedding: nn.Module | None = None,
    names: tuple[str, str] = ("x", "context"),
    config: FitConfig | None = None,
) -> ConditionalDensity:
    """Learn the density of `values` given `given` by maximum likelihood; see `conditional_density` for the arguments.

    The flow comes back in float64, with the best weights on held-out pairs, and these fixed (`requires_grad_` frees
    them). Remarks on `values` come as `DataWarning`.
    """
    for text in values.check(support=support):
        warnings.warn(text, DataWarning, stacklevel=3)
    config = FitConfig() if config is None else config
    density = conditional_density(
        model,
        values,
        given,
        options=options,
        support=support,
        embedding=embedding,
        names=names,
        seed=config.seed,
    )
    both = torch.cat([values.values.double(), given.double()], dim=1)
    columns = [*values.columns, *(f"{names[1]}{i} (given)" for i in range(given.shape[1]))]
    runtime = PairRuntime(config.device, amp=config.amp)
    density.report = Fitter(config, runtime=runtime).fit(density, Pairs(Table(both, columns), values.features))
    return density.double().requires_grad_(False)


def _given_units(location: Tensor, scale: Tensor) -> Units:
    width = len(location)
    return Units([(None, None)] * width, [1.0] * width, location, scale)


def _embedded_width(embedding: nn.Module | None, width: int) -> int:
    if embedding is None:
        return width
    with torch.no_grad():
        shape = tuple(embedding(torch.zeros(2, width)).shape)
    if len(shape) != 2 or shape[0] != 2:
        raise OptionError(f"embedding: shape {shape} came for two rows, (2, width) was expected.")
    return int(shape[1])
