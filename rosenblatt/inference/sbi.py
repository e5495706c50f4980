"""Densities of this library inside the `sbi` package: `NPE(density_estimator=density_estimator("nsf"))`.

The package (Boelts et al. 2025) brings sequential rounds, samplers, diagnostics and plots; a flow built here brings the
density, with its exact supports. Install it by `pip install "rosenblatt[sbi]"`; it is imported on first use.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rosenblatt.conditional import conditional_density
from rosenblatt.core.errors import OptionError
from rosenblatt.data import Table
from rosenblatt.inference.simulation import Ends
from rosenblatt.preparation import parse_supports


def density_estimator(
    model: str = "nsf",
    *,
    options: Mapping[str, Any] | None = None,
    support: Sequence[Ends] | None = None,
    of: str = "posterior",
    seed: int | None = None,
) -> Callable[[Tensor, Tensor], Any]:
    """Return what `sbi.inference.NPE` and `NLE` take as `density_estimator`: a function of (theta, x) that builds one.

    `of` is "posterior", p(theta | x), for NPE or "likelihood", p(x | theta), for NLE. `support` has a pair per column
    of the vector whose density it is; both vectors are standardised by the rows the function is called with. `sbi`
    trains it. Raises `OptionError` for another `of` and where `sbi` is not installed.

    >>> density_estimator("nsf", of="evidence")
    Traceback (most recent call last):
        ...
    rosenblatt.core.errors.OptionError: of: 'evidence' came, 'posterior' or 'likelihood' was expected.
    """
    if of not in ("posterior", "likelihood"):
        raise OptionError(f"of: {of!r} came, 'posterior' or 'likelihood' was expected.")
    estimator = _estimator_class()

    def build(theta: Tensor, x: Tensor) -> Any:
        names = ("theta", "x") if of == "posterior" else ("x", "theta")
        values, given = (theta, x) if of == "posterior" else (x, theta)
        columns = [f"{names[0]}{number}" for number in range(values[0].numel())]
        flow = conditional_density(
            model,
            Table(values.flatten(1).detach().cpu(), columns),
            given.flatten(1).detach().cpu(),
            options=options,
            support=parse_supports(support, columns),
            names=names,
            seed=seed,
        )
        return estimator(flow, values.shape[1:], given.shape[1:])

    return build


def __getattr__(name: str) -> Any:
    """Define the adapter when it is asked for, also by pickle."""
    if name == "FlowEstimator":
        return _estimator_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _estimator_class() -> Any:
    try:
        base: Any = importlib.import_module("sbi.neural_nets.estimators.base").ConditionalDensityEstimator
    except ImportError as error:
        raise OptionError(f'sbi: cannot be imported ({error}); run pip install "rosenblatt[sbi]".') from None

    class FlowEstimator(base):  # type: ignore[misc]
        """A `ConditionalDensity` with the shapes of `sbi`: input (sample, batch, *event), condition (batch, *event)."""

        def log_prob(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
            """Log-density, (sample, batch)."""
            input, condition, batch = self._broadcast_and_align(input, condition)
            rows = input.reshape(len(input), batch, -1), condition.reshape(len(input), batch, -1)
            return self.net.log_prob(*rows)  # type: ignore[no-any-return]

        def loss(self, input: Tensor, condition: Tensor, **_: Any) -> Tensor:
            """Minus the log-density of each pair, (batch,)."""
            return -self.log_prob(input.unsqueeze(0), condition)[0]

        def sample(self, sample_shape: Sequence[int], condition: Tensor, **_: Any) -> Tensor:
            """Draw (*sample_shape, batch, *event) from torch's global stream, as `sbi` does."""
            return self.sample_and_log_prob(sample_shape, condition)[0]

        def sample_and_log_prob(
            self, sample_shape: Sequence[int], condition: Tensor, **_: Any
        ) -> tuple[Tensor, Tensor]:
            """Draws and their log-densities (*sample_shape, batch)."""
            seed = int(torch.randint(2**62, ()))
            generator = torch.Generator(device=condition.device).manual_seed(seed)
            rows = condition.reshape(len(condition), -1)
            drawn, log_prob = self.net.sample_and_log_prob(math.prod(sample_shape), rows, generator=generator)
            shape = (*sample_shape, len(rows))
            kind = condition.dtype
            return drawn.to(kind).reshape(*shape, *self.input_shape), log_prob.to(kind).reshape(shape)

    FlowEstimator.__qualname__ = "FlowEstimator"  # so that pickle finds it by `__getattr__` of the module
    return FlowEstimator
