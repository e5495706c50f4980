"""A forecaster in a run folder: its options, its weights and the rows it looks back at; JSON and safetensors."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from rosenblatt._version import __version__
from rosenblatt.core.errors import CheckpointError, RosenblattError
from rosenblatt.data import Table
from rosenblatt.forecasting.clock import Clock
from rosenblatt.forecasting.series import Series
from rosenblatt.forecasting.step import PathMixture, StepModel
from rosenblatt.forecasting.training import Lesson
from rosenblatt.preparation import plain
from rosenblatt.summary import Summary, new_run, read_summary, write_summary
from rosenblatt.train import RunFolder

if TYPE_CHECKING:
    from rosenblatt.forecasting.forecaster import Forecaster

KIND = "forecaster"
F = TypeVar("F", bound="Forecaster")


class _Stored(nn.Module):
    """All tensors of a forecaster under one roof: the model, and the last rows of its table."""

    values: Tensor
    covariates: Tensor
    scale: Tensor

    def __init__(self, model: PathMixture, values: Tensor, covariates: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.model = model
        for name, rows in (("values", values), ("covariates", covariates), ("scale", scale)):
            self.register_buffer(name, rows.double())


def save(forecaster: Forecaster, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a fitted forecaster into a new run folder; see `Forecaster.save`."""
    series = forecaster.series_
    seen = forecaster.model_.frame.look_back
    tail = series.cut(len(series) - seen, len(series))
    config = {
        "kind": KIND,
        "arguments": _arguments(forecaster),
        "series": list(series.names),
        "covariates": list(series.known),
        "clock": [tail.clock.unit, tail.clock.start, tail.clock.step, tail.clock.offset],
        "season": forecaster.season_,
        "lags": list(forecaster.lags_),
        "calendar": list(forecaster.calendar_),
        "seed": forecaster.seed_,
        "versions": {"rosenblatt": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
    }
    run = new_run(path, config, overwrite=overwrite)
    rows = (torch.from_numpy(part) for part in (tail.values, tail.covariates, forecaster.scale_))
    stored = _Stored(copy.deepcopy(forecaster.model_), *rows)
    report = forecaster.report_
    run.save(0 if report is None else report.steps, stored.state_dict(), {}, {"kind": KIND}, best=True)
    if report is not None:
        for record in report.history:
            run.append_metrics(record)
        write_summary(run, Summary(report))


def load(kind: type[F], path: str | Path) -> F:
    """Read a forecaster from a run folder; see `Forecaster.load`."""
    run = RunFolder.open(path)
    config = run.config
    if config.get("kind") != KIND:
        raise CheckpointError(f"{run.path}: not the run of a forecaster; open it as what it is (FlowDensity.load).")
    try:
        forecaster = kind(**config["arguments"])
        forecaster._check_options()
        forecaster.seed_, forecaster.season_ = config["seed"], config["season"]
        forecaster.lags_, forecaster.calendar_ = tuple(config["lags"]), tuple(config["calendar"])
        clock = Clock(*config["clock"])
        stored = _blank(forecaster, config, clock)
    except (KeyError, TypeError, ValueError, AttributeError, RosenblattError) as error:
        raise CheckpointError(
            f"{run.path / 'config.json'}: not the config of a forecaster ({error}); restore it or fit again."
        ) from None
    run.load_model_into(stored)
    forecaster.model_ = stored.model.requires_grad_(False).eval()
    forecaster.scale_ = stored.scale.numpy()
    names, known = tuple(config["series"]), tuple(config["covariates"])
    forecaster.series_ = Series(stored.values.numpy(), stored.covariates.numpy(), names, known, clock)
    summary = read_summary(run)
    forecaster.report_ = None if summary is None else summary.report
    forecaster.reports_ = [] if summary is None else [summary.report]  # those of other members are not kept
    return forecaster


def _arguments(forecaster: Forecaster) -> dict[str, Any]:
    """The arguments as JSON values; a random state is kept as the seed that it gave."""
    arguments: dict[str, Any] = {**forecaster.get_params(deep=False), "random_state": forecaster.seed_}
    return {name: _listed(plain(value)) for name, value in arguments.items()}


def _listed(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value


def _blank(forecaster: Forecaster, config: Mapping[str, Any], clock: Clock) -> _Stored:
    """The modules of a config, before their weights are loaded."""
    series, known = len(config["series"]), len(config["covariates"])
    values, covariates = (torch.zeros(2, width, dtype=torch.float64).numpy() for width in (series, known))
    frame = forecaster._frame(Series(values, covariates, tuple(config["series"]), tuple(config["covariates"]), clock))
    # Any rows that can be standardised will do: their units come with the weights.
    rows = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    lesson = Lesson(frame, Table(rows.expand(2, series), config["series"]), rows.expand(2, frame.width))
    design = forecaster._design()
    members = [StepModel(frame, design.density(lesson, forecaster.seed_).double()) for _ in range(forecaster.members)]
    look_back = frame.look_back
    return _Stored(
        PathMixture(members), torch.zeros(look_back, series), torch.zeros(look_back, known), torch.ones(series)
    )
