"""RealNVP, and NICE: affine or additive couplings, as fast to sample as to score.

Half of the columns shift and scale the other half, and the halves change places from layer to layer:

    z_B = (x_B - mu(x_A)) exp(s(x_A)),   log p(x) = log N(z; 0, 1) + sum over layers of s

Exact: density and sampling, one network pass per layer each. Every layer also shifts and scales its first half, by
free numbers. NICE (`additive`) leaves the scales out, so that the couplings keep volume, and closes with one scale per
column. As in MAF, all layers together contract by at most e^3.5 and stretch by at most e^10.
References: Dinh, Krueger & Bengio, NICE, ICLR 2015 workshop; Dinh, Sohl-Dickstein & Bengio, Density Estimation using
Real NVP, ICLR 2017. Sizes published for tables: 5 or 10 layers, one or two hidden layers of 100 to 1024 units.
"""

from __future__ import annotations

from typing import Any

from rosenblatt.bases import choose
from rosenblatt.conditioners.coupling import Coupling
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.additive import Additive
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.scaling import ActNorm


@register(
    "realnvp",
    summary="affine couplings (or additive ones: NICE); density and samples in one pass each",
    citation=(
        "Dinh, Sohl-Dickstein & Bengio, Density Estimation using Real NVP, ICLR 2017; "
        "Dinh, Krueger & Bengio, NICE: Non-linear Independent Components Estimation, ICLR 2015 workshop."
    ),
    facts=Facts(
        formula=r"z_B = (x_B - t(x_A))\, e^{-s(x_A)}, \quad z_A = x_A",
        forward="1 pass a layer",
        inverse="1 pass a layer",
        determinant="D",
        universal="in a weak sense, by layers",
    ),
)
def realnvp(
    features: int,
    context: int = 0,
    *,
    additive: bool = False,
    transforms: int = 8,
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
    base: str = "normal",
) -> Flow:
    """Build a RealNVP for `features` columns, or NICE with `additive`; even and odd columns condition in turn.

    With `residual=False`, `blocks` counts plain hidden layers. `base` is a name known to `rosenblatt.bases.choose`
    ("resampled": Stimper et al. 2022). Raises `OptionError` for another or for sizes that make no model.

    >>> import torch
    >>> realnvp(3, transforms=2, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    steps: list[Transform] = []
    for number in range(transforms):
        elementwise: Elementwise = Additive() if additive else Affine.one_of(transforms)
        conditioner = Coupling(
            features,
            elementwise.spec.size,
            mask="odd" if number % 2 else "even",
            hidden=hidden,
            blocks=blocks,
            context=context,
            dropout=dropout,
            residual=residual,
        )
        steps.append(Conditional(elementwise, conditioner))
    if additive:
        steps.append(ActNorm(features))
    return Flow(Compose(steps), choose(base, features, context), context=context)


def paper_config(dataset: str) -> dict[str, Any]:
    """Return the options and training settings published for RealNVP(5) on one of the five UCI tables.

    As run by Papamakarios et al. (2017): Adam at a constant 1e-4, batches of 100, weight decay 1e-6, patience of 30
    epochs; batch normalisation and the tanh in the networks of the scales are left out.
    """
    sizes = {"power": 100, "gas": 100, "hepmass": 512, "miniboone": 512, "bsds300": 1024}
    if dataset not in sizes:
        raise OptionError(f"dataset: '{dataset}' came; settings are known for {', '.join(sizes)}.")
    return {
        "model": {"transforms": 5, "hidden": sizes[dataset], "blocks": 2, "residual": False},
        "fit": {"learning_rate": 1e-4, "schedule": "constant", "batch_size": 100},
    }
