"""Several fits of one conditional density as a single density: what a small table needs, and what it can afford."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rosenblatt.bases import Mixture
from rosenblatt.conditional import ConditionalDensity, PairRuntime, Pairs, conditional_density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.roots import find_root
from rosenblatt.core.types import Support
from rosenblatt.data import Table
from rosenblatt.objectives import NLL, Disturbed
from rosenblatt.preparation import DataWarning
from rosenblatt.train import FitConfig, FitReport, Fitter
from rosenblatt.train.runtime import seeded_generator

FOLDS = 200  # stream of random numbers that the folds are drawn from
TOLERANCE = 1e-12  # of the logit of the mean CDF, in the search for a quantile


class Ensemble(Mixture):
    """The mean of the members' densities, `p(v | g) = (1 / K) sum_k p_k(v | g)`: exact, with its own CDF and quantiles.

    A mean of densities is nowhere worse than e^-K, and by Jensen's inequality its mean log-density is at least the mean
    of the members'. Samples come from a member chosen at random. With one value the CDF is the mean of the members'
    and a quantile is found by a search between theirs, both from either tail, so that neither loses its digits.
    Raises `OptionError` for no members or members that differ in shape, and for a CDF of several values, which would
    need the members' marginals. Reference: Lakshminarayanan, Pritzel & Blundell, Simple and Scalable Predictive
    Uncertainty Estimation using Deep Ensembles, NeurIPS 2017.

    Shapes: v (*batch, features), g (*batch, context); a sample (n, *batch, features), as of a `ConditionalDensity`.
    """

    def __init__(self, members: Sequence[ConditionalDensity]) -> None:
        super().__init__(members, context=members[0].context if members else 0, gated=False)
        self.logits.requires_grad_(False)

    @property
    def members(self) -> list[ConditionalDensity]:
        """The densities that are averaged."""
        return cast(list[ConditionalDensity], self.parts)

    @property
    def reports(self) -> list[FitReport | None]:
        """How each member's fit went."""
        return [member.report for member in self.members]

    def to_uniform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """CDF at `x` (*batch, 1) given `context`: the mean of the members'."""
        return self.tails(x, context)[0]

    def tails(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """CDF at `x` (*batch, 1) and what it leaves above, each with all its digits."""
        self._require_one_value()
        self.check(x, context)
        scores = [member.flow.log_prob_and_uniform(x, member.encode(cast(Tensor, context))) for member in self.members]
        below = torch.stack([score.uniform for score in scores]).mean(dim=0)
        return below, torch.stack([score.complement for score in scores]).mean(dim=0)

    def from_uniform(self, u: Tensor, context: Tensor | None = None) -> Tensor:
        """Quantile (*batch, 1) at level `u` (*batch, 1): 0 and 1 give the ends of the support."""
        self._require_one_value()
        self.check(u, context)
        assert context is not None
        batch = torch.broadcast_shapes(u.shape[:-1], context.shape[:-1])
        level = u.expand(*batch, 1).reshape(-1, 1).double()
        rows = context.expand(*batch, self.context).reshape(-1, self.context).double()
        each = torch.stack([member.flow.from_uniform(level, member.encode(rows)) for member in self.members])
        low, high = each.amin(dim=0), each.amax(dim=0)
        # Wider by what the members' own searches may be off.
        room = 1e-3 * (high - low) + 1e-9 * (low.abs() + high.abs())
        search = torch.isfinite(low) & torch.isfinite(high) & (high > low)
        target = torch.where(search, torch.logit(level), torch.nan).squeeze(-1)
        cdf = _MeanCDF(self, low - room, high - low + 2 * room, rows)
        share = find_root(cdf, target, Support(0.0, 1.0), tolerance=TOLERANCE).unsqueeze(-1)
        found = torch.where(search, low - room + share * (high - low + 2 * room), (low + high) / 2)
        return found.reshape(*batch, 1).to(u.dtype)

    def _require_one_value(self) -> None:
        if self.features != 1:
            raise OptionError(
                f"members: {self.features} values have no CDF of the ensemble by that of its members; ask one of "
                "`members`, or learn one value."
            )


class _MeanCDF:
    """Logit of an ensemble's CDF at `low + share * width`, row by row."""

    def __init__(self, ensemble: Ensemble, low: Tensor, width: Tensor, context: Tensor) -> None:
        self.ensemble, self.low, self.width, self.context = ensemble, low, width, context

    def __call__(self, x: Tensor) -> Tensor:
        below, above = self.ensemble.tails(self.low + x.unsqueeze(-1) * self.width, self.context)
        return (below.log() - above.log()).squeeze(-1)

    def select(self, rows: Tensor) -> _MeanCDF:
        return _MeanCDF(self.ensemble, self.low[rows], self.width[rows], self.context[rows])


def fit_ensemble(
    model: str,
    values: Table,
    given: Tensor,
    *,
    members: int = 5,
    noise: float = 0.0,
    given_noise: float = 0.0,
    steps: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
    support: Mapping[str, Support] | None = None,
    embedding: Callable[[], nn.Module] | None = None,
    names: tuple[str, str] = ("x", "context"),
    config: FitConfig | None = None,
) -> Ensemble:
    """Learn the density of `values` given `given` (rows, context) by `members` fits whose densities are averaged.

    Each member holds out a random part of the rows of its own, `config.validation_fraction` of them or one in `members`
    if that is less, on which it is validated and stopped: with enough members every row teaches all of them but one
    (cross-validation aggregating; Krogh and Vedelsby, Neural Network Ensembles, NeurIPS 1995).

    steps: cell width by column of `values`: rounded numbers are spread over `v -+ step / 2`, afresh at every step.
    noise, given_noise: standard deviation of Gaussian noise on either side in training, as a share of each column's own
        standard deviation (`Disturbed`); 0 for none.
    embedding: called once for each member to make the network that `ConditionalDensity` puts before the flow.
    The rest is that of `fit_conditional`. Raises `OptionError` for fewer than one member or a negative noise,
    `DataError` for fewer than two rows a member.
    """
    if members < 1:
        raise OptionError(f"members: {members} came, an integer >= 1 was expected.")
    if len(values) < 2 * members:
        raise DataError(f"values: {len(values)} rows came for {members} members; bring two for each, or fewer members.")
    for text in values.check(support=support):
        if "dequantise=" not in text or not steps:
            warnings.warn(text, DataWarning, stacklevel=2)
    config = FitConfig() if config is None else config
    given = given.double()
    objective = {
        "width": torch.tensor([(steps or {}).get(column, 0.0) for column in values.columns], dtype=torch.float64),
        "noise": noise * values.location_scale()[1].double(),
        "context_noise": given_noise * given.std(dim=0, unbiased=False),
    }
    order = torch.randperm(len(values), generator=seeded_generator(config.seed, FOLDS))
    size = round(min(1 / members, config.validation_fraction) * len(values))
    folds = [order[number * size : (number + 1) * size] for number in range(members)]
    fits = []
    for number, fold in enumerate(folds):
        learned = torch.ones(len(values), dtype=torch.bool)
        learned[fold] = False
        train = _rows(values, given, learned, names[1])
        held_out = _rows(values, given, ~learned, names[1]) if size else None
        seed = config.seed + number
        density = conditional_density(
            model,
            _take(values, learned),
            given[learned],
            options=options,
            support=support,
            embedding=embedding() if embedding else None,
            names=names,
            seed=seed,
        )
        fitter = Fitter(dataclasses.replace(config, seed=seed), runtime=PairRuntime(config.device, amp=config.amp))
        loss = Disturbed(density.objective or NLL(), **objective)
        density.report = fitter.fit(density, train, loss, validation=held_out)
        fits.append(density.double().requires_grad_(False))
    return Ensemble(fits).double().eval()


def _take(values: Table, rows: Tensor) -> Table:
    return Table(values.values[rows], values.columns, None if values.weight is None else values.weight[rows])


def _rows(values: Table, given: Tensor, rows: Tensor, name: str) -> Pairs:
    both = torch.cat([values.values.double(), given], dim=1)[rows]
    columns = [*values.columns, *(f"{name}{i} (given)" for i in range(given.shape[1]))]
    return Pairs(Table(both, columns, None if values.weight is None else values.weight[rows]), values.features)
