"""Where numbers keep their digits, whatever a training run does to its matrices."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Leave mixed precision for a while, on the device of `x`: it would round the data, and slopes with them.

    >>> with torch.autocast("cpu", torch.bfloat16), full_precision(torch.ones(2)):
    ...     (torch.ones(2, 2) @ torch.ones(2)).dtype
    torch.float32
    """
    device = "cpu" if x.is_meta else x.device.type  # the meta device knows no mixed precision
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
