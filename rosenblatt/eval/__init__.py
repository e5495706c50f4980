"""Measures of a fitted density: calibration, mass, and log-likelihoods with their errors."""

from rosenblatt.eval.bits import (
    BitsPerDim,
    Difference,
    Estimate,
    bits_per_dim,
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
from rosenblatt.eval.comparison import ScoreTable, default_lags, diebold_mariano, newey_west, paired_t
from rosenblatt.eval.coverage import Coverage, GroupCoverage, clopper_pearson, coverage, coverage_by_group, holm
from rosenblatt.eval.distances import energy_distance, mmd, sliced_wasserstein
from rosenblatt.eval.levels import LevelScores, bits_per_number, level_scores, pit_per_number
from rosenblatt.eval.mass import KernelProposal, grid_mass, importance_mass
from rosenblatt.eval.pits import PitHistogram, pit_histogram, randomised_pit, sample_pit
from rosenblatt.eval.reliability import Reliability, reliability, reliability_band
from rosenblatt.eval.sbc import SBCReport, sbc
from rosenblatt.eval.scores import PredictiveScores, crps, order_quantiles, score_rows
from rosenblatt.eval.sharpness import Sharpness, sharpness
from rosenblatt.eval.tails import ColumnTail, TailReport, exponential_p_value, tail_report

__all__ = [
    "BitsPerDim",
    "ColumnTail",
    "Coverage",
    "Difference",
    "Estimate",
    "GroupCoverage",
    "KernelProposal",
    "LevelScores",
    "PitHistogram",
    "PredictiveScores",
    "Reliability",
    "RosenblattReport",
    "SBCReport",
    "ScoreTable",
    "Sharpness",
    "TailReport",
    "Uniformity",
    "bits_per_dim",
    "bits_per_dimension",
    "bits_per_number",
    "c2st",
    "clopper_pearson",
    "coverage",
    "coverage_by_group",
    "crps",
    "default_lags",
    "diebold_mariano",
    "dkw_band",
    "energy_distance",
    "exponential_p_value",
    "grid_mass",
    "holm",
    "importance_mass",
    "level_scores",
    "mean_log_prob",
    "mmd",
    "nats_from_bits",
    "newey_west",
    "order_quantiles",
    "paired_difference",
    "paired_t",
    "pit_bands",
    "pit_histogram",
    "pit_per_number",
    "randomised_pit",
    "reliability",
    "reliability_band",
    "rosenblatt_report",
    "sample_pit",
    "sbc",
    "score_rows",
    "sharpness",
    "sliced_wasserstein",
    "tail_report",
    "uniformity",
]
