"""The law of a model's one feature where formulas for it are known, and the CRPS in closed form that follows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rosenblatt.bases import Mixture, StandardLogistic, StandardNormal, StudentT
from rosenblatt.core.density import Density, Flow
from rosenblatt.core.errors import DataError
from rosenblatt.core.laws import Law, LogisticLaw, NormalLaw


class StudentLaw(Law):
    """`location + scale T` with the Student-t law of a one-feature `base`; scores and CDF are not differentiable in df.

    `CRPS = s (z (2 F(z) - 1) + 2 f(z) (v + z^2) / (v - 1) - 2 sqrt(v) B(1/2, v - 1/2) / ((v - 1) B(1/2, v/2)^2))`,
    z = (y - location) / scale (Jordan, Krueger & Lerch, J. Statistical Software 90, 2019). NaN for v <= 1, where the
    score is infinite for every outcome; the mean is NaN there too, and the variance inf for v <= 2.

    >>> law = StudentLaw(StudentT(1, df=3.0), torch.zeros(()), torch.ones(()))
    >>> round(law.crps(torch.tensor(0.0)).item(), 6)  # sqrt 3 / (2 pi)
    0.275664
    """

    def __init__(self, base: StudentT, location: Tensor, scale: Tensor) -> None:
        self.base = base
        self.location, self.scale = location.double(), scale.double()

    @property
    def mean(self) -> Tensor:
        """The location, if df > 1."""
        return torch.where(self._df > 1, self.location, torch.nan)

    @property
    def variance(self) -> Tensor:
        """`scale^2 v / (v - 2)`."""
        df = self._df
        ratio = torch.where(df > 2, df / (df - 2).clamp(min=torch.finfo(df.dtype).tiny), torch.inf)
        return self.scale.square() * torch.where(df > 1, ratio, torch.nan)

    def cdf(self, y: Tensor) -> Tensor:
        """P(X <= y)."""
        z = (y.double() - self.location) / self.scale
        return self.base.cdf(z.unsqueeze(-1)).squeeze(-1).to(y.dtype)

    def crps(self, y: Tensor) -> Tensor:
        """The formula above."""
        finite, df = torch.isfinite(y), self._df
        z = (torch.where(finite, y, 0.0).double() - self.location) / self.scale
        density = torch.exp(self.base.log_prob(z.unsqueeze(-1)))
        centre = 2 * self.base.cdf(z.unsqueeze(-1)).squeeze(-1) - 1
        log_half = _log_beta(df - 0.5) - 2 * _log_beta(df / 2)
        rest = 2 / (df - 1) * (density * (df + z.square()) - torch.exp(log_half) * df.sqrt())
        crps = torch.where(df > 1, self.scale * (z * centre + rest), torch.nan).to(y.dtype)
        return torch.where(finite | torch.isnan(crps), crps, y.abs())

    def moved(self, shift: Tensor, scale: Tensor) -> Law:
        """Move location and scale."""
        return StudentLaw(self.base, shift.double() + scale.double() * self.location, scale.double() * self.scale)

    @property
    def _df(self) -> Tensor:
        return self.base.df.double()[0]


def closed_law(density: Density, context: Tensor | None = None) -> Law | None:
    """The law of the one feature of `density` given `context` (*batch, context), or None where no formula is known.

    Known are flows that lead a normal, logistic or Student-t base through affine steps to the data, perhaps over one
    mixture of logistics or normals; mixtures of such densities, all of one kind; and any density with a method
    `closed_law(context)` of its own. Other maps join by `Elementwise.closed_law` or `Transform.closed_law`.

    >>> from rosenblatt.models.made_mixture import made_mixture
    >>> closed_law(made_mixture(1, hidden=8)).variance.shape
    torch.Size([])
    """
    own = getattr(density, "closed_law", None)
    if own is not None:
        law: Law | None = own(context)
        return law
    if density.features != 1:
        return None
    if isinstance(density, Mixture):
        return _law_of_mixture(density, context)
    if not isinstance(density, Flow):
        return _law_of_base(density)
    base = closed_law(density.base, context if density.base.context else None)
    return None if base is None else density.transform.closed_law(base, context)


def closed_crps(density: Density, y: Tensor, context: Tensor | None = None) -> Tensor | None:
    """CRPS by formula, in the units of y, or None where no formula is known for the model; see `closed_law`.

    Shapes: `y` (*batch, 1), `context` (*batch, context), result (*batch); differentiable in y and the weights.
    Raises `DataError` for y of another width.

    >>> round(closed_crps(StandardNormal(1), torch.zeros(1)).item(), 6)
    0.233695
    """
    if density.features != 1:
        return None
    if y.shape[-1:] != (1,):
        raise DataError(f"y: shape {tuple(y.shape)} came, (..., 1) was expected; check the targets.")
    law = closed_law(density, context)
    return None if law is None else law.crps(y.squeeze(-1))


def _law_of_mixture(density: Mixture, context: Tensor | None) -> Law | None:
    laws = [closed_law(part, context if part.context else None) for part in density.parts]
    share = torch.exp(density.log_weights(context).double())
    normal = [law for law in laws if isinstance(law, NormalLaw)]
    logistic = [law for law in laws if isinstance(law, LogisticLaw)]
    if len(normal) == len(laws):
        return NormalLaw.of(normal, share)
    return LogisticLaw.of(logistic, share) if len(logistic) == len(laws) else None


def _law_of_base(base: Density) -> Law | None:
    device = next((tensor.device for tensor in (*base.parameters(), *base.buffers())), None)
    one = torch.ones(1, dtype=torch.float64, device=device)
    if isinstance(base, StandardNormal):
        return NormalLaw(one, 0 * one, one)
    if isinstance(base, StandardLogistic):
        return LogisticLaw(one, 0 * one, one)
    return StudentLaw(base, 0 * one[0], one[0]) if isinstance(base, StudentT) else None


def _log_beta(b: Tensor) -> Tensor:
    """log B(1/2, b)."""
    return 0.5 * math.log(math.pi) + torch.lgamma(b) - torch.lgamma(b + 0.5)
