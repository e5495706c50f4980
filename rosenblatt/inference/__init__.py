"""Posteriors: from a log-density by variational inference, from a simulator by learned densities."""

from rosenblatt.inference.importance import ImportanceSample, ImportanceWarning, importance_sample
from rosenblatt.inference.target import LogJoint
from rosenblatt.inference.variational import VariationalPosterior, fit_variational

__all__ = [
    "ImportanceSample",
    "ImportanceWarning",
    "LogJoint",
    "VariationalPosterior",
    "fit_variational",
    "importance_sample",
]
