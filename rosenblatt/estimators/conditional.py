"""`ConditionalFlow` fits the exact density of one or many targets given the columns of a table; a regression."""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from rosenblatt.assembly import config_of
from rosenblatt.conditional import (
    PairRuntime,
    Pairs,
    compare_given,
    conditional_density,
    joined,
    restore_conditional,
)
from rosenblatt.core.errors import CheckpointError, DataError, OptionError
from rosenblatt.data import Encoder, Table
from rosenblatt.estimators.common import Floats, Learner, RandomState, count_of, no_config, stored_arguments
from rosenblatt.estimators.inputs import Targets, numbers_between, read_given, read_targets, rows_of, target_supports
from rosenblatt.predictive import Predictive
from rosenblatt.preparation import (
    DEQUANTISE,
    DataWarning,
    grid_steps,
    hold_out,
    plain,
    require_finite,
    require_same_rows,
    seed_of,
    source_of,
    spread,
    take_rows,
    weighted,
)
from rosenblatt.summary import Summary, new_run, write_summary
from rosenblatt.train import Fitter, RunFolder
from rosenblatt.train.runtime import seeded_generator

KINDS = ("mean", "median")


class ConditionalFlow(RegressorMixin, Learner, BaseEstimator):  # type: ignore[misc]
    """Exact density p(y | X) of one or many targets given columns, learned by a conditional flow; a regressor.

    `log p(y | X) = log p_flow(s(y) | e(X)) + log|det ds/dy|`: targets are standardised inside, and everything said of
    them is in their own units, densities in nats per unit. X is encoded, standardised, and told to the flow's networks.

    model, model_options: name of a registered model that takes a context ("nits", "nsf", "maf", "made_mixture",
        "gaussian", the linear regression) and its options.
    missing: "error" refuses rows of X with missing numbers or categories; "indicate" puts the mean (or no category)
        there, and a column of 0 and 1 beside it that says where, for columns that lack values in the rows of the fit.
    support: `{"price": [0, None]}`, or one `[lower, upper]` (None: no bound) per target, or the pair of a single one.
    dequantise: `{"count": 1.0}` spreads a target on a grid evenly over its cells of that width; "auto" finds them.
    epochs ... device: see `FitConfig`, whose other options `fit_options` takes.
    run: folder for checkpoints and metrics, from which `resume` goes on; `overwrite` replaces an earlier run.
    verbose, random_state, provenance: as for `FlowDensity`.

    Columns of text, categories or truth values in X (data frames, mappings and files; arrays hold numbers) become 0 and
    1 for each category, at most 100; one that the fit has not seen is a `DataError`. Columns of X that never vary are
    told as 0. Rows of weight 0 count as if they were absent. A constant target, fewer than two rows, a NaN or an
    infinity in y, an infinity in X: `DataError` that names the column. A far outlier in y or X sets the scale of its
    column (remarked on for y), and the fit stays finite. Far outside the rows of the fit the networks extrapolate:
    densities stay finite and quantiles ordered, but nobody knows them to be right.

    After `fit`: `model_` (a `ConditionalDensity`, in float64), `encoder_`, `columns_` (the targets), `n_features_in_`,
    `feature_names_in_` (named columns only), `report_`, `run_`, `dequantise_`, `seed_`, and mean log-densities of
    held-out rows with standard errors: `validation_score_` and, of the linear Gaussian regression, `gaussian_score_`.

    Likelihood training as in Papamakarios et al. (2021). Errors are `DataError` and `OptionError`, both ValueErrors.

    >>> generator = np.random.default_rng(0)
    >>> X = generator.normal(size=(200, 2))
    >>> y = X[:, 0] + generator.normal(size=200) * np.exp(X[:, 1])
    >>> flow = ConditionalFlow("nits", model_options={"hidden": 8}, epochs=2, random_state=0).fit(X, y)
    >>> flow.predict(X).shape, flow.log_prob(X, y).shape, flow.predict_quantiles(X, [0.1, 0.9]).shape
    ((200,), (200,), (200, 2))
    """

    encoder_: Encoder
    dequantise_: dict[str, float]
    _single: bool

    def __init__(
        self,
        model: str = "nits",
        *,
        model_options: Mapping[str, Any] | None = None,
        missing: str = "error",
        support: Mapping[str, Any] | Sequence[Any] | None = None,
        dequantise: Mapping[str, float] | str | None = None,
        epochs: int = 100,
        batch_size: int = 512,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.1,
        patience: int | None = 10,
        ema_decay: float | None = 0.999,
        clip_norm: float | None = 5.0,
        time_limit: float | None = None,
        max_steps: int | None = None,
        dtype: str = "float32",
        device: str = "auto",
        fit_options: Mapping[str, Any] | None = None,
        run: str | Path | None = None,
        overwrite: bool = False,
        verbose: int = 0,
        random_state: RandomState = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.model_options = model_options
        self.missing = missing
        self.support = support
        self.dequantise = dequantise
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.ema_decay = ema_decay
        self.clip_norm = clip_norm
        self.time_limit = time_limit
        self.max_steps = max_steps
        self.dtype = dtype
        self.device = device
        self.fit_options = fit_options
        self.run = run
        self.overwrite = overwrite
        self.verbose = verbose
        self.random_state = random_state
        self.provenance = provenance

    def fit(self, X: object, y: object, sample_weight: object = None) -> Self:
        """Fit the density of `y` (rows,) or (rows, targets) given `X` (rows, columns).

        Both are data frames or series (pandas, polars, pyarrow), arrays, mappings of columns, `Table`s or paths of
        table files. Remarks on the targets come as `DataWarning`. Weights multiply the loss of their rows.
        """
        return self.fit_rows(X, y, sample_weight, source=source_of(X))

    def log_prob(self, X: object, y: object) -> Floats:
        """Log-density of each row's targets given its columns, (rows,), in nats per unit of y; -inf off the support."""
        given, targets = self._read(X, y)
        scores: Floats = self.model_.by_rows(self.model_.log_prob, targets, given).numpy()
        return scores

    def log_score(self, X: object, y: object, sample_weight: object = None) -> float:
        """(Weighted) mean log-density per row, in nats; targets spread for the fit are spread likewise first."""
        given, targets = self._read(X, y)
        scores = self.model_.by_rows(self.model_.log_prob, self._spread(targets), given)
        weight = weighted(Table(targets, self.columns_), sample_weight).weight
        return float(scores.mean() if weight is None else weight @ scores / weight.sum())

    def score(self, X: object, y: object, sample_weight: object = None) -> float:
        """R^2 of the predicted means, averaged over targets, which GridSearchCV maximises; see also `log_score`."""
        given, targets = self._read(X, y)
        return float(r2_score(targets.numpy(), self._predictive().mean(given).numpy(), sample_weight=sample_weight))

    def predict(self, X: object, kind: str = "mean") -> Floats:
        """Predict the conditional mean or median of each target, (rows,) or (rows, targets).

        With one target the median is exact and the mean a quadrature of exact quantiles; with several (or a base
        without a CDF) both come from 1,024 draws per row with a seed fixed by the fit (`predictive.Predictive`).
        """
        if kind not in KINDS:
            raise OptionError(f'kind: {kind!r} came, one of "mean" and "median" was expected.')
        if kind == "median":
            quantiles = self.predict_quantiles(X, [0.5])
            return quantiles[..., 0]
        return self._shaped(self._predictive().mean(self._given(X)))

    def predict_quantiles(self, X: object, levels: Sequence[float] | Floats) -> Floats:
        """Quantiles at `levels` in (0, 1): (rows, levels), and for y of two axes (rows, targets, levels).

        Exact with one target, `F(quantile | X) = level`; with several, marginal ones of 1,024 draws per row.
        """
        chosen = numbers_between("levels", levels)
        return self._shaped(self._predictive().quantiles(self._given(X), chosen))

    def predict_interval(self, X: object, level: float = 0.9) -> Floats:
        """Central interval that holds each target with probability `level`: (rows, 2) or (rows, targets, 2)."""
        inside = float(numbers_between("level", [level])[0])
        return self.predict_quantiles(X, [(1 - inside) / 2, (1 + inside) / 2])

    def sample(self, X: object, n_samples: int = 1, random_state: RandomState = None) -> Floats:
        """Draw targets for each row of X, (n_samples, rows, targets)."""
        count, given = count_of("n_samples", n_samples), self._given(X)
        generator = seeded_generator(seed_of(random_state), device=self.model_.flow.device)
        drawn: Floats = self._predictive().sample(given, count, generator).numpy()
        return drawn

    def cdf(self, X: object, y: object) -> Floats:
        """CDF of each row's target given its columns, (rows,); Rosenblatt transform (rows, targets) of several.

        With several targets column i is `F_i(y_i | y_<i, X)` for models of one autoregressive layer, in the model's
        order; in general a map to the uniform cube. Exactly 0 or 1 outside the support. Raises `OptionError` for a
        model whose base has no CDF.
        """
        given, targets = self._read(X, y)
        return self._shaped(self._predictive().cdf(targets, given))

    def pit(self, X: object, y: object) -> Floats:
        """Probability integral transform: `cdf` of the targets, spread over their cells where the fit did so.

        Uniform if the model is right, whatever X (Rosenblatt 1952; Dawid 1984). The noise is the same at every call.
        """
        given, targets = self._read(X, y)
        return self._shaped(self._predictive().cdf(self._spread(targets), given))

    def pairs(self, X: object, y: object, sample_weight: object = None) -> Pairs:
        """Rows as `model_` sees them: targets, spread over their cells where the fit did so, and encoded columns."""
        given, targets = self._read(X, y)
        return Pairs(
            joined(weighted(Table(self._spread(targets), self.columns_), sample_weight), given), len(targets.T)
        )

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
        config, options = self._fit_config(), plain(dict(self.model_options or {}))
        supports = target_supports(self.support, targets.columns)
        self.dequantise_ = grid_steps(self.dequantise, targets)
        used = table.dequantise(self.dequantise_, seeded_generator(self.seed_, DEQUANTISE))
        remarks = Table(used.values[:, :features], targets.columns, table.weight).check(support=supports)
        for text in remarks:
            warnings.warn(text, DataWarning, stacklevel=4)
        facts = {**source, "digest": table.digest(), "rows": len(table), "single": self._single, "warnings": remarks}
        facts |= {"named": hasattr(self, "feature_names_in_"), "missing": self.missing}
        if folder is not None:
            require_same_rows(table, folder.config["data"], folder.path)
        train, held_out = hold_out(used, config)
        if held_out is None:
            config = dataclasses.replace(config, validation_fraction=0.0)
        pairs, kept = Pairs(train, features), None if held_out is None else Pairs(held_out, features)
        values, given, weight = pairs.rows()
        assert given is not None
        learned_from = Table(values, targets.columns, weight)
        density = conditional_density(
            self.model, learned_from, given, options=options, support=supports, names=("y", "X"), seed=self.seed_
        )
        described = config_of(
            self.model,
            density.flow,
            targets,
            config,
            options=options,
            dequantise=self.dequantise_,
            data=facts,
            provenance=self.provenance,
        )
        described["given"] = self.encoder_.to_json()
        run = folder
        if run is None and self.run is not None:
            run = new_run(self.run, described, overwrite=self.overwrite)
        fitter = Fitter(
            config, runtime=PairRuntime(config.device, amp=config.amp), progress="auto" if self.verbose else False
        )
        report = fitter.fit(density, pairs, validation=kept, run=run, resume=folder is not None)
        self._finish(density, run, described if folder is None else folder.config)
        summary = Summary(report, None if kept is None else compare_given(density, pairs, kept))
        self._conclude(summary)
        if run is not None:
            write_summary(run, summary)
        return self

    def _given(self, X: object) -> Tensor:
        """Rows of X as the density is told of them, (rows, context)."""
        check_is_fitted(self)
        return self.encoder_.encode(read_given(self, X, reset=False))

    def _read(self, X: object, y: object) -> tuple[Tensor, Tensor]:
        given = self._given(X)
        targets = read_targets(y, Targets(Table(torch.empty(0, len(self.columns_)), self.columns_), self._single)).table
        require_finite(targets, "y")
        if len(given) != len(targets):
            raise DataError(f"y: {len(targets)} rows came for {len(given)} rows of X; give one of each.")
        return given, targets.values

    def _spread(self, targets: Tensor) -> Tensor:
        return spread(Table(targets, self.columns_), self.dequantise_, self.seed_).values

    def _predictive(self) -> Predictive:
        check_is_fitted(self)
        return Predictive(self.model_, seed=self.seed_)

    def _shaped(self, answers: Tensor) -> Floats:
        """(rows, targets, ...) without the second axis where y had none."""
        shaped: Floats = (answers.squeeze(1) if self._single else answers).numpy()
        return shaped

    @classmethod
    def _from_config(cls, run: RunFolder, config: Mapping[str, Any]) -> Self:
        """An estimator with the arguments that a run's config tells of."""
        try:
            facts = dict(config["data"])
            estimator = cls(**stored_arguments(config), missing=facts["missing"])
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.allow_nan = self.missing == "indicate"
        return tags
