"""Unbiased and truncated estimates of log-determinants from random probes, with gradients of one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Probes(nn.Module):
    """Random numbers of a layer in training: the n-th call draws with the seed of the layer plus n.

    Seed and count are buffers, so that a fit resumed from a checkpoint draws what it would have drawn; the global
    random state gives the seed when the layer is built, and is not touched afterwards.
    """

    seed: Tensor
    draws: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def generator(self) -> torch.Generator:
        """Make the generator of the next call."""
        generator = torch.Generator().manual_seed(int(self.seed) + int(self.draws))
        self.draws += 1
        return generator


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent signs of the shape of `like` (Rademacher probes, of least variance; Hutchinson 1989)."""
    drawn = torch.randint(2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(like)


def roulette(generator: torch.Generator, terms: int, survival: float) -> list[float]:
    """Weights of the terms of a series cut at random: the first `terms` always, each further one with `survival`.

    The weight of a term is one over the probability that it is reached, so that the sum is unbiased.
    """
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
    extra = int(math.log(max(uniform, 2.0**-54)) / math.log(survival))
    return [survival ** -max(0, number - terms) for number in range(1, terms + extra + 1)]


def log_det_by_series(pull: Callable[[Tensor], Tensor], probe: Tensor, weights: Sequence[float]) -> Tensor:
    """Estimate `log det(1 + J) = sum_k (-1)^(k+1) tr(J^k) / k`, each term times its weight, traces as `v^T J^k v`.

    `pull` maps v^T to v^T J, `probe` v is (*batch, features). The gradient is that of the trace of
    `sum_k (-J)^(k-1) dJ` with the same probes and weights: the same in the mean, and one product with a tape
    whatever the number of terms (Chen et al. 2019).
    """
    with torch.no_grad():
        vector, series, value = probe, torch.zeros_like(probe), torch.zeros_like(probe[..., 0])
        sign = 1.0
        for number, weight in enumerate(weights, start=1):
            series = series + sign * weight * vector
            vector = pull(vector)
            value = value + sign * weight / number * (vector * probe).sum(dim=-1)
            sign = -sign
    return _with_gradient_of(value, (pull(series) * probe).sum(dim=-1))


def log_det_by_lanczos(times: Callable[[Tensor], Tensor], probe: Tensor, steps: int) -> Tensor:
    """Estimate `log det H = tr log H` as `v^T log(H) v` with v of random signs, for a positive definite H.

    `times` maps v to H v. Lanczos's method (1950) reduces H to a tridiagonal matrix T on the space of v, H v, ..;
    `v^T log(H) v` is then `|v|^2 e_1^T log(T) e_1` (Golub & Meurant 1994), exactly so once the space is closed. The
    gradient is that of `u^T H v` at fixed `u = H^-1 v`, solved on the same space, as conjugate gradients would:
    one product with a tape whatever the number of steps.
    """
    with torch.no_grad():
        basis, diagonal, beside = _tridiagonal(times, probe, min(steps, probe.shape[-1]))
        matrix = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
        levels, vectors = torch.linalg.eigh(matrix)
        first, length = vectors[..., 0, :], torch.linalg.vector_norm(probe, dim=-1)
        value = length.square() * (first.square() * torch.log(levels)).sum(dim=-1)
        solved = (vectors * (first / levels).unsqueeze(-2)).sum(dim=-1) * length.unsqueeze(-1)
        solution = (basis * solved.unsqueeze(-1)).sum(dim=-2)
    return _with_gradient_of(value, (solution * times(probe)).sum(dim=-1))


def _tridiagonal(times: Callable[[Tensor], Tensor], probe: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal basis (*batch, steps, features), diagonal and neighbours of the diagonal of H on it."""
    vector = probe / torch.linalg.vector_norm(probe, dim=-1, keepdim=True)
    closed = torch.zeros_like(probe[..., :1], dtype=torch.bool)
    columns, diagonal, beside = [vector], [], []
    for number in range(steps):
        moved = times(vector)
        # Once the space is closed, unit entries that no longer touch the rest stand for what is missing.
        level = torch.where(closed, 1.0, (moved * vector).sum(dim=-1, keepdim=True))
        diagonal.append(level)
        if number == steps - 1:
            break
        basis = torch.stack(columns, dim=-2)
        size = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
        for _ in range(2):  # twice is enough for orthogonality to rounding
            moved = moved - ((basis @ moved.unsqueeze(-1)) * basis).sum(dim=-2)
        length = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
        closed = closed | (length <= 100 * torch.finfo(probe.dtype).eps * size)
        vector = torch.where(closed, 0.0, moved / torch.where(closed, 1.0, length))
        columns.append(vector)
        beside.append(torch.where(closed, 0.0, length))
    empty = probe[..., :0]
    return torch.stack(columns, dim=-2), torch.cat(diagonal, dim=-1), torch.cat([empty, *beside], dim=-1)


def _with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    return value + (other - other.detach())
