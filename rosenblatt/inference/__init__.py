"""Posteriors: from a log-density by variational inference, from a simulator by learned densities."""

from rosenblatt.inference.conditional import ConditionalFlow, conditional_flow, fit_conditional
from rosenblatt.inference.ensemble_slice import PosteriorDraws, sample_posterior
from rosenblatt.inference.simulation import Simulations, fit_likelihood, fit_posterior, simulate

__all__ = [
    "ConditionalFlow",
    "PosteriorDraws",
    "Simulations",
    "conditional_flow",
    "fit_conditional",
    "fit_likelihood",
    "fit_posterior",
    "sample_posterior",
    "simulate",
]
