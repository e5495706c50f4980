"""What a model of whole numbers says of every single one, before it sees it and after."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.pits import randomised_pit
from rosenblatt.layers.discretised import Discretised

ROWS_AT_ONCE = 64
MASSES_AT_ONCE = 1 << 18  # of all levels; bounds the memory


class LevelScores(NamedTuple):
    """What a model said of each number of some rows; all (rows, features), float64.

    bits: `-log2 P(x_i | x_<i)`, which add up to those of the row; expected: their mean under the model itself, the
    entropy of number i given those before it; variance: their variance under the model; pit: `F(x_i-) + v P(x_i)` with
    v uniform. If the model is right, `bits - expected` is zero in the mean whatever came before, and pit is uniform and
    independent from number to number.
    """

    bits: Tensor
    expected: Tensor
    variance: Tensor
    pit: Tensor


def bits_per_number(model: Discretised, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Bits that each number of rows `x` (rows, features) takes: `-log2 P(x_i | x_<i)`, (rows, features) in float64.

    The sum over a row is `-log2 P(x)`. Raises `OptionError` for a model that is not `Discretised`, `DataError` for
    rows of other numbers than its levels.

    >>> from rosenblatt.core.registry import build
    >>> import rosenblatt.models
    >>> model = build("pixelcnn_mol", 4, options={"image": [1, 2, 2], "levels": 4, "filters": 4}, seed=0)
    >>> x = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 0]])
    >>> bool(torch.allclose(bits_per_number(model, x).sum(dim=1).float(), -model.log_prob(x) / math.log(2)))
    True
    """
    with _in_use(model), torch.no_grad():
        parts = [model.log_prob_by_number(*piece).double() for piece in _pieces(model, x, context)]
    return torch.cat(parts) / -math.log(2) if parts else _nothing(model)


def pit_per_number(
    model: Discretised, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    """Randomised PIT `F(x_i-) + v P(x_i)` of each number given those before it, (rows, features) in float64.

    Uniform and independent from number to number if the model is right; `generator` draws v. Raises as
    `bits_per_number` does.

    >>> from rosenblatt.core.registry import build
    >>> import rosenblatt.models
    >>> model = build("pixelcnn_mol", 4, options={"image": [1, 2, 2], "levels": 4, "filters": 4}, seed=0)
    >>> u = pit_per_number(model, torch.tensor([[0, 1, 2, 3]]), generator=torch.Generator().manual_seed(0))
    >>> bool(((u >= 0) & (u <= 1)).all())
    True
    """
    parts = []
    with _in_use(model), torch.no_grad():
        for counts, given in _pieces(model, x, context):
            theta = model.layer.conditioner(model.place(counts), given)
            logit = model.elementwise(model.upper_end((counts - 1).clamp(min=0)), theta).value.double()
            below = torch.where(counts > 0, torch.sigmoid(logit), 0.0)
            parts.append((below, model.log_prob_by_number(counts, given).double().exp()))
    ends = [torch.cat(part) for part in zip(*parts, strict=True)] or [_nothing(model)] * 2
    return randomised_pit(*ends, generator=generator)


def level_scores(
    model: Discretised, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
) -> LevelScores:
    """Judge every number of rows `x` (rows, features) by the masses of all its levels, which takes `levels` times as
    long as `bits_per_number`.

    `generator` draws the random part of the PIT. Raises as `bits_per_number` does, and `DataError` where masses are
    not probabilities.

    >>> from rosenblatt.core.registry import build
    >>> import rosenblatt.models
    >>> model = build("pixelcnn_mol", 4, options={"image": [1, 2, 2], "levels": 4, "filters": 4}, seed=0)
    >>> scores = level_scores(model, torch.tensor([[0, 1, 2, 3]]), generator=torch.Generator().manual_seed(0))
    >>> bool((scores.expected <= 2).all())  # the entropy of four levels is two bits at most
    True
    """
    found: list[tuple[Tensor, ...]] = []
    step = max(1, MASSES_AT_ONCE // model.levels)
    with _in_use(model), torch.no_grad():
        for counts, given in _pieces(model, x, context):
            theta = model.layer.conditioner(model.place(counts), given).flatten(0, 1)
            pieces = zip(counts.flatten().split(step), theta.split(step), strict=True)
            found.extend(_judged(model.log_masses(part), at) for at, part in pieces)
    columns = [torch.cat(column).reshape(-1, model.features) for column in zip(*found, strict=True)]
    bits, expected, variance, below, own = columns or [_nothing(model)] * 5
    return LevelScores(bits, expected, variance, randomised_pit(below, own, generator=generator))


def _judged(log_masses: Tensor, at: Tensor) -> tuple[Tensor, ...]:
    """Bits at levels `at` (n,), their mean and variance, P(below) and P(at), from masses (n, levels)."""
    log_masses, index = log_masses.double(), at.long().unsqueeze(1)
    masses = log_masses.exp()
    bits = log_masses / -math.log(2)
    # A level without mass takes infinitely many bits and is never there: it adds nothing to the mean.
    shares = torch.where(masses > 0, masses * bits, 0.0)
    expected = shares.sum(dim=1)
    squares = torch.where(masses > 0, masses * bits.square(), 0.0).sum(dim=1)
    before = torch.arange(masses.shape[1], device=masses.device) < index
    below = torch.where(before, masses, 0.0).sum(dim=1)
    own, taken = (part.gather(1, index).squeeze(1) for part in (masses, bits))
    return taken, expected, (squares - expected.square()).clamp(min=0), below, own


def _nothing(model: Discretised) -> Tensor:
    return torch.zeros(0, model.features, dtype=torch.float64)


def _pieces(model: Discretised, x: Tensor, context: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows and their contexts in the model's dtype, some after the other."""
    like = next(model.parameters())
    counts = x.detach().to(like)
    model.check(counts, context)
    if counts.ndim != 2 or not bool(((counts >= 0) & (counts < model.levels) & (counts == counts.floor())).all()):
        raise DataError(f"x: other numbers than whole ones from 0 to {model.levels - 1} in rows (rows, features) came.")
    for first in range(0, len(counts), ROWS_AT_ONCE):
        cut = slice(first, first + ROWS_AT_ONCE)
        yield counts[cut], None if context is None else context[cut].to(like)


@contextmanager
def _in_use(model: Discretised) -> Iterator[None]:
    """Eval mode for a while."""
    if not isinstance(model, Discretised):
        raise OptionError(
            f"model: {type(model).__name__} has no probabilities of levels; pass one of whole numbers, such as "
            "nits_conv with levels."
        )
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
