"""Targets of inference: log-densities that need not be normalised, checked once and called many times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import ParamSpec

Target = Callable[[Tensor], Tensor]
Bounds = Sequence[float | None]


class LogJoint:
    """A log-joint of named parameters as a target: `theta (rows, features) -> log p (rows,)`.

    `log_joint` takes a dict of tensors with the given `shapes` and returns one number, as probabilistic programs do;
    data are closed over (`functools.partial`, a lambda). `supports` holds (lower, upper) of a name, None for no bound;
    names left out live on the whole line. The columns of theta are the parameters in the order of `shapes`, each
    flattened by rows. `rows` says how many vectors are evaluated: "vmap" hands one row to `log_joint` and lets
    `torch.func.vmap` carry it over all, "loop" calls it once for each row (for code that vmap cannot carry), "batched"
    hands over tensors (rows, *shape) and expects (rows,). Raises `OptionError` for names that do not fit together.

    >>> joint = LogJoint(lambda p: -p["scale"] - 0.5 * p["mean"].square().sum(), {"mean": (2,), "scale": ()},
    ...                  supports={"scale": (0, None)})
    >>> joint.features, joint.supports
    (3, [(None, None), (None, None), (0, None)])
    >>> joint(torch.tensor([[1.0, 1.0, 2.0]]))
    tensor([-3.])
    """

    def __init__(
        self,
        log_joint: Callable[[dict[str, Tensor]], Tensor],
        shapes: Mapping[str, Sequence[int]],
        *,
        supports: Mapping[str, Bounds] | None = None,
        rows: Literal["vmap", "loop", "batched"] = "vmap",
    ) -> None:
        supports = {} if supports is None else supports
        if not shapes or not callable(log_joint):
            raise OptionError("log_joint, shapes: a function and the shape of at least one parameter were expected.")
        unknown = [name for name in supports if name not in shapes]
        if unknown:
            raise OptionError(f"supports: {unknown} came; known parameters: {', '.join(shapes)}.")
        if rows not in ("vmap", "loop", "batched"):
            raise OptionError(f"rows: '{rows}' came; choose 'vmap', 'loop' or 'batched'.")
        self.log_joint, self.rows = log_joint, rows
        self.spec = ParamSpec(**{name: tuple(shape) for name, shape in shapes.items()})
        self.features = self.spec.size
        self.supports: list[Bounds] = [
            tuple(supports.get(name, (None, None)))
            for name, size in zip(shapes, self.spec.sizes, strict=True)
            for _ in range(size)
        ]

    @property
    def names(self) -> list[str]:
        """A name for every column: `mean[0]`, `mean[1]`, `scale`."""
        names = []
        for name, shape in self.spec.shapes.items():
            for flat in range(math.prod(shape)):
                place = []
                for length in reversed(shape):
                    flat, index = divmod(flat, length)  # noqa: PLW2901
                    place.append(str(index))
                names.append(f"{name}[{','.join(reversed(place))}]" if place else name)
        return names

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """Named tensors (*batch, *shape) of vectors (*batch, features)."""
        return self.spec.split(theta)

    def pack(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Vectors (*batch, features) of named tensors; the inverse of `unpack`."""
        missing = [name for name in self.spec.shapes if name not in parameters]
        if missing:
            raise OptionError(f"parameters: {missing} are missing; {', '.join(self.spec.shapes)} were expected.")
        return self.spec.join(**{name: parameters[name] for name in self.spec.shapes})

    def __call__(self, theta: Tensor) -> Tensor:
        """Evaluate the log-joint of every row."""
        if self.rows == "batched":
            return self.log_joint(self.unpack(theta))
        if self.rows == "loop":
            return torch.stack([self._one(row) for row in theta])
        values: Tensor = torch.func.vmap(self._one)(theta)
        return values

    def _one(self, row: Tensor) -> Tensor:
        value = self.log_joint(self.unpack(row))
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise DataError(
                f"log_joint: {came} came, one number was expected; sum over data and parameters, or say rows='batched'."
            )
        return value.reshape(())


def checked(target: Target, theta: Tensor) -> Tensor:
    """Log-densities of `theta` (rows, features), (rows,) of its dtype; `DataError` for anything else than that."""
    value = target(theta)
    if not isinstance(value, Tensor):
        raise DataError(f"target: {type(value).__name__} came back, a tensor with one log-density a row was expected.")
    if value.shape != theta.shape[:-1]:
        raise DataError(
            f"target: shape {tuple(value.shape)} came back for theta of shape {tuple(theta.shape)}, "
            f"{tuple(theta.shape[:-1])} was expected; sum over the last axis alone."
        )
    if not value.is_floating_point():
        raise DataError(f"target: dtype {value.dtype} came back, floating-point log-densities were expected.")
    return value.to(theta.dtype)


def check_start(target: Target, theta: Tensor) -> None:
    """Raise `DataError` unless `target` has finite values and gradients somewhere among the starting rows."""
    if not callable(target):
        raise OptionError(
            f"target: {type(target).__name__} came, a function from theta (rows, features) to log-densities (rows,) "
            "was expected."
        )
    theta = theta.detach().requires_grad_()
    with torch.enable_grad():
        value = checked(target, theta)
    infinite = int(torch.isneginf(value).sum())
    finite = torch.isfinite(value)
    if not bool(finite.any()):
        what = "-inf" if infinite == len(value) else "not a finite number"
        raise DataError(
            f"target: the log-density is {what} at all {len(value)} starting points (the first is "
            f"{_shown(theta[0])}); give supports, or location and scale near the posterior."
        )
    if not value.requires_grad:
        raise DataError(
            "target: its value has no gradient in theta; compute it by torch operations on theta, without detach, "
            "item or numpy."
        )
    (gradient,) = torch.autograd.grad(value[finite].sum(), theta)
    if not bool(torch.isfinite(gradient[finite]).all(dim=-1).any()):
        raise DataError(
            f"target: its gradient is not finite at any of {len(value)} starting points (the first is "
            f"{_shown(theta[0])}); look for a square root or logarithm at 0."
        )


def _shown(theta: Tensor) -> str:
    numbers = ", ".join(f"{number:.4g}" for number in theta[:6].tolist())
    return f"[{numbers}{', ...' if len(theta) > 6 else ''}]"
