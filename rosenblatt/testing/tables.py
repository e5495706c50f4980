"""The rows that the conformance suite runs on: a new part is one row here and gets all its checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

import rosenblatt.models  # noqa: F401 - enters every model in the registry
from rosenblatt.bases import Box, StandardLogistic, StandardNormal
from rosenblatt.conditioners.base import Conditioner
from rosenblatt.conditioners.coupling import Coupling
from rosenblatt.conditioners.heads import LowRank, PartlyFree
from rosenblatt.conditioners.independent import Independent
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.density import FactorisedDensity, Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Compose
from rosenblatt.elementwise.additive import Additive
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.base import Elementwise, UnitElementwise
from rosenblatt.elementwise.bernstein import BernsteinPolynomial
from rosenblatt.elementwise.circular import CircularSpline
from rosenblatt.elementwise.dense_sigmoid import DenseSigmoid
from rosenblatt.elementwise.elf import ExactLipschitz
from rosenblatt.elementwise.integral import IntegratedNet, SumOfSquares
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.elementwise.polynomial_spline import PolynomialSpline
from rosenblatt.elementwise.sigmoid_mixture import DeepSigmoid, LogisticMixture
from rosenblatt.elementwise.simple import Arcsinh, Kumaraswamy, SinhArcsinh, TwoSlopes, YeoJohnson
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.elementwise.tails import ParetoTails, TailTransform
from rosenblatt.elementwise.tanh_bump import TanhBump
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.scaling import Standardise
from rosenblatt.layers.support import SupportMap
from rosenblatt.testing import oracles, oracles_integrals, oracles_splines, oracles_tails
from rosenblatt.testing.oracles import Oracle

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class ElementwiseRow:
    """One family of increasing maps: how to make it, an independent oracle, and points it finds hard.

    `start_tolerance` is how far the start may be from the identity: 0 means exactly the identity; for families of
    CDFs it is the distance of F from the standard logistic CDF, or from the uniform one on an interval.
    `oracle_tolerance` is relative to 1 + |value|.
    """

    name: str
    make: Callable[[], Elementwise]
    oracle: Oracle
    points: tuple[float, ...] = ()
    start_tolerance: float = 0.0
    oracle_tolerance: float = 1e-12

    def base(self, features: int) -> FactorisedDensity:
        """The base that makes this family a density."""
        elementwise = self.make()
        if isinstance(elementwise, UnitElementwise):
            return StandardLogistic(features)
        if elementwise.domain.bounded:
            return Box(features, bound=elementwise.domain.upper)
        return StandardNormal(features)


@dataclass(frozen=True)
class ConditionerRow:
    """One conditioner: how to make it for (features, params)."""

    name: str
    make: Callable[[int, int], Conditioner]
    context: int = 0


@dataclass(frozen=True)
class PairRow:
    """A cell of the product."""

    elementwise: ElementwiseRow
    conditioner: ConditionerRow

    @property
    def name(self) -> str:
        """Name of the cell."""
        return f"{self.elementwise.name}-{self.conditioner.name}"

    def make(self, features: int = 4) -> Flow:
        """The cell as a density with disturbed weights."""
        elementwise = self.elementwise.make()
        layer = Conditional(elementwise, seeded(lambda: self.conditioner.make(features, elementwise.spec.size)))
        return disturbed(Flow(layer, self.elementwise.base(features), context=self.conditioner.context))


@dataclass(frozen=True)
class ModelRow:
    """One model: how to make it, with weights that are not those of the start, for a number of features.

    `lower`, `upper` are the ends of a compact support of every column, None for the whole space. Rows with `traced`
    are compiled and exported, which takes seconds each.
    """

    name: str
    make: Callable[[int], Flow]
    features: int = 3
    context: int = 0
    lower: float | None = None
    upper: float | None = None
    traced: bool = False


def seeded(make: Callable[[], M], seed: int = 0) -> M:
    """Run `make` with seeded starting weights, and leave the global random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def disturbed(module: M, size: float = 0.1, seed: int = 1) -> M:
    """Add noise to every weight, so that no check passes only because a part starts as the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise.to(parameter.dtype))
    return module.eval()


def rows_like_data(count: int, features: int, seed: int = 2) -> torch.Tensor:
    """Correlated normal rows in float64, to condition on and to start from."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, features, generator=generator, dtype=torch.float64)
    return z + 0.5 * z.roll(1, dims=-1) if features > 1 else z


def _model(name: str, context: int = 0, **options: object) -> Callable[[int], Flow]:
    def make(features: int) -> Flow:
        model = build(name, features, context, options=dict(options), seed=0)
        if not isinstance(model, Flow):
            raise OptionError(f"model: '{name}' is no flow; the model checks are for flows.")
        given = rows_like_data(200, context, seed=5).float() if context else None
        model.initialise(rows_like_data(200, features).float(), given)
        return disturbed(model, 0.05)

    return make


def _in_units(features: int) -> Flow:
    """NITS in a user's units: a half-line, an interval, and a far offset."""
    supports: list[list[float | None]] = [[0.0, None], [-1.0, 3.0], [None, None]]
    used = [supports[column % 3] for column in range(features)]
    scaling = Standardise([1.5] * features, [0.7] * features)
    return _model("nits", hidden=16, widths=_WIDTHS)(features).after(Compose([SupportMap(used), scaling]))


def _mtaf(features: int) -> Flow:
    """Light and heavy columns in turn."""
    df = [None, 5.0, None, 8.0][:features]
    return _model("mtaf", df=df, transforms=2, hidden=16)(features)


_NITS_START = 0.035
_WIDTHS = [8, 8, 1]
_ROUNDED = 1e-12  # the identity up to the rounding of the functions it is made of

ELEMENTWISE: dict[str, ElementwiseRow] = {
    row.name: row
    for row in (
        ElementwiseRow("affine", Affine, oracles.affine),
        ElementwiseRow("additive", Additive, oracles.additive),
        ElementwiseRow("tanh_bump", TanhBump, oracles.tanh_bump),
        ElementwiseRow("spline", lambda: RationalQuadraticSpline(6, 3.0), oracles.spline, (-3.0, -2.0, 1.0, 3.0)),
        ElementwiseRow(
            "spline_box", lambda: RationalQuadraticSpline(6, 3.0, "none"), oracles.spline, (-3.0, -2.0, 1.0, 3.0)
        ),
        ElementwiseRow("bernstein", lambda: BernsteinPolynomial(8), oracles_splines.bernstein, (-3.0, 3.0)),
        ElementwiseRow(
            "bernstein_box", lambda: BernsteinPolynomial(8, 3.0, "none"), oracles_splines.bernstein, (-3.0, 3.0)
        ),
        ElementwiseRow(
            "linear_spline",
            lambda: PolynomialSpline(1, 6),
            oracles_splines.polynomial_spline,
            (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 0.0),
        ),
        ElementwiseRow(
            "quadratic_spline", lambda: PolynomialSpline(2, 6), oracles_splines.polynomial_spline, (-3.0, 3.0)
        ),
        ElementwiseRow("cubic_spline", lambda: PolynomialSpline(3, 6), oracles_splines.polynomial_spline, (-3.0, 3.0)),
        ElementwiseRow("circular_spline", lambda: CircularSpline(6), oracles_splines.circular, (-3.1, 3.1)),
        ElementwiseRow("logistic_mixture", lambda: LogisticMixture(5), oracles.logistic_mixture, (), 0.02),
        ElementwiseRow("deep_sigmoid", lambda: DeepSigmoid(6, 2), oracles.deep_sigmoid, (), 0.05, 1e-11),
        ElementwiseRow("nits_mixture", lambda: MonotoneNet((8, 1), epsilon=0.0), oracles.monotone_net, (), _NITS_START),
        ElementwiseRow("nits", lambda: MonotoneNet((8, 8, 1)), oracles.monotone_net, (), _NITS_START, 1e-11),
        ElementwiseRow("nits_deep", lambda: MonotoneNet((6, 6, 6, 1)), oracles.monotone_net, (), _NITS_START, 1e-10),
        ElementwiseRow(
            "nits_interval",
            lambda: MonotoneNet((8, 8, 1), lower=-5.0, upper=5.0),
            oracles.monotone_net,
            (-4.999, 4.999),
            0.06,
            1e-11,
        ),
        ElementwiseRow("elf", lambda: ExactLipschitz(6), oracles_integrals.exact_lipschitz),
        ElementwiseRow("elf_relu", lambda: ExactLipschitz(6, unit="relu"), oracles_integrals.exact_lipschitz),
        ElementwiseRow(
            "sum_of_squares", lambda: SumOfSquares(2, 3, bound=5.0), oracles_integrals.sum_of_squares, (-5.0, 5.0), 0.02
        ),
        ElementwiseRow(
            "integrated_net",
            lambda: IntegratedNet(5, bound=4.0, cells=8, nodes=3),
            oracles_integrals.integrated_net,
            (-4.0, 4.0, 0.5),
            1e-12,
        ),
        ElementwiseRow("dense_sigmoid", lambda: DenseSigmoid(4, 2), oracles_integrals.dense_sigmoid, (), 0.05, 1e-11),
        ElementwiseRow("sinh_arcsinh", SinhArcsinh, oracles_tails.sinh_arcsinh, (), _ROUNDED),
        ElementwiseRow("two_slopes", TwoSlopes, oracles_tails.two_slopes),
        ElementwiseRow("two_slopes_sharp", lambda: TwoSlopes(sharp=True), oracles_tails.two_slopes),
        ElementwiseRow("yeo_johnson", YeoJohnson, oracles_tails.yeo_johnson, (), _ROUNDED),
        ElementwiseRow("arcsinh", Arcsinh, oracles_tails.arcsinh, (), 0.01),
        ElementwiseRow("kumaraswamy", Kumaraswamy, oracles_tails.kumaraswamy, (), _ROUNDED),
        ElementwiseRow("pareto_tails", ParetoTails, oracles_tails.pareto_tails, (), 0.02),
        ElementwiseRow("tail_transform", TailTransform, oracles_tails.tail_transform, (), 0.1),
    )
}

CONDITIONERS: dict[str, ConditionerRow] = {
    row.name: row
    for row in (
        ConditionerRow("independent", Independent),
        ConditionerRow("independent_context", lambda d, p: Independent(d, p, context=2, hidden=8), 2),
        ConditionerRow("masked", lambda d, p: Masked(d, p, hidden=16)),
        ConditionerRow("masked_plain", lambda d, p: Masked(d, p, hidden=16, residual=False, activation="tanh")),
        ConditionerRow("masked_order", lambda d, p: Masked(d, p, hidden=16, order=[*range(1, d), 0], dropout=0.2)),
        ConditionerRow("masked_context", lambda d, p: Masked(d, p, hidden=16, context=2), 2),
        ConditionerRow("masked_low_rank", lambda d, p: Masked(d, p, hidden=16, head=LowRank(d, p, 2))),
        ConditionerRow("masked_partly_free", lambda d, p: Masked(d, p, hidden=16, head=PartlyFree(d, p, 1, 2))),
        ConditionerRow("coupling", lambda d, p: Coupling(d, p, hidden=16)),
        ConditionerRow("coupling_odd", lambda d, p: Coupling(d, p, hidden=16, mask="odd", dropout=0.2)),
        ConditionerRow("coupling_context", lambda d, p: Coupling(d, p, hidden=16, context=2), 2),
    )
}

_PAIRED = ("independent", "masked_order", "masked_context", "coupling")

PAIRS: dict[str, PairRow] = {
    row.name: row for row in (PairRow(e, CONDITIONERS[c]) for e in ELEMENTWISE.values() for c in _PAIRED)
}

MODELS: dict[str, ModelRow] = {
    row.name: row
    for row in (
        ModelRow("nits", _model("nits", hidden=16, widths=_WIDTHS), traced=True),
        ModelRow("nits_stacked", _model("nits", hidden=16, transforms=2, widths=[6, 1])),
        ModelRow(
            "nits_interval",
            _model("nits", hidden=16, interval=[-6.0, 6.0], widths=_WIDTHS),
            lower=-6.0,
            upper=6.0,
        ),
        ModelRow("nits_context", _model("nits", 2, hidden=16, widths=_WIDTHS), context=2),
        ModelRow("nits_low_rank", _model("nits", hidden=16, widths=_WIDTHS, head="low_rank", rank=3)),
        ModelRow("nits_shared", _model("nits", hidden=16, widths=_WIDTHS, head="shared")),
        ModelRow("nits_in_units", _in_units, traced=True),
        ModelRow("maf", _model("maf", transforms=3, hidden=16), traced=True),
        ModelRow("maf_context", _model("maf", 2, transforms=2, hidden=16), context=2),
        ModelRow("maf_mixture", _model("maf", transforms=2, hidden=16, components=4)),
        ModelRow("iaf", _model("iaf", transforms=2, hidden=16)),
        ModelRow("iaf_context", _model("iaf", 2, transforms=2, hidden=16), context=2),
        ModelRow("realnvp", _model("realnvp", transforms=3, hidden=16)),
        ModelRow("realnvp_additive", _model("realnvp", transforms=3, hidden=16, additive=True)),
        ModelRow("realnvp_context", _model("realnvp", 2, transforms=2, hidden=16), context=2),
        ModelRow("glow", _model("glow", transforms=2, hidden=16)),
        ModelRow("glow_svd", _model("glow", transforms=2, hidden=16, linear="svd")),
        ModelRow("planar", _model("planar", transforms=4)),
        ModelRow("planar_radial", _model("planar", transforms=3, radial=True)),
        ModelRow("planar_context", _model("planar", 2, transforms=2, hidden=8), context=2),
        ModelRow("sylvester", _model("sylvester", transforms=2)),
        ModelRow("sylvester_context", _model("sylvester", 2, transforms=1, hidden=8), context=2),
        ModelRow("residual_flow", _model("residual_flow", transforms=2, hidden=16)),
        ModelRow("residual_flow_dense", _model("residual_flow", transforms=2, hidden=8, unit="tanh", dense=True)),
        ModelRow("residual_flow_context", _model("residual_flow", 2, transforms=1, hidden=12), context=2),
        ModelRow("cp_flow", _model("cp_flow", transforms=2, hidden=12)),
        ModelRow("cp_flow_context", _model("cp_flow", 2, transforms=1, hidden=8, depth=3), context=2),
        ModelRow("nsf", _model("nsf", transforms=2, hidden=16), traced=True),
        ModelRow("nsf_coupling", _model("nsf", transforms=3, hidden=16, coupling=True), traced=True),
        ModelRow("nsf_context", _model("nsf", 2, transforms=2, hidden=16), context=2),
        ModelRow("nsf_linear", _model("nsf", transforms=2, hidden=16, spline="linear", coupling=True)),
        ModelRow("nsf_quadratic", _model("nsf", transforms=2, hidden=16, spline="quadratic")),
        ModelRow("nsf_cubic", _model("nsf", transforms=2, hidden=16, spline="cubic", linear="none")),
        ModelRow("bernstein", _model("bernstein", transforms=2, hidden=16, degree=6), traced=True),
        ModelRow("bernstein_coupling", _model("bernstein", transforms=2, hidden=16, degree=6, coupling=True)),
        ModelRow("bernstein_context", _model("bernstein", 2, transforms=2, hidden=16, degree=6), context=2),
        ModelRow("mtaf", _mtaf),
        ModelRow("taf", _model("taf", transforms=2, hidden=16, df=10.0)),
        ModelRow("gtaf", _model("gtaf", 2, transforms=2, hidden=16), context=2),
        ModelRow("made_mixture", _model("made_mixture", hidden=16)),
        ModelRow("gaussian", _model("gaussian")),
        ModelRow("gaussian_context", _model("gaussian", 2), context=2),
        ModelRow("elf", _model("elf", transforms=2, units=6, hidden=16), traced=True),
        ModelRow("sos", _model("sos", transforms=2, squares=2, hidden=16)),
        ModelRow("umnn", _model("umnn", transforms=1, units=4, cells=8, nodes=3, hidden=16)),
        ModelRow("naf_context", _model("naf", 2, transforms=1, units=4, hidden=16), context=2),
        ModelRow("naf_dense", _model("naf", transforms=1, units=4, dense=True, hidden=16)),
    )
}
