"""How regressions are trained, alone or several to be averaged, and how they come back from run folders."""

from __future__ import annotations

import dataclasses
import math
import shlex
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from rosenblatt.assembly import config_of
from rosenblatt.conditional import (
    ConditionalDensity,
    PairRuntime,
    Pairs,
    compare_folds,
    compare_given,
    conditional_density,
    joined,
)
from rosenblatt.core.density import Objective
from rosenblatt.core.errors import CheckpointError, DataError, OptionError
from rosenblatt.core.types import Support
from rosenblatt.data import Encoder, Table
from rosenblatt.ensemble import Ensemble, UntrainedEnsemble, disturbance, joint_report, restore_conditional
from rosenblatt.estimators.common import Learner, RandomState, count_of, no_config, stored_arguments
from rosenblatt.estimators.inputs import read_given, read_targets, rows_of, target_supports
from rosenblatt.objectives import NLL, Disturbed
from rosenblatt.preparation import (
    DEQUANTISE,
    DataWarning,
    grid_steps,
    hold_out,
    plain,
    require_finite,
    require_same_rows,
    seed_of,
    take_rows,
    weighted,
)
from rosenblatt.summary import Summary, new_run, write_summary
from rosenblatt.train import FitConfig, Fitter, RunFolder
from rosenblatt.train.runtime import seeded_generator

NAMES = ("y", "X")  # what messages call the two sides


class RegressionLearner(Learner):
    """An estimator of the density of targets given columns: training, resuming, loading; see `ConditionalFlow`."""

    model: str
    model_options: Mapping[str, Any] | None
    missing: str
    support: Mapping[str, Any] | Sequence[Any] | None
    dequantise: Mapping[str, float] | str | None
    members: int
    noise: float
    given_noise: float
    run: str | Path | None
    overwrite: bool
    verbose: int
    random_state: RandomState
    provenance: Mapping[str, Any] | None
    encoder_: Encoder
    dequantise_: dict[str, float]
    n_features_in_: int
    feature_names_in_: Any
    _single: bool

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Read a fitted model from a run folder, at its best checkpoint.

        Raises `CheckpointError` for a folder that is missing, damaged or not from this estimator.
        """
        run = RunFolder.open(path)
        density, _, config = restore_conditional(run)
        return cls._from_config(run, config)._opened(density, run, config, device)

    @classmethod
    def resume(
        cls,
        run: str | Path,
        X: object,
        y: object,
        sample_weight: object = None,
        *,
        epochs: int | None = None,
        max_steps: int | None = None,
        time_limit: float | None = None,
        verbose: int = 0,
    ) -> Self:
        """Go on with an interrupted run as if it had never stopped, bit for bit; `X` and `y` as for its `fit`.

        `epochs`, `max_steps` and `time_limit` (over all resumes) replace those of the run. Raises `DataError` for
        other rows and `CheckpointError` for a folder that cannot be used.
        """
        folder = RunFolder.open(run)
        if folder.config.get("given") is None:
            raise CheckpointError(f"{run}: holds the density of all columns; resume it by FlowDensity.resume.")
        estimator = cls._from_config(folder, folder.config)
        estimator.run, estimator.verbose = folder.path, verbose
        estimator._set_given(epochs=epochs, max_steps=max_steps, time_limit=time_limit)
        facts = folder.config["data"]
        if "test_rows" in facts:
            again = shlex.join(["rosenblatt", "fit", "--resume", str(run)])
            raise CheckpointError(f"{run}: made by the command line, which holds out test rows; go on with: {again}")
        return estimator.fit_rows(X, y, sample_weight, source=facts, folder=folder)

    def fit_rows(
        self,
        X: object,
        y: object,
        sample_weight: object = None,
        *,
        source: Mapping[str, Any],
        folder: RunFolder | None = None,
    ) -> Self:
        """Do what `fit` does, with JSON facts to write down about where the rows came from.

        With `folder` go on with the run that it holds, which must have been started with the same rows.
        """
        self.seed_ = seed_of(self.random_state)
        columns = read_given(self, X, reset=True)
        read = read_targets(y, None)
        self._single = read.single
        targets = weighted(read.table, sample_weight)
        if targets.weight is not None:
            chosen = targets.weight > 0
            columns, targets = rows_of(columns, chosen.numpy()), take_rows(targets, chosen)
        require_finite(targets, "y")
        targets.check()
        if folder is not None:
            self.encoder_ = Encoder.from_json(folder.config.get("given"))
        else:
            self.encoder_ = Encoder.learn(columns, missing=self.missing, weight=targets.weight)
        given = self.encoder_.encode(columns)
        if len(given) != len(targets):
            raise DataError(f"y: {len(targets)} rows came for {len(given)} rows of X; give one of each.")
        return self._train(joined(targets, given), targets.features, source, folder)

    def _train(self, table: Table, features: int, source: Mapping[str, Any], folder: RunFolder | None) -> Self:
        """Fit to a table of targets and encoded columns."""
        targets = Table(table.values[:, :features], table.columns[:features], table.weight)
        supports = target_supports(self.support, targets.columns)
        self._check_noise(supports)
        self.dequantise_ = grid_steps(self.dequantise, targets)
        used = table.dequantise(self.dequantise_, seeded_generator(self.seed_, DEQUANTISE))
        remarks = Table(used.values[:, :features], targets.columns, table.weight).check(support=supports)
        for text in remarks:
            warnings.warn(text, DataWarning, stacklevel=4)
        facts = {**source, "digest": table.digest(), "rows": len(table), "single": self._single, "warnings": remarks}
        facts |= {"named": hasattr(self, "feature_names_in_"), "missing": self.missing}
        if folder is not None:
            require_same_rows(table, folder.config["data"], folder.path)
        if count_of("members", self.members) == 1:
            return self._train_one(used, targets, supports, facts, folder)
        return self._train_members(table, targets, supports, facts, folder)

    def _train_one(
        self, used: Table, targets: Table, supports: dict[str, Support], facts: dict[str, Any], folder: RunFolder | None
    ) -> Self:
        """Fit a single density to rows whose targets are spread over their cells."""
        features, config = targets.features, self._fit_config()
        train, held_out = hold_out(used, config)
        if held_out is None:
            config = dataclasses.replace(config, validation_fraction=0.0)
        pairs, kept = Pairs(train, features), None if held_out is None else Pairs(held_out, features)
        values, given, weight = pairs.rows()
        assert given is not None
        learned_from = Table(values, targets.columns, weight)
        options = plain(dict(self.model_options or {}))
        density = conditional_density(
            self.model, learned_from, given, options=options, support=supports, names=NAMES, seed=self.seed_
        )
        described = self._described(density, targets, config, facts)
        run = self._run(described, folder)
        loss: Objective | None = None
        if self.noise or self.given_noise:
            sizes = disturbance(learned_from, given, steps=None, noise=self.noise, given_noise=self.given_noise)
            loss = Disturbed(density.objective or NLL(), **sizes)
        fitter = Fitter(config, runtime=PairRuntime(config.device, amp=config.amp), progress=self._progress)
        report = fitter.fit(density, pairs, loss, validation=kept, run=run, resume=folder is not None)
        self._finish(density, run, described if folder is None else folder.config)
        summary = Summary(report, None if kept is None else compare_given(density, pairs, kept))
        self._conclude(summary)
        if run is not None:
            write_summary(run, summary)
        return self

    def _train_members(
        self,
        table: Table,
        targets: Table,
        supports: dict[str, Support],
        facts: dict[str, Any],
        folder: RunFolder | None,
    ) -> Self:
        """Fit densities to be averaged, for which the targets are spread over their cells afresh at every step."""
        features, config, steps = targets.features, self._fit_config(), self.dequantise_
        # Members spread a number to both sides of it; a table's cells begin at theirs.
        half = torch.tensor([steps.get(column, 0.0) / 2 for column in targets.columns], dtype=torch.float64)
        centres = Table(targets.values.double() + half, targets.columns, targets.weight)
        given = table.values[:, features:].double()
        untrained = UntrainedEnsemble(
            self.model,
            centres,
            given,
            members=self.members,
            disturbance=disturbance(centres, given, steps=steps, noise=self.noise, given_noise=self.given_noise),
            options=plain(dict(self.model_options or {})),
            support=supports,
            names=NAMES,
            config=config,
        )
        described = self._described(untrained.densities[0], targets, config, facts)
        described["member_scales"] = untrained.scales()
        run = self._run(described, folder)
        with nullcontext() if run is None else run.writing():
            ensemble = untrained.train(run, resume=folder is not None, progress=self._progress)
            reports = [report for report in ensemble.reports if report is not None]
            described = described if folder is None else folder.config
            trained = len(ensemble.members)
            scales = described["member_scales"]
            self._finish(
                ensemble,
                run,
                {**described, "members": trained, "member_scales": None if scales is None else scales[:trained]},
            )
            scores = compare_folds(self._judged(untrained, ensemble)) if untrained.folds[0].held_out else None
            self._conclude(Summary(joint_report(reports), scores))
            if run is not None and trained == self.members:
                self._write(run)
        return self

    def _judged(
        self, untrained: UntrainedEnsemble, ensemble: Ensemble
    ) -> list[tuple[ConditionalDensity, Pairs, Pairs]]:
        """Each member with its rows, whose targets are spread over their cells once."""
        found = []
        for number, (member, fold) in enumerate(zip(ensemble.members, untrained.folds, strict=False)):
            assert fold.held_out is not None
            spread_rows = [
                Pairs(self._around(pairs.table, seeded_generator(self.seed_ + number, DEQUANTISE)), pairs.features)
                for pairs in (fold.learned, fold.held_out)
            ]
            found.append((member, spread_rows[0], spread_rows[1]))
        return found

    def _around(self, centres: Table, generator: torch.Generator) -> Table:
        spread_rows = centres.dequantise(self.dequantise_, generator)
        half = [self.dequantise_.get(column, 0.0) / 2 for column in centres.columns]
        return Table(spread_rows.values - torch.tensor(half, dtype=torch.float64), centres.columns, centres.weight)

    def _described(
        self, density: ConditionalDensity, targets: Table, config: FitConfig, facts: dict[str, Any]
    ) -> dict[str, Any]:
        """The config of a run."""
        described = config_of(
            self.model,
            density.flow,
            targets,
            config,
            options=plain(dict(self.model_options or {})),
            dequantise=self.dequantise_,
            data=facts,
            provenance=self.provenance,
        )
        told = {name: plain(getattr(self, name)) for name in ("members", "noise", "given_noise")}
        return {**described, "given": self.encoder_.to_json(), **told}

    def _run(self, described: dict[str, Any], folder: RunFolder | None) -> RunFolder | None:
        if folder is not None or self.run is None:
            return folder
        return new_run(self.run, described, overwrite=self.overwrite)

    @property
    def _progress(self) -> Literal["auto", False]:
        return "auto" if self.verbose else False

    def _check_noise(self, supports: Mapping[str, Support]) -> None:
        for name in ("noise", "given_noise"):
            size = getattr(self, name)
            number = isinstance(size, int | float | np.number) and not isinstance(size, bool)
            if not number or not (0 <= size < math.inf):
                raise OptionError(f"{name}: {size!r} came, a finite number of at least 0 was expected.")
        if self.noise and supports:
            raise OptionError(
                f"noise: {self.noise} came with a support, which noise on the targets would leave; use given_noise."
            )

    @classmethod
    def _from_config(cls, run: RunFolder, config: Mapping[str, Any]) -> Self:
        """An estimator with the arguments that a run's config tells of."""
        try:
            facts = dict(config["data"])
            told = {name: config[name] for name in ("members", "noise", "given_noise") if name in config}
            estimator = cls(**{**stored_arguments(config), **told, "missing": facts["missing"]})
            encoder = Encoder.from_json(config["given"])
            names = encoder.columns
            estimator.encoder_, estimator.dequantise_ = encoder, dict(config["dequantise"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise no_config(run, error) from None
        estimator.seed_, estimator.n_features_in_ = seed_of(estimator.random_state), len(names)
        estimator._single = bool(facts.get("single")) and len(config["columns"]) == 1
        if facts.get("named"):
            estimator.feature_names_in_ = np.array(names, dtype=object)
        return estimator
