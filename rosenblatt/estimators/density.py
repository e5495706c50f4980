"""`FlowDensity` fits an exact density to a table in one call."""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import narwhals as nw
import numpy as np
import pyarrow as pa
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from rosenblatt.assembly import TableFlow, TableRuntime, assemble, config_of, restore
from rosenblatt.core.errors import CheckpointError, DataError
from rosenblatt.data import Table
from rosenblatt.estimators.common import Floats, Learner, count_of, no_config, stored_arguments
from rosenblatt.preparation import (
    DEQUANTISE,
    DataWarning,
    grid_steps,
    hold_out,
    parse_supports,
    plain,
    require_finite,
    require_same_rows,
    seed_of,
    source_of,
    spread,
    take_rows,
    weighted,
)
from rosenblatt.summary import Summary, compare, new_run, write_summary
from rosenblatt.train import Fitter, RunFolder
from rosenblatt.train.runtime import seeded_generator


class FlowDensity(DensityMixin, Learner, BaseEstimator):  # type: ignore[misc]
    """Exact probability density of a table's rows, learned by a normalizing flow; a scikit-learn estimator.

    model, model_options: name of a registered model ("nits", "maf", "nsf", "made_mixture", "gaussian") and its options.
    support: `{"price": [0, None]}` or one `[lower, upper]` (None: no bound) per column; outside the density is 0.
    dequantise: `{"minute": 1.0}` spreads a column on a grid evenly over its cells of that width; "auto" finds the
        columns and widths. The density is then that of `x + width * U`, and `score` spreads its rows likewise.
    epochs ... device: see `FitConfig`, whose other options `fit_options` takes.
    run: folder for checkpoints and metrics, from which `resume` goes on; `overwrite` replaces an earlier run.
    verbose: 1 shows a progress bar on a terminal.
    random_state: int, RandomState or None for a fresh seed each time; the seed is kept in the run's config.
    provenance: JSON values to keep in the run's config, such as a command line.

    After `fit`: `model_` (a `Flow` over the columns, in float64), `columns_`, `n_features_in_`, `feature_names_in_`
    (named columns only), `report_` (`FitReport`), `run_` (`RunFolder` or None), `dequantise_`, `seed_`, and mean
    log-densities of the held-out rows with standard errors (`Estimate`, None without such rows):
    `validation_score_` and, of the best Gaussian, `gaussian_score_`. A run of `rosenblatt fit` also brings
    `test_scores_` (`Comparison`, else None).

    Likelihood training as in Papamakarios et al. (2021). Errors are `DataError` and `OptionError`, both ValueErrors.

    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> density = FlowDensity("nits", model_options={"hidden": 8}, epochs=2, random_state=0).fit(X)
    >>> density.score_samples(X).shape, density.sample(3, random_state=1).shape
    ((200,), (3, 2))
    """

    def __init__(
        self,
        model: str = "nits",
        *,
        model_options: Mapping[str, Any] | None = None,
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
        random_state: int | np.random.RandomState | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.model_options = model_options
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

    def fit(self, X: object, y: object = None, sample_weight: object = None) -> Self:
        """Fit the density to the rows of `X` (rows, columns); `y` is ignored.

        `X` is a data frame (pandas, polars, pyarrow), an array, a `Table` or the path of a table file. Remarks on
        the data come as `DataWarning`. Raises `DataError` where no density can be fitted (`Table.check`).
        """
        self.seed_ = seed_of(self.random_state)
        return self._train(weighted(self._read(X, reset=True), sample_weight), source_of(X), None)

    def score_samples(self, X: object) -> Floats:
        """Log-density of each row in nats, (rows,), in the units of the columns: -inf outside the support."""
        return self._by_rows(self._flow().log_prob, self._read(X).values)

    def score(self, X: object, y: object = None) -> float:
        """Mean log-density per row, in nats, which GridSearchCV maximises; `y` is ignored.

        Columns that were dequantised for training are spread in the same way first, always with the same noise.
        """
        return float(self._by_rows(self._flow().log_prob, self._spread(self._read(X))).mean())

    def spread(self, X: object) -> Floats:
        """Rows as the model was trained on: `dequantise_` columns spread over their cells, (rows, columns).

        PITs and pictures of data on a grid need this; the noise is the same at every call.
        """
        return self._spread(self._read(X)).numpy()

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> Any:
        """Draw rows, as a frame of the kind `fit` was given, else as an array (n_samples, columns)."""
        count = count_of("n_samples", n_samples)
        flow = self._flow()
        with torch.no_grad():
            drawn = flow.sample(count, generator=seeded_generator(seed_of(random_state)))
        rows: Floats = drawn.cpu().numpy()
        if self._frame is None:
            return rows
        return nw.from_dict(dict(zip(self.columns_, rows.T, strict=True)), backend=self._frame).to_native()

    def rosenblatt(self, X: object) -> Floats:
        """Rosenblatt transform, (rows, columns) in [0, 1]: uniform if the model is right (Rosenblatt 1952).

        Column i is the CDF of x_i given the columns before it (for models of one autoregressive layer; in
        general a map of the rows to the uniform cube). Exactly 0 or 1 outside the support, and NaN beside it.
        """
        return self._by_rows(self._flow().to_uniform, self._read(X).values)

    def cdf(self, X: object) -> Floats:
        """The same as `rosenblatt`: with one column the CDF, with several the conditional CDFs (PIT)."""
        return self.rosenblatt(X)

    def inverse_rosenblatt(self, U: object) -> Floats:
        """Rows (rows, columns) with the given Rosenblatt transform; 0 and 1 give the ends of the support."""
        flow = self._flow()
        u = torch.tensor(np.asarray(U, dtype=np.float64))
        if u.ndim != 2 or u.shape[1] != self.n_features_in_ or not bool(((u >= 0) & (u <= 1)).all()):
            raise DataError(
                f"U: shape {tuple(u.shape)} came, numbers in [0, 1] of shape (rows, {self.n_features_in_}) were "
                "expected; pass the output of rosenblatt."
            )
        return self._by_rows(flow.from_uniform, u)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Read a fitted model from a run folder, at its best checkpoint.

        Raises `CheckpointError` for a folder that is missing, damaged or not from this library.
        """
        run = RunFolder.open(path)
        flow, config = restore(run)
        return cls._from_config(run, config)._opened(flow, run, config, device)

    @classmethod
    def resume(
        cls,
        run: str | Path,
        X: object = None,
        sample_weight: object = None,
        *,
        epochs: int | None = None,
        max_steps: int | None = None,
        time_limit: float | None = None,
        verbose: int = 0,
    ) -> Self:
        """Go on with an interrupted run as if it had never stopped, bit for bit.

        `X` must hold the rows that the run was started with; None reads the table file that the run names.
        `epochs`, `max_steps` and `time_limit` (over all resumes) replace those of the run. Raises `DataError` for
        other rows and `CheckpointError` for a folder that cannot be used.
        """
        folder = RunFolder.open(run)
        estimator = cls._from_config(folder, folder.config)
        estimator.run, estimator.verbose = folder.path, verbose
        estimator._set_given(epochs=epochs, max_steps=max_steps, time_limit=time_limit)
        facts = folder.config["data"]
        if folder.config.get("given") is not None:
            raise CheckpointError(f"{run}: holds a density given other columns; resume it by ConditionalFlow.resume.")
        if "test_rows" in facts:
            again = shlex.join(["rosenblatt", "fit", "--resume", str(run)])
            raise CheckpointError(f"{run}: made by the command line, which holds out test rows; go on with: {again}")
        if X is None and not facts.get("is_file"):
            raise DataError(f"X: the run {folder.path} was started with rows in memory; pass the same rows again.")
        table = weighted(estimator._read(facts["source"] if X is None else X, reset=True), sample_weight)
        require_same_rows(table, facts, folder.path)
        return estimator._train(table, facts, folder)

    def _train(self, table: Table, source: Mapping[str, Any], folder: RunFolder | None) -> Self:
        """Fit to `table`; with `folder` go on with the run that it holds."""
        config, options = self._fit_config(), plain(dict(self.model_options or {}))
        supports = parse_supports(self.support, table.columns)
        used = table if table.weight is None else take_rows(table, table.weight > 0)
        used.check()
        self.dequantise_ = grid_steps(self.dequantise, used)
        used = used.dequantise(self.dequantise_, seeded_generator(self.seed_, DEQUANTISE))
        remarks = used.check(support=supports)
        for text in remarks:
            warnings.warn(text, DataWarning, stacklevel=3)
        train, held_out = hold_out(used, config)
        if held_out is None:
            config = dataclasses.replace(config, validation_fraction=0.0)
        flow = assemble(self.model, train, options=options, supports=supports, seed=self.seed_)
        facts = {**source, "digest": table.digest(), "rows": len(table)}
        facts |= {"frame": self._frame, "named": hasattr(self, "feature_names_in_"), "warnings": remarks}
        described = config_of(
            self.model,
            flow,
            table,
            config,
            options=options,
            dequantise=self.dequantise_,
            data=facts,
            provenance=self.provenance,
        )
        run = folder
        if run is None and self.run is not None:
            run = new_run(self.run, described, overwrite=self.overwrite)
        runtime = TableRuntime(config.device, amp=config.amp)
        fitter = Fitter(config, runtime=runtime, progress="auto" if self.verbose else False)
        report = fitter.fit(flow, train, validation=held_out, run=run, resume=folder is not None)
        self._finish(flow, run, described if folder is None else folder.config)
        summary = Summary(report, None if held_out is None else compare(self.model_, train, held_out))
        self._conclude(summary)
        if run is not None:
            write_summary(run, summary)
        return self

    def _read(self, X: object, *, reset: bool = False) -> Table:
        """Check names, widths and numbers of `X`, and note what it was when `reset`."""
        if not reset:
            check_is_fitted(self)
        is_frame = nw.dependencies.is_into_dataframe(X)
        if reset:
            self._frame = nw.from_native(cast(Any, X)).implementation.name.lower() if is_frame else None
        # A sparse matrix may be a mapping of positions, which is not a mapping of names.
        if isinstance(X, str | Path | Mapping | Table) and not issparse(X):
            table = Table.from_any(X)
            if not reset:
                table.align(self.columns_)
            else:
                named = pa.table({name: pa.array([], pa.float64()) for name in table.columns})
                validate_data(self, named, reset=True, skip_check_array=True)
        elif is_frame:
            table = Table.from_any(X)
            validate_data(self, X, reset=reset, skip_check_array=True)
        else:
            least = 2 if reset else 1
            table = Table.from_any(validate_data(self, X, reset=reset, dtype=np.float64, ensure_min_samples=least))
        if not reset:
            require_finite(table)
        return table

    def _spread(self, table: Table) -> Tensor:
        return spread(Table(table.values, self.columns_), self.dequantise_, self.seed_).values

    def _flow(self) -> TableFlow:
        check_is_fitted(self)
        return cast(TableFlow, self.model_)

    def _by_rows(self, function: Callable[[Tensor], Tensor], values: Tensor) -> Floats:
        answer: Floats = self.model_.by_rows(function, values).numpy()
        return answer

    @classmethod
    def _from_config(cls, run: RunFolder, config: Mapping[str, Any]) -> Self:
        """An estimator with the arguments that a run's config tells of."""
        try:
            estimator = cls(**stored_arguments(config))
            facts = dict(config["data"])
            estimator.dequantise_ = dict(config["dequantise"])
            frame = facts.get("frame")
            estimator._frame = frame if frame in ("pandas", "polars", "pyarrow") else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise no_config(run, error) from None
        columns = list(config["columns"])
        estimator.seed_, estimator.n_features_in_ = seed_of(estimator.random_state), len(columns)
        if facts.get("named"):
            estimator.feature_names_in_ = np.array(columns, dtype=object)
        return estimator
