"""RBIG, rotation-based iterative Gaussianization: a flow that is fitted without a gradient, layer by layer.

Every layer turns the columns and makes each of them Gaussian by itself; what is left is ever nearer to Gaussian noise,
whatever the rotations are:

    x -> K times ( y = Q_k x,  z_i = psi_ki(y_i) ),   log p(x) = log N(z; 0, 1) + sum over layers and i of log psi'

`initialise` is the whole fit. psi is a rational-quadratic curve through the normal scores of a column's own quantiles,
straight beyond them with the slope of largest likelihood on either side. A column that such a curve would describe no
better than chance lets it (its gain in log-likelihood does not pay for its numbers, by Akaike's criterion) is only
standardised: that is how layers that are not needed stop to add noise.
Exact: density, sampling (closed), Rosenblatt transform of the noise.
References: Chen & Gopinath, Gaussianization, NIPS 2000; Laparra, Camps-Valls & Malo, Iterative Gaussianization: From
ICA to Random Rotations, IEEE TNN 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.core.types import Mapped
from rosenblatt.layers.knots import KnotSpline, log_averaged_slopes, weighted_quantiles
from rosenblatt.layers.linear import infinities_kept

TAIL_ROWS = 25  # beyond the outermost knots: fewer would not tell a slope
LARGEST_TAIL, SMALLEST_TAIL = 0.25, 0.002  # shares of the rows there
CONSTANT = 1e-12  # spread, in units of the mean, that rounding can make
NUMBERS_AT_ONCE = 1 << 21  # rows times columns fitted together, which take some 300 bytes each meanwhile
STEEPEST = 1e2  # a step of equal values is spread until its slope is below, in units of the mean slope


class GaussianizingLayer(Transform):
    """`z = psi(Q x)`: a rotation, then a curve for each column that makes it Gaussian; the identity until `initialise`.

    `pca` takes the principal axes of the rows for Q, else Q is random (the identity for the `first` layer).
    """

    rotation: Tensor

    def __init__(self, features: int, bins: int, *, pca: bool, first: bool) -> None:
        super().__init__()
        self.pca = pca
        self.curve = KnotSpline(features, bins)
        turned = torch.eye(features)
        if not (pca or first):
            turned, triangle = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64))
            turned = (turned * triangle.diagonal().sign()).to(torch.get_default_dtype())  # uniform over all rotations
        self.register_buffer("rotation", turned)

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Fit to rows `x` (rows, features), weighted by `weight`; raises `DataError` for a constant column."""
        rows = x.double()
        share = rows.new_ones(len(rows)) if weight is None else weight.double()
        share = share / share.sum()
        if self.pca:
            self.rotation.copy_(_principal_axes(rows, share))
        self.curve.through(*_gaussian_scores(rows @ self._matrix().mT, share, self.curve.bins))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Turn, then bend."""
        matrix = self._matrix()
        turned = infinities_kept(x.double(), lambda rows: (matrix @ rows.unsqueeze(-1)).squeeze(-1))
        usable = torch.isfinite(turned)
        mapped: Mapped = self.curve(torch.where(usable, turned, 0.0))
        value = torch.where(usable, mapped.value, turned)
        return Mapped(value.to(x.dtype), mapped.log_det.to(x.dtype))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Mapped:
        """Bend back, then turn back."""
        value, log_det = self.curve.inverse(y.double())
        turned_back = self._matrix().mT
        value = infinities_kept(value, lambda rows: (turned_back @ rows.unsqueeze(-1)).squeeze(-1))
        return Mapped(value.to(y.dtype), log_det.to(y.dtype))

    def _matrix(self) -> Tensor:
        """The rotation, orthogonal to the last digit of float64 whatever the dtype it is kept in."""
        matrix = self.rotation.double()
        for _ in range(2):  # Newton's step towards the nearest rotation: the error of 1e-7 is squared each time
            matrix = 1.5 * matrix - 0.5 * matrix @ matrix.mT @ matrix
        return matrix


def _gaussian_scores(rows: Tensor, share: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Knots and slopes that make each column of `rows` Gaussian, or standardise it where more does not pay."""
    mean = share @ rows
    spread = (share @ (rows - mean).square()).sqrt()
    # A constant comes out of a rotation with the noise of rounding.
    bad = (~(torch.isfinite(spread) & (spread > CONSTANT * mean.abs()))).nonzero().squeeze(-1).tolist()
    if bad:
        raise DataError(f"x: columns {bad} (of the rotated rows) are constant or not finite; drop or separate them.")
    each = max(1, NUMBERS_AT_ONCE // len(rows))
    columns = zip(rows.split(each, dim=1), mean.split(each), spread.split(each), strict=True)
    x, y, slope = zip(*(_scores_of(*some, share, bins) for some in columns), strict=True)
    return torch.cat(x), torch.cat(y), torch.cat(slope)


def _scores_of(rows: Tensor, mean: Tensor, spread: Tensor, share: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same for columns whose means and standard deviations are known."""
    effective = float(1 / share.square().sum())
    tail = min(max(TAIL_ROWS / effective, SMALLEST_TAIL), LARGEST_TAIL)
    far = float(torch.special.ndtri(torch.tensor(1 - tail, dtype=torch.float64)))
    y = torch.linspace(-far, far, bins + 1, dtype=rows.dtype, device=rows.device)
    x = weighted_quantiles(rows, share, torch.special.ndtr(y))
    x = _spread_out(x, spread.unsqueeze(-1) * y.diff() / STEEPEST)
    y = y.expand_as(x)
    slope = torch.cat(
        [
            _tail_slope(x[:, 0] - rows, far, share).unsqueeze(-1),
            log_averaged_slopes(x, y),
            _tail_slope(rows - x[:, -1], far, share).unsqueeze(-1),
        ],
        dim=-1,
    )
    bent = KnotSpline(len(x), bins).to(rows)
    bent.through(x, y, slope)
    gain = effective * _gain(bent, rows, mean, spread, share)
    straight = (gain <= bins + 3).unsqueeze(-1)
    line = mean.unsqueeze(-1) + spread.unsqueeze(-1) * y
    return torch.where(straight, line, x), y, torch.where(straight, 1 / spread.unsqueeze(-1), slope)


def _spread_out(x: Tensor, smallest: Tensor) -> Tensor:
    """Knots at least `smallest` apart, about where they were: tied values have equal quantiles."""
    reach = torch.nn.functional.pad(smallest.cumsum(dim=-1), (1, 0))
    pushed_up = (x - reach).cummax(dim=-1).values + reach
    pushed_down = -((reach - x).flip(-1).cummax(dim=-1).values.flip(-1)) + reach
    return 0.5 * (pushed_up + pushed_down)


def _tail_slope(beyond: Tensor, far: float, share: Tensor) -> Tensor:
    """The slope d of largest likelihood of `far + d e` as the far end of a normal, for excesses e > 0.

    The sum of `log d - (far + d e)^2 / 2` is largest where `d^2 mean(e^2) + d far mean(e) = 1`.
    """
    excess = beyond.clamp(min=0.0)
    weight = share @ (excess > 0).to(excess)
    weight = torch.where(weight > 0, weight, 1.0)
    first, second = share @ excess / weight, share @ excess.square() / weight
    half = 0.5 * far * first
    usable = second > 0
    return torch.where(usable, 1 / (half + torch.sqrt(half.square() + torch.where(usable, second, 1.0))), 1.0)


def _gain(bent: KnotSpline, rows: Tensor, mean: Tensor, spread: Tensor, share: Tensor) -> Tensor:
    """What the curves add to the mean log-density of each column, over standardising it, in nats."""
    value, log_slope = bent.by_column(rows)
    straight = -0.5 * ((rows - mean) / spread).square() - torch.log(spread)
    return share @ (log_slope - 0.5 * value.square() - straight)


def _principal_axes(rows: Tensor, share: Tensor) -> Tensor:
    """Rows are eigenvectors of the covariance, the largest entry of each positive."""
    rest = rows - share @ rows
    axes = torch.linalg.eigh(rest.mT @ (share.unsqueeze(-1) * rest)).eigenvectors.mT
    largest = axes.gather(-1, axes.abs().argmax(dim=-1, keepdim=True))
    turned: Tensor = axes * largest.sign()
    return turned


@register(
    "rbig",
    summary="iterative Gaussianization: rotations and marginal curves, fitted layer by layer without gradients",
    citation=(
        "Laparra, Camps-Valls & Malo, Iterative Gaussianization: From ICA to Random Rotations, IEEE TNN 2011; "
        "Chen & Gopinath, Gaussianization, NIPS 2000."
    ),
    facts=Facts(
        formula=r"z^{(k)}_i = \Phi^{-1}(F_{ki}(y_i)), \quad y = Q_k z^{(k-1)}",
        forward="D^2 a layer",
        inverse="D^2 a layer, closed",
        determinant="D",
        universal="yes, by layers",
    ),
)
def rbig(
    features: int,
    context: int = 0,
    *,
    transforms: int = 50,
    bins: int = 16,
    rotation: str = "random",
) -> Flow:
    """Build an iterative Gaussianization of `transforms` layers for `features` columns; `initialise` fits it.

    `rotation` is "random" (drawn when built) or "pca" (principal axes of what reaches a layer). There is nothing to
    train, so `FlowDensity` and `fit` take all rows and no steps. Raises `OptionError` for a context, which it cannot
    take, another `rotation` or sizes that make no model.

    >>> rows = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).exp()
    >>> model = rbig(2, transforms=5)
    >>> model.initialise(rows)
    >>> round(model.to_base(rows).std().item(), 1)
    1.0
    """
    if context:
        raise OptionError(
            f"context: {context} came, 0 was expected: rotations mix columns, not contexts; choose 'maf'."
        )
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    if rotation not in ("random", "pca"):
        raise OptionError(f"rotation: '{rotation}' came, 'random' or 'pca' was expected.")
    layers = [
        GaussianizingLayer(features, bins, pca=rotation == "pca", first=number == 0) for number in range(transforms)
    ]
    return Flow(Compose(layers), StandardNormal(features))
