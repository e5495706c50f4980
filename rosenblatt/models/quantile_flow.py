"""AQF, the autoregressive quantile flow: a network emits the quantile function of each one-dimensional conditional.

Each coordinate is an increasing function of its own level, given the coordinates before it; it is trained by how well
its quantiles predict, the CRPS of every conditional, with no Jacobian anywhere:

    x_j = tau(u_j; h_j(x_<j)),   u_j uniform,   loss = sum_j 2 E_a rho_a(x_j - tau(a; h_j(x_<j)))

tau increases by construction, so quantiles cannot cross. Levels travel as noise of the base (logits, or normal scores
for "affine"), so both tails keep their digits. Exact all the same: density (tau is inverted: closed for "affine" and
"spline", a root search for "deep_sigmoid" and "nits"), quantiles and sampling (closed, no search). `direction="cdf"` is
the twin whose conditionals are CDFs, trained by the same score: its density is cheap, its quantiles take the inverse.
Tails are those of the base, scaled: the score says little about them.
Reference: Si, Bishop & Kuleshov, Autoregressive Quantile Flows for Predictive Uncertainty Estimation, ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

from rosenblatt.bases import StandardLogistic, StandardNormal
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.density import FactorisedDensity, Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.backwards import Backwards
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.elementwise.sigmoid_mixture import DeepSigmoid
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.elementwise.stacked import Stacked
from rosenblatt.layers.conditional import Conditional
from rosenblatt.objectives.quantile import DIRECTIONS, QuantileScore

FAMILIES = ("spline", "deep_sigmoid", "nits", "affine")
BOUND = 6.0  # of the spline, in logits: 99.5 % of the levels


@register(
    "quantile_flow",
    summary="autoregressive quantile functions trained by CRPS, without Jacobians; exact quantiles, exact density",
    citation=(
        "Si, Bishop & Kuleshov, Autoregressive Quantile Flows for Predictive Uncertainty Estimation, ICLR 2022, "
        "arXiv:2112.04643."
    ),
    facts=Facts(
        formula=r"x_i = \tau_i(u_i; x_{<i}), \quad \min \sum_i 2\, E_a\, \rho_a(x_i - \tau_i(a; x_{<i}))",
        forward="1 pass; D root searches for deep_sigmoid and nits",
        inverse="1 pass in all, closed",
        determinant="D, none in training",
        universal="yes, by bins or units",
    ),
)
def quantile_flow(
    features: int,
    context: int = 0,
    *,
    family: str = "spline",
    direction: str = "quantile",
    levels: int = 8,
    bins: int = 16,
    units: int = 8,
    layers: int = 2,
    widths: Sequence[int] = (16, 16, 1),
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
    activation: str = "relu",
) -> Flow:
    """Build an autoregressive quantile flow for `features` columns.

    family: what bends the levels, before a shift and a scale: "spline" (rational-quadratic, `bins`), "deep_sigmoid"
    (`layers` of `units`), "nits" (`widths`), or nothing: "affine", Gaussian conditionals.
    direction: "quantile" (sampling closed) or "cdf" (the family is the CDF, as in a flow trained by likelihood).
    levels: drawn for each row, column and step in training. With `residual=False`, `blocks` counts plain hidden layers.
    Raises `OptionError` for another family or direction, or sizes that make no model.

    >>> import torch
    >>> model = quantile_flow(2, hidden=16).double()
    >>> median = model.from_uniform(torch.full((1, 2), 0.5).double())
    >>> torch.allclose(model.to_uniform(median), torch.tensor(0.5).double())
    True
    """
    bend = _bend(family, bins, units, layers, widths)
    if direction not in DIRECTIONS:
        raise OptionError(f"direction: '{direction}' came, one of {', '.join(DIRECTIONS)} was expected.")
    maps: list[Elementwise] = [Affine.one_of(1)]
    if bend is not None:
        maps.append(Backwards(bend) if direction == "quantile" else bend)
    elementwise = Stacked(maps)
    conditioner = Masked(
        features,
        elementwise.spec.size,
        hidden=hidden,
        blocks=blocks,
        context=context,
        dropout=dropout,
        residual=residual,
        activation=activation,
    )
    base: FactorisedDensity = StandardNormal(features) if bend is None else StandardLogistic(features)
    model = Flow(Compose([Conditional(elementwise, conditioner)]), base, context=context)
    model.objective = QuantileScore(levels, direction)
    return model


def _bend(family: str, bins: int, units: int, layers: int, widths: Sequence[int]) -> Elementwise | None:
    if family == "spline":
        return RationalQuadraticSpline(bins=bins, bound=BOUND)
    if family == "deep_sigmoid":
        return DeepSigmoid(units, layers)
    if family == "nits":
        return MonotoneNet(widths)
    if family != "affine":
        raise OptionError(f"family: '{family}' came, one of {', '.join(FAMILIES)} was expected.")
    return None
