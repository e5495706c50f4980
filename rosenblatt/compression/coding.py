"""Whole numbers as yes-and-no questions to a CDF, and the range coder that stores the answers.

A number among levels 0 .. n - 1 is found by bisection: is it beyond the middle level of those that are left? The
conditional CDF F gives the probability of yes exactly,

    P(yes) = [F(end) - F(middle)] / [F(end) - F(begin)],

without a subtraction in a tail, from one value of F a question; a table of all n probabilities would take n of them.
The product of the answers' probabilities is the probability of the number, so the length of a file is the
log-likelihood. Reference: Martin, Range encoding: an algorithm for removing redundancy from a digitised message, 1979.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.logspace import log_one_minus_exp
from rosenblatt.layers.discretised import Discretised

PRECISION = 1 << 24  # of the range coder: probabilities are whole multiples of 1 / PRECISION, none of them 0
OTHER_NUMBERS = (
    "data: the file is whole, but gives other numbers than were put in; this machine, or its version of torch, "
    "computes other probabilities than the one that wrote it."
)


class Coder(Protocol):
    """Takes answers and stores them, or gives those that were stored."""

    def answers(self, probability: Tensor, truth: Tensor | None) -> Tensor:
        """Answers (n,) to questions whose `probability` (n,) of yes is known; an encoder is told the `truth`."""


class Encoder:
    """Stores answers."""

    def __init__(self) -> None:
        stream, self._family = _range_coder()
        self._coder = stream.queue.RangeEncoder()

    def answers(self, probability: Tensor, truth: Tensor | None) -> Tensor:
        """Store the truth."""
        assert truth is not None
        self._coder.encode(truth.numpy().astype(np.int32), self._family, _counts(probability))
        return truth

    def payload(self) -> bytes:
        """What was stored, in words of 32 bits, the lower byte first."""
        words: bytes = self._coder.get_compressed().astype("<u4").tobytes()
        return words


class Decoder:
    """Gives answers back in the order in which they were stored."""

    def __init__(self, payload: bytes) -> None:
        stream, self._family = _range_coder()
        self._coder = stream.queue.RangeDecoder(np.frombuffer(payload, dtype="<u4").astype(np.uint32))

    def answers(self, probability: Tensor, truth: Tensor | None) -> Tensor:
        """Read the next ones."""
        try:
            found = self._coder.decode(self._family, _counts(probability))
        except AssertionError:  # no answers with these probabilities leave such bits
            raise DataError(OTHER_NUMBERS) from None
        return torch.from_numpy(found.astype(np.bool_))


def _range_coder() -> tuple[Any, Any]:
    try:
        from constriction import stream
    except ImportError as error:
        raise OptionError(f'compress: cannot be imported ({error}); run pip install "rosenblatt[compress]".') from None
    return stream, stream.model.Categorical(perfect=False)


def _counts(probability: Tensor) -> Any:
    """Weights (n, 2) of no and yes that the coder takes as they are.

    It gives each answer one unit of `PRECISION` first and shares out the rest in proportion. Whole weights that add up
    to just that rest stay what they are, so that no rounding of the coder's own is part of the file format.
    """
    rest = PRECISION - 2
    yes = torch.round(probability * rest)
    return torch.stack([rest - yes, yes], dim=-1).numpy()


def code_rows(model: Discretised, coder: Coder, rows: int, counts: Tensor | None) -> Tensor:
    """Run whole numbers (rows, features) through `coder`, level by level as in sampling, and return them.

    The numbers are `counts` for an encoder; a decoder finds them. Both compute the very same numbers in the very same
    order and shapes, on what was coded so far, or else an answer could be read with another probability than it was
    stored with. `model` is in double precision on the CPU.
    """
    conditioner = model.layer.conditioner
    truth = None if counts is None else counts.t().index_select(0, conditioner.order)
    found = torch.zeros(model.features, rows, dtype=torch.float64)
    points = model.place(torch.zeros_like(found))
    walk, start = conditioner.column_walk(None, rows), 0
    for number, size in enumerate(conditioner.sizes):
        cut = slice(start, start + size)
        theta = walk.theta(number, points)
        theta = theta.expand(rows, size, theta.shape[-1]).reshape(rows * size, -1)
        wanted = None if truth is None else truth[cut].t().reshape(-1)
        found[cut] = _code_level(model, coder, theta, wanted).reshape(rows, size).t()
        points[cut] = model.place(found[cut])
        start += size
    return found.index_select(0, conditioner.position).t()


def _code_level(model: Discretised, coder: Coder, theta: Tensor, truth: Tensor | None) -> Tensor:
    """Levels (n,) for thetas (n, params), one question after the other."""
    first = torch.zeros(len(theta), dtype=torch.float64)
    last = torch.full_like(first, model.levels - 1)
    low, high = torch.full_like(first, -torch.inf), torch.full_like(first, torch.inf)
    for _ in range(math.ceil(math.log2(model.levels))):
        middle = torch.floor((first + last) / 2)
        logit = model.elementwise(model.upper_end(middle), theta).value
        logit = torch.maximum(torch.minimum(logit, high), low)  # rounding may break the order of a flat CDF
        probability = _share_beyond(low, logit, high)
        open_ = first < last
        asked = probability[open_]
        if bool(torch.isnan(asked).any()):
            raise DataError("model: it gives probabilities that are not numbers; its weights are spoilt.")
        beyond = torch.zeros_like(open_)
        beyond[open_] = coder.answers(asked, None if truth is None else (truth > middle)[open_])
        first, low = torch.where(beyond, middle + 1, first), torch.where(beyond, logit, low)
        below = open_ & ~beyond
        last, high = torch.where(below, middle, last), torch.where(below, logit, high)
    return first


def _share_beyond(low: Tensor, middle: Tensor, high: Tensor) -> Tensor:
    """[s(high) - s(middle)] / [s(high) - s(low)], s the logistic function; 1/2 where both parts underflow."""
    below, above = _log_mass(low, middle), _log_mass(middle, high)
    share = torch.sigmoid(above - below)
    return torch.where(torch.isneginf(below) & torch.isneginf(above), 0.5, share)


def _log_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(s(high) - s(low)), -inf where both are the same."""
    width = torch.where(high > low, high - low, torch.where(high == low, 0.0, torch.nan))
    return logsigmoid(high) + logsigmoid(-low) + log_one_minus_exp(torch.log(width))
