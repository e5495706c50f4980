"""Learning a step: members that hold out a stretch of time each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rosenblatt.conditional import ConditionalDensity, PairRuntime, Pairs, conditional_density
from rosenblatt.data import Table
from rosenblatt.forecasting.encoders import build_encoder
from rosenblatt.forecasting.frame import Frame
from rosenblatt.forecasting.step import PathMixture, StepModel, start_as_wide
from rosenblatt.train import FitConfig, FitReport, Fitter


class Lesson(NamedTuple):
    """Steps as the model sees them (rows, series), what each is given (rows, width), and the frame of both."""

    frame: Frame
    steps: Table
    context: Tensor

    def take(self, chosen: Tensor) -> Lesson:
        """The rows where `chosen` is true."""
        return Lesson(self.frame, Table(self.steps.values[chosen], self.steps.columns), self.context[chosen])

    def pairs(self) -> Pairs:
        """The rows, and with `mirror` their images."""
        both = self.steps.values, self.context
        joined = torch.cat(self.frame.mirrored(*both) if self.frame.mirror else both, dim=1)
        told = (f"told {number}" for number in range(self.context.shape[1]))
        return Pairs(Table(joined, [*self.steps.columns, *told]), self.frame.series)


@dataclasses.dataclass(frozen=True)
class Design:
    """What a member is made of: a registered model and its options, an encoder and its options."""

    model: str
    options: Mapping[str, Any]
    encoder: str
    encoder_options: Mapping[str, Any] | None

    def density(self, lesson: Lesson, seed: int) -> ConditionalDensity:
        """An untrained density of steps given contexts, in the units of the rows that came."""
        frame = lesson.frame
        embedding = build_encoder(self.encoder, len(frame.lags), frame.series, self.encoder_options, seed)
        return conditional_density(
            self.model,
            lesson.steps,
            lesson.context,
            options=self.options,
            embedding=embedding,
            names=("step", "past"),
            seed=seed,
        )


def fit_members(lesson: Lesson, design: Design, config: FitConfig, members: int) -> tuple[PathMixture, list[FitReport]]:
    """Fit `members` models, each from a seed of its own.

    The first holds out the last rows, the others stretches before them, evenly spread.
    """
    fitted, reports = [], []
    for number in range(members):
        own = dataclasses.replace(config, seed=config.seed + number)
        held = held_out(len(lesson.steps), config.validation_fraction, number, members)
        density = design.density(lesson.take(~held), own.seed)
        start_as_wide(density)
        fitter = Fitter(own, runtime=PairRuntime(own.device, amp=own.amp), progress=False)
        train, validation = (lesson.take(part).pairs() for part in (~held, held))
        reports.append(fitter.fit(density, train, validation=validation))
        fitted.append(StepModel(lesson.frame, density.cpu().double()))
    return PathMixture(fitted).requires_grad_(False).eval(), reports


def held_out(rows: int, fraction: float, number: int, members: int) -> Tensor:
    """Which of `rows` rows member `number` holds out: a stretch of `fraction`, none where that is fewer than two.

    >>> [held_out(10, 0.2, number, 2).nonzero().squeeze(-1).tolist() for number in range(2)]
    [[8, 9], [4, 5]]
    """
    held = torch.zeros(rows, dtype=torch.bool)
    length = round(fraction * rows)
    if length >= 2:
        first = rows - length - number * (rows - length) // members
        held[first : first + length] = True
    return held
