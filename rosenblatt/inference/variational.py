"""Variational inference: the flow nearest to a posterior that is known up to a factor."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import FitDiverged, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.core.types import Likelihood, Support
from rosenblatt.eval.bits import Estimate
from rosenblatt.inference.importance import ImportanceSample, importance_sample, require_weights
from rosenblatt.inference.mode import find_mode
from rosenblatt.inference.target import Bounds, Target, check_start, checked
from rosenblatt.layers.scaling import Standardise
from rosenblatt.layers.support import SupportMap
from rosenblatt.objectives.bounds import bound_by_sampling, linear_warmup
from rosenblatt.train.runtime import seeded_generator
from rosenblatt.train.state import TrainState

COLDEST = 0.01  # share of log p that annealing starts from, as published by Rezende & Mohamed (2015)
RECORDS = 100  # lines of history
SKIPS_IN_A_ROW = 20
NORMS, LARGEST_NORM = 50, 5.0  # a gradient is cut at so many times the median norm of the latest ones
FINAL_DRAWS = 4000
TRAINING, FINAL, IMPORTANCE = range(3)  # random streams


@dataclass(frozen=True)
class VariationalPosterior:
    """A flow q fitted to a target.

    flow: the density q of theta, in the target's own units and within its supports.
    elbo: `E_q[log p - log q]` in nats with its standard error: at most the log of the target's integral, and below it
        by `KL(q, p)`. From draws that the fit did not see.
    history: one record for every hundredth of the steps: `step`, mean `bound` since the last one, `skipped` steps.
    """

    target: Target = field(repr=False)
    flow: Flow = field(repr=False)
    elbo: Estimate
    history: list[dict[str, Any]] = field(repr=False)
    seed: int = 0

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` vectors (n, features) from q."""
        with torch.no_grad():
            return self.flow.sample(n, generator=generator)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log-density of q, normalised, in nats."""
        with torch.no_grad():
            return self.flow.log_prob(theta)

    def importance(self, n: int = 10_000, *, generator: torch.Generator | None = None) -> ImportanceSample:
        """Weigh `n` draws of q by the target: its log-integral, effective size, and whether q can be trusted.

        Without `generator` the draws follow from the seed of the fit.
        """
        generator = seeded_generator(self.seed, IMPORTANCE) if generator is None else generator
        return importance_sample(self.target, self.flow, n, generator=generator)


def fit_variational(
    target: Target,
    flow: str | Flow = "iaf",
    *,
    features: int | None = None,
    options: Mapping[str, Any] | None = None,
    supports: Sequence[Bounds] | None = None,
    location: Sequence[float] | Literal["mode"] | None = None,
    scale: Sequence[float] | None = None,
    steps: int = 2000,
    samples: int = 64,
    particles: int = 1,
    learning_rate: float = 1e-2,
    path_derivative: bool = True,
    annealing: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> VariationalPosterior:
    """Fit a flow q to `target`, a function from theta (rows, features) to log-densities (rows,), by reverse KL.

    Maximises `E_q[log p(theta) - log q(theta)]`, or with `particles` K > 1 the importance-weighted bound of K draws.
    The target need not be normalised, and must be made of torch operations.

    flow: a model's name with its `options`, or a `Flow`, which is trained in place. Cheap are those that sample in one
        pass: `iaf` (with `transforms=0` the mean field), `realnvp`, `nsf` with `coupling`, `planar` with `inverted`.
    features: width of theta; not needed for a `Flow` or a target that says it, such as `LogJoint`.
    supports: (lower, upper) of every column, None for no bound; the log-Jacobian is taken care of. A flow on a box of
        its own, such as a torus, has them carried straight onto it, and takes no location or scale.
    location, scale: guesses of where the posterior is and how wide (on the line behind `supports`); q starts there.
        With `location="mode"` a search finds the mode, and without `scale` the curvature there; else 0 and 1.
    steps, samples, learning_rate: steps of Adam, bounds drawn for each, and the rate, which falls along a cosine.
    path_derivative: leave out the part of the gradient that has mean zero (see `objectives.bounds.draw`).
    annealing: share of the steps over which log p grows from a hundredth to the whole, against losing modes.
    seed: fixes the result; the global random state is left alone.

    Raises `OptionError` or `DataError` for a target or flow that cannot work, `FitDiverged` when its values stop being
    finite. References: Rezende & Mohamed, ICML 2015; Kingma et al., NeurIPS 2016; Roeder, Wu & Duvenaud, NeurIPS 2017.

    >>> def target(theta):
    ...     return -0.5 * ((theta - 1.0) / 0.5).square().sum(-1)
    >>> posterior = fit_variational(target, features=2, options={"transforms": 0}, steps=300,
    ...                           learning_rate=3e-2)
    >>> exact = math.log(2 * math.pi * 0.25)
    >>> abs(posterior.elbo.value - exact) < 1e-3
    True
    """
    _check_numbers(annealing, learning_rate, steps=steps, samples=samples, particles=particles)
    plain = _flow_of(target, flow, features, options, seed)
    units = _units(target, plain, dtype, supports=supports, location=location, scale=scale)
    q = (plain.after(Compose(units)) if units else plain).to(dtype)
    q.eval()
    generator = seeded_generator(seed, TRAINING)
    with torch.no_grad():
        start = q.sample(max(samples, 2), generator=generator)
    check_start(target, start)
    run = _Ascent(q, target, steps=steps, rate=learning_rate, cold_steps=round(annealing * steps))
    run.climb(samples, particles, path_derivative, generator)
    return VariationalPosterior(target, q, _elbo(q, target, seeded_generator(seed, FINAL)), run.history, seed)


class _Ascent:
    """The steps of Adam up the bound; the weights kept are averaged over about the last tenth of them."""

    def __init__(self, q: Flow, target: Target, *, steps: int, rate: float, cold_steps: int) -> None:
        self.q, self.target, self.steps, self.rate, self.cold_steps = q, target, steps, rate, cold_steps
        self.state = TrainState.fresh(q, weight_decay=0.0, ema_decay=0.999)
        self.norms: deque[float] = deque(maxlen=NORMS)
        self.history: list[dict[str, Any]] = []
        self.seen: list[float] = []
        self.skipped = self.skips_in_a_row = 0

    def climb(self, samples: int, particles: int, path_derivative: bool, generator: torch.Generator) -> None:
        """Take all steps, and leave q with the averaged weights."""
        every = max(1, self.steps // RECORDS)
        try:
            for step in range(self.steps):
                bounds = bound_by_sampling(
                    self.q,
                    lambda theta: checked(self.target, theta),
                    bounds=samples,
                    particles=particles,
                    temperature=linear_warmup(step, self.cold_steps, COLDEST),
                    path_derivative=path_derivative,
                    generator=generator,
                )
                self._step(step, bounds)
                if (step + 1) % every == 0 or step + 1 == self.steps:
                    mean = sum(self.seen) / len(self.seen) if self.seen else None
                    self.history.append({"step": step + 1, "bound": mean, "skipped": self.skipped})
                    self.seen = []
            self.q.load_state_dict(self.state.weights())
        finally:
            self.state.release()
            self.q.zero_grad(set_to_none=True)

    def _step(self, step: int, bounds: Tensor) -> None:
        optimizer, ema = self.state.optimizer, self.state.ema
        assert optimizer is not None
        assert ema is not None
        (-bounds.mean()).backward()
        gradient = optimizer.weights.gradient()
        value, norm = float(bounds.detach().mean()), float(torch.linalg.vector_norm(gradient))
        if not (math.isfinite(value) and math.isfinite(norm)):
            self._skip(step, bounds.detach(), norm)
            return
        self.skips_in_a_row = 0
        self.norms.append(norm)
        # A rare large gradient would stay in Adam's memory of squares for a thousand steps.
        largest = LARGEST_NORM * median(self.norms)
        if norm > largest > 0:
            gradient.mul_(largest / norm)
        optimizer.step(gradient, self.rate * (1 + math.cos(math.pi * step / self.steps)) / 2)
        ema.update()
        self.seen.append(value)

    def _skip(self, step: int, bounds: Tensor, norm: float) -> None:
        self.skipped += 1
        self.skips_in_a_row += 1
        if self.skips_in_a_row >= SKIPS_IN_A_ROW:
            bad = int((~torch.isfinite(bounds)).sum())
            what = f"{bad} of {len(bounds)} log-densities" if bad else f"the gradient (norm {norm:g})"
            raise FitDiverged(
                f"target: at step {step} {what} not finite, {SKIPS_IN_A_ROW} steps in a row; give supports where the "
                "target is defined, location and scale near the posterior, or a lower learning_rate."
            )


def _flow_of(
    target: Target, flow: str | Flow, features: int | None, options: Mapping[str, Any] | None, seed: int
) -> Flow:
    width = getattr(target, "features", None) if features is None else features
    if isinstance(flow, str):
        if width is None:
            raise OptionError("features: nothing came; say how many numbers theta has.")
        built = build(flow, width, options=dict(options or {}), seed=seed)
    else:
        if options:
            raise OptionError("options: they belong to a model's name, and a flow came; build it with them.")
        built = flow
        width = built.features if width is None else width
    # Trained and used in eval mode: what a flow would estimate while it is trained on rows does not count.
    if not isinstance(built, Flow) or built.eval().likelihood is not Likelihood.EXACT:
        raise OptionError(f"flow: {type(built).__name__} is no flow with an exact log-density; choose one.")
    if built.context or built.features != width:
        raise OptionError(
            f"flow: {built.features} features and {built.context} context columns came, {width} features and no "
            "context were expected."
        )
    if not any(parameter.requires_grad for parameter in built.parameters()):
        raise OptionError(
            "flow: it has no weights to train by gradients; for a Gaussian take 'iaf' with options "
            "{'transforms': 0} (independent columns) or {'transforms': 1, 'hidden': 0}."
        )
    return built


def _onto(
    own: Sequence[Support],
    supports: Sequence[Bounds] | None,
    location: Sequence[float] | str | None,
    scale: Sequence[float] | None,
) -> list[Transform]:
    """Carry the supports straight onto those of a flow on a box, which no other guess can move."""
    if location is not None or scale is not None:
        raise OptionError("location, scale: this flow lives on a box of its own; leave them out, or give supports.")
    return [] if supports is None else [SupportMap(supports, onto=own)]


def _units(
    target: Target,
    flow: Flow,
    dtype: torch.dtype,
    *,
    supports: Sequence[Bounds] | None,
    location: Sequence[float] | str | None,
    scale: Sequence[float] | None,
) -> list[Transform]:
    """Supports, then guesses of location and scale, to put in front of a flow."""
    if flow.supports is not None:
        return _onto(flow.supports, supports, location, scale)
    features = flow.features
    supports = getattr(target, "supports", None) if supports is None else supports
    if isinstance(location, str) and location != "mode":
        raise OptionError(f"location: '{location}' came, a number for each column or 'mode' was expected.")
    for name, given in (("supports", supports), ("location", location), ("scale", scale)):
        if given is not None and not isinstance(given, str) and len(given) != features:
            raise OptionError(f"{name}: {len(given)} came, one for each of {features} columns was expected.")
    steps: list[Transform] = []
    if supports is not None and any(end is not None for pair in supports for end in pair):
        steps.append(SupportMap(supports))
    centre, width = [0.0] * features, [1.0] * features
    if isinstance(location, str):
        centre, width = find_mode(target, Compose(steps), features, dtype)
    elif location is not None:
        centre = list(location)
    if location is not None or scale is not None:
        steps.append(Standardise(centre, width if scale is None else scale))
    return steps


def _elbo(q: Flow, target: Target, generator: torch.Generator) -> Estimate:
    with torch.no_grad():
        theta, log_q = q.sample_and_log_prob(FINAL_DRAWS, generator=generator)
        gap = checked(target, theta).double() - log_q.double()
    require_weights(gap)
    return Estimate(float(gap.mean()), float(gap.std()) / math.sqrt(FINAL_DRAWS))


def _check_numbers(annealing: float, learning_rate: float, **counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name}: {value!r} came, a whole number of at least 1 was expected.")
    if not 0 < learning_rate < math.inf:
        raise OptionError(f"learning_rate: {learning_rate} came, a positive number was expected.")
    if not 0 <= annealing <= 1:
        raise OptionError(f"annealing: {annealing} came, a share of the steps in [0, 1] was expected.")
