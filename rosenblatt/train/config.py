"""Every option of training, checked once, for the Python interface, the command line and TOML files alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rosenblatt.core.errors import OptionError

# Options a resumed run may change: how long to go on and what to store, not what a step computes.
RESUMABLE = frozenset(
    {"epochs", "max_steps", "time_limit", "patience", "checkpoint_every", "keep_last"}
    | {"device", "threads", "compile", "accumulate"}
)


@dataclass(frozen=True)
class FitConfig:
    """Options of `Fitter`; raises `OptionError` for a value that cannot work.

    epochs: passes over the training rows at most.
    max_steps: optimiser steps at most; None for no limit besides `epochs`.
    time_limit: seconds of training at most, counted across resumes; training then stops cleanly.
    batch_size: rows per step, of all processes together where there are several (`joined`).
    accumulate: parts that the rows of a step are computed in, one after the other: the same step but for rounding (and
        random draws such as dropout), in about that fraction of the memory; must divide `batch_size`.
    learning_rate: peak step size of AdamW (Loshchilov and Hutter 2019).
    schedule: "cosine" anneals the rate to 0 over all steps (`epochs` or `max_steps`, whichever is fewer;
        `time_limit` stops the run without bending the curve, so that results do not depend on the machine's
        speed); "constant" keeps it.
    warmup_steps: steps of linear growth up to the peak rate.
    weight_decay: decoupled weight decay, as a fraction per unit of learning rate.
    clip_norm: largest norm of the gradient of all weights together; None for no limit.
    ema_decay: decay of the averaged weights that are validated and kept; None keeps the raw weights.
    validation_fraction: part of the rows held out when no validation set is given; 0 for none.
    validate_every: steps between validations; None for once an epoch.
    patience: validations without gain before stopping early; None for never.
    min_gain: nats per row (or units of another objective) that count as a gain.
    checkpoint_every: steps between checkpoints; None for one at each validation. A new best is always saved.
    keep_last: checkpoints kept besides the best one.
    seed: seed of the split, of the shuffles and of everything random in training.
    dtype: "float32" or "float64", for weights and data.
    device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1"; among several processes "cuda" is a GPU each.
    amp: multiply matrices in bfloat16; needs CUDA or a processor with bfloat16 units (AVX-512 or AMX), since others
        emulate it some seven times more slowly than they compute in float32.
    compile: run the training steps through `torch.compile`, which takes a minute or two to start and a C++ compiler;
        checkpoints are those of the plain model, so a run may be resumed with or without.
    threads: CPU threads of PyTorch during training; None leaves them alone.

    >>> FitConfig.from_dict({"epochs": 3}).epochs
    3
    """

    epochs: int = 100
    max_steps: int | None = None
    time_limit: float | None = None
    batch_size: int = 512
    accumulate: int = 1
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float | None = 5.0
    ema_decay: float | None = 0.999
    validation_fraction: float = 0.1
    validate_every: int | None = None
    patience: int | None = 10
    min_gain: float = 1e-4
    checkpoint_every: int | None = None
    keep_last: int = 3
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "auto"
    amp: bool = False
    compile: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse values of the wrong kind or out of range."""
        for name in ("epochs", "batch_size", "accumulate", "keep_last"):
            self._integer(name, at_least=1)
        for name in ("max_steps", "validate_every", "patience", "checkpoint_every", "threads"):
            self._integer(name, at_least=1, optional=True)
        self._integer("warmup_steps", at_least=0)
        self._integer("seed", at_least=0)
        for name in ("learning_rate", "time_limit", "clip_norm"):
            self._number(name, lambda v: v > 0, "above 0", optional=name != "learning_rate")
        for name in ("weight_decay", "min_gain"):
            self._number(name, lambda v: v >= 0, "0 or more")
        self._number("ema_decay", lambda v: 0 < v < 1, "between 0 and 1", optional=True)
        self._number("validation_fraction", lambda v: 0 <= v < 1, "at least 0 and below 1")
        self._choice("schedule", ("cosine", "constant"))
        self._choice("dtype", ("float32", "float64"))
        if not isinstance(self.device, str):
            raise self._refusal("device", 'text such as "auto", "cpu" or "cuda"')
        for name in ("amp", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise self._refusal(name, "true or false")
        if self.batch_size % self.accumulate:
            raise self._refusal("accumulate", f"a divisor of batch_size, {self.batch_size},")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> FitConfig:
        """Make a config from JSON-like options; raises `OptionError` for an unknown name."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise OptionError(f"fit option '{name}' is unknown; choose among {', '.join(known)}.")
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain JSON values."""
        return dataclasses.asdict(self)

    def _integer(self, name: str, *, at_least: int, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise self._refusal(name, f"a whole number of at least {at_least}" + (" or None" if optional else ""))

    def _number(self, name: str, holds: Any, expected: str, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or not holds(value):
            raise self._refusal(name, f"a finite number {expected}" + (" or None" if optional else ""))

    def _choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise self._refusal(name, "one of " + ", ".join(choices))

    def _refusal(self, name: str, expected: str) -> OptionError:
        return OptionError(f"{name}: {getattr(self, name)!r} came, {expected} was expected.")
