"""The floor under a time: the multiply-adds that the masks leave, at the rate of the machine's matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

GEMM_SIZES = (1024, 2048)


def matrices(module: nn.Module) -> list[nn.Module]:
    """Modules that multiply by a weight matrix, in the order of their registration."""
    return [part for part in module.modules() if isinstance(part, nn.Linear) or _is_stack(part)]


def visible_entries(layer: nn.Module) -> int:
    """Entries of one weight matrix that its mask lets through; all of them without a mask."""
    mask = getattr(layer, "mask", None)
    if isinstance(mask, Tensor):
        return int(mask.count_nonzero())
    reach = getattr(layer, "reach", None)  # a staircase: row j sees its first reach[j] inputs
    if reach is not None:
        return int(sum(int(seen) for seen in reach))
    weight = layer.get_parameter("weight")
    return weight.numel()


def visible_weights(module: nn.Module) -> int:
    """Matrix entries that are not masked, over the whole module."""
    return sum(visible_entries(layer) for layer in matrices(module))


def multiply_adds(module: nn.Module) -> dict[str, int]:
    """Multiply-adds per row of a log-density and of a train step.

    Going forward each visible entry costs one. A train step costs three: forward, the gradient of the weight, and the
    gradient of the layer's input, which the very first layer does not need.
    """
    layers = matrices(module)
    forward = visible_weights(module)
    first = visible_entries(layers[0]) if layers else 0
    return {"log_prob": forward, "train": 3 * forward - first}


def gemm(size: int) -> Callable[[], Tensor]:
    """A call that multiplies two float32 matrices of `size` x `size`."""
    generator = torch.Generator().manual_seed(0)
    left, right, out = (torch.randn(size, size, generator=generator) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)


def gemm_rate(clock: Callable[[], float] = time.perf_counter) -> float:
    """Multiply-adds per second: the best of several large products, each done twice."""
    rates = []
    for size in GEMM_SIZES:
        product = gemm(size)
        product()
        for _ in range(2):
            start = clock()
            product()
            rates.append(size**3 / (clock() - start))
    return max(rates)


def _is_stack(part: nn.Module) -> bool:
    """Whether this is a linear layer of another class: its `weight` is a parameter with rows and columns."""
    weight = getattr(part, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() >= 2
