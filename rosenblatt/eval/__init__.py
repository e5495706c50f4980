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

__all__ = [
    "Difference",
    "Estimate",
    "KernelProposal",
    "RosenblattReport",
    "Uniformity",
    "bits_per_dimension",
    "dkw_band",
    "grid_mass",
    "importance_mass",
    "mean_log_prob",
    "nats_from_bits",
    "paired_difference",
    "pit_bands",
    "rosenblatt_report",
    "uniformity",
]
