"""mTAF, the marginal tail-adaptive flow, and its plainer kin TAF and gTAF: heavy tails come from the base.

Splines that are the identity far out, and linear layers, give each column the heaviest tail of the noise that reaches
it. So every column whose data have power-law tails gets noise with the same tail index, and no layer lets a heavy
column into a light one:

    x -> light columns first, heavy last -> K times ( [[W1, 0], [W2, W3]] -> y_i = spline(x_i; theta_i(x_<i)) ) -> z
    z_light ~ N(0, 1),   z_heavy ~ Student-t(df)

`rosenblatt.eval.tail_report(data).options` estimates `df`: one number per heavy column, null for a light one. TAF has
one trainable df for all columns (start 50), gTAF one for each (start 10), both without any order of the columns.
Exact: density and sampling, both closed. The tail of a heavy column is the heaviest of the heavy group, unless
`mixing="ordered"` keeps heavier columns out of lighter ones within it as well. Trainable df drift upwards in short
training; mTAF fixes them by default.
References: Laszkiewicz, Lederer & Fischer, Marginal Tail-Adaptive Normalizing Flows, ICML 2022; for TAF: Jaini,
Kobyzev, Yu & Brubaker, Tails of Lipschitz Triangular Flows, ICML 2020; for gTAF: Alexanderson & Henter 2020.
Published sizes: 5 steps, 3 bins, bound 2 to 2.5, residual networks of 2 blocks of 30 to 200 units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rosenblatt.bases import StandardNormal, StudentT
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.layers.block_triangular import BlockLU
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.linear import Permutation

CITATION = (
    "Laszkiewicz, Lederer & Fischer, Marginal Tail-Adaptive Normalizing Flows, ICML 2022; "
    "Jaini, Kobyzev, Yu & Brubaker, Tails of Lipschitz Triangular Flows, ICML 2020."
)


class TailBase(StudentT):
    """Independent coordinates, Student-t where `df` is a number and standard normal where it is None.

    With `trainable`, each df is learned within a factor e^3 of its start, or one factor for all with `shared`.
    Raises `OptionError` for another count of numbers than features or one that is not positive.

    >>> TailBase(2, [None, 2.0]).log_prob(torch.zeros(2))  # -log(2 pi) / 2 - log(8) / 2
    tensor(-1.9587)
    """

    heavy: Tensor

    def __init__(
        self, features: int, df: Sequence[float | None], *, trainable: bool = False, shared: bool = False
    ) -> None:
        # A light column's own df is never used; 1 keeps the arithmetic beside it finite.
        super().__init__(features, [1.0 if value is None else value for value in df], trainable=trainable)
        if shared:
            self.log_ratio = nn.Parameter(torch.zeros(1), requires_grad=trainable)
        self.register_buffer("heavy", torch.tensor([value is not None for value in df]), persistent=False)
        self.normal = StandardNormal(features)

    def cdf(self, x: Tensor) -> Tensor:
        """CDF of each coordinate."""
        return torch.where(self.heavy, super().cdf(x), self.normal.cdf(x))

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of `cdf`."""
        heavy = super().quantile(torch.where(self.heavy, u, 0.5))
        return torch.where(self.heavy, heavy, self.normal.quantile(u))

    def _log_density(self, x: Tensor) -> Tensor:
        heavy = super()._log_density(torch.where(self.heavy, x, 0.0))
        return torch.where(self.heavy, heavy, self.normal._log_density(torch.where(self.heavy, 0.0, x)))

    def _draw(self, uniform: Callable[[], Tensor], normal: Callable[[], Tensor]) -> Tensor:
        return torch.where(self.heavy, super()._draw(uniform, normal), normal())


@register(
    "mtaf",
    summary="splines behind a base with the tail index of each column; heavy never mixes into light",
    citation=CITATION,
    facts=Facts(
        formula=r"z = \mathrm{spline}(Wx; x_{<i}), \quad z_j \sim t_{\nu_j} \text{ or } N(0, 1)",
        forward="1 pass a layer",
        inverse="1 pass in all a layer",
        determinant="D",
        universal="yes within the tails of its base, by bins",
    ),
)
def mtaf(
    features: int,
    context: int = 0,
    *,
    df: list[float | None] | None = None,
    trainable: bool = False,
    mixing: str = "heavy",
    transforms: int = 5,
    bins: int = 8,
    bound: float = 5.0,
    hidden: int = 128,
    blocks: int = 2,
    dropout: float = 0.0,
) -> Flow:
    """Build a marginal tail-adaptive flow for `features` columns with tail indices `df`, null for a light column.

    Without `df` every column is light. `mixing` says which heavy columns a linear layer may mix: "heavy" all of them
    (as published), "ordered" only a less heavy one into a heavier one. Raises `OptionError` for another count of
    numbers than columns, an index that is not positive, another `mixing` or sizes that make no model.

    >>> mtaf(3, df=[2.0, None, 3.5], transforms=2, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    indices = [None] * features if df is None else _indices(df, features)
    if mixing not in ("heavy", "ordered"):
        raise OptionError(f"mixing: '{mixing}' came, 'heavy' or 'ordered' was expected.")
    weight = [0.0 if index is None else 1 / index for index in indices]
    order = sorted(range(features), key=weight.__getitem__)
    groups = [weight[column] if mixing == "ordered" else float(weight[column] > 0) for column in order]
    sizes = [groups.count(group) for group in sorted(set(groups))]
    base = TailBase(features, [indices[column] for column in order], trainable=trainable)
    splines, net = (transforms, bins, bound), (hidden, blocks, dropout)
    return _tail_flow(base, sizes, order, context=context, splines=splines, net=net)


@register(
    "taf",
    summary="splines behind a Student-t base with one trainable df for all columns",
    citation=CITATION,
    facts=Facts(
        formula=r"z = \mathrm{spline}(Wx; x_{<i}), \quad z_j \sim t_\nu",
        forward="1 pass a layer",
        inverse="1 pass in all a layer",
        determinant="D",
        universal="yes within the tails of its base, by bins",
    ),
)
def taf(
    features: int,
    context: int = 0,
    *,
    df: float = 50.0,
    trainable: bool = True,
    transforms: int = 5,
    bins: int = 8,
    bound: float = 5.0,
    hidden: int = 128,
    blocks: int = 2,
    dropout: float = 0.0,
) -> Flow:
    """Build a tail-adaptive flow for `features` columns, all with the same tail index `df`.

    Raises `OptionError` for a df that is not positive or sizes that make no model.

    >>> taf(3, transforms=2, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    base = TailBase(features, _indices([df] * features, features), trainable=trainable, shared=True)
    splines, net = (transforms, bins, bound), (hidden, blocks, dropout)
    order = list(range(features))
    return _tail_flow(base, [features], order, context=context, splines=splines, net=net)


@register(
    "gtaf",
    summary="splines behind a Student-t base with a trainable df for each column",
    citation=CITATION,
    facts=Facts(
        formula=r"z = \mathrm{spline}(Wx; x_{<i}), \quad z_j \sim t_{\nu_j}",
        forward="1 pass a layer",
        inverse="1 pass in all a layer",
        determinant="D",
        universal="yes within the tails of its base, by bins",
    ),
)
def gtaf(
    features: int,
    context: int = 0,
    *,
    df: float | list[float | None] = 10.0,
    trainable: bool = True,
    transforms: int = 5,
    bins: int = 8,
    bound: float = 5.0,
    hidden: int = 128,
    blocks: int = 2,
    dropout: float = 0.0,
) -> Flow:
    """Build a flow with a Student-t base whose df, one number or one per column, are trained; linear layers mix all.

    Raises `OptionError` for another count of numbers than columns, a df that is not positive or sizes that make no
    model.

    >>> gtaf(3, transforms=2, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    given = [df] * features if isinstance(df, int | float) else df
    base = TailBase(features, _indices(given, features), trainable=trainable)
    splines, net = (transforms, bins, bound), (hidden, blocks, dropout)
    order = list(range(features))
    return _tail_flow(base, [features], order, context=context, splines=splines, net=net)


def _tail_flow(
    base: TailBase,
    sizes: Sequence[int],
    order: Sequence[int],
    *,
    context: int,
    splines: tuple[int, int, float],
    net: tuple[int, int, float],
) -> Flow:
    """Columns in `order`, then for each step a permutation and a linear layer within groups of `sizes`, and splines."""
    transforms, bins, bound = splines
    hidden, blocks, dropout = net
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    features = base.features
    steps: list[Transform] = [] if list(order) == sorted(order) else [Permutation(order)]
    for _ in range(transforms):
        if features > 1:
            shuffled = [torch.randperm(size) for size in sizes]
            starts = torch.tensor([0, *sizes]).cumsum(0)
            steps.append(Permutation(torch.cat([p + s for p, s in zip(shuffled, starts, strict=False)]).tolist()))
            steps.append(BlockLU(sizes))
        spline = RationalQuadraticSpline(bins=bins, bound=bound)
        conditioner = Masked(features, spline.spec.size, hidden=hidden, blocks=blocks, context=context, dropout=dropout)
        steps.append(Conditional(spline, conditioner))
    return Flow(Compose(steps), base, context=context)


def _indices(df: object, features: int) -> list[float | None]:
    """Tail indices per column, None for a light one; infinity counts as light."""
    if not isinstance(df, list) or len(df) != features:
        raise OptionError(f"df: {df} came, a list of {features} numbers, null for a light column, was expected.")
    for index in df:
        if index is not None and (isinstance(index, bool) or not isinstance(index, int | float) or not index > 0):
            raise OptionError(f"df: {index} came, a positive tail index or null was expected.")
    return [None if index is None or math.isinf(index) else float(index) for index in df]


def paper_config(dataset: str) -> dict[str, Any]:
    """Return the options and training settings published for the synthetic tables of 8 and of 50 columns.

    Adam at 1e-4 in batches of 512; 10,000 steps for 8 columns, 20,000 for 50. `df` comes from the data.
    """
    sizes = {"synthetic8": (30, 10_000), "synthetic50": (200, 20_000)}
    if dataset not in sizes:
        raise OptionError(f"dataset: '{dataset}' came; settings are known for {', '.join(sizes)}.")
    hidden, steps = sizes[dataset]
    return {
        "model": {"transforms": 5, "bins": 3, "bound": 2.0, "hidden": hidden, "blocks": 2},
        "fit": {"learning_rate": 1e-4, "schedule": "constant", "batch_size": 512, "max_steps": steps},
    }
