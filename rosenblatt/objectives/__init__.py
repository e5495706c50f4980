"""What a model is trained to do: losses per row."""

from rosenblatt.objectives.bounds import VariationalBound
from rosenblatt.objectives.likelihood import NLL, Objective

__all__ = ["NLL", "Objective", "VariationalBound"]
