"""Densities: things with `log_prob` and `sample`; a flow is a transform in front of a base."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from rosenblatt.core.allocator import keep_freed_memory
from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import DataError, InverseError, OptionError
from rosenblatt.core.transform import Compose, Inverse, Transform
from rosenblatt.core.types import Batch, Likelihood, Support

SAMPLE_ROWS = 8192  # inverted at once: bounds the memory of a large sample, not its values
# Rows mapped at once where no gradient is taken: their hidden units should stay in the cache, and their numbers be
# enough to divide an operation over threads.
SCORE_ROWS, MOST_SCORE_ROWS, SCORE_NUMBERS = 2048, 5120, 1 << 16


class Density(nn.Module, ABC):
    """A probability density over vectors of `features` numbers, perhaps given `context` numbers.

    Shapes: `x` (*batch, features), `context` (*batch, context) or None, `log_prob` (*batch), in nats.
    """

    closed_form: ClassVar[bool] = False  # True: `initialise` on all rows is the whole fit
    features: int
    context: int
    objective: Objective | None = None  # the loss it is made to be trained with; None for minus the log-likelihood

    @property
    def likelihood(self) -> Likelihood:
        """What `log_prob` is: exact, or in the present mode an estimate or a bound."""
        return Likelihood.EXACT

    @abstractmethod
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats, shape (*batch).

        A row with NaN gives NaN (in `context` an infinity does too), a row with an infinity or outside the
        support gives -inf; other rows of the batch are untouched. `x` and `context` broadcast.
        Raises `DataError` when the last axis is not `features` long.
        """

    @abstractmethod
    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` vectors (per context row) and their log-densities: (n, *batch, features), (n, *batch)."""

    def sample(self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` vectors, or `n` for each row of `context`; the global random state is not touched.

        Without `generator` a fresh one is seeded by the system, so pass one for reproducible draws.
        """
        return self.sample_and_log_prob(n, context, generator=generator)[0]

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Set data-dependent starting values from training rows; nothing by default."""

    def refresh(self, batches: Iterable[Batch]) -> None:
        """Recompute what eval mode keeps from all training rows, for the present weights; nothing by default.

        Training calls it, in eval mode, before every validation. `batches` are read once, or not at all.
        """

    def given(self, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Given:
        """View this density at `context` as a `torch.distributions.Distribution`."""
        return Given(self, context, generator=generator)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return `log_prob`, so that compile, export and data-parallel wrappers see it."""
        return self.log_prob(x, context)

    def check(self, x: Tensor, context: Tensor | None = None) -> None:
        """Raise `DataError` unless `x` and `context` have the widths and a dtype this density works with."""
        if x.shape[-1:] != (self.features,):
            raise DataError(
                f"x: shape {tuple(x.shape)} came, the last axis must have {self.features} features; check the columns."
            )
        if x.dtype not in (torch.float32, torch.float64):
            raise DataError(f"x: dtype {x.dtype} came, float32 or float64 was expected; convert with x.float().")
        self.check_context(context)

    def check_context(self, context: Tensor | None) -> None:
        """Raise `DataError` unless `context` has the width this density was built with."""
        width = 0 if context is None else context.shape[-1]
        if width != self.context:
            raise DataError(
                f"context: {width} columns came, {self.context} were expected; pass what the model was built with."
            )


class Objective(Protocol):
    """A loss per row, shape (rows,); the fitter takes its weighted mean.

    `measure` says in a word or two what minus the mean loss is in eval mode: "nats" if that is the mean log-likelihood
    in nats per row, else what a report should call it. An objective without one is taken for a loss of no unit.
    """

    measure: str

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Compute the losses of `batch`; every random draw comes from `generator`."""


def fresh_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator seeded by the system that leaves the global one alone."""
    generator = torch.Generator(device=device)
    generator.seed()
    return generator


def initialise_in_turn(
    parts: Sequence[nn.Module], x: Tensor, context: Tensor | None = None, weight: Tensor | None = None
) -> None:
    """Let each part that takes starting values from rows do so, from `x` as the parts before it map it."""
    waiting = [number for number, part in enumerate(parts) if _starts_from_data(part)]
    last = max(waiting, default=-1)
    with torch.no_grad():
        for number, part in enumerate(parts[: last + 1]):
            if number in waiting:
                part.initialise(x, context, weight)  # type: ignore[operator]
            if number < last:
                x = _mapped_in_pieces(part, x, context)


def _mapped_in_pieces(part: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
    """Values of a step at many rows in little memory, unless (in training) its rows depend on one another."""
    if len(x) <= SAMPLE_ROWS or getattr(part, "likelihood", Likelihood.EXACT) is not Likelihood.EXACT:
        value: Tensor = part(x, context).value
        return value
    pieces = x.split(SAMPLE_ROWS)
    contexts = [None] * len(pieces) if context is None else context.expand(*x.shape[:-1], -1).split(SAMPLE_ROWS)
    return torch.cat([part(*rows).value for rows in zip(pieces, contexts, strict=True)])


def _starts_from_data(part: nn.Module) -> bool:
    """Whether a part of a flow has starting values of its own to take from rows."""
    initialise = getattr(type(part), "initialise", Density.initialise)
    return initialise is not Density.initialise


def _keeps_statistics(part: nn.Module) -> bool:
    """Whether a step of a flow keeps numbers that `refresh` recomputes."""
    return hasattr(type(part), "refresh")


def _same_batch(x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Broadcast the leading axes of both."""
    batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    return x.expand(*batch, x.shape[-1]), context.expand(*batch, context.shape[-1])


class Flow(Density):
    """A density made of an invertible `transform` in front of a `base`.

    `log p(x) = log p_base(T(x)) + log|det dT/dx|` (Papamakarios et al. 2021); samples are
    `T^-1(z)` with `z` from the base. A base with a context of its own gets the flow's, whose width must then be the
    same; `OptionError` otherwise. `supports` tells of a model whose columns have a place of their own, such as angles
    in [-pi, pi]: a table's units then carry each column's declared interval straight onto it, and do not standardise.

    >>> from rosenblatt.bases import StandardNormal
    >>> from rosenblatt.core.transform import Identity
    >>> flow = Flow(Identity(), StandardNormal(2))
    >>> flow.log_prob(torch.zeros(2))  # -log(2 pi)
    tensor(-1.8379)
    """

    def __init__(
        self, transform: Transform, base: Density, *, context: int = 0, supports: Sequence[Support] | None = None
    ) -> None:
        super().__init__()
        keep_freed_memory()
        if base.context not in (0, context):
            raise OptionError(f"base: takes {base.context} context columns, the flow has {context}; build both alike.")
        self.transform = transform
        self.base = base
        self.features = base.features
        self.context = context
        self.supports = None if supports is None else tuple(supports)

    @property
    def likelihood(self) -> Likelihood:
        """What the weaker of transform and base can claim."""
        return Likelihood.weakest(self.transform.likelihood, self.base.likelihood)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Exact log-density; see `Density.log_prob` for rows that are not finite."""
        self.check(x, context)
        # Rows that are not finite are computed at 0 and answered afterwards, so that neither their values nor their
        # gradients reach the other rows. The largest size of a row is inf or NaN just where one of its numbers is.
        size = x.detach().abs().amax(dim=-1)
        if context is not None:
            known = torch.isfinite(context)
            size = torch.where(known.all(dim=-1), size, torch.nan)
            x, context = _same_batch(x, torch.where(known, context, 0.0))
        finite = size < torch.inf
        log_prob = self._log_prob_of_finite(torch.where(finite.unsqueeze(-1), x, 0.0), context)
        return torch.where(finite, log_prob, -size)

    def _log_prob_of_finite(self, x: Tensor, context: Tensor | None) -> Tensor:
        batch = x.shape[:-1]
        rows = max(SCORE_ROWS, min(MOST_SCORE_ROWS, SCORE_NUMBERS // self.features))
        if torch.is_grad_enabled() or not runs_eagerly() or math.prod(batch) <= rows:
            return self._log_prob_at_once(x, context)
        pieces = x.reshape(-1, x.shape[-1]).split(rows)
        contexts: Sequence[Tensor | None] = [None] * len(pieces)
        if context is not None:
            contexts = context.reshape(-1, context.shape[-1]).split(rows)
        parts: list[Tensor] = []
        for number, (piece, given) in enumerate(zip(pieces, contexts, strict=True)):
            try:
                parts.append(self._log_prob_of_finite(piece, given))
            except InverseError as error:
                raise InverseError(error.reason, [number * rows + row for row in error.rows]) from None
        return torch.cat(parts).reshape(batch)

    def _log_prob_at_once(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log-density of finite rows in one piece; a subclass may know a shorter way to the same number."""
        z, log_det = self.transform(x, context)
        log_prob: Tensor = self.base.log_prob(z, context if self.base.context else None) + log_det
        return log_prob

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw base noise and map it to the data side."""
        batch = () if context is None else tuple(context.shape[:-1])
        rows = n * math.prod(batch)
        if context is not None:
            context = context.expand(n, *context.shape).reshape(rows, self.context)
        if self.base.context:
            z, base_log_prob = (part[0] for part in self.base.sample_and_log_prob(1, context, generator=generator))
        else:
            z, base_log_prob = self.base.sample_and_log_prob(rows, generator=generator)
        parts = []
        for start in range(0, max(rows, 1), SAMPLE_ROWS):
            chunk = slice(start, start + SAMPLE_ROWS)
            try:
                parts.append(self.transform.inverse(z[chunk], None if context is None else context[chunk]))
            except InverseError as error:
                raise InverseError(error.reason, [start + row for row in error.rows]) from None
        x = torch.cat([part.value for part in parts])
        log_prob = base_log_prob - torch.cat([part.log_det for part in parts])
        return x.reshape(n, *batch, self.features), log_prob.reshape(n, *batch)

    def to_base(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise `z = T(x)` behind `x`, (*batch, features): computed in float64, returned in the dtype of `x`."""
        self.check(x, context)
        return self._run_in_double(self.transform, x, context).to(x.dtype)

    def from_base(self, z: Tensor, context: Tensor | None = None, *, tolerance: float = 1e-3) -> Tensor:
        """Map noise to data, `x = T^-1(z)`, in float64, and refuse rows whose digits rounding has taken.

        Far from the data a trained flow can stretch rounding errors without bound. So the result is mapped back, and
        inverted again from noise a few ulp away on either side: a row whose way back misses `z`, or whose `x` moves,
        by more than `tolerance` raises `InverseError` with the row numbers. Rows that are not finite are not judged.
        The way back is measured; how far `x` moves is an estimate from four disturbances, not a bound.
        """
        self.check(z, context)
        backwards = Inverse(self.transform)
        exact = self._run_in_double(backwards, z, context)
        x = exact.to(z.dtype)
        with torch.no_grad():
            returned = self._run_in_double(self.transform, x, context)
            error = (returned - z).abs()
            ulps = 4 * torch.finfo(z.dtype).eps * (1 + z.double().abs())
            alternating = ulps * (1.0 - 2.0 * (torch.arange(self.features, device=z.device) % 2))
            for disturbance in (ulps, -ulps, alternating, -alternating):  # a plateau may lie on one side only
                moved = self._run_in_double(backwards, z + disturbance, context) - exact
                error = torch.maximum(error, moved.abs())
            judged = torch.isfinite(z).all(dim=-1)
            failed = judged & ~(error <= tolerance).all(dim=-1)  # an error that is not a number fails too
            if bool(failed.any()):
                rows = failed.reshape(-1).nonzero().squeeze(-1).tolist()
                raise InverseError(f"are not determined to {tolerance:g} in {z.dtype}", rows)
        return x

    def _run_in_double(self, transform: Transform, x: Tensor, context: Tensor | None) -> Tensor:
        """Value of `transform`, with weights and input cast to float64 for this one call."""
        state = {
            name: tensor.double() if tensor.is_floating_point() else tensor
            for name, tensor in (*transform.named_parameters(), *transform.named_buffers())
        }
        inputs = (x.double(), None if context is None else context.double())
        value: Tensor = torch.func.functional_call(transform, state, inputs).value
        return value

    def to_uniform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Rosenblatt transform: `u = F_base(T(x))`, uniform on the unit cube if the model is right.

        For one autoregressive layer, `u_i = F_i(x_i | x_<i)` in the model's order (Rosenblatt 1952).
        Raises `OptionError` when the base has no coordinate-wise CDF.
        """
        self.check(x, context)
        return self._factorised_base().cdf(self._run_in_double(self.transform, x, context)).to(x.dtype)

    def from_uniform(self, u: Tensor, context: Tensor | None = None) -> Tensor:
        """Inverse of `to_uniform`: `x = T^-1(F_base^-1(u))`; 0 and 1 give the ends of the support."""
        z = self._factorised_base().quantile(u.double())
        return self._run_in_double(Inverse(self.transform), z, context).to(u.dtype)

    def after(self, transform: Transform) -> Flow:
        """Put a fixed transform (units, supports) on the data side; `log_prob` is then in its units."""
        flow = Flow(Compose([transform, self.transform]), self.base, context=self.context)
        flow.objective = self.objective
        return flow

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Let each data-dependent step (ActNorm), and the base, start from what reaches it."""
        initialise_in_turn([*self._all_steps(), self.base], x, context, weight)

    def refresh(self, batches: Iterable[Batch]) -> None:
        """Let each step with statistics of the training rows (batch normalisation) recompute them.

        Step by step, each from what the steps before it, refreshed, make of all rows, which are held in memory
        meanwhile: one pass of the transform in all.
        """
        steps = self._all_steps()
        waiting = [number for number, step in enumerate(steps) if _keeps_statistics(step)]
        if not waiting:
            return
        with torch.no_grad():
            parts = [(batch.x, batch.context) for batch in batches]
            for number, step in enumerate(steps[: waiting[-1] + 1]):
                if number in waiting:
                    step.refresh(x for x, _ in parts)  # type: ignore[operator]
                parts = [(step(x, context).value, context) for x, context in parts]

    def _all_steps(self) -> list[Transform]:
        return self.transform.steps if isinstance(self.transform, Compose) else [self.transform]

    def _factorised_base(self) -> FactorisedDensity:
        if not isinstance(self.base, FactorisedDensity):
            raise OptionError(
                f"base: {type(self.base).__name__} has no coordinate-wise CDF, so there is no Rosenblatt "
                "transform; use a base with independent coordinates."
            )
        return self.base


class FactorisedDensity(Density):
    """A density with independent coordinates, each with a CDF and a quantile function."""

    context = 0

    @abstractmethod
    def cdf(self, x: Tensor) -> Tensor:
        """P(X_i <= x_i) per coordinate, shape of `x`."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of `cdf`: -inf/+inf (or the ends of the support) at 0 and 1, NaN outside [0, 1]."""


class Given(torch.distributions.Distribution):
    """A density at fixed context, as a `torch.distributions.Distribution`."""

    arg_constraints: ClassVar[dict[str, torch.distributions.constraints.Constraint]] = {}
    has_rsample = True

    def __init__(
        self, density: Density, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        self.density = density
        self.context = context
        self.generator = generator
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, torch.Size([density.features]), validate_args=False)

    @property
    def support(self) -> torch.distributions.constraints.Constraint:
        """Real vectors; a row outside a narrower support of the model has log-density -inf."""
        return torch.distributions.constraints.real_vector

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of `value` (*sample, *batch, features)."""
        if self.context is None:
            return self.density.log_prob(value)
        return self.density.log_prob(*_same_batch(value, self.context))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with pathwise gradients."""
        shape = torch.Size(sample_shape)
        drawn = self.density.sample(shape.numel(), self.context, generator=self.generator)
        return drawn.reshape(*shape, *self.batch_shape, *self.event_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)
