"""What a model of one step is told of the past, and the units in which it sees the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.models.gaussian import GaussianDensity

# Recent scale: squares of RECENT steps, each weighted DECAY times the one after it (RiskMetrics 1996), and the squared
# scale of training with the weight of PRIOR steps, which keeps it above 0. A square counts as less than MOST^2 training
# squares and a lag is told as less than MOST scales: a wild draw must not make the next one wilder without end.
RECENT, DECAY, PRIOR, MOST = 60, 0.94, 20.0, 10.0


class Past(NamedTuple):
    """What the values before a step say of it.

    base (rows, series): what the step is counted from; scale (rows, series): its unit; told (rows, width): the lags.
    """

    base: Tensor
    scale: Tensor
    told: Tensor


class Frame(nn.Module):
    """Coordinates of a step y_t given its past: `d_t = y_t - y_{t-gap}`, `u_t = (d_t - c) / s_t`, both exactly undone.

    gap: 1 for increments, a season for seasonal ones, 0 for the values themselves (then c is their training mean, else
    0). s_t is the scale of d in training or, with `recent`, `s_t^2` is a mean of recent squares that forgets at a rate
    of 0.94, shrunk to the training scale and at most 10 times it. With `linear` the model sees
    `e_t = L^-1 (u_t - m - B context_t)`, the noise of the Gaussian autoregression that fits the training rows best. So
    `log p(y_t) = log p(e_t) - log det L - sum log s_t`: the density stays exact.

    A context holds u of the steps `lags` before (oldest first), with `recent` bent to stay within 10 and followed by
    the logarithm of s_t over the training scale, and what is `known` of the step: calendar and covariates. It sees
    `look_back` values before a step.

    Shapes: histories (rows, look_back, series), newest last; known (rows, known). All in float64.
    """

    centre: Tensor
    spread: Tensor
    flip: Tensor
    decay: Tensor

    def __init__(
        self,
        series: int,
        known: int,
        lags: Sequence[int],
        *,
        gap: int = 0,
        recent: bool = False,
        linear: bool = True,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        self.series, self.known = series, known
        self.lags = tuple(sorted(set(lags), reverse=True))
        if not self.lags or min(self.lags) < 1:
            raise OptionError(f"lags: {list(lags)} came, whole numbers of at least 1 were expected.")
        self.gap, self.recent, self.mirror = gap, recent, mirror
        self.look_back = max(self.lags[0], RECENT if recent else 0) + gap
        self.width = len(self.lags) * series + (series if recent else 0) + known
        self.register_buffer("centre", torch.zeros(series, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(series, dtype=torch.float64))
        self.register_buffer("decay", DECAY ** torch.arange(RECENT - 1, -1, -1, dtype=torch.float64).unsqueeze(-1))
        flip = torch.ones(self.width, dtype=torch.float64)
        flip[: len(self.lags) * series] = -1
        self.register_buffer("flip", flip, persistent=False)
        self.regression = GaussianDensity(series, self.width).double() if linear else None

    def learn_units(self, values: Tensor, names: Sequence[str]) -> None:
        """Take centre and scale from training values (rows, series); raises `DataError` for a series without any."""
        steps = values[self.gap :] - values[: len(values) - self.gap] if self.gap else values
        centre = torch.zeros(self.series, dtype=values.dtype) if self.gap else steps.mean(dim=0)
        spread = (steps - centre).square().mean(dim=0).sqrt()
        still = (steps - steps.mean(dim=0)).abs().amax(dim=0) <= 1e-12 * values.abs().amax(dim=0)
        if bool(still.any()):
            name = names[int(still.nonzero()[0])]
            what = "is constant" if self.gap in (0, 1) else f"repeats itself every {self.gap} steps"
            raise DataError(
                f"column '{name}': it {what} (or moves along a line), so no density describes it; leave it out."
            )
        self.centre.copy_(centre)
        self.spread.copy_(spread)

    def learn_regression(self, steps: Tensor, context: Tensor, names: Sequence[str]) -> None:
        """Fit the Gaussian autoregression to scaled steps (rows, series)."""
        if self.regression is None:
            return
        if self.mirror:
            steps, context = self.mirrored(steps, context)
        try:
            self.regression.initialise(steps, context)
        except DataError as error:
            raise DataError(
                f"table: the series {', '.join(names)} have no joint Gaussian autoregression ({error}) Leave out "
                "series that others determine, shorten the lags, or set linear=False."
            ) from None

    def look(self, history: Tensor) -> Past:
        """Base, scale and lags of the step after each history."""
        steps = history - self.centre
        if self.gap:
            steps = history[:, self.gap :] - history[:, : -self.gap]
        base = history[:, -self.gap] if self.gap else self.centre.expand_as(history[:, -1])
        scale = self.spread.expand_as(base)
        if self.recent:
            ratio = steps[:, -RECENT:] / self.spread
            weight = self.decay.sum() + PRIOR
            square = MOST**2 / (1 + (MOST / ratio).square())
            scale = self.spread * (((self.decay * square).sum(dim=1) + PRIOR) / weight).sqrt()
        told = torch.cat([steps[:, -lag] / scale for lag in self.lags], dim=-1)
        if self.recent:
            bent = MOST * torch.sin(torch.atan(told / MOST))  # u / sqrt(1 + (u / MOST)^2), whatever the size of u
            told = torch.cat([bent, torch.log(scale / self.spread)], dim=-1)
        return Past(base, scale, told)

    def context(self, past: Past, known: Tensor) -> Tensor:
        """All that a model is told, (rows, width)."""
        return torch.cat([past.told, known.double()], dim=-1)

    def mirrored(self, steps: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The rows and, after them, the same with the signs of all series turned."""
        return torch.cat([steps, -steps]), torch.cat([context, self.flip * context])

    def to_noise(self, y: Tensor, past: Past, context: Tensor) -> tuple[Tensor, Tensor]:
        """The step as the model sees it, and the log-determinant of the map from y."""
        noise, log_det = (y - past.base) / past.scale, -torch.log(past.scale).sum(dim=-1)
        if self.regression is not None:
            noise, more = self.regression.transform(noise, context)
            log_det = log_det + more
        return noise, log_det

    def from_noise(self, noise: Tensor, past: Past, context: Tensor) -> Tensor:
        """The inverse of `to_noise`."""
        if self.regression is not None:
            noise = self.regression.transform.inverse(noise, context).value
        return past.base + past.scale * noise
