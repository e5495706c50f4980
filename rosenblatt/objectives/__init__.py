"""What a model is trained to do: losses per row."""

from rosenblatt.objectives.bounds import VariationalBound
from rosenblatt.objectives.energy import EnergyPenalty
from rosenblatt.objectives.flow_matching import FlowMatching
from rosenblatt.objectives.likelihood import NLL, Objective, measure_of

__all__ = ["NLL", "EnergyPenalty", "FlowMatching", "Objective", "VariationalBound", "measure_of"]
