"""Measures of a fitted density: calibration, mass, and log-likelihoods with their errors."""

from rosenblatt.eval.bits import (
    Difference,
    Estimate,
    bits_per_dimension,
    mean_log_prob,
    nats_from_bits,
    paired_difference,
)
from rosenblatt.eval.calibration import (
    RosenblattReport,
    Uniformity,
    dkw_band,
    pit_bands,
    rosenblatt_report,
    uniformity,
)
from rosenblatt.eval.mass import KernelProposal, grid_mass, importance_mass
from rosenblatt.eval.tails import ColumnTail, TailReport, exponential_p_value, tail_report

__all__ = [
    "ColumnTail",
    "Difference",
    "Estimate",
    "KernelProposal",
    "RosenblattReport",
    "TailReport",
    "Uniformity",
    "bits_per_dimension",
    "dkw_band",
    "exponential_p_value",
    "grid_mass",
    "importance_mass",
    "mean_log_prob",
    "nats_from_bits",
    "paired_difference",
    "pit_bands",
    "rosenblatt_report",
    "tail_report",
    "uniformity",
]
