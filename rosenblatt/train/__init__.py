"""Training: the loop, its options, its guard and its run folders."""

from rosenblatt.train.checkpoint import Checkpoint, RunFolder
from rosenblatt.train.config import FitConfig
from rosenblatt.train.fitter import Dataset, FitReport, Fitter
from rosenblatt.train.loggers import Logger
from rosenblatt.train.processes import JoinedProcesses, Processes, joined
from rosenblatt.train.runtime import LocalRuntime, Runtime

__all__ = [
    "Checkpoint",
    "Dataset",
    "FitConfig",
    "FitReport",
    "Fitter",
    "JoinedProcesses",
    "LocalRuntime",
    "Logger",
    "Processes",
    "RunFolder",
    "Runtime",
    "joined",
]
