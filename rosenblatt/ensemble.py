"""Several fits of one conditional density as a single density: what a small table needs, and what it can afford."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from rosenblatt.assembly import MOST_FEATURES, check_scales, checked, load_weights, refusal
from rosenblatt.bases import Mixture
from rosenblatt.conditional import (
    ConditionalDensity,
    GivenDensity,
    PairRuntime,
    Pairs,
    blank_conditional,
    conditional_density,
    joined,
)
from rosenblatt.core.errors import CheckpointError, DataError, OptionError
from rosenblatt.core.roots import find_root
from rosenblatt.core.types import Support
from rosenblatt.data import Encoder, Table
from rosenblatt.data.checks import location_scale
from rosenblatt.layers.support import SupportMap
from rosenblatt.objectives import NLL, Disturbed
from rosenblatt.preparation import DataWarning, take_rows
from rosenblatt.summary import Summary, new_run, write_summary
from rosenblatt.train import FitConfig, FitReport, Fitter, RunFolder
from rosenblatt.train.runtime import seeded_generator

MOST_MEMBERS = 1000
FOLDS = 200  # stream of random numbers that the folds are drawn from
TOLERANCE = 1e-12  # of the logit of the mean CDF, in the search for a quantile


class Ensemble(GivenDensity, Mixture):
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
    def device(self) -> torch.device:
        """Where the members compute."""
        return self.members[0].device

    @property
    def has_cdf(self) -> bool:
        """Whether there is a CDF: one value, and members that have one."""
        return self.features == 1 and all(member.has_cdf for member in self.members)

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
    _check_members(members, values)
    for text in values.check(support=support):
        if "dequantise=" not in text or not steps:
            warnings.warn(text, DataWarning, stacklevel=2)
    given = given.double()
    ensemble = UntrainedEnsemble(
        model,
        values,
        given,
        members=members,
        disturbance=disturbance(values, given, steps=steps, noise=noise, given_noise=given_noise),
        options=options,
        support=support,
        embedding=embedding,
        names=names,
        config=FitConfig() if config is None else config,
    )
    return ensemble.train()


def disturbance(
    values: Table, given: Tensor, *, steps: Mapping[str, float] | None, noise: float, given_noise: float
) -> dict[str, Tensor]:
    """Arguments of `Disturbed` in the units of the columns; `steps`, `noise` and `given_noise` as in `fit_ensemble`."""
    if values.weight is None:
        spread = given.double().std(dim=0, unbiased=False)
    else:
        spread = location_scale(given, values.weight)[1]
    return {
        "width": torch.tensor([(steps or {}).get(column, 0.0) for column in values.columns], dtype=torch.float64),
        "noise": noise * values.location_scale()[1].double(),
        "context_noise": given_noise * spread,
    }


class Fold(NamedTuple):
    """Pairs that a member learns from, and those it is stopped by, if any."""

    learned: Pairs
    held_out: Pairs | None


class UntrainedEnsemble:
    """The members of an ensemble before they are trained, and the rows of each; see `fit_ensemble`.

    `disturbance` holds the arguments of `Disturbed`. Raises `OptionError` and `DataError` as `fit_ensemble` does.
    """

    def __init__(
        self,
        model: str,
        values: Table,
        given: Tensor,
        *,
        members: int,
        disturbance: Mapping[str, Tensor],
        options: Mapping[str, Any] | None = None,
        support: Mapping[str, Support] | None = None,
        embedding: Callable[[], nn.Module] | None = None,
        names: tuple[str, str] = ("x", "context"),
        config: FitConfig,
    ) -> None:
        _check_members(members, values)
        self.folds = _folds(values, given, members, config)
        self.disturbance = disturbance
        without_validation = {} if self.folds[0].held_out else {"validation_fraction": 0.0}
        self.configs = [
            dataclasses.replace(config, seed=config.seed + number, **without_validation)  # type: ignore[arg-type]
            for number in range(members)
        ]
        self.densities = []
        for fold, own in zip(self.folds, self.configs, strict=True):
            x, context, weight = fold.learned.rows()
            assert context is not None
            density = conditional_density(
                model,
                Table(x, values.columns, weight),
                context,
                options=options,
                support=support,
                embedding=embedding() if embedding else None,
                names=names,
                seed=own.seed,
            )
            self.densities.append(density)

    def train(
        self, run: RunFolder | None = None, *, resume: bool = False, progress: bool | Literal["auto"] = "auto"
    ) -> Ensemble:
        """Train the members in order; a signal ends it, and the ensemble is then that of those trained so far.

        With `run` each has checkpoints in a folder of its own, `run/member-0` and so on. `resume` goes on where an
        earlier call stopped, bit for bit, and trains no finished member again.
        """
        fits = []
        for number, (density, fold, config) in enumerate(zip(self.densities, self.folds, self.configs, strict=True)):
            folder = None if run is None else _member_folder(run, number, density, config, resume=resume)
            fitter = Fitter(config, runtime=PairRuntime(config.device, amp=config.amp), progress=progress)
            loss = Disturbed(density.objective or NLL(), **self.disturbance)
            report = fitter.fit(
                density, fold.learned, loss, validation=fold.held_out, run=folder, resume=resume and folder is not None
            )
            if folder is not None:
                write_summary(folder, Summary(report))
            density.report = report
            fits.append(density.double().requires_grad_(False))
            if report.signal is not None:
                break
        return Ensemble(fits).double().eval()

    def scales(self) -> list[list[float]] | None:
        """What each member's half-lines are measured in, for the config of a run; None without supports."""
        maps = [density.flow.units.map.steps[0] for density in self.densities]
        return [list(one.scales) for one in maps if isinstance(one, SupportMap)] or None


def joint_report(reports: Sequence[FitReport]) -> FitReport:
    """One report of all members' fits: steps and seconds of all together, scores their means.

    `stopped` names the reasons of all, `history` has their records one after another, with the number of the member.
    """
    reasons = dict.fromkeys(report.stopped for report in reports)
    return FitReport(
        stopped="interrupted" if "interrupted" in reasons else " and ".join(reasons),
        steps=sum(report.steps for report in reports),
        epochs=sum(report.epochs for report in reports),
        best_step=None,
        best_validation=_mean([report.best_validation for report in reports]),
        final_train=_mean([report.final_train for report in reports]),
        history=[{**record, "member": k} for k, report in enumerate(reports) for record in report.history],
        skipped_steps=sum(report.skipped_steps for report in reports),
        rolled_back=sum(report.rolled_back for report in reports),
        events=[{**event, "member": k} for k, report in enumerate(reports) for event in report.events],
        poisoned_rows=max(report.poisoned_rows for report in reports),
        seconds=sum(report.seconds for report in reports),
        resumed_from=None if all(report.resumed_from is None for report in reports) else 0,
        signal=reports[-1].signal,
        measure=reports[0].measure,
    )


def restore_conditional(
    run: RunFolder, *, names: tuple[str, str] = ("y", "X")
) -> tuple[GivenDensity, Encoder, dict[str, Any]]:
    """Load the best weights of a run of a conditional density: the density, what encodes its given columns, the config.

    The density is an `Ensemble` where the config tells of several members. As careful as `assembly.restore`. Raises
    `CheckpointError` for whatever is wrong with the folder.
    """
    config, given = run.config, run.config.get("given")
    if given is None:
        held = (
            "images; load it by ImageDensity"
            if config.get("kind") == "images"
            else "all columns; load it by FlowDensity"
        )
        raise CheckpointError(f"{run.path}: holds no density given other columns, but one of {held}.load.")
    try:
        encoder = Encoder.from_json(given, most=MOST_FEATURES)
    except DataError as error:
        raise refusal(run, str(error)) from None
    members, width = config.get("members", 1), len(encoder.names)
    if isinstance(members, bool) or not isinstance(members, int) or not 1 <= members <= MOST_MEMBERS:
        raise refusal(run, f"members {members!r} came, a whole number from 1 to {MOST_MEMBERS} was expected")
    if members == 1:
        density = load_weights(run, lambda: blank_conditional(run, width, names=names))
        _check_units(run, density)
        return density, encoder, config
    if not run.steps():
        raise CheckpointError(f"{run.path}: its {members} members are not all trained yet; resume the run.")
    runs = [_run_of_member(run, number) for number in range(members)]
    ensemble = load_weights(run, lambda: Ensemble([blank_conditional(one, width, names=names) for one in runs]))
    for member in ensemble.members:
        _check_units(run, member)
    return ensemble.requires_grad_(False), encoder, config


def _check_units(run: RunFolder, density: ConditionalDensity) -> None:
    for units in (density.flow.units, density.given_units):
        check_scales(run, units)


def _run_of_member(run: RunFolder, number: int) -> RunFolder:
    """`run` with the config of one member's density."""
    if run.config.get("supports") is None:
        return run
    scales = checked(run, run.config, "member_scales", list)
    if len(scales) != run.config["members"]:
        raise refusal(run, f"'member_scales' of {len(scales)} came for {run.config['members']} members")
    one = copy.copy(run)
    one.config = {**run.config, "support_scales": scales[number]}
    return one


def _member_folder(
    run: RunFolder, number: int, density: ConditionalDensity, config: FitConfig, *, resume: bool
) -> RunFolder:
    """The folder of one member inside that of the run, a run folder like any other, which loads as a single fit."""
    path = run.path / f"member-{number}"
    if resume and (path / "config.json").is_file():
        return RunFolder.open(path)
    first = density.flow.units.map.steps[0]
    scales = list(first.scales) if isinstance(first, SupportMap) else None
    told = {**run.config, "members": 1, "member": number, "support_scales": scales, "fit": config.to_dict()}
    told.pop("member_scales", None)
    return new_run(path, told, overwrite=True)


def _check_members(members: int, values: Table) -> None:
    if not 1 <= members <= MOST_MEMBERS:
        raise OptionError(f"members: {members} came, an integer >= 1 and at most {MOST_MEMBERS} was expected.")
    if len(values) < 2 * members:
        raise DataError(f"values: {len(values)} rows came for {members} members; bring two for each, or fewer members.")


def _folds(values: Table, given: Tensor, members: int, config: FitConfig) -> list[Fold]:
    both = joined(Table(values.values.double(), values.columns, values.weight), given.double())
    order = torch.randperm(len(values), generator=seeded_generator(config.seed, FOLDS))
    size = round(min(1 / members, config.validation_fraction) * len(values))
    folds = []
    for number in range(members):
        learned = torch.ones(len(values), dtype=torch.bool)
        learned[order[number * size : (number + 1) * size]] = False
        pairs = [Pairs(take_rows(both, chosen), values.features) for chosen in (learned, ~learned)]
        folds.append(Fold(pairs[0], pairs[1] if size else None))
    return folds


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None
