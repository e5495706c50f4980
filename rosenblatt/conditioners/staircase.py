"""Masked linear maps computed block by block, without most of the zeros.

When both sides are sorted by degree, the visible weights form a staircase: row j sees its first `reach[j]` inputs. The
rows are cut into groups, and each group multiplies only the inputs that its last row sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Matrix libraries reach their full rate on blocks whose edges fall on multiples of their tiles: measured on AVX2, a
# product 64 columns wide is as fast per weight as a whole one, one of 86 columns takes half as long again.
GROUP_ROWS = 64
REACH_STEP = 16
# Multiply-adds of a product that one thread of a CPU, or a GPU, should not cut any further.
SMALLEST_PRODUCT = {"cpu": 1 << 24, "cuda": 1 << 32}


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

    def parts(self, params: int, numbers: int) -> list[list[Group]]:
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
        return runs

    def visible(self, weight: Tensor) -> Tensor:
        """`weight` without what is behind the mask, unless no group meets that."""
        return weight if self.exact else weight * self.mask

    def groups_for(self, batch: int, groups: Sequence[Group]) -> Sequence[Group]:
        """Neighbouring `groups` joined until each product of `batch` rows is worth a call of its own."""
        if self.exact or len(groups) == 1:
            return groups
        device = self.weight.device.type
        least = SMALLEST_PRODUCT.get(device, 0) * (torch.get_num_threads() if device == "cpu" else 1)
        merged: list[Group] = []
        for group in reversed(groups):  # from the widest, so that small ones end up together
            if merged and batch * (merged[-1].stop - merged[-1].start) * merged[-1].reach < least:
                last = merged.pop()
                group = Group(group.start, last.stop, last.reach)  # noqa: PLW2901
            merged.append(group)
        return merged[::-1]


def outputs(x: Tensor, visible: Tensor, bias: Tensor, groups: Sequence[Group]) -> Tensor:
    """Outputs (batch, rows) of neighbouring groups, written side by side."""
    first = groups[0].start
    result = x.new_empty(len(x), groups[-1].stop - first)
    for start, stop, reach in groups:
        out = result[:, start - first : stop - first]
        torch.mm(x[:, :reach], visible[start:stop, :reach].t(), out=out)
    return result.add_(bias[first : groups[-1].stop])


def input_gradient(grad: Tensor, visible: Tensor, groups: Sequence[Group], out: Tensor, *, fresh: bool) -> None:
    """Add to `out` (batch, inputs), or write to it if `fresh`, the gradient in the inputs of `outputs`."""
    first = groups[0].start
    for start, stop, reach in reversed(groups):  # the last group reaches farthest
        part, weight = grad[:, start - first : stop - first], visible[start:stop, :reach]
        if fresh:
            torch.mm(part, weight, out=out[:, :reach])
            out[:, reach:].zero_()
            fresh = False
        else:
            out[:, :reach].addmm_(part, weight)


def weight_gradient(grad: Tensor, x: Tensor, groups: Sequence[Group], out: Tensor) -> None:
    """Write the gradient in the weights of `outputs` into the rows of these groups."""
    first = groups[0].start
    for start, stop, reach in groups:
        part = grad[:, start - first : stop - first]
        if reach % REACH_STEP:  # few or odd columns: the turned product is up to five times as fast
            out[start:stop, :reach] = torch.mm(x[:, :reach].t(), part).t()
        else:
            torch.mm(part.t(), x[:, :reach], out=out[start:stop, :reach])
        out[start:stop, reach:].zero_()


def _groups(reach: Sequence[int], inputs: int) -> list[Group]:
    """Cut the rows where the reach changes if the steps are wide, else every `GROUP_ROWS`."""
    rows = len(reach)
    steps = [row for row in range(1, rows) if reach[row] != reach[row - 1]]
    if rows >= GROUP_ROWS * (len(steps) + 1):
        return [Group(start, stop, reach[start]) for start, stop in pairwise([0, *steps, rows])]
    return _even_groups(reach, inputs, 0, rows)


def _even_groups(reach: Sequence[int], inputs: int, first: int, last: int) -> list[Group]:
    """Cut rows [first, last) every `GROUP_ROWS`, and let each group reach to a multiple of `REACH_STEP`."""
    edges = [*range(first, last, GROUP_ROWS), last]
    reaches = [min(inputs, -(-reach[stop - 1] // REACH_STEP) * REACH_STEP) for stop in edges[1:]]
    return [Group(start, stop, seen) for (start, stop), seen in zip(pairwise(edges), reaches, strict=True)]
