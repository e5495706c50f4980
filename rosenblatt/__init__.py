"""Exact probability densities learned from data: fit, score, sample, plot and audit.

>>> import rosenblatt
>>> rosenblatt.FlowDensity  # heavy parts load on first use
<class 'rosenblatt.estimators.density.FlowDensity'>
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rosenblatt._version import __version__

if TYPE_CHECKING:
    from rosenblatt import data as data
    from rosenblatt import eval as eval
    from rosenblatt import inference as inference
    from rosenblatt import models as models
    from rosenblatt import plot as plot
    from rosenblatt import testing as testing
    from rosenblatt.core.density import Density as Density
    from rosenblatt.core.density import Flow as Flow
    from rosenblatt.core.errors import CheckpointError as CheckpointError
    from rosenblatt.core.errors import DataError as DataError
    from rosenblatt.core.errors import FitDiverged as FitDiverged
    from rosenblatt.core.errors import InverseError as InverseError
    from rosenblatt.core.errors import OptionError as OptionError
    from rosenblatt.core.errors import RosenblattError as RosenblattError
    from rosenblatt.core.registry import build as build
    from rosenblatt.core.registry import cite as cite
    from rosenblatt.data.table import Table as Table
    from rosenblatt.estimators import ConditionalFlow as ConditionalFlow
    from rosenblatt.estimators import FlowDensity as FlowDensity
    from rosenblatt.estimators import ImageDensity as ImageDensity
    from rosenblatt.forecasting import Forecaster as Forecaster
    from rosenblatt.preparation import DataWarning as DataWarning
    from rosenblatt.testing.audit import audit as audit
    from rosenblatt.train.config import FitConfig as FitConfig
    from rosenblatt.train.fitter import Fitter as Fitter

_MODULES = ("data", "eval", "inference", "models", "plot", "testing")
_NAMES = {
    "CheckpointError": "core.errors",
    "DataError": "core.errors",
    "DataWarning": "preparation",
    "Density": "core.density",
    "FitConfig": "train.config",
    "FitDiverged": "core.errors",
    "Fitter": "train.fitter",
    "Flow": "core.density",
    "ConditionalFlow": "estimators",
    "FlowDensity": "estimators",
    "ImageDensity": "estimators",
    "Forecaster": "forecasting",
    "InverseError": "core.errors",
    "OptionError": "core.errors",
    "RosenblattError": "core.errors",
    "Table": "data.table",
    "audit": "testing.audit",
    "build": "core.registry",
    "cite": "core.registry",
}

__all__ = [  # noqa: PLE0604 - filled from the table above, so that a name is written once
    "__version__",
    *_MODULES,
    *_NAMES,
]


def __getattr__(name: str) -> Any:
    """Import what a public name needs when it is first asked for (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"rosenblatt.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module 'rosenblatt' has no attribute '{name}'")
    if _NAMES[name] == "core.registry":
        importlib.import_module("rosenblatt.models")  # fills the registry
    return getattr(importlib.import_module(f"rosenblatt.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(__all__)
