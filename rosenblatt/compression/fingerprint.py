"""What tells two models apart that would not read each other's files."""

from __future__ import annotations

import hashlib
import json

from torch import nn

Plain = bool | int | float | str


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model: its weights as double precision, and the classes and plain settings of its modules.

    The same in training and in use, in single and in double precision, and on every device.

    >>> fingerprint(nn.Linear(2, 1)) == fingerprint(nn.Linear(2, 1))
    False
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        settings = {key: repr(value) for key, value in vars(module).items() if _is_setting(key, value)}
        digest.update(json.dumps([name, type(module).__qualname__, settings], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        numbers = tensor.detach().cpu()
        numbers = numbers.double() if numbers.is_floating_point() else numbers
        digest.update(json.dumps([name, str(numbers.dtype), list(numbers.shape)]).encode())
        digest.update(numbers.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_setting(name: str, value: object) -> bool:
    if name.startswith("_") or name == "training":
        return False
    return isinstance(value, Plain) or (
        isinstance(value, list | tuple) and all(isinstance(one, Plain) for one in value)
    )
