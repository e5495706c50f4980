"""The monotone net in plain numbers: its three sums at some points, in reused memory.

The positive numbers `phi(x) - phi(a)`, `phi(b) - phi(x)` and `phi'(x)` go through the layers as columns of one product,
just as in the logarithmic form, but as they are. Nothing is found by subtraction here either, so the sums are right to
rounding as long as no term that matters has underflowed; `Plan.floor` is where that can begin.

Axes inside are (column, k, unit, n) for k points at each of n parameter vectors, wherever the memory has them: theta
may come with the numbers of one vector side by side, or with the same number of all vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.types import ParamSpec, Support

SLOPE_BOUND = 7.0  # log-weights stay within +-7: the published floor exp(7), and its mirror
LOG2_E = math.log2(math.e)
CPU_POINTS = 4096  # handled at once: their weights stay in the cache, and an operation is worth dividing over threads
GPU_POINTS = 1 << 17


class Plan:
    """Where the numbers of a monotone net stand in theta, and what it computes from them."""

    def __init__(self, spec: ParamSpec, support: Support, epsilon: float) -> None:
        self.support, self.epsilon = support, epsilon
        starts = [sum(spec.sizes[:number]) for number in range(len(spec.sizes))]
        self.places = {name: slice(a, a + size) for name, a, size in zip(spec.shapes, starts, spec.sizes, strict=True)}
        self.shapes = [shape for name, shape in spec.shapes.items() if name.startswith("slope")]
        self.layers = len(self.shapes)
        self.end = self.places[f"slope_{self.layers}"].stop  # up to here theta is decoded in one go
        # What underflows on its way may be multiplied by this much further on.
        self.gain = math.prod(inputs * math.exp(SLOPE_BOUND) for _, inputs in self.shapes)
        self.units = sum(outputs for outputs, _ in self.shapes)

    def floor(self, dtype: torch.dtype) -> float:
        """Sums from here up have lost less than rounding to underflow."""
        info = torch.finfo(dtype)
        return 16 * self.units * self.gain * info.tiny / info.eps


def squash(raw: Tensor, out: Tensor) -> Tensor:
    """s(-2 a / 7) of raw slopes a, by powers of two because they are fast."""
    return torch.mul(raw, 2 / SLOPE_BOUND * LOG2_E, out=out).exp2_().add_(1).reciprocal_()


def exponentiate(squashed: Tensor, out: Tensor) -> Tensor:
    """Weights exp(14 s - 7) = exp(-7 tanh(a / 7)) from `squash`."""
    shift = squashed.new_tensor(-SLOPE_BOUND * LOG2_E)
    return torch.add(shift, squashed, alpha=2 * SLOPE_BOUND * LOG2_E, out=out).exp2_()


class Memory:
    """A block of memory handed out piece by piece, and again for the next chunk.

    Fresh memory costs as much as the arithmetic that is done in it. With `units_inside` the numbers of one vector are
    neighbours, else those of all vectors.
    """

    def __init__(self, like: Tensor, numbers: int, *, units_inside: bool) -> None:
        self.block = like.new_empty(numbers)
        self.units_inside = units_inside
        self.used = 0

    def take(self, *shape: int, spare: int = 0) -> Tensor:
        """Return an undefined tensor of `shape` (..., unit, n) with `spare` more numbers behind it."""
        start, size = self.used, math.prod(shape)
        self.used += -(-(size + spare) // 16) * 16
        if self.used > len(self.block):
            self.block, start = self.block.new_empty(max(len(self.block), self.used)), 0
            self.used = size + spare
        units, n = shape[-2:]
        strides = [1, units] if self.units_inside else [n, 1]
        inner = units * n
        for length in reversed(shape[:-2]):
            strides.insert(0, inner)
            inner *= length
        return torch.as_strided(self.block, shape, strides, start)


def even_step(length: int, most: int) -> int:
    """Length of the fewest pieces of at most `most` that are nearly equal."""
    return max(1, -(-length // max(1, -(-length // most))))


def chunks(plan: Plan, x: Tensor, theta: Tensor, *, keep: bool = False) -> Iterator[tuple[Chunk, slice, slice]]:
    """Cut points (k, n) at `theta` (n, size) into pieces [rows, columns] that use the same memory in turn."""
    k, n = x.shape
    units_inside = k > 1 or n == 1 or theta.stride(0) != 1
    if units_inside and theta.stride(1) != 1:
        theta = theta.contiguous()
    points = CPU_POINTS if x.device.type == "cpu" else GPU_POINTS
    step = even_step(n, max(1, points // max(k, 1)))
    memory = Memory(theta, step * (2 * plan.end + 24 * min(k, points) * plan.units), units_inside=units_inside)
    for start in range(0, n, step):
        memory.used = 0
        chunk = Chunk(plan, memory, theta[start : start + step], keep=keep)
        decoded = memory.used
        for first in range(0, k, points):
            memory.used = decoded
            yield chunk, slice(first, first + points), slice(start, start + step)


def sums_at(plan: Plan, x: Tensor, theta: Tensor) -> Tensor:
    """phi(x) - phi(a), phi(b) - phi(x) and phi'(x) at `x` (k, n), `theta` (n, size): (3, k, n)."""
    k, n = x.shape
    sums = x.new_empty(3, k, n)
    for chunk, rows, columns in chunks(plan, x, theta):
        chunk.run(x[rows, columns])
        sums[:, rows, columns] = chunk.sums()
    return sums


class Step(NamedTuple):
    """What a layer's differences of sigmoids between low <= middle <= high are made of."""

    rises: Tensor  # (3, k, unit, n): middle - low, high - middle, and the tangent
    sigmoids: Tensor  # (4, k, unit, n): s(middle), s(-middle), s(-low), s(high)
    left: Tensor | None  # (unit, n): s(low), where a layer follows


class Chunk:
    """The net at fixed parameter vectors: `run` sends points through it; what they leave gives sums and gradient."""

    def __init__(self, plan: Plan, memory: Memory, theta: Tensor, *, keep: bool = False) -> None:
        """Decode the weights of `theta` (n, size); `keep` what the gradient of that needs."""
        self.plan, self.memory, self.n = plan, memory, len(theta)
        self.theta = theta.t()
        squashed = squash(self.theta[: plan.end], memory.take(plan.end, self.n))
        self.weights = exponentiate(squashed, memory.take(plan.end, self.n) if keep else squashed)
        if keep:  # d weight / d raw = -4 s (1 - s) weight
            self.slopes = squashed.addcmul_(squashed, squashed, value=-1).mul_(self.weights).mul_(-4)
        mixture = plan.places["mixture"]
        if memory.units_inside:
            self.share = torch.softmax(theta[:, mixture], dim=1).t()
        else:
            self.share = torch.softmax(self.theta[mixture], dim=0)

    def weight(self, layer: int) -> Tensor:
        """Weights (out, in, n) of a hidden layer, counted from 1."""
        return self.weights[self.plan.places[f"slope_{layer}"]].unflatten(0, self.plan.shapes[layer - 1])  # type: ignore[no-any-return]

    def offset(self, layer: int) -> Tensor:
        """Raw offsets (out, n) of a hidden layer, counted from 1."""
        return self.theta[self.plan.places[f"offset_{layer}"]]

    def run(self, x: Tensor) -> None:
        """Send `x` (k, n) through the hidden layers."""
        self.x = x
        self.columns: dict[int, Tensor] = {}  # by layer (3, k, unit, n): both differences of its values, the tangent
        self.steps: dict[int, Step] = {}
        self.means: dict[int, Tensor] = {}  # by layer (unit, n): mean weight of each unit
        if self.plan.support.bounded:
            self._first_interval()
        else:
            self._first_line()
        for layer in range(2, self.plan.layers + 1):
            self._hidden(layer)

    def sums(self) -> Tensor:
        """phi(x) - phi(a), phi(b) - phi(x) and phi'(x) at the points that ran: (3, k, n)."""
        columns = self.columns[self.plan.layers]
        weighted = torch.mul(columns, self.share, out=self.memory.take(*columns.shape))
        result = weighted.sum(dim=2)
        if self.plan.epsilon:
            result.add_(self.rates(), alpha=self.plan.epsilon)
        return result

    def rates(self) -> Tensor:
        """The epsilon term's two differences and its slope: (3, k, n)."""
        x, support = self.x, self.plan.support
        if support.bounded:
            return torch.stack([x - support.lower, support.upper - x, torch.ones_like(x)])
        below, above = torch.sigmoid(x), torch.sigmoid(-x)
        return torch.stack([below, above, below * above])

    def _new_columns(self, layer: int, k: int, units: int) -> Tensor:
        self.columns[layer] = self.memory.take(3, k, units, self.n, spare=2 * units * self.n)
        return self.columns[layer]

    def _first_line(self) -> None:
        """On the whole line the first layer is 0 at the left end and 1 at the right one."""
        weight, offset = self.weights[self.plan.places["slope_1"]], self.offset(1)
        columns = self._new_columns(1, len(self.x), len(offset))
        below, above, tangent = columns
        torch.sub(self.x.unsqueeze(1), offset, out=below).mul_(weight)
        torch.neg(below, out=above)
        columns[:2].sigmoid_()
        torch.mul(below, above, out=tangent).mul_(weight)

    def _first_interval(self) -> None:
        weight, offset, x = self.weights[self.plan.places["slope_1"]], self.offset(1), self.x.unsqueeze(1)
        lower, upper = self.plan.support.lower, self.plan.support.upper
        shape = (len(x), *weight.shape)
        rises, sigmoids = self.memory.take(3, *shape), self.memory.take(4, *shape)
        torch.mul(x - lower, weight, out=rises[0])
        torch.mul(upper - x, weight, out=rises[1])
        rises[2] = weight
        middle, beyond, start, high = sigmoids
        torch.sub(x, offset, out=middle).mul_(weight)
        torch.neg(middle, out=beyond)
        start.copy_(weight * (offset - lower))
        high.copy_(weight * (upper - offset))
        self._step(1, rises, sigmoids)

    def _hidden(self, layer: int) -> None:
        """Push the differences of one layer through the next."""
        rises, mean, carried = self._push(layer)
        self.means[layer] = mean
        sigmoids = self.memory.take(4, *rises.shape[1:])
        middle, beyond, start, high = sigmoids
        torch.mul(self.offset(layer), mean.expand(start.shape), out=start)
        if carried is not None:
            start -= carried
        torch.sub(rises[0], start, out=middle)
        torch.neg(middle, out=beyond)
        torch.add(middle, rises[1], out=high)
        self._step(layer, rises, sigmoids)

    def _push(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Products of a layer's weights with the columns, with their mean and with the values at the left end."""
        columns, n, memory = self.columns[layer - 1], self.n, self.memory
        left = self.steps[layer - 1].left if layer - 1 in self.steps else None
        outputs, inputs = self.plan.shapes[layer - 1]
        if not memory.units_inside:
            weight = self.weight(layer)
            rises, product = memory.take(3, 1, outputs, n), memory.take(*weight.shape)
            for column, rise in zip(columns, rises, strict=True):
                torch.sum(torch.mul(weight, column, out=product), dim=1, out=rise[0])
            return rises, weight.mean(dim=1), None if left is None else (weight * left).sum(dim=1)
        # Rows of one product for each vector.
        k = columns.shape[1]
        rows = 3 * k + 1 + (left is not None)
        entering = columns.as_strided((n, rows, inputs), (inputs, n * inputs, 1))
        entering[:, 3 * k] = 1 / inputs
        if left is not None:
            entering[:, 3 * k + 1] = left.t()
        pushed = memory.take(rows, outputs, n).as_strided((n, rows, outputs), (rows * outputs, outputs, 1))
        torch.bmm(entering, self.weight(layer).permute(2, 1, 0), out=pushed)
        pushed = pushed.permute(1, 2, 0)
        rises = pushed.as_strided((3, k, outputs, n), (k * outputs, outputs, 1, rows * outputs))
        return rises, pushed[3 * k], None if left is None else pushed[3 * k + 1]

    def _step(self, layer: int, rises: Tensor, sigmoids: Tensor) -> None:
        """s(p) - s(q) = s(p) s(-q) (1 - exp(q - p)) for every unit; pre-activations become sigmoids in place."""
        left = torch.sigmoid(-sigmoids[2, 0]) if layer < self.plan.layers else None
        sigmoids.sigmoid_()
        _, k, units, n = rises.shape
        gone = torch.neg(rises[:2], out=self.memory.take(2, k, units, n)).expm1_()
        columns = self._new_columns(layer, k, units)
        torch.mul(sigmoids[:2], sigmoids[2:], out=columns[:2]).mul_(gone.neg_())
        torch.mul(sigmoids[0], sigmoids[1], out=columns[2]).mul_(rises[2])
        self.steps[layer] = Step(rises, sigmoids, left)
