"""Posteriors: from a log-density by variational inference, from a simulator by learned densities."""

from rosenblatt.conditional import ConditionalDensity, conditional_density, fit_conditional
from rosenblatt.inference.ensemble_slice import PosteriorDraws, sample_posterior
from rosenblatt.inference.importance import ImportanceSample, ImportanceWarning, importance_sample
from rosenblatt.inference.simulation import Simulations, fit_likelihood, fit_posterior, simulate
from rosenblatt.inference.target import LogJoint
from rosenblatt.inference.variational import VariationalPosterior, fit_variational

__all__ = [
    "ConditionalDensity",
    "ImportanceSample",
    "ImportanceWarning",
    "LogJoint",
    "PosteriorDraws",
    "Simulations",
    "VariationalPosterior",
    "conditional_density",
    "fit_conditional",
    "fit_likelihood",
    "fit_posterior",
    "fit_variational",
    "importance_sample",
    "sample_posterior",
    "simulate",
]
