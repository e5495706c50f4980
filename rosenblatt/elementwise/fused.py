"""Elementwise maps with a hand-written gradient, run over a cache-full of coordinates at a time.

A conditioner hands over hundreds of numbers per coordinate, so an eager chain of operations spends its time moving
them through memory. Here the whole chain runs on one piece after the other, and the backward pass is one closed
formula instead of a tape.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.types import Mapped
from rosenblatt.elementwise.base import Elementwise


class Fused(Elementwise):
    """An elementwise map whose subclass gives `evaluate` and its pullback.

    Inside, points are (k, n) and theta is (n, size): k points for each of n parameter vectors. `pull_back` is used
    for first derivatives; higher ones differentiate `evaluate`.
    """

    piece: int  # points handled at once: what they need should fit the cache

    @abstractmethod
    def evaluate(self, x: Tensor, theta: Tensor) -> Mapped:
        """Map `x` (*batch) at `theta` (*batch, size), or what broadcasts with it, by differentiable operations."""

    def evaluate_keeping(self, x: Tensor, theta: Tensor) -> tuple[Mapped, tuple[Tensor, ...]]:
        """Map `x` (k, n) at `theta` (n, size) without a tape; also return what `pull_back` can use again."""
        return self.evaluate(x, theta), ()

    @abstractmethod
    def pull_back(
        self, x: Tensor, theta: Tensor, kept: tuple[Tensor, ...], grad_value: Tensor, grad_log_det: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients (k, n) in `x` and (n, size) in `theta` of the sums that the two gradients weigh."""

    def forward(self, x: Tensor, theta: Tensor) -> Mapped:
        """Map `x` and return the log-derivative of the map that ran."""
        if not runs_eagerly():
            return self.evaluate(x, theta)
        shape = theta.shape[:-1]
        if x.shape != shape:
            shape = torch.broadcast_shapes(x.shape, shape)
        points, vectors = _aligned(x, theta, shape)
        if torch.is_grad_enabled() and (x.requires_grad or theta.requires_grad):
            value, log_det = _FusedMap.apply(points, vectors, self)  # type: ignore[no-untyped-call]
        else:
            parts = [self.evaluate(points[cut], vectors[cut[1]]) for cut in self._pieces(points)]
            value, log_det = (_joined([part[i] for part in parts], points) for i in range(2))
        return Mapped(value.reshape(shape), log_det.reshape(shape))

    def _pieces(self, points: Tensor) -> list[tuple[slice, slice]]:
        """Cut (k, n) along its longer axis."""
        k, n = points.shape
        if k > n:
            step = max(1, self.piece // max(n, 1))
            return [(slice(i, i + step), slice(None)) for i in range(0, k, step)] or [(slice(None), slice(None))]
        step = max(1, self.piece // max(k, 1))
        return [(slice(None), slice(i, i + step)) for i in range(0, n, step)] or [(slice(None), slice(None))]


def _aligned(x: Tensor, theta: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """`x` as (k, n) and `theta` as (n, size), without repeating thetas that many points share."""
    lead = theta.shape[:-1]
    shared = lead != shape and lead == shape[len(shape) - len(lead) :]
    vectors = theta if shared else theta.expand(*shape, theta.shape[-1])
    vectors = vectors.reshape(-1, theta.shape[-1])
    count = vectors.shape[0]  # len() would fix it in an exported graph
    return x.expand(shape).reshape(-1, count) if count else x.reshape(1, 0), vectors


def _joined(parts: list[Tensor], points: Tensor) -> Tensor:
    """Put the pieces of (k, n) together again."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=0 if points.shape[0] > points.shape[1] else 1)


class _FusedMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, theta: Tensor, elementwise: Fused) -> tuple[Tensor, Tensor]:
        cuts = elementwise._pieces(x)
        mapped, kept = zip(*(elementwise.evaluate_keeping(x[cut], theta[cut[1]]) for cut in cuts), strict=True)
        ctx.elementwise, ctx.cuts = elementwise, cuts
        ctx.save_for_backward(x, theta, *(tensor for tensors in kept for tensor in tensors))
        return _joined([part.value for part in mapped], x), _joined([part.log_det for part in mapped], x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, theta, *flat = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable_gradients(ctx, x, theta, grads), None
        each = len(flat) // len(ctx.cuts)
        grad_x, grad_theta = torch.empty_like(x), torch.empty_like(theta)
        shared = len(ctx.cuts) > 1 and x.shape[0] > x.shape[1]
        if shared:
            grad_theta.zero_()
        for number, cut in enumerate(ctx.cuts):
            kept = tuple(flat[number * each : (number + 1) * each])
            part_x, part_theta = ctx.elementwise.pull_back(x[cut], theta[cut[1]], kept, grads[0][cut], grads[1][cut])
            if len(ctx.cuts) == 1:
                return part_x, part_theta, None
            grad_x[cut] = part_x
            if shared:
                grad_theta += part_theta
            else:
                grad_theta[cut[1]] = part_theta
        return grad_x, grad_theta, None


def _differentiable_gradients(
    ctx: Any, x: Tensor, theta: Tensor, grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The same gradients with a tape of their own, for second derivatives."""
    wanted = ctx.needs_input_grad[:2]
    with torch.enable_grad():
        # Aliases keep the partial derivatives apart from theta's own dependence on x.
        inputs = [
            tensor.view_as(tensor) if want else tensor.detach() for tensor, want in zip((x, theta), wanted, strict=True)
        ]
        outputs = ctx.elementwise.evaluate(*inputs)
        sought = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(tuple(outputs), sought, grads, create_graph=True, allow_unused=True))
    grad_x, grad_theta = (next(found) if want else None for want in wanted)
    return grad_x, grad_theta
