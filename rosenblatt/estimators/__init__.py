"""The scikit-learn faces: a density of a table's rows, and one of targets given other columns, each in one call."""

from rosenblatt.estimators.conditional import ConditionalFlow
from rosenblatt.estimators.density import FlowDensity
from rosenblatt.preparation import DataWarning

__all__ = ["ConditionalFlow", "DataWarning", "FlowDensity"]
