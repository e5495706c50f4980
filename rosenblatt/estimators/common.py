"""What the estimators share: options of training, the end of a fit, and run folders."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted

from rosenblatt.core.density import Density
from rosenblatt.core.errors import CheckpointError, OptionError
from rosenblatt.eval import Estimate
from rosenblatt.preparation import plain
from rosenblatt.summary import Comparison, Summary, new_run, read_summary, write_summary
from rosenblatt.train import FitConfig, FitReport, LocalRuntime, RunFolder

Floats = npt.NDArray[np.float64]
RandomState = int | np.random.RandomState | None
# Options of FitConfig that are arguments of the estimators; the others go through `fit_options`.
FIT_ARGUMENTS = (
    *("epochs", "batch_size", "learning_rate", "validation_fraction", "patience", "ema_decay"),
    *("clip_norm", "time_limit", "max_steps", "dtype", "device"),
)


class Learner:
    """An estimator whose `fit` leaves a density in `model_`, and perhaps a run folder."""

    fit_options: Mapping[str, Any] | None
    model_: Any
    seed_: int
    columns_: tuple[str, ...]
    run_: RunFolder | None
    report_: FitReport | None
    validation_score_: Estimate | None
    gaussian_score_: Estimate | None
    test_scores_: Comparison | None
    _comparison: Comparison | None
    _summary: Summary | None
    _config: dict[str, Any]

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the fitted model into a new run folder: JSON and safetensors, no pickle.

        Raises `CheckpointError` when the folder is not empty (unless it is a run and `overwrite`).
        """
        check_is_fitted(self)
        self._write(new_run(path, self._config, overwrite=overwrite))

    def _write(self, run: RunFolder) -> None:
        """Put the fitted model into a run folder with its config, as the one checkpoint, and how the fit went."""
        # Weights in the dtype they were trained in; `dtype` of a config is one that FitConfig allows.
        stored = copy.deepcopy(self.model_).to(getattr(torch, self._config["dtype"]))
        steps = 0 if self.report_ is None else self.report_.steps
        run.save(steps, stored.state_dict(), {}, {"fit": self._config["fit"]}, best=True, keep_last=1)
        if self.report_ is not None and self._summary is not None:
            run.forget_metrics()
            for record in self.report_.history:
                run.append_metrics(record)
            write_summary(run, self._summary)

    def _opened(self, model: Density, run: RunFolder, config: dict[str, Any], device: str) -> Self:
        """Take over what a run folder holds."""
        self.device = device
        self._finish(model.to(LocalRuntime(device).device), run, config)
        self._conclude(read_summary(run))
        return self

    def _finish(self, model: Density, run: RunFolder | None, config: dict[str, Any]) -> None:
        # Scores in float64, so that they do not depend on which rows are scored together.
        self.model_ = model.double().eval()
        self.columns_ = tuple(config["columns"])
        self.run_ = run
        self._config = config

    def _conclude(self, summary: Summary | None) -> None:
        self._summary = summary
        self.report_, self._comparison, self.test_scores_ = (None, None, None) if summary is None else summary[:3]
        scores = self._comparison
        self.validation_score_, self.gaussian_score_ = (None, None) if scores is None else scores[:2]

    def _fit_config(self) -> FitConfig:
        options = {name: plain(getattr(self, name)) for name in FIT_ARGUMENTS}
        extra = plain(dict(self.fit_options or {}))
        for name in extra:
            if name in options or name == "seed":
                own = "random_state" if name == "seed" else name
                raise OptionError(f"fit_options: '{name}' is set by the argument {own}; leave it out here.")
        return FitConfig.from_dict({**options, **extra, "seed": self.seed_})

    def _set_given(self, **options: Any) -> None:
        """Replace arguments by those that are not None."""
        for name, value in options.items():
            if value is not None:
                setattr(self, name, value)


def stored_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an estimator that a run's config tells of; raises for what is no config of a fit."""
    columns = list(config["columns"])
    pairs = config["supports"] or [[None, None]] * len(columns)
    bounds = {name: pair for name, pair in zip(columns, pairs, strict=True) if pair != [None, None]}
    return {
        **fit_arguments(config),
        "support": bounds or None,
        "dequantise": {str(name): float(step) for name, step in config["dequantise"].items()} or None,
    }


def fit_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of them that every estimator has."""
    fit = FitConfig.from_dict(config["fit"]).to_dict()
    seed = fit.pop("seed")
    return {
        "model": config["model"],
        "model_options": dict(config["options"]),
        **{name: fit.pop(name) for name in FIT_ARGUMENTS},
        "fit_options": {name: value for name, value in fit.items() if value != getattr(FitConfig, name)} or None,
        "random_state": seed,
        "provenance": config.get("provenance") or None,
    }


def no_config(run: RunFolder, error: Exception) -> CheckpointError:
    """The error for a config that `stored_arguments` or `fit_arguments` cannot read."""
    return CheckpointError(
        f"{run.path / 'config.json'}: not the config of such a fit ({error}); restore it or fit again."
    )


def count_of(name: str, value: object) -> int:
    """`value` as a whole number of at least 1; `OptionError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise OptionError(f"{name}: {value!r} came, a whole number of at least 1 was expected.")
    return int(value)
