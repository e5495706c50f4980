"""Gaussianization flows: every layer turns the columns and bends each one alone until it is normal, trained throughout.

There is no network: what the columns have to do with one another is in the rotations, and each bend is the CDF of a
mixture put on the normal scale,

    x -> K times ( y = Q_k x,  z_i = Phi^-1( sum_j w_ij Phi((y_i - m_ij) / s_ij) ) ),   z ~ N(0, 1)

Rotations start at random, and mixtures where a few steps of EM take them on the first rows, so that the flow starts as
the iterative Gaussianization ("rbig") of those rows. The published mixtures are logistic; behind normal ones a bend is
straight far out, and K of them keep a column's tails as they are.
With a context, a network of it alone emits the mixtures, which then start near the identity.
Exact: density (closed), sampling (a root search per bend).
References: Meng, Song, Song & Ermon, Gaussianization Flows, AISTATS 2020; Chen & Gopinath, Gaussianization, NIPS 2000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.bases import StandardNormal
from rosenblatt.conditioners.independent import Independent
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.normal_mixture import NormalMixture
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.knots import weighted_quantiles
from rosenblatt.layers.orthogonal import Householder
from rosenblatt.layers.scaling import ActNorm

EM_STEPS, EM_POINTS = 20, 500  # on quantiles: as many points whatever the rows
PRIOR_ROWS = 2.0  # behind each component: few rows must not make the outermost one, and with it the tails, narrow
NARROWEST = 0.05  # standard deviation of a component at the start, in that of the column


class MixtureBends(Conditional):
    """A normal mixture for each column, which starts at those of the first rows it is shown."""

    elementwise: NormalMixture
    conditioner: Independent
    initialised: Tensor

    def __init__(self, features: int, components: int, *, context: int, hidden: int) -> None:
        mixture = NormalMixture(components)
        super().__init__(mixture, Independent(features, mixture.spec.size, context=context, hidden=hidden))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Fit the free mixtures by EM to rows `x` (rows, features); only the first call counts.

        Raises `DataError` for columns that are constant but for less than a thousandth of the rows.
        """
        if bool(self.initialised) or self.conditioner.context:
            return
        rows = x.double()
        share = rows.new_ones(len(rows)) if weight is None else weight.double()
        levels = (torch.arange(EM_POINTS, dtype=rows.dtype, device=rows.device) + 0.5) / EM_POINTS
        share = share / share.sum()
        points = weighted_quantiles(rows, share, levels)
        bad = (~(points.std(dim=-1) > 0)).nonzero().squeeze(-1).tolist()
        if bad:
            raise DataError(f"x: columns {bad} (of the turned rows) have one value in nearly all rows; drop them.")
        effective = float(1 / share.square().sum())
        self.conditioner.free.copy_(
            self.elementwise.at(*_expectation_maximisation(points, self.elementwise.components, effective))
        )
        self.initialised.fill_(True)


def _expectation_maximisation(points: Tensor, components: int, rows: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, locations and standard deviations (features, components) of `points` (features, points).

    The points stand for `rows` rows. Each component has `PRIOR_ROWS` more, as wide as the column.
    """
    centres = (2 * torch.arange(components) + 1) * points.shape[-1] // (2 * components)
    location = points[:, centres]
    narrowest = NARROWEST * points.std(dim=-1, keepdim=True)
    scale = (points.std(dim=-1, keepdim=True) / components**0.5).expand_as(location)
    weight = torch.full_like(location, 1 / components)
    prior = PRIOR_ROWS * points.shape[-1] / rows
    wide = points.var(dim=-1, keepdim=True)
    for _ in range(EM_STEPS):
        z = (points.unsqueeze(-1) - location.unsqueeze(1)) / scale.unsqueeze(1)
        share = torch.softmax(torch.log(weight / scale).unsqueeze(1) - 0.5 * z.square(), dim=-1)
        mass = share.sum(dim=1) + 1e-3  # a component without points would have no location
        location = (share * points.unsqueeze(-1)).sum(dim=1) / mass + location * (1e-3 / mass)
        square = (share * (points.unsqueeze(-1) - location.unsqueeze(1)).square()).sum(dim=1)
        square = (square + prior * wide) / (mass + prior)
        scale = torch.sqrt(square + narrowest.square())
        weight = mass / mass.sum(dim=-1, keepdim=True)
    return weight, location, scale


@register(
    "gaussianization",
    summary="trainable rotations and marginal mixtures; no network, density in closed form",
    citation=(
        "Meng, Song, Song & Ermon, Gaussianization Flows, AISTATS 2020; Chen & Gopinath, Gaussianization, NIPS 2000."
    ),
    facts=Facts(
        formula=r"z_i = \Phi^{-1}\Big(\sum_j w_{ij}\, \Phi\big((y_i - m_{ij}) / s_{ij}\big)\Big), \quad y = Qx",
        forward="D^2 a layer",
        inverse="D^2 and D root searches a layer",
        determinant="D",
        universal="yes, by layers",
    ),
)
def gaussianization(
    features: int,
    context: int = 0,
    *,
    transforms: int = 6,
    components: int = 12,
    reflections: int | None = None,
    hidden: int = 64,
) -> Flow:
    """Build a Gaussianization flow of `transforms` layers for `features` columns.

    `reflections` is how many make a rotation, an even number (default: enough for any); `hidden` is the width of the
    networks of a context. Raises `OptionError` for sizes that make no model.

    >>> gaussianization(3, transforms=2, components=4).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    steps: list[Transform] = [ActNorm(features)]
    for number in range(transforms):
        if number and features > 1:
            rotation = Householder(features, reflections)
            with torch.no_grad():  # as the identity it would leave nothing for the next bend to do
                rotation.vectors.normal_()
            steps.append(rotation)
        steps.append(MixtureBends(features, components, context=context, hidden=hidden))
    return Flow(Compose(steps), StandardNormal(features), context=context)
