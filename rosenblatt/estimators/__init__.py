"""The scikit-learn faces: densities of a table's rows, of targets given columns, and of images, each in one call."""

from rosenblatt.estimators.conditional import ConditionalFlow
from rosenblatt.estimators.density import FlowDensity
from rosenblatt.estimators.images import ImageDensity
from rosenblatt.preparation import DataWarning

__all__ = ["ConditionalFlow", "DataWarning", "FlowDensity", "ImageDensity"]
