"""Masked linear maps computed block by block, without most of the zeros.

When both sides are sorted by degree, the visible weights form a staircase: row j sees its first `reach[j]` inputs. The
rows are cut into groups, and each group multiplies only the inputs that its last row sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Matrix libraries reach their full rate on blocks whose edges fall on multiples of their tiles: measured on AVX2, a
# product 64 columns wide is as fast per weight as a whole one, one of 86 columns takes half as long again.
GROUP_ROWS = 64  # at least so many rows in a group
GROUP_INPUTS = 32  # one more group for so many inputs: more would save too little
LEAST_EXACT = 48  # rows per step on average, and inputs, from which groups follow the steps and need no mask
REACH_STEP = 16
# Multiply-adds of a product that one thread of a CPU, or a GPU, should not cut any further.
SMALLEST_PRODUCT = {"cpu": 1 << 23, "cuda": 1 << 32}

Groups = tuple["Group", ...]


class Group(NamedTuple):
    """Rows [start, stop), none of which sees more than the first `reach` inputs."""

    start: int
    stop: int
    reach: int


class MaskedLinear(nn.Module):
    """A linear map whose output j sees input i only where `in_degrees[i] <= out_degrees[j]`; both lists ascend.

    Weights start with variance 2 gain^2 / (visible inputs), row by row, the bias at zero. Weights behind the mask do
    not enter, whatever finite number they hold, and get a gradient of exactly zero.
    """

    mask: Tensor

    def __init__(self, in_degrees: Tensor, out_degrees: Tensor, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(len(out_degrees), len(in_degrees)))
        self.bias = nn.Parameter(torch.empty(len(out_degrees)))
        mask = in_degrees.unsqueeze(0) <= out_degrees.unsqueeze(1)
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)
        self.reach: list[int] = mask.sum(dim=1).tolist()
        self.groups = _groups(self.reach, len(in_degrees))
        # In exact groups all rows see the same inputs, and no mask is needed.
        self.exact = all(self.reach[start] == reach for start, _, reach in self.groups)
        with torch.no_grad():
            visible = self.mask.sum(dim=1, keepdim=True).clamp(min=1)
            self.weight.normal_().mul_(gain * (2.0 / visible).sqrt())
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the visible weights to `x` (*batch, inputs), by differentiable operations."""
        outputs = []
        for start, stop, reach in self.groups:
            weight = self.weight[start:stop, :reach]
            visible = weight if self.exact else weight * self.mask[start:stop, :reach]
            outputs.append(linear(x[..., :reach], visible, self.bias[start:stop]))
        return torch.cat(outputs, dim=-1)

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Outputs [start, stop), which must share one reach, from the inputs they see."""
        reach = self.reach[start]
        return linear(x[..., :reach], self.weight[start:stop, :reach], self.bias[start:stop])

    def parts(self, params: int, numbers: int) -> list[Groups]:
        """Groups in runs of about `numbers` rows, each a whole number of times `params` rows."""
        rows, step = len(self.reach), params * max(1, round(numbers / params))
        if not self.exact:
            inputs = self.weight.shape[1]
            return [_even_groups(self.reach, inputs, first, min(first + step, rows)) for first in range(0, rows, step)]
        runs: list[list[Group]] = [[]]
        for group in self.groups:
            if runs[-1] and group.stop - runs[-1][0].start > step:
                runs.append([])
            runs[-1].append(group)
        return [tuple(run) for run in runs]

    def groups_for(self, batch: int, groups: Groups) -> Groups:
        """Neighbouring `groups` joined until each product of `batch` rows is worth a call of its own."""
        if self.exact or len(groups) == 1:
            return groups
        device = self.weight.device.type
        least = SMALLEST_PRODUCT.get(device, 0) * (torch.get_num_threads() if device == "cpu" else 1)
        return _joined(groups, least // max(batch, 1))


def without_masked(layers: Sequence[MaskedLinear], weights: Sequence[Tensor]) -> list[Tensor]:
    """`weights` of several layers without what is behind the masks, where a group meets that at all."""
    met = [number for number, layer in enumerate(layers) if not layer.exact]
    visible = list(weights)
    if met:
        masked = torch._foreach_mul([weights[number] for number in met], [layers[number].mask for number in met])
        for number, weight in zip(met, masked, strict=True):
            visible[number] = weight
    return visible


def outputs(x: Tensor, visible: Tensor, bias: Tensor, groups: Groups) -> Tensor:
    """Outputs (batch, rows) of neighbouring groups, written side by side."""
    first, last = groups[0].start, groups[-1].stop
    result = x.new_empty(len(x), last - first).copy_(bias[first:last])  # at once: in pieces a copy is slow
    for start, stop, reach in groups:
        weight = visible[start:stop].narrow(1, 0, reach)
        result.narrow(1, start - first, stop - start).addmm_(x.narrow(1, 0, reach), weight.t())
    return result


def input_gradient(grad: Tensor, visible: Tensor, groups: Groups, out: Tensor, *, fresh: bool) -> None:
    """Add to `out` (batch, inputs), or write to it if `fresh`, the gradient in the inputs of `outputs`."""
    first = groups[0].start
    for start, stop, reach in reversed(groups):  # the last group reaches farthest
        part, weight = grad.narrow(1, start - first, stop - start), visible[start:stop].narrow(1, 0, reach)
        if fresh:
            torch.mm(part, weight, out=out.narrow(1, 0, reach))
            if reach < out.shape[1]:
                out[:, reach:].zero_()
            fresh = False
        else:
            out.narrow(1, 0, reach).addmm_(part, weight)


def weight_gradient(grad: Tensor, x: Tensor, groups: Groups, out: Tensor, *, blank: bool) -> None:
    """Write the gradient in the weights of `outputs` into the rows of these groups; `blank` rows are zero already."""
    first = groups[0].start
    for start, stop, reach in groups:
        if not blank and reach < out.shape[1]:
            out[start:stop, reach:].zero_()
        part, seen = grad.narrow(1, start - first, stop - start), x.narrow(1, 0, reach)
        if reach % REACH_STEP:  # few or odd columns: the turned product is up to five times as fast
            out[start:stop, :reach] = torch.mm(seen.t(), part).t()
        else:
            torch.mm(part.t(), seen, out=out[start:stop].narrow(1, 0, reach))


@lru_cache(maxsize=1024)
def _joined(groups: Groups, least: int) -> Groups:
    """Groups of at least `least` entries each, as far as there are so many."""
    joined: list[Group] = []
    for group in reversed(groups):  # from the widest, so that small ones end up together
        if joined and (joined[-1].stop - joined[-1].start) * joined[-1].reach < least:
            last = joined.pop()
            group = Group(group.start, last.stop, last.reach)  # noqa: PLW2901
        joined.append(group)
    return tuple(reversed(joined))


def _groups(reach: Sequence[int], inputs: int) -> Groups:
    """Cut the rows where the reach changes if that makes large blocks, else evenly."""
    rows = len(reach)
    steps = [row for row in range(1, rows) if reach[row] != reach[row - 1]]
    if rows >= LEAST_EXACT * (len(steps) + 1) and inputs >= LEAST_EXACT:
        return tuple(Group(start, stop, reach[start]) for start, stop in pairwise([0, *steps, rows]))
    return _even_groups(reach, inputs, 0, rows)


def _even_groups(reach: Sequence[int], inputs: int, first: int, last: int) -> Groups:
    """Cut rows [first, last) evenly, on tiles, and let each group reach to the end of a tile."""
    count = max(1, min((last - first) // GROUP_ROWS, round(inputs / GROUP_INPUTS)))
    step = max(1, round((last - first) / count / REACH_STEP)) * REACH_STEP
    edges = [*range(first, last, step)[:count], last]
    reaches = [min(inputs, -(-reach[stop - 1] // REACH_STEP) * REACH_STEP) for stop in edges[1:]]
    return tuple(Group(start, stop, seen) for (start, stop), seen in zip(pairwise(edges), reaches, strict=True))
