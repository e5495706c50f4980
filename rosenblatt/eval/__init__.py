"""Measures of a fitted density: calibration, mass, and log-likelihoods with their errors."""

from rosenblatt.eval.bits import (
    Difference,
    Estimate,
    bits_per_dimension,
    mean_log_prob,
    nats_from_bits,
    paired_difference,
)
from rosenblatt.eval.c2st import c2st
from rosenblatt.eval.calibration import (
    RosenblattReport,
    Uniformity,
    dkw_band,
    pit_bands,
    rosenblatt_report,
    uniformity,
)
from rosenblatt.eval.distances import energy_distance, mmd, sliced_wasserstein
from rosenblatt.eval.mass import KernelProposal, grid_mass, importance_mass
from rosenblatt.eval.sbc import SBCReport, sbc
from rosenblatt.eval.tails import ColumnTail, TailReport, exponential_p_value, tail_report

__all__ = [
    "ColumnTail",
    "Difference",
    "Estimate",
    "KernelProposal",
    "RosenblattReport",
    "SBCReport",
    "TailReport",
    "Uniformity",
    "bits_per_dimension",
    "c2st",
    "dkw_band",
    "energy_distance",
    "exponential_p_value",
    "grid_mass",
    "importance_mass",
    "mean_log_prob",
    "mmd",
    "nats_from_bits",
    "paired_difference",
    "pit_bands",
    "rosenblatt_report",
    "sbc",
    "sliced_wasserstein",
    "tail_report",
    "uniformity",
]
