"""The law of one step given its past, and paths: the same law step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rosenblatt.bases import StandardLogistic
from rosenblatt.conditional import ConditionalDensity
from rosenblatt.core.errors import DataError
from rosenblatt.forecasting.clock import Floats
from rosenblatt.forecasting.frame import Frame
from rosenblatt.forecasting.series import Series
from rosenblatt.layers.scaling import Standardise

ROWS_AT_ONCE = 4096  # histories looked at together


class StepModel(nn.Module):
    """`p(y_t | past)` of all series at once, exact: a conditional density in the coordinates of a frame.

    A path has `log p(y_1..y_H | past) = sum_h log p(y_h | past, y_<h)`; a sample is drawn in that order.
    Shapes: histories (rows, look_back, series), known (rows, H, known) in float64.
    """

    def __init__(self, frame: Frame, density: ConditionalDensity) -> None:
        super().__init__()
        self.frame = frame
        self.density = density

    def log_prob(self, y: Tensor, history: Tensor, known: Tensor) -> Tensor:
        """Log-density (rows,) of steps y (rows, series), in nats and the units of the series."""
        past = self.frame.look(history)
        context = self.frame.context(past, known)
        noise, log_det = self.frame.to_noise(y, past, context)
        log_prob = self.density.log_prob(noise, context)
        if self.frame.mirror:
            turned = self.density.log_prob(-noise, self.frame.flip * context)
            log_prob = torch.logaddexp(log_prob, turned) - math.log(2)
        return log_prob + log_det

    def log_prob_of_path(self, path: Tensor, history: Tensor, known: Tensor) -> Tensor:
        """Log-densities (rows, H) of the steps of paths (rows, H, series), each given the steps before it."""
        whole = torch.cat([history, path], dim=1)
        seen = self.frame.look_back
        steps = [self.log_prob(path[:, h], whole[:, h : h + seen], known[:, h]) for h in range(path.shape[1])]
        return torch.stack(steps, dim=1)

    def sample(self, history: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one path (rows, H, series) after each history; raises `DataError` where one leaves finite numbers."""
        seen, length = self.frame.look_back, known.shape[1]
        whole = torch.cat([history, history.new_empty(len(history), length, self.frame.series)], dim=1)
        with torch.no_grad():
            for h in range(length):
                past = self.frame.look(whole[:, h : h + seen])
                context = self.frame.context(past, known[:, h])
                if not bool(torch.isfinite(context).all()):
                    raise DataError(
                        f"sample: a path left the finite numbers {h} steps ahead; the last values of the table may be "
                        "far from all others, or the series explodes: take a difference, or fewer lags."
                    )
                noise = self._draw(context, generator)
                whole[:, seen + h] = self.frame.from_noise(noise, past, context)
        return whole[:, seen:]

    def _draw(self, context: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of one step for each context."""
        if not self.frame.mirror:
            return self.density.sample(1, context, generator=generator)[0].double()
        turned = torch.rand(len(context), 1, generator=generator) < 0.5
        context = torch.where(turned, self.frame.flip * context, context)
        noise = self.density.sample(1, context, generator=generator)[0].double()
        return torch.where(turned, -noise, noise)


class PathMixture(nn.Module):
    """Several models of a step, each as likely to have made a whole path: `p(path) = mean_k p_k(path)`, exact.

    So paths differ as the models do, which tells of what the training rows leave open (Lakshminarayanan, Pritzel &
    Blundell, Simple and scalable predictive uncertainty estimation using deep ensembles, NeurIPS 2017).
    """

    def __init__(self, members: Sequence[StepModel]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def frame(self) -> Frame:
        """The frame of the members, which all have the same."""
        return self._members()[0].frame

    def log_prob_of_path(self, path: Tensor, history: Tensor, known: Tensor) -> Tensor:
        """Log-densities (rows, H) of the steps of paths (rows, H, series), each given the steps before it."""
        every = [member.log_prob_of_path(path, history, known) for member in self._members()]
        if len(every) == 1:
            return every[0]
        # log p(y_1..y_h) of the mixture, and its growth from step to step.
        whole = torch.logsumexp(torch.stack(every).cumsum(dim=2), dim=0) - math.log(len(every))
        return torch.cat([whole[:, :1], whole.diff(dim=1)], dim=1)

    def sample(self, history: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one path (rows, H, series) after each history, each from any of the members."""
        members = self._members()
        chosen = torch.randint(len(members), (len(history),), generator=generator)
        paths = history.new_empty(len(history), known.shape[1], history.shape[2])
        for number, member in enumerate(members):
            rows = chosen == number
            if bool(rows.any()):
                paths[rows] = member.sample(history[rows], known[rows], generator)
        return paths

    def _members(self) -> list[StepModel]:
        return [member for member in self.members if isinstance(member, StepModel)]


def start_as_wide(density: ConditionalDensity) -> None:
    """Let a flow on a logistic base, which starts near that law, start with the variance of its values.

    Otherwise it would be pi^2 / 3 times theirs.
    """
    if isinstance(density.flow.base, StandardLogistic):
        units = density.flow.units.map.steps[-1]
        assert isinstance(units, Standardise)
        units.scale.mul_(math.sqrt(3) / math.pi)


def histories(values: Floats, look_back: int) -> Iterator[Tensor]:
    """The `look_back` values before each row that has so many, (rows, look_back, series), some rows at a time.

    >>> torch.cat(list(histories(np.arange(4.0)[:, None], 2))).squeeze(-1)
    tensor([[0., 1.],
            [1., 2.]], dtype=torch.float64)
    """
    every = np.lib.stride_tricks.sliding_window_view(values[:-1], look_back, axis=0)
    for first in range(0, len(every), ROWS_AT_ONCE):
        yield torch.from_numpy(every[first : first + ROWS_AT_ONCE].transpose(0, 2, 1).copy())


def training_rows(frame: Frame, series: Series, known: Floats) -> tuple[Tensor, Tensor]:
    """Steps as the model sees them (rows, series) and their contexts (rows, width), all rows with a whole past.

    The Gaussian autoregression of the frame is fitted to them on the way.
    """
    values = series.values
    y, told = (torch.tensor(part[frame.look_back :]) for part in (values, known))
    pasts = [frame.look(history) for history in histories(values, frame.look_back)]
    past = type(pasts[0])(*(torch.cat(parts) for parts in zip(*pasts, strict=True)))
    context = frame.context(past, told)
    frame.learn_regression((y - past.base) / past.scale, context, series.names)
    return frame.to_noise(y, past, context)[0], context
