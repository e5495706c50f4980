"""Densities to put behind a transform: simple ones, mixtures, and bases that learn."""

from rosenblatt.bases.choice import choose
from rosenblatt.bases.learned import ConditionalNormal, FullNormal
from rosenblatt.bases.mixture import Mixture
from rosenblatt.bases.resampled import Resampled
from rosenblatt.bases.simple import Box, GaussianMixture, StandardLogistic, StandardNormal, StudentT

__all__ = [
    "Box",
    "ConditionalNormal",
    "FullNormal",
    "GaussianMixture",
    "Mixture",
    "Resampled",
    "StandardLogistic",
    "StandardNormal",
    "StudentT",
    "choose",
]
