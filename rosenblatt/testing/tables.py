"""The rows that the conformance suite runs on: a new part is one row here and gets all its checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from rosenblatt.bases import Box, StandardLogistic, StandardNormal
from rosenblatt.conditioners.base import Conditioner
from rosenblatt.conditioners.conv_coupling import ConvCoupling
from rosenblatt.conditioners.coupling import Coupling
from rosenblatt.conditioners.heads import LowRank, PartlyFree
from rosenblatt.conditioners.independent import Independent
from rosenblatt.conditioners.linear import LinearMasked
from rosenblatt.conditioners.masked import Masked
from rosenblatt.conditioners.pixelcnn import PixelCNN
from rosenblatt.conditioners.recurrent import Recurrent
from rosenblatt.conditioners.transformer import Transformer
from rosenblatt.core.density import FactorisedDensity, Flow
from rosenblatt.core.types import Likelihood
from rosenblatt.elementwise.additive import Additive
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.backwards import Backwards
from rosenblatt.elementwise.base import Elementwise, UnitElementwise
from rosenblatt.elementwise.bernstein import BernsteinPolynomial
from rosenblatt.elementwise.circular import CircularSpline, Moebius
from rosenblatt.elementwise.dense_sigmoid import DenseSigmoid
from rosenblatt.elementwise.elf import ExactLipschitz
from rosenblatt.elementwise.histogram import Histogram
from rosenblatt.elementwise.integral import IntegratedNet, SumOfSquares
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.elementwise.normal_mixture import NormalMixture
from rosenblatt.elementwise.polynomial_spline import PolynomialSpline
from rosenblatt.elementwise.sigmoid_mixture import DeepSigmoid, LogisticMixture
from rosenblatt.elementwise.simple import Arcsinh, Kumaraswamy, SinhArcsinh, TwoSlopes, YeoJohnson
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.elementwise.stacked import Stacked
from rosenblatt.elementwise.tails import ParetoTails, TailTransform
from rosenblatt.elementwise.tanh_bump import TanhBump
from rosenblatt.layers.conditional import Conditional
from rosenblatt.testing import oracles, oracles_bins, oracles_circle, oracles_integrals, oracles_splines, oracles_tails
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
    are compiled and exported, which takes seconds each. `factorised` says whether the base has independent coordinates
    with a CDF each, and so the model a Rosenblatt transform; `likelihood` is what its log-density claims to be. Rows
    with `far` claim their float32 log-density out to 1e4.
    """

    name: str
    make: Callable[[int], Flow]
    features: int = 3
    context: int = 0
    lower: float | None = None
    upper: float | None = None
    traced: bool = False
    factorised: bool = True
    likelihood: Likelihood = Likelihood.EXACT
    far: bool = False


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


def image_of(features: int) -> list[int]:
    """Shape of an image of so many numbers: a square, a line that can be halved, or a pixel of many channels."""
    side = math.isqrt(features)
    if side * side == features:
        return [1, side, side]
    return [features, 1, 1] if features % 2 else [1, 1, features]


_NITS_START = 0.035
_TURNED = "checkerboard_turned"
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
        ElementwiseRow(
            "circular_spline_phase", lambda: CircularSpline(6, phase=True), oracles_circle.turned_spline, (-3.1, 3.1)
        ),
        ElementwiseRow("moebius", lambda: Moebius(4), oracles_circle.moebius, (-3.1, 3.1), 0.01),
        ElementwiseRow("logistic_mixture", lambda: LogisticMixture(5), oracles.logistic_mixture, (), 0.02),
        ElementwiseRow("normal_mixture", lambda: NormalMixture(4), oracles_tails.normal_mixture, (), 0.05),
        ElementwiseRow("histogram", lambda: Histogram(14), oracles_bins.histogram, tuple(range(-7, 8)), 0.02),
        ElementwiseRow(
            "histogram_box", lambda: Histogram(12, 6.0, tails=False), oracles_bins.histogram, tuple(range(-5, 6)), 1e-12
        ),
        ElementwiseRow("deep_sigmoid", lambda: DeepSigmoid(6, 2), oracles.deep_sigmoid, (), 0.05, 1e-11),
        ElementwiseRow(
            "stacked", lambda: Stacked([LogisticMixture(3), Affine()]), oracles.mixture_then_affine, (), 0.05, 1e-11
        ),
        ElementwiseRow(
            "backwards_spline",
            lambda: Backwards(RationalQuadraticSpline(6, 3.0)),
            oracles.backwards(oracles.spline),
            (-3.0, 3.0),
        ),
        ElementwiseRow(
            "backwards_sigmoid",
            lambda: Backwards(DeepSigmoid(4, 2)),
            oracles.backwards(oracles.deep_sigmoid),
            (),
            0.05,
            1e-10,
        ),
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
        ConditionerRow("masked_parts", lambda d, p: Masked(d, p, hidden=16, parts=3, order=[*range(1, d), 0])),
        ConditionerRow("masked_parts_context", lambda d, p: Masked(d, p, hidden=16, parts=2, context=2), 2),
        ConditionerRow("recurrent", lambda d, p: Recurrent(d, p, hidden=8, order=[*range(1, d), 0])),
        ConditionerRow("recurrent_context", lambda d, p: Recurrent(d, p, hidden=8, context=2), 2),
        ConditionerRow("masked_parts_angles", lambda d, p: Masked(d, p, hidden=16, parts=2, angles=range(0, d, 2))),
        ConditionerRow("masked_angles", lambda d, p: Masked(d, p, hidden=16, angles=range(d))),
        ConditionerRow(
            "masked_some_angles",
            lambda d, p: Masked(d, p, hidden=16, order=[*range(1, d), 0], angles=range(0, d, 2), context=2),
            2,
        ),
        ConditionerRow("coupling_angles", lambda d, p: Coupling(d, p, hidden=16, angles=range(d))),
        ConditionerRow("linear_masked", lambda d, p: LinearMasked(d, p, order=[*range(1, d), 0])),
        ConditionerRow("linear_masked_context", lambda d, p: LinearMasked(d, p, context=2), 2),
        ConditionerRow("coupling", lambda d, p: Coupling(d, p, hidden=16)),
        ConditionerRow("coupling_odd", lambda d, p: Coupling(d, p, hidden=16, mask="odd", dropout=0.2)),
        ConditionerRow("coupling_context", lambda d, p: Coupling(d, p, hidden=16, context=2), 2),
        ConditionerRow("conv_channels", lambda d, p: ConvCoupling((d, 1, 1), p, hidden=8, dropout=0.2)),
        ConditionerRow("conv_checkerboard", lambda d, p: ConvCoupling(image_of(d), p, mask="checkerboard", hidden=8)),
        ConditionerRow("conv_fixed", lambda d, p: ConvCoupling((d, 1, 1), p, hidden=8, free=False)),
        ConditionerRow(
            "conv_spatial",
            lambda d, p: ConvCoupling((d, 1, 1), p, hidden=8, context=2, spatial=True, residual=False),
            2,
        ),
        ConditionerRow("conv_context", lambda d, p: ConvCoupling(image_of(d), p, mask=_TURNED, hidden=8, context=2), 2),
        ConditionerRow("pixelcnn", lambda d, p: PixelCNN(image_of(d), p, filters=6)),
        ConditionerRow("pixelcnn_line", lambda d, p: PixelCNN((1, 1, d), p, filters=4, stages=2, dropout=0.2)),
        ConditionerRow(
            "pixelcnn_attention", lambda d, p: PixelCNN((1, d, 1), p, filters=4, stages=2, heads=2, context=2), 2
        ),
        ConditionerRow("transformer", lambda d, p: Transformer((1, 1, d), p, hidden=8, heads=2, dropout=0.2)),
        ConditionerRow(
            "transformer_channels", lambda d, p: Transformer(image_of(d), p, hidden=8, heads=1, context=2), 2
        ),
    )
}

_PAIRED = ("independent", "masked_order", "masked_context", "coupling")
# Further cells: couplings of images.
_CELLS = [(e, c) for e in ("affine", "spline", "logistic_mixture") for c in ("conv_checkerboard", "conv_context")]

PAIRS: dict[str, PairRow] = {
    row.name: row
    for row in (
        PairRow(ELEMENTWISE[e], CONDITIONERS[c]) for e, c in (*((e, c) for e in ELEMENTWISE for c in _PAIRED), *_CELLS)
    )
}
