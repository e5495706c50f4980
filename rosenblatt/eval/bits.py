"""Log-likelihoods as figures to report: means with standard errors, paired differences, bits per dimension."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rosenblatt.core.density import Density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Likelihood


class Estimate(NamedTuple):
    """A number estimated from a sample, with its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.standard_error:.4f}"


class BitsPerDim(NamedTuple):
    """Bits per dimension with their standard error, and what they are of the model: exact, a bound or an estimate."""

    value: float
    standard_error: float
    claim: str

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.standard_error:.4f} bits/dim ({self.claim})"


class Difference(NamedTuple):
    """Mean of `first - second` over the same rows, its standard error, and the two-sided p-value of no difference."""

    value: float
    standard_error: float
    p_value: float


def mean_log_prob(log_prob: Tensor, weight: Tensor | None = None) -> Estimate:
    """Mean log-density per row with its standard error: `sum w l / sum w +- sqrt(sum w^2 (l - mean)^2) / sum w`.

    `log_prob` and `weight` are (rows,), in nats; the unweighted error has the usual n - 1. A row of -inf makes the
    mean -inf and its error NaN: a model that excludes a test row has no finite score.
    Raises `DataError` for fewer than two rows or a weight that is negative or of another length.

    >>> print(mean_log_prob(torch.tensor([-1.0, -3.0])))
    -2.0000 +- 1.0000
    """
    values = _rows("log_prob", log_prob)
    if weight is None:
        error = values.std() / math.sqrt(len(values))
        return Estimate(float(values.mean()), float(error))
    weight = weight.detach().double()
    if weight.shape != values.shape or bool((weight < 0).any()) or not float(weight.sum()) > 0:
        raise DataError(f"weight: shape {tuple(weight.shape)} came, {len(values)} numbers >= 0 were expected.")
    share = weight / weight.sum()
    used = share > 0  # a row without weight does not count, whatever its log-density
    share, values = share[used], values[used]
    mean = (share * values).sum()
    return Estimate(float(mean), float((share * (values - mean)).square().sum().sqrt()))


def paired_difference(first: Tensor, second: Tensor) -> Difference:
    """Compare two models on the same rows: mean of `first - second`, far less noisy than two separate means.

    Both are log-densities (rows,), in nats. The p-value is that of a two-sided normal test. Raises `DataError` when
    the lengths differ or fewer than two rows came.

    >>> difference = paired_difference(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.5, 2.0]))
    >>> round(difference.value, 4), round(difference.standard_error, 4)
    (0.8333, 0.1667)
    """
    first, second = _rows("first", first), _rows("second", second)
    if first.shape != second.shape:
        raise DataError(f"second: {len(second)} rows came, {len(first)} were expected; score the same rows.")
    value, error = mean_log_prob(first - second)
    if error == 0:
        return Difference(value, 0.0, 1.0 if value == 0 else 0.0)
    return Difference(value, error, math.erfc(abs(value / error) / math.sqrt(2)))


def bits_per_dimension(log_prob: Tensor, dimensions: int, *, bin_width: float = 1.0) -> Tensor:
    """Turn log-densities in nats into bits per dimension: `-(log p / dimensions + log bin_width) / log 2`.

    `bin_width` is the width of a discrete level in the units of the density: 1 for pixels 0..255, 1/256 for pixels
    scaled to [0, 1]. Raises `OptionError` for dimensions below 1 or a width that is not positive.

    >>> round(float(bits_per_dimension(torch.tensor(-2 * math.log(256)), 2)), 6)  # uniform on 256 levels
    8.0
    """
    _check(dimensions, bin_width)
    return -(log_prob / dimensions + math.log(bin_width)) / math.log(2)


def bits_per_dim(model: Density, x: Tensor, context: Tensor | None = None, *, rows: int = 256) -> BitsPerDim:
    """Measure a model of whole numbers on `x` (rows, features): mean and standard error over rows, `rows` at a time.

    `model` gives log-probabilities of whole numbers: `layers.discretised.Discretised` (exact), or
    `layers.surjection.Dequantised`, of which the number is an upper bound in the mean; `claim` says which.
    Raises `DataError` for fewer than two rows, or a continuous flow, whose log-densities depend on a unit.

    >>> from rosenblatt.core.registry import build
    >>> import rosenblatt.models
    >>> model = build("pixelcnn_mol", 4, options={"image": [1, 2, 2], "levels": 4, "filters": 4}, seed=0)
    >>> print(bits_per_dim(model, torch.tensor([[0, 1, 2, 3], [3, 3, 0, 0]])).claim)
    exact
    """
    if not hasattr(model, "levels"):
        raise DataError(
            f"model: {type(model).__name__} has log-densities, probabilities of whole numbers were expected; build it "
            "with levels, or dequantised."
        )
    training = model.training
    model.eval()
    with torch.no_grad():
        given = [None] * -(-len(x) // rows) if context is None else context.split(rows)
        log_prob = torch.cat([model.log_prob(*part) for part in zip(x.split(rows), given, strict=True)])
        claim = model.likelihood
    model.train(training)
    return bits_of(mean_log_prob(log_prob), model.features, claim)


def bits_of(score: Estimate, dimensions: int, claim: Likelihood) -> BitsPerDim:
    """A mean log-probability of whole numbers, in nats per row, as bits per dimension.

    >>> print(bits_of(Estimate(-2 * math.log(256), 0.0), 2, Likelihood.LOWER_BOUND))
    8.0000 +- 0.0000 bits/dim (upper bound)
    """
    value = bits_per_dimension(torch.tensor(score.value, dtype=torch.float64), dimensions)
    words = {Likelihood.EXACT: "exact", Likelihood.LOWER_BOUND: "upper bound"}
    error = score.standard_error / (dimensions * math.log(2))
    return BitsPerDim(float(value), error, words.get(claim, claim.value))


def nats_from_bits(bits: Tensor, dimensions: int, *, bin_width: float = 1.0) -> Tensor:
    """Invert `bits_per_dimension`: `log p = -dimensions (bits log 2 + log bin_width)`.

    >>> round(float(nats_from_bits(torch.tensor(8.0), 2)), 4)
    -11.0904
    """
    _check(dimensions, bin_width)
    return -dimensions * (bits * math.log(2) + math.log(bin_width))


def _check(dimensions: int, bin_width: float) -> None:
    if dimensions < 1:
        raise OptionError(f"dimensions: {dimensions} came, an integer >= 1 was expected.")
    if not 0 < bin_width < math.inf:
        raise OptionError(f"bin_width: {bin_width} came, a positive number was expected.")


def _rows(name: str, values: Tensor) -> Tensor:
    values = torch.as_tensor(values).detach().double()
    if values.ndim != 1 or len(values) < 2:
        raise DataError(f"{name}: shape {tuple(values.shape)} came, at least two rows (rows,) were expected.")
    return values
