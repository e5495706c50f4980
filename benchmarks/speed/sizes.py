"""What is built and measured: sizes that every library gets, and the families' names."""

from __future__ import annotations

from dataclasses import dataclass

BINS, BOUND, LEARNING_RATE = 8, 5.0, 1e-3
OURS = "rosenblatt"
PEERS = ("zuko", "nflows", "normflows", "flowjax")
FAMILIES = ("maf", "nsf_ar", "nsf_c", "nits")
QUANTITIES = {"log_prob": 10_000, "sample": 1_000, "train": 512}  # rows of each
COMPILED = ("rosenblatt+compile", "zuko+compile")


@dataclass(frozen=True)
class Size:
    """A family and its sizes; `random` draws our output weights at the usual size instead of our quiet start's."""

    family: str
    features: int
    hidden: int = 256
    transforms: int = 5
    random: bool = False


def transforms(family: str) -> int:
    """One transform for NITS and its kind, five for the others."""
    return 1 if family == "nits" else 5
