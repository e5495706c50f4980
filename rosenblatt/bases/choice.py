"""Bases by name, for the builders of models."""

from __future__ import annotations

from collections.abc import Callable

from rosenblatt.bases.learned import ConditionalNormal, FullNormal
from rosenblatt.bases.resampled import Resampled
from rosenblatt.bases.simple import GaussianMixture, StandardLogistic, StandardNormal, StudentT
from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError

PLAIN: dict[str, Callable[[int], Density]] = {
    "normal": StandardNormal,
    "logistic": StandardLogistic,
    "student": lambda features: StudentT(features, df=10.0, trainable=True),
    "mixture": GaussianMixture,
    "full": FullNormal,
    "resampled": Resampled,
}


def choose(name: str, features: int, context: int = 0) -> Density:
    """Build a base by name.

    "normal" and "logistic" have nothing to learn; "student" learns the df of each column (start 10), "mixture" ten
    Gaussians, "full" a covariance, "conditional" a mean and a scale from the context, which must then be there, and
    "resampled" where to accept a normal draw (its log-density is an estimate). Raises `OptionError` for another name or
    a "conditional" without context.

    >>> choose("student", 2).features
    2
    """
    if name == "conditional":
        if context < 1:
            raise OptionError("base: 'conditional' came without a context; choose another or pass context columns.")
        return ConditionalNormal(features, context)
    if name not in PLAIN:
        raise OptionError(f"base: '{name}' came; choose one of {', '.join((*PLAIN, 'conditional'))}.")
    return PLAIN[name](features)
