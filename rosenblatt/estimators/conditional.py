"""`ConditionalFlow` fits the exact density of one or many targets given the columns of a table; a regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from rosenblatt.conditional import Pairs, joined
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Table
from rosenblatt.estimators.common import Floats, RandomState, count_of
from rosenblatt.estimators.inputs import Targets, numbers_between, read_given, read_targets
from rosenblatt.estimators.regression import RegressionLearner
from rosenblatt.predictive import Predictive
from rosenblatt.preparation import require_finite, seed_of, source_of, spread, weighted
from rosenblatt.train.runtime import seeded_generator

KINDS = ("mean", "median")


class ConditionalFlow(RegressorMixin, RegressionLearner, BaseEstimator):  # type: ignore[misc]
    """Exact density p(y | X) of one or many targets given columns, learned by a conditional flow; a regressor.

    `log p(y | X) = log p_flow(s(y) | e(X)) + log|det ds/dy|`: targets are standardised inside, and everything said of
    them is in their own units, densities in nats per unit. X is encoded, standardised, and told to the flow's networks.

    model, model_options: name of a registered model that takes a context ("nits", "nsf", "maf", "made_mixture",
        "gaussian", the linear regression) and its options.
    missing: "error" refuses rows of X with missing numbers or categories; "indicate" puts the mean (or no category)
        there, and a column of 0 and 1 beside it that says where, for columns that lack values in the rows of the fit.
    support: `{"price": [0, None]}`, or one `[lower, upper]` (None: no bound) per target, or the pair of a single one.
    dequantise: `{"count": 1.0}` spreads a target on a grid evenly over its cells of that width; "auto" finds them.
    members: fits whose densities are averaged (`Ensemble`), each held back from other rows and with its own seed.
    noise, given_noise: standard deviation of Gaussian noise on the targets and on X in training, drawn afresh at every
        step, as a share of each column's own standard deviation (`Disturbed`); 0 for none.
    epochs ... device: of each member; see `FitConfig`, whose other options `fit_options` takes.
    run: folder for checkpoints and metrics, from which `resume` goes on; `overwrite` replaces an earlier run. Several
        members have folders of their own in it (member-0, ...) until all are trained.
    verbose, random_state, provenance: as for `FlowDensity`.

    For small tables (below 5,000 rows): four members, a network with dropout, and `given_noise` of 1 / sqrt(rows), as
    written out in docs/regression.md; `python -m benchmarks regression` scores that recipe on nine tables.

    Columns of text, categories or truth values in X (data frames, mappings and files; arrays hold numbers) become 0 and
    1 for each category, at most 100; one that the fit has not seen is a `DataError`. Columns of X that never vary are
    told as 0. Rows of weight 0 count as if they were absent. A constant target, fewer than two rows, a NaN or an
    infinity in y, an infinity in X: `DataError` that names the column. A far outlier in y or X sets the scale of its
    column (remarked on for y), and the fit stays finite. Far outside the rows of the fit the networks extrapolate:
    densities stay finite and quantiles ordered, but nobody knows them to be right.

    After `fit`: `model_` (a `ConditionalDensity`, of several members an `Ensemble`, in float64), `encoder_`,
    `columns_` (the targets), `n_features_in_`, `feature_names_in_` (named columns only), `report_`, `run_`,
    `dequantise_`, `seed_`, and mean log-densities of held-out rows with standard errors: `validation_score_` and, of
    the linear Gaussian regression, `gaussian_score_`. Of several members each row is judged by the one that held it
    out, which is on average no better than all together. Ctrl-C leaves the members trained so far.

    Likelihood training as in Papamakarios et al. (2021). Errors are `DataError` and `OptionError`, both ValueErrors.

    >>> import numpy as np
    >>> generator = np.random.default_rng(0)
    >>> X = generator.normal(size=(200, 2))
    >>> y = X[:, 0] + generator.normal(size=200) * np.exp(X[:, 1])
    >>> flow = ConditionalFlow("nits", model_options={"hidden": 8}, epochs=2, random_state=0).fit(X, y)
    >>> flow.predict(X).shape, flow.log_prob(X, y).shape, flow.predict_quantiles(X, [0.1, 0.9]).shape
    ((200,), (200,), (200, 2))
    """

    def __init__(
        self,
        model: str = "nits",
        *,
        model_options: Mapping[str, Any] | None = None,
        missing: str = "error",
        support: Mapping[str, Any] | Sequence[Any] | None = None,
        dequantise: Mapping[str, float] | str | None = None,
        members: int = 1,
        noise: float = 0.0,
        given_noise: float = 0.0,
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
        self.members = members
        self.noise = noise
        self.given_noise = given_noise
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
        without a CDF) both come from 1,024 draws per row, in equal parts by all members, with a seed fixed by the fit
        (`predictive.Predictive`).
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
        generator = seeded_generator(seed_of(random_state), device=self.model_.device)
        drawn: Floats = self._predictive().sample(given, count, generator).numpy()
        return drawn

    def cdf(self, X: object, y: object) -> Floats:
        """CDF of each row's target given its columns, (rows,); Rosenblatt transform (rows, targets) of several.

        With several targets column i is `F_i(y_i | y_<i, X)` for models of one autoregressive layer, in the model's
        order; in general a map to the uniform cube. Exactly 0 or 1 outside the support. Raises `OptionError` for a
        model whose base has no CDF, and for several targets of several members.
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.allow_nan = self.missing == "indicate"
        return tags
