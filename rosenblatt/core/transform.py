"""Invertible maps of whole vectors: `(x, context) -> (value, log_det)`.

`forward` always goes from data to base, the direction that a density needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rosenblatt.core.laws import Law
from rosenblatt.core.types import Likelihood, Mapped


class Transform(nn.Module, ABC):
    """An invertible map of vectors with a known log-determinant.

    Shapes: `x` is (*batch, features), `context` (*batch, context) or None, `log_det` (*batch).
    """

    @property
    def likelihood(self) -> Likelihood:
        """What `log_det` is: exact, or in the present mode an estimate."""
        return Likelihood.EXACT

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Map data `x` towards the base; `log_det` is log|det d value / d x|."""

    @abstractmethod
    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Map `y` back towards the data; `log_det` is log|det d value / d y|."""

    def closed_law(self, law: Law, context: Tensor | None = None) -> Law | None:
        """For one feature: the law of x where `forward(x)` has `law`, or None where no formula is known for it.

        One law for each row of `context`, shape (*batch).
        """
        return None


class Identity(Transform):
    """The map that leaves every vector alone: `value = x`, `log_det = 0`."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Return `x` and zeros."""
        return Mapped(x, x.new_zeros(x.shape[:-1]))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Return `y` and zeros."""
        return self.forward(y)

    def closed_law(self, law: Law, context: Tensor | None = None) -> Law | None:
        """Return `law`."""
        return law


class Compose(Transform):
    """Several transforms one after the other, the first one nearest to the data.

    `f = f_K o ... o f_1`, `log_det = sum_k log_det_k`. Nested compositions are flattened, so a printed
    model reads from data to base.
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__()
        flat: list[Transform] = []
        for transform in transforms:
            flat.extend(transform.steps if isinstance(transform, Compose) else [transform])
        self._steps = nn.ModuleList(flat)

    @property
    def steps(self) -> list[Transform]:
        """The transforms, data side first."""
        return list(self._steps)  # type: ignore[arg-type]

    @property
    def likelihood(self) -> Likelihood:
        """What the weakest step can claim."""
        return Likelihood.weakest(*(step.likelihood for step in self.steps))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Run every step from data to base and add their log-determinants."""
        log_det = x.new_zeros(x.shape[:-1])
        for step in self._steps:
            x, step_log_det = step(x, context)
            log_det = log_det + step_log_det
        return Mapped(x, log_det)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Run every step backwards, from base to data."""
        log_det = y.new_zeros(y.shape[:-1])
        for step in reversed(self.steps):
            y, step_log_det = step.inverse(y, context)
            log_det = log_det + step_log_det
        return Mapped(y, log_det)

    def closed_law(self, law: Law, context: Tensor | None = None) -> Law | None:
        """Carry `law` through every step towards the data."""
        carried: Law | None = law
        for step in reversed(self.steps):
            carried = None if carried is None else step.closed_law(carried, context)
        return carried


class Inverse(Transform):
    """The other direction of a transform: an IAF layer is `Inverse(MAF layer)`."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    @property
    def likelihood(self) -> Likelihood:
        """What the wrapped transform claims."""
        return self.transform.likelihood

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Run the wrapped transform's inverse."""
        return self.transform.inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Run the wrapped transform's forward map."""
        mapped = self.transform(y, context)
        return Mapped(mapped.value, mapped.log_det)


def float_info(x: Tensor) -> torch.finfo:
    """Floating-point limits of `x`'s dtype."""
    return torch.finfo(x.dtype)
