"""A limit on the memory that building a model from a file may ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rosenblatt.core.errors import OptionError


class AllocationLimit(TorchFunctionMode):
    """Refuses a builder that asks for many more numbers than the weights file holds, before memory is taken.

    most: numbers in one tensor at most, four times as many in all together; calls: tensors made at most.
    Raises `OptionError` at the call that would go beyond.

    >>> with AllocationLimit(most=100, calls=10):  # doctest: +ELLIPSIS
    ...     torch.zeros(10**12)
    Traceback (most recent call last):
    ...
    rosenblatt.core.errors.OptionError: model: its options ask for far more weights than the file holds; ...
    """

    def __init__(self, most: int, calls: int) -> None:
        super().__init__()
        self.most = most
        self.left = 4 * most
        self.calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Hold the size of a new tensor against the limits where the arguments tell it, else its own."""
        kwargs = kwargs or {}
        size = _requested(func, args, kwargs)
        if size is not None:
            self.left -= size
            self.calls -= 1
            self._refuse_if(size > self.most or min(self.left, self.calls) < 0)
        result = func(*args, **kwargs)
        self._refuse_if(isinstance(result, Tensor) and result.numel() > self.most)
        return result

    def _refuse_if(self, too_large: bool) -> None:
        if too_large:
            raise OptionError(
                "model: its options ask for far more weights than the file holds; restore config.json or fit again."
            )


def _requested(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """How many numbers a call that makes a tensor asks for; None for other calls."""
    if func in (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn):
        size = kwargs.get("size", args[0] if args and isinstance(args[0], Sequence) else args)
        return int(math.prod(size))
    if func in (torch.arange, torch.randperm):
        return int(max(abs(number) for number in args if isinstance(number, int | float)))
    if func is torch.eye:
        return int(args[0] * args[-1])
    if func is torch.linspace:
        return int(kwargs.get("steps", args[2] if len(args) > 2 else 0))
    if func in (Tensor.repeat, Tensor.repeat_interleave):
        return _repeated(args[0], args[1:])
    return None


def _repeated(tensor: Tensor, counts: tuple[Any, ...]) -> int | None:
    if all(isinstance(count, int) for count in counts):
        return int(math.prod(counts, start=tensor.numel()))
    each = counts[0]
    if isinstance(each, Tensor) and each.numel():
        return int(each.sum()) * (tensor.numel() // each.numel())
    return None
