"""Classifier two-sample test: how well a network tells two samples apart."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.bits import Estimate
from rosenblatt.eval.distances import same_width

BATCH, RATE, PENALTY = 200, 1e-3, 1e-4
# A fold stops when its training loss has not fallen by TOLERANCE for PATIENCE passes.
TOLERANCE, PATIENCE = 1e-4, 10


def c2st(
    x: Tensor, y: Tensor, *, folds: int = 5, hidden: int | None = None, passes: int = 1000, seed: int = 0
) -> Estimate:
    """Held-out accuracy of a classifier between `x` (rows, features) and `y`: 0.5 where the laws are the same, up to 1.

    Columns are standardised by `x`. A network with two layers of `hidden` ReLU units (10 per feature) is trained on all
    `folds` parts of the rows but one, by Adam (batches of 200, rate 1e-3, penalty 1e-4 on the squared weights) until
    its loss settles or `passes` are over, and scores that one: the settings of Lueckmann et al., Benchmarking
    simulation-based inference, AISTATS 2021, after Lopez-Paz & Oquab, ICLR 2017. All folds are trained together; up to
    `folds - 1` rows are left out so that they are equal. The standard error is binomial: it leaves out that folds share
    training rows. With samples of different sizes the larger one alone gives more than 0.5, so `DataError` asks for
    equal ones; `OptionError` for fewer than two folds.

    >>> draw = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(200, 1, generator=draw), torch.randn(200, 1, generator=draw)
    >>> c2st(x, y + 9.0, passes=200).value > 0.95
    True
    """
    x, y = same_width(x, y)
    if len(x) != len(y):
        raise DataError(f"y: {len(y)} rows came, {len(x)} were expected; take samples of the same size.")
    if folds < 2 or 2 * len(x) < folds or passes < 1 or (hidden is not None and hidden < 1):
        raise OptionError(f"folds={folds}, passes={passes}, hidden={hidden}: at least 2 (and few), 1, 1 were expected.")
    scale = x.std(dim=0)
    rows = ((torch.cat([x, y]) - x.mean(dim=0)) / torch.where(scale > 0, scale, 1.0)).float()
    labels = torch.cat([torch.zeros(len(x)), torch.ones(len(y))])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    parts = order[: len(order) // folds * folds].reshape(folds, -1)
    others = torch.stack([torch.cat([parts[:fold], parts[fold + 1 :]]).reshape(-1) for fold in range(folds)])
    width = 10 * x.shape[1] if hidden is None else hidden
    weights = _trained(rows[others], labels[others], width, passes, generator)
    with torch.no_grad():
        correct = (_logits(weights, rows[parts]) > 0) == (labels[parts] > 0.5)
    accuracy = float(correct.double().mean())
    return Estimate(accuracy, math.sqrt(accuracy * (1 - accuracy) / correct.numel()))


def _trained(rows: Tensor, labels: Tensor, width: int, passes: int, generator: torch.Generator) -> list[Tensor]:
    """Weights of one network per fold; `rows` (folds, rows, features), `labels` (folds, rows)."""
    folds, count, features = rows.shape
    sizes = [features, width, width, 1]
    weights = [part for pair in itertools.pairwise(sizes) for part in _start(folds, *pair, generator)]
    moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in weights]
    active = torch.ones(folds)
    best, waited = torch.full((folds,), math.inf), torch.zeros(folds)
    step = 0
    fold = torch.arange(folds).unsqueeze(1)
    for _ in range(passes):
        shuffled = torch.stack([torch.randperm(count, generator=generator) for _ in range(folds)])
        total = torch.zeros(folds)
        for chosen in shuffled.split(BATCH, dim=1):
            step += 1
            loss = _loss(weights, rows[fold, chosen], labels[fold, chosen])
            gradients = torch.autograd.grad(loss.sum(), weights)
            total += loss.detach() * chosen.shape[1] / count
            _adam(weights, gradients, moments, step, active)
        gained = total < best - TOLERANCE
        waited = torch.where(gained, 0.0, waited + 1)
        best = torch.minimum(best, total)
        active = active * (waited <= PATIENCE)
        if not bool(active.any()):
            break
    return weights


def _start(folds: int, wide: int, narrow: int, generator: torch.Generator) -> list[Tensor]:
    """Weights and offsets of a layer, uniform within sqrt(6 / (inputs + outputs)) (Glorot & Bengio 2010)."""
    bound = math.sqrt(6 / (wide + narrow))
    shapes = (folds, wide, narrow), (folds, 1, narrow)
    return [(bound * (2 * torch.rand(shape, generator=generator) - 1)).requires_grad_() for shape in shapes]


def _logits(weights: list[Tensor], rows: Tensor) -> Tensor:
    for index in range(0, len(weights), 2):
        rows = torch.baddbmm(weights[index + 1], relu(rows) if index else rows, weights[index])
    return rows.squeeze(-1)


def _loss(weights: list[Tensor], rows: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy and penalty of each fold, (folds,)."""
    entropy = binary_cross_entropy_with_logits(_logits(weights, rows), labels, reduction="none").mean(dim=1)
    penalty = torch.stack([part.square().sum(dim=(1, 2)) for part in weights[::2]]).sum(dim=0)
    return entropy + 0.5 * PENALTY / rows.shape[1] * penalty


@torch.no_grad()
def _adam(
    weights: list[Tensor],
    gradients: tuple[Tensor, ...],
    moments: list[tuple[Tensor, Tensor]],
    step: int,
    active: Tensor,
) -> None:
    """One step of Adam (Kingma & Ba 2015) for the folds that still train."""
    rate = RATE * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    for part, gradient, (mean, square) in zip(weights, gradients, moments, strict=True):
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        part.sub_(rate * active.reshape(-1, 1, 1) * mean / (square.sqrt() + 1e-8))
