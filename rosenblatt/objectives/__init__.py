"""What a model is trained to do: losses per row."""

from rosenblatt.objectives.bounds import VariationalBound
from rosenblatt.objectives.closed import closed_crps, closed_law
from rosenblatt.objectives.disturbed import Disturbed
from rosenblatt.objectives.energy import EnergyPenalty
from rosenblatt.objectives.flow_matching import FlowMatching
from rosenblatt.objectives.likelihood import NLL, Objective, measure_of
from rosenblatt.objectives.rounded import RoundedNLL
from rosenblatt.objectives.rules import (
    crps_from_quantiles,
    crps_from_samples,
    energy_score,
    interval_score,
    log_score,
    pinball,
    variogram_score,
)
from rosenblatt.objectives.scores import CRPS, EnergyScore, PinballLoss

__all__ = [
    "CRPS",
    "NLL",
    "Disturbed",
    "EnergyPenalty",
    "EnergyScore",
    "FlowMatching",
    "Objective",
    "PinballLoss",
    "RoundedNLL",
    "VariationalBound",
    "closed_crps",
    "closed_law",
    "crps_from_quantiles",
    "crps_from_samples",
    "energy_score",
    "interval_score",
    "log_score",
    "measure_of",
    "pinball",
    "variogram_score",
]
