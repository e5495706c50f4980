"""The full-covariance Gaussian: the honest baseline that every other model has to beat.

The maximum-likelihood fit is closed: weighted mean and covariance, or with context the least-squares regression on it:

    x = m + B context + L z,   z ~ N(0, 1),   log p(x) = log N(z; 0, 1) - sum_i log L_ii

Exact: density, sampling, Rosenblatt transform (z_i is x_i standardised given x_<i, because L is lower triangular).
Reference: Anderson, An Introduction to Multivariate Statistical Analysis, 1958 (3rd edition 2003). No sizes to choose.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.laws import Law
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Transform
from rosenblatt.core.types import Mapped

SINGULAR = 1e-12  # share of a column's variance below which rounding of float32 data could have made it


class _Whitening(Transform):
    """`z = L^-1 (x - m - B context)`, solved in float64."""

    location: Tensor
    factor: Tensor
    regression: Tensor

    def __init__(self, features: int, context: int) -> None:
        super().__init__()
        self.register_buffer("location", torch.zeros(features))
        self.register_buffer("factor", torch.eye(features))
        self.register_buffer("regression", torch.zeros(features, context))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        usable = ~torch.isinf(x)  # a row with an infinity (outside a support) becomes infinite
        offset = torch.where(usable, x, 0.0).double() - self._mean(context)
        rows = offset.reshape(-1, x.shape[-1]).mT
        z = torch.linalg.solve_triangular(self.factor.double(), rows, upper=False).mT.reshape(x.shape)
        z = torch.where(usable.all(dim=-1, keepdim=True), z.to(x.dtype), torch.inf)
        return Mapped(z, -self._log_det(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        x = (self.factor.double() @ y.double().unsqueeze(-1)).squeeze(-1) + self._mean(context)
        return Mapped(x.to(y.dtype), self._log_det(y))

    def closed_law(self, law: Law, context: Tensor | None = None) -> Law | None:
        """Multiply, then add, for one column."""
        if len(self.location) != 1:
            return None
        return law.moved(self._mean(context)[..., 0], self.factor.double()[0, 0])

    def _mean(self, context: Tensor | None) -> Tensor:
        mean = self.location.double()
        if context is None or self.regression.shape[1] == 0:
            return mean
        return mean + (self.regression.double() @ context.double().unsqueeze(-1)).squeeze(-1)

    def _log_det(self, x: Tensor) -> Tensor:
        return torch.log(self.factor.double().diagonal()).sum().to(x.dtype).expand(x.shape[:-1])


class GaussianDensity(Flow):
    """Gaussian with full covariance whose `initialise` is the whole fit; standard normal before.

    >>> density = GaussianDensity(1)
    >>> density.initialise(torch.tensor([[1.0], [3.0]]))
    >>> round(density.log_prob(torch.tensor([2.0])).item(), 4)  # mean 2, standard deviation 1
    -0.9189
    """

    closed_form: ClassVar[bool] = True
    transform: _Whitening

    def __init__(self, features: int, context: int = 0) -> None:
        super().__init__(_Whitening(features, context), StandardNormal(features), context=context)

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Fit by maximum likelihood to rows `x` (rows, features), weighted by `weight` (rows,).

        Raises `DataError` naming columns that are constant or a linear combination of others.
        """
        self.check(x, context)
        with torch.no_grad():
            rows = x.double()
            share = rows.new_ones(len(rows)) if weight is None else weight.double()
            share = (share / share.sum()).unsqueeze(-1)
            mean = (share * rows).sum(dim=0)
            rest = rows - mean
            regression = self.transform.regression.double()
            if context is not None:
                centre = (share * context.double()).sum(dim=0)
                offsets = context.double() - centre
                root = share.sqrt()
                # The pseudo-inverse gives the same fitted means when context columns are collinear.
                regression = (torch.linalg.pinv(root * offsets) @ (root * rest)).mT
                rest = rest - offsets @ regression.mT
                mean = mean - regression @ centre
            factor = _cholesky(rest.mT @ (share * rest))
            self.transform.location.copy_(mean)
            self.transform.regression.copy_(regression)
            self.transform.factor.copy_(factor)


def _cholesky(covariance: Tensor) -> Tensor:
    """Lower factor of a covariance, or a `DataError` that names the columns which make it singular."""
    variance = covariance.diagonal()
    bad = (~(torch.isfinite(variance) & (variance > 0))).nonzero().squeeze(-1).tolist()
    if bad:
        raise DataError(f"x: columns {bad} are constant, predicted exactly or not finite; drop them.")
    scale = variance.sqrt()
    correlation = covariance / scale / scale.unsqueeze(-1)
    factor, failed_at = torch.linalg.cholesky_ex(correlation)
    # The squared diagonal is the share of a column's variance that the columns before it leave unexplained.
    bad = (factor.diagonal().square() < SINGULAR).nonzero().squeeze(-1).tolist()
    if int(failed_at) > 0:
        bad = [int(failed_at) - 1]
    if bad:
        raise DataError(
            f"x: column {bad[0]} is a linear combination of the columns before it (or there are too few rows); "
            "drop it or add rows."
        )
    scaled: Tensor = factor * scale.unsqueeze(-1)
    return scaled


@register(
    "gaussian",
    summary="full-covariance Gaussian, fitted in closed form; the baseline",
    citation="Anderson, An Introduction to Multivariate Statistical Analysis, 3rd edition, Wiley 2003.",
    facts=Facts(
        formula=r"z = L^{-1}(x - m)",
        forward="D^2",
        inverse="D^2",
        determinant="0 (constant)",
        universal="no",
    ),
)
def gaussian(features: int, context: int = 0) -> GaussianDensity:
    """Build a Gaussian for `features` columns, linear in the context if there is one.

    >>> gaussian(2).log_prob(torch.zeros(2))
    tensor(-1.8379)
    """
    return GaussianDensity(features, context)


def paper_config(dataset: str) -> dict[str, Any]:
    """Return the settings for any of the five UCI tables: there is nothing to choose."""
    known = ("power", "gas", "hepmass", "miniboone", "bsds300")
    if dataset not in known:
        raise OptionError(f"dataset: '{dataset}' came; settings are known for {', '.join(known)}.")
    return {"model": {}, "fit": {}}
