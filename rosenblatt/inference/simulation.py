"""Inference from simulations alone: the posterior or the likelihood of a simulator as a learned conditional density.

A simulator draws `x ~ p(x | theta)` but cannot say how likely an `x` was. Pairs (theta, x) with theta from the prior
are draws of the joint law, and a conditional flow fitted to them is

    NPE  q(theta | x)  ~  p(theta | x)     the posterior at any x, no sampler needed (Papamakarios & Murray 2016)
    NLE  q(x | theta)  ~  p(x | theta)     the likelihood, for any prior (Papamakarios, Sterratt & Murray 2019)

What is exact is the density of the flow; how near it is to the law of the simulator is for `eval.sbc` to say.
Greenberg, Nonnenmacher & Macke 2019 and Lueckmann et al. 2021 compare such methods.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from rosenblatt.conditional import ConditionalDensity, fit_conditional
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Support
from rosenblatt.data import Table
from rosenblatt.preparation import DataWarning, parse_supports
from rosenblatt.train import FitConfig
from rosenblatt.train.runtime import isolated

Ends = Sequence[float | None] | Support | None


class Simulations(NamedTuple):
    """Parameters (rows, parameters) drawn from a prior and what the simulator made of each (rows, numbers)."""

    theta: Tensor
    x: Tensor


def simulate(
    prior: Distribution, simulator: Callable[[Tensor], Tensor], simulations: int, *, seed: int = 0
) -> Simulations:
    """Draw parameters from `prior` and run `simulator`, a function of (rows, parameters), on all of them.

    What prior and simulator draw from torch's global stream is fixed by `seed`; the stream is put back afterwards.
    Raises `OptionError` for a prior that is not over vectors, `DataError` where the simulator loses rows.

    >>> prior = torch.distributions.Uniform(torch.zeros(2), torch.ones(2))
    >>> simulate(prior, lambda theta: theta + 0.1 * torch.randn_like(theta), 100).x.shape
    torch.Size([100, 2])
    """
    if simulations < 1:
        raise OptionError(f"simulations: {simulations} came, an integer >= 1 was expected.")
    prior = vector_prior(prior)
    with isolated(torch.device("cpu"), seed, None), torch.no_grad():
        theta = prior.sample((simulations,))
        x = torch.as_tensor(simulator(theta))
    if x.ndim != 2 or len(x) != simulations:
        raise DataError(
            f"simulator: shape {tuple(x.shape)} came for {simulations} rows of parameters, ({simulations}, numbers) "
            "was expected; return one row each, and NaN where a simulation fails."
        )
    return Simulations(theta, x)


def fit_posterior(
    theta: object,
    x: object,
    *,
    model: str = "nsf",
    options: Mapping[str, Any] | None = None,
    prior: Distribution | None = None,
    support: Sequence[Ends] | None = None,
    embedding: nn.Module | None = None,
    config: FitConfig | None = None,
) -> ConditionalDensity:
    """Learn the posterior p(theta | x) from draws of the joint law (neural posterior estimation).

    Minimises `-mean log q(theta_i | x_i)`, which the posterior alone minimises over all conditional densities.
    `theta` (rows, parameters) from the prior and `x` (rows, numbers) are tensors, arrays or tables. Bounds of `prior`,
    or one pair [lower, upper] (None: no bound) per parameter in `support`, hold exactly: no draw leaves them and the
    density outside is 0. `embedding` is a network from standardised x to fewer numbers, trained along.

    A simulation with NaN or infinities in x is dropped with a `DataWarning` that counts them: at an x that is complete
    this leaves the posterior as it is. Raises `DataError` for rows that do not pair up, lie outside the support or
    never vary, `OptionError` for an unknown model or option.

    >>> joint = simulate(torch.distributions.Normal(torch.zeros(1), 1.0), lambda theta: theta + 1, 200)
    >>> small, short = {"transforms": 1, "hidden": 8}, FitConfig(epochs=1)
    >>> posterior = fit_posterior(*joint, options=small, config=short)
    >>> posterior.sample(5, torch.tensor([1.0])).shape, posterior.log_prob(joint.theta, joint.x).shape
    (torch.Size([5, 1]), torch.Size([200]))
    """
    parameters, data = _paired(theta, x)
    complete = torch.isfinite(data).all(dim=1)
    lost = len(data) - int(complete.sum())
    if lost == len(data):
        raise DataError(f"x: none of {lost} simulations is free of NaN and infinities; check the simulator.")
    if lost:
        warnings.warn(
            f"x: {lost} of {len(data)} simulations hold NaN or infinities and are dropped; the posterior holds for "
            "data without.",
            DataWarning,
            stacklevel=2,
        )
    parameters = Table(parameters.values[complete], parameters.columns)
    return fit_conditional(
        model,
        parameters,
        data[complete],
        options=options,
        support=_support(prior, support, parameters.columns),
        embedding=embedding,
        names=("theta", "x"),
        config=config,
    )


def fit_likelihood(
    theta: object,
    x: object,
    *,
    model: str = "nsf",
    options: Mapping[str, Any] | None = None,
    support: Sequence[Ends] | None = None,
    config: FitConfig | None = None,
) -> ConditionalDensity:
    """Learn the likelihood p(x | theta) from simulations (neural likelihood estimation).

    `theta` may come from any law that covers the prior; `inference.sample_posterior` draws from the posterior under a
    prior. `support` is that of the columns of x, where they are bounded. Raises `DataError` for rows that do not pair
    up, and for NaN or infinities in x: without these rows the learned law lacks the factor p(complete | theta).

    >>> joint = simulate(torch.distributions.Normal(torch.zeros(1), 1.0), lambda theta: theta.exp(), 200)
    >>> small, short = {"transforms": 1, "hidden": 8}, FitConfig(epochs=1)
    >>> likelihood = fit_likelihood(*joint, support=[(0, None)], options=small, config=short)
    >>> likelihood.log_prob(torch.tensor([-1.0]), torch.tensor([0.0]))
    tensor(-inf, dtype=torch.float64)
    """
    parameters, data = _paired(theta, x)
    lost = int((~torch.isfinite(data)).any(dim=1).sum())
    if lost:
        raise DataError(
            f"x: {lost} of {len(data)} simulations hold NaN or infinities, and a likelihood without them would lack "
            "the factor p(complete | theta); use fit_posterior, or drop them if that does not depend on theta."
        )
    values = Table(data, [f"x{i}" for i in range(data.shape[1])])
    return fit_conditional(
        model,
        values,
        parameters.values,
        options=options,
        support=_support(None, support, values.columns),
        names=("x", "theta"),
        config=config,
    )


def vector_prior(prior: Distribution) -> Distribution:
    """`prior` as a law over vectors: one batch axis of single numbers counts as independent coordinates.

    Raises `OptionError` for what is no distribution over vectors.
    """
    if isinstance(prior, Distribution):
        shapes = len(prior.batch_shape), len(prior.event_shape)
        if shapes == (0, 1):
            return prior
        if shapes == (1, 0):
            return torch.distributions.Independent(prior, 1)
    shown = f"{prior.batch_shape} by {prior.event_shape}" if isinstance(prior, Distribution) else type(prior).__name__
    raise OptionError(
        f"prior: {shown} came, a torch.distributions.Distribution over vectors was expected; for a density of this "
        "library take density.given()."
    )


def prior_support(prior: Distribution) -> list[Support]:
    """Support of each coordinate of a prior, as the distribution declares it.

    Raises `OptionError` for a support that is no interval per coordinate (a simplex, whole numbers).

    >>> prior_support(torch.distributions.Uniform(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 2.0])))
    [Support(lower=0.0, upper=1.0), Support(lower=-1.0, upper=2.0)]
    """
    prior = vector_prior(prior)
    constraint: Any = prior.support
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    bounded = hasattr(constraint, "lower_bound") or hasattr(constraint, "upper_bound")
    if constraint.is_discrete or not (bounded or constraint is constraints.real):
        raise OptionError(
            f"prior: its support ({type(constraint).__name__.lstrip('_')}) is no interval per parameter; transform the "
            "parameters, or declare support= and leave prior out."
        )
    features = prior.event_shape[0]
    lower = torch.as_tensor(getattr(constraint, "lower_bound", -math.inf)).expand(features).tolist()
    upper = torch.as_tensor(getattr(constraint, "upper_bound", math.inf)).expand(features).tolist()
    return [Support(*ends) for ends in zip(lower, upper, strict=True)]


def _support(prior: Distribution | None, support: Sequence[Ends] | None, columns: Sequence[str]) -> dict[str, Support]:
    if prior is None:
        return parse_supports(support, columns)
    if support is not None:
        raise OptionError("support: came besides prior; give one of them.")
    declared = prior_support(prior)
    if len(declared) != len(columns):
        raise OptionError(f"prior: {len(declared)} parameters came, theta has {len(columns)} columns; give its prior.")
    return parse_supports(declared, columns)


def _paired(theta: object, x: object) -> tuple[Table, Tensor]:
    """Parameters as a table and data (rows, numbers), both float64."""
    parameters, data = Table.from_any(_as_columns(theta)), Table.from_any(_as_columns(x))
    if len(parameters) != len(data):
        raise DataError(f"x: {len(data)} rows came for {len(parameters)} rows of theta; give one of each a simulation.")
    if parameters.columns == tuple(f"x{i}" for i in range(parameters.features)):
        parameters = Table(parameters.values, [f"theta{i}" for i in range(parameters.features)])
    return parameters, data.values


def _as_columns(values: object) -> object:
    """Single numbers a row as one column."""
    return values.unsqueeze(1) if isinstance(values, Tensor) and values.ndim == 1 else values
