"""COMET flows: every column by its own CDF with Pareto tails, then a coupling flow for what is between the columns.

The copula idea: marginals, tails included, are settled first and by themselves, from the first rows shown, and then
stay as they are. Between its quantiles at a = 0.05 and 1 - a a column's CDF is a smooth curve, beyond them Pareto:

    y_i = logit F_i(x_i),   1 - F_i(u_i + e) = a (1 + xi_i e / sigma_i)^(-1 / xi_i),   z = coupling flow(y)

The density is continuous where body and tail meet. xi and sigma are those of largest likelihood, xi >= 0.01, so that
rows farther out than any that was seen have a density.
Couplings are splines that leave the logits alone beyond [-bound, bound] (probabilities of e^-bound) in front of a
logistic base, so that every tail keeps its index 1 / xi. `coupling="affine"` is RealNVP in front of a normal base, as
published: a normal on the logit scale has lighter tails than any power. The published body is a kernel estimate; noise
added to the rows and told to the networks is left out.
Exact: density and sampling, both closed.
Reference: McDonald, Tan & Luo, COMET Flows: Towards Generative Modeling of Multivariate Extremes and Tail Dependence,
IJCAI 2022. Published sizes: RealNVP of 5 or 10 layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.bases import StandardLogistic, StandardNormal
from rosenblatt.core.density import FactorisedDensity, Flow
from rosenblatt.core.errors import DataError, InverseError, OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.core.types import Mapped
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.layers.couplings import couplings
from rosenblatt.layers.knots import KnotSpline, log_averaged_slopes, weighted_quantiles

SMALLEST_XI = 0.01
FEWEST = 20  # rows of weight in a tail


class ParetoMarginals(Transform):
    """`y_i = logit F_i(x_i)`, a curve through the quantiles of a column between Pareto tails of share `tail` each.

    Computed in float64. Nearly the identity until `initialise`, whose first call fits it. Raises `OptionError` unless
    0 < tail < 1/2, and `DataError` for columns whose quantiles are tied or rows too few for a tail.
    """

    xi: Tensor
    sigma: Tensor
    initialised: Tensor

    def __init__(self, features: int, *, tail: float = 0.05, bins: int = 20) -> None:
        super().__init__()
        if not 0 < tail < 0.5:
            raise OptionError(f"tail: {tail} came, a share of the rows between 0 and 1/2 was expected.")
        self.tail = tail
        self.end = math.log1p(-tail) - math.log(tail)  # logit of the share below the upper tail
        self.body = KnotSpline(features, bins)
        self.register_buffer("xi", torch.full((2, features), SMALLEST_XI))  # lower and upper tail
        self.register_buffer("sigma", torch.full((2, features), 1 / (1 - tail)))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        knots = torch.linspace(-self.end, self.end, bins + 1).repeat(features, 1)
        self.body.through(knots, knots, torch.ones_like(knots))

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Fit body and tails to rows `x` (rows, features), weighted by `weight`; only the first call counts."""
        if bool(self.initialised):
            return
        rows = x.double()
        share = rows.new_ones(len(rows)) if weight is None else weight.double()
        share = share / share.sum()
        if self.tail / float(share.square().sum()) < FEWEST:
            raise DataError(
                f"x: {len(x)} rows came, too few for {FEWEST} in a tail of share {self.tail}; add rows or raise 'tail'."
            )
        y = torch.linspace(-self.end, self.end, self.body.bins + 1, dtype=rows.dtype, device=rows.device)
        knots = weighted_quantiles(rows, share, torch.sigmoid(y))
        bad = (~(knots.diff().amin(dim=-1) > 0)).nonzero().squeeze(-1).tolist()
        if bad:
            raise DataError(f"x: columns {bad} have equal quantiles (many equal values); dequantise or drop them.")
        tails = (knots[:, 0] - rows, rows - knots[:, -1])
        # Where the smallest or the largest value is held by a whole tail, nothing lies beyond its quantile.
        empty = torch.stack([share @ (beyond > 0).to(share) == 0 for beyond in tails]).any(dim=0)
        bad = empty.nonzero().squeeze(-1).tolist()
        if bad:
            raise DataError(
                f"x: columns {bad} have one value in a whole tail of share {self.tail}, as a column cut off at a limit "
                "does; raise 'tail' or drop them."
            )
        for side, beyond in enumerate(tails):
            xi, sigma = pareto_fit(beyond, share)
            self.xi[side], self.sigma[side] = xi, sigma
        y = y.expand_as(knots)
        lower, upper = (1 / ((1 - self.tail) * self.sigma)).double().unsqueeze(-1)
        self.body.through(knots, y, torch.cat([lower, log_averaged_slopes(knots, y), upper], dim=-1))
        self.initialised.fill_(True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """The curve up to its ends, and from there on the tails."""
        wide, ends = x.double(), self.body.x.double()
        near = torch.minimum(torch.maximum(wide, ends[:, 0]), ends[:, -1])
        middle, log_slope = self.body.by_column(near)
        lower, upper = (self._tail(excess, side) for side, excess in enumerate(_beyond(wide, near)))
        value = middle + (upper.value - self.end) - (lower.value - self.end)  # 0 for a tail that is not entered
        log_slope = torch.where(wide > near, upper.log_det, torch.where(wide < near, lower.log_det, log_slope))
        return Mapped(value.to(x.dtype), log_slope.sum(dim=-1).to(x.dtype))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Quantiles; raises `InverseError` where one leaves the range of the dtype."""
        wide, ends = y.double(), self.body.y.double()
        near = torch.minimum(torch.maximum(wide, ends[:, 0]), ends[:, -1])
        lower, upper = (self._excess(beyond, side) for side, beyond in enumerate(_beyond(wide, near)))
        x = self.body.inverse(near).value + upper - lower
        value = x.to(y.dtype)
        beyond = torch.isinf(value) & torch.isfinite(y)
        if not y.is_meta and bool(beyond.any()):
            rows = beyond.any(dim=-1).reshape(-1).nonzero().squeeze(-1).tolist()
            raise InverseError(f"have an inverse beyond the range of {y.dtype}", rows)
        return Mapped(value, -self.forward(x).log_det.to(y.dtype))

    def _tail(self, excess: Tensor, side: int) -> Mapped:
        """Logit of the share before `excess`, and the log of its slope."""
        xi, sigma = self.xi[side].double(), self.sigma[side].double()
        log_size = torch.log1p(xi * excess / sigma)
        log_share = math.log(self.tail) - log_size / xi
        log_rest = torch.log1p(-torch.exp(log_share))
        return Mapped(log_rest - log_share, -torch.log(sigma) - log_size - log_rest)

    def _excess(self, beyond: Tensor, side: int) -> Tensor:
        """Inverse of `_tail` at `beyond` above its start."""
        xi, sigma = self.xi[side].double(), self.sigma[side].double()
        return sigma / xi * torch.expm1(xi * (math.log(self.tail) - logsigmoid(-(beyond + self.end))))


def _beyond(point: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """How far a point lies in the lower and in the upper tail."""
    return (near - point).clamp(min=0.0), (point - near).clamp(min=0.0)


def pareto_fit(beyond: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised-Pareto xi >= 0.01 and sigma of largest likelihood for the positive `beyond` (rows, columns).

    Given `r = xi / sigma` both are known, `xi = mean log(1 + r e)`; r is sought on finer grids (Grimshaw 1993).

    >>> e = 2 * torch.expm1(-0.5 * torch.log1p(-(torch.arange(1000.0).double() + 0.5) / 1000))  # xi = 1/2, sigma = 1
    >>> [round(float(part), 2) for part in pareto_fit(e.unsqueeze(-1), torch.full((1000,), 1e-3).double())]
    [0.5, 1.0]
    """
    excess = beyond.clamp(min=0.0)
    weight = share.unsqueeze(-1) * (excess > 0).to(excess)
    weight = weight / weight.sum(dim=0)
    mean = (weight * excess).sum(dim=0)
    centre, width = torch.zeros_like(mean), 9.0
    for _ in range(8):
        steps = torch.linspace(-width, width, 21, dtype=mean.dtype, device=mean.device)
        tried = [centre + step for step in steps]
        likelihood = torch.stack([_profile(excess, weight, torch.exp(log_rate) / mean)[0] for log_rate in tried])
        centre = torch.stack(tried).gather(0, likelihood.argmax(dim=0, keepdim=True)).squeeze(0)
        width /= 7  # the best is within a tenth of the width, save at the ends
    _, xi, sigma = _profile(excess, weight, torch.exp(centre) / mean)
    return xi.clamp(min=SMALLEST_XI), torch.where(xi < SMALLEST_XI, (1 - SMALLEST_XI) * mean, sigma)


def _profile(excess: Tensor, weight: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean log-likelihood, xi and sigma that are best for `rate = xi / sigma`."""
    xi = (weight * torch.log1p(rate * excess)).sum(dim=0)
    return -torch.log(xi / rate) - xi - 1, xi, xi / rate


@register(
    "comet",
    summary="each column by its CDF with fitted Pareto tails, then a coupling flow as the copula",
    citation=(
        "McDonald, Tan & Luo, COMET Flows: Towards Generative Modeling of Multivariate Extremes and Tail Dependence, "
        "IJCAI 2022."
    ),
    facts=Facts(
        formula=r"y_i = \mathrm{logit}\, F_i(x_i), \quad z = f_{\mathrm{coupling}}(y)",
        forward="1 pass a layer",
        inverse="1 pass a layer, closed",
        determinant="D",
        universal="in a weak sense, by layers, within the tails fitted",
    ),
)
def comet(
    features: int,
    context: int = 0,
    *,
    tail: float = 0.05,
    marginal_bins: int = 20,
    coupling: str = "spline",
    transforms: int = 6,
    bins: int = 8,
    bound: float = 8.0,
    hidden: int = 128,
    blocks: int = 2,
    dropout: float = 0.0,
) -> Flow:
    """Build a COMET flow for `features` columns; `tail` is the share of the rows in each tail.

    Marginals come from the first rows given to `initialise` and do not see the context. Raises `OptionError` for
    another `coupling` than "spline" or "affine", a `tail` outside (0, 1/2) or sizes that make no model.

    >>> comet(3, transforms=2, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    if coupling not in ("spline", "affine"):
        raise OptionError(f"coupling: '{coupling}' came, 'spline' or 'affine' was expected.")
    maps: list[Elementwise] = [
        RationalQuadraticSpline(bins=bins, bound=bound) if coupling == "spline" else Affine.one_of(transforms)
        for _ in range(transforms)
    ]
    marginals = ParetoMarginals(features, tail=tail, bins=marginal_bins)
    copula = couplings(maps, features, context, hidden=hidden, blocks=blocks, dropout=dropout)
    base: FactorisedDensity = StandardLogistic(features) if coupling == "spline" else StandardNormal(features)
    return Flow(Compose([marginals, *copula]), base, context=context)
