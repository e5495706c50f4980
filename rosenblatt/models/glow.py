"""Glow for tables: steps of normalisation, an invertible linear map, and an affine coupling.

The linear map, learned with the rest, takes the place of a fixed change of halves:

    x -> ActNorm -> W (P L U) -> z_B = (x_B - mu(x_A)) exp(s(x_A)),   repeated

Exact: density and sampling, one network pass per step each. ActNorm takes its start from the first rows.
`linear` offers other invertible maps: reflections, Cayley, matrix exponentials, QR and SVD.
Reference: Kingma & Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions, NeurIPS 2018 (images); here with
the columns of a table in place of channels, and no squeezing or splitting.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.conditioners.coupling import Coupling
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.affine import Affine
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.orthogonal import mixing
from rosenblatt.layers.scaling import ActNorm


@register(
    "glow",
    summary="ActNorm, learned linear maps and affine couplings; density and samples in one pass each",
    citation="Kingma & Dhariwal, Glow: Generative Flow with Invertible 1x1 Convolutions, NeurIPS 2018.",
    facts=Facts(
        formula=r"z = s_\theta(x_A) \odot x_B + t_\theta(x_A) \text{ behind } Wx",
        forward="1 pass a layer",
        inverse="1 pass a layer",
        determinant="D",
        universal="in a weak sense, by layers",
    ),
)
def glow(
    features: int,
    context: int = 0,
    *,
    transforms: int = 8,
    linear: str = "plu",
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
) -> Flow:
    """Build a Glow for `features` columns.

    `linear` is "plu" (random permutation and LU factors, as published), "householder", "cayley", "rotation",
    "exponential", "qr" or "svd". With `residual=False`, `blocks` counts plain hidden layers.
    Raises `OptionError` for another `linear` or sizes that make no model.

    >>> import torch
    >>> glow(3, transforms=2, hidden=16, linear="svd").log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    steps: list[Transform] = []
    for number in range(transforms):
        affine = Affine.one_of(transforms)
        conditioner = Coupling(
            features,
            affine.spec.size,
            mask="odd" if number % 2 else "even",
            hidden=hidden,
            blocks=blocks,
            context=context,
            dropout=dropout,
            residual=residual,
        )
        steps.extend([ActNorm(features), *mixing(linear, features), Conditional(affine, conditioner)])
    return Flow(Compose(steps), StandardNormal(features), context=context)
