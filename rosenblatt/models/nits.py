"""NITS, the Neural Inverse Transform Sampler: a network is the CDF of each one-dimensional conditional.

A masked network emits, for every coordinate, the weights of a small positive network that *is* its CDF given the
coordinates before it. The density is the exact derivative, the normaliser is exact, and sampling is inversion:

    p(x) = prod_i f_i(x_i | x_<i),   f_i = dF_i/dx_i,   F_i = (phi_i - phi_i(a)) / (phi_i(b) - phi_i(a))

Exact: density, CDF, sampling (to rounding). Reference: Li & Kluger, Neural Inverse Transform Sampler, ICML 2022.
Published sizes: CDF net [16, 16, 1], residual masked network of 4 blocks, hidden 128 to 1024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rosenblatt.bases import StandardLogistic
from rosenblatt.conditioners.heads import Head, LowRank, PartlyFree
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.layers.conditional import Conditional


@register(
    "nits",
    summary="autoregressive networks that are CDFs; exact density of any shape, exact quantiles",
    citation="Li & Kluger, Neural Inverse Transform Sampler, ICML 2022, PMLR 162:12813-12825.",
    facts=Facts(
        formula=r"z_i = \mathrm{logit}\, F_i(x_i; x_{<i}), \quad F_i \text{ a positive network}",
        forward="1 pass",
        inverse="1 pass in all, D root searches",
        determinant="D",
        universal="yes, by widths",
    ),
)
def nits(
    features: int,
    context: int = 0,
    *,
    hidden: int = 128,
    blocks: int = 2,
    widths: Sequence[int] = (16, 16, 1),
    interval: Sequence[float] | None = None,
    epsilon: float = 1e-5,
    transforms: int = 1,
    head: str = "full",
    rank: int = 16,
    residual: bool = True,
    dropout: float = 0.0,
    order: Sequence[int] | None = None,
    activation: str = "relu",
) -> Flow:
    """Build NITS for `features` columns.

    `widths` of the CDF net end in 1. `interval=(a, b)` gives every (standardised) column that compact support, as
    published; without it the CDF lives on the whole line. `transforms > 1` stacks layers in alternating order. With
    `residual=False`, `blocks` counts plain hidden layers.

    `head` is how the network emits the weights of the CDF nets (320 per column for [16, 16, 1]): "full" as published,
    "low_rank" (`rank` numbers times a matrix per column), or "shared" (the matrices between hidden layers do not depend
    on the row). On wide tables the other two halve the cost of training; "low_rank" loses likelihood, "shared" did not
    where it was measured (`python -m benchmarks heads`).
    Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> model = nits(2, hidden=32)
    >>> model.log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """
    lower, upper = (-math.inf, math.inf) if interval is None else _ends(interval)
    if transforms < 1 or (transforms > 1 and interval is not None):
        raise OptionError(
            f"transforms: {transforms} came; give 1, or more without `interval` (a stacked layer lives on the line)."
        )
    first = list(range(features)) if order is None else list(order)
    layers = []
    for number in range(transforms):
        cdf = MonotoneNet(widths, lower=lower, upper=upper, epsilon=epsilon)
        conditioner = Masked(
            features,
            cdf.spec.size,
            hidden=hidden,
            blocks=blocks,
            context=context,
            dropout=dropout,
            residual=residual,
            order=first if number % 2 == 0 else first[::-1],
            activation=activation,
            head=_head(head, features, cdf, rank),
        )
        layers.append(Conditional(cdf, conditioner))
    return Flow(Compose(layers), StandardLogistic(features), context=context)


def _head(kind: str, features: int, cdf: MonotoneNet, rank: int) -> Head | None:
    if kind == "full":
        return None
    if kind == "low_rank":
        return LowRank(features, cdf.spec.size, rank)
    if kind != "shared" or len(cdf.widths) < 3:
        raise OptionError(
            f"head: '{kind}' came with widths {list(cdf.widths)}; choose 'full', 'low_rank', or 'shared' with two or "
            "more hidden widths."
        )
    names = list(cdf.spec.shapes)
    first = sum(cdf.spec.sizes[: names.index("slope_2")])
    last = sum(cdf.spec.sizes[: names.index(f"offset_{len(cdf.widths) - 1}")])
    return PartlyFree(features, cdf.spec.size, first, last)


def _ends(interval: Sequence[float]) -> tuple[float, float]:
    if len(interval) != 2:
        raise OptionError(f"interval: {list(interval)} came, two ends [a, b] were expected.")
    return float(interval[0]), float(interval[1])


def paper_config(dataset: str) -> dict[str, Any]:
    """Return the published options and training settings for one of the five UCI tables.

    From the authors' public script: batch 1024 (MINIBOONE 128), Adam at a constant 2e-4, no clipping.
    """
    sizes = {
        "power": (1024, 0.4, 1024),
        "gas": (1024, 0.1, 1024),
        "hepmass": (512, 0.3, 1024),
        "miniboone": (128, 0.3, 128),
        "bsds300": (1024, 0.2, 1024),
    }
    if dataset not in sizes:
        raise OptionError(f"dataset: '{dataset}' came; settings are known for {', '.join(sizes)}.")
    hidden, dropout, batch = sizes[dataset]
    return {
        "model": {"hidden": hidden, "blocks": 4, "widths": [16, 16, 1], "dropout": dropout, "epsilon": 1e-5},
        "fit": {
            "learning_rate": 2e-4,
            "schedule": "constant",
            "batch_size": batch,
            "clip_norm": None,
            "ema_decay": 1 - 5e-5,
        },
    }
