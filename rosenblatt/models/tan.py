"""TAN, the transformation autoregressive network: linear and recurrent layers in front of mixture conditionals.

Simple invertible layers turn the columns into others whose conditionals are easier, and an autoregressive model with a
mixture for every conditional does the rest; both are driven by a recurrent network along the columns:

    x -> P L U x -> z_i = f(x_i; s_{i-1}), s_i = GRU(s_{i-1}, x_i) -> .. -> prod_i sum_k w_k p_k(z_i),  w, p of z_<i

Exact: density (one pass, a step of the network for each column); sampling (one column after the other, a root search
each in the mixtures). f is a shift, or a scale and a leaky bend; the published bend is sharp, this one smooth. The
mixtures come from a recurrent network (RAM) or, in place of the linear model with weights for each column (LAM), from a
masked one; their published components are Gaussian, here logistic, whose CDF is closed.
Reference: Oliva, Dubey, Zaheer, Poczos, Salakhutdinov, Xing & Schneider, Transformation Autoregressive Networks,
ICML 2018.
"""

from __future__ import annotations

from rosenblatt.bases import StandardLogistic
from rosenblatt.conditioners.base import Conditioner
from rosenblatt.conditioners.masked import Masked
from rosenblatt.conditioners.recurrent import Recurrent
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.additive import Additive
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
from rosenblatt.elementwise.simple import TwoSlopes
from rosenblatt.elementwise.stacked import Stacked
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.orthogonal import mixing


@register(
    "tan",
    summary="linear and recurrent layers in front of mixture conditionals; few weights for many columns",
    citation=(
        "Oliva, Dubey, Zaheer, Poczos, Salakhutdinov, Xing & Schneider, Transformation Autoregressive Networks, "
        "ICML 2018, PMLR 80:3898-3907."
    ),
    facts=Facts(
        formula=r"z_i = f(x_i; s_{i-1}), \quad s_i = \mathrm{GRU}(s_{i-1}, x_i), \quad \textstyle\sum_k w_k p_k(z_i)",
        forward="D steps a layer",
        inverse="D steps a layer, D root searches",
        determinant="D",
        universal="yes, by components",
    ),
)
def tan(
    features: int,
    context: int = 0,
    *,
    transforms: int = 2,
    recurrence: str = "leaky",
    state: int = 32,
    components: int = 10,
    conditionals: str = "recurrent",
    linear: str = "plu",
    hidden: int = 128,
    blocks: int = 2,
) -> Flow:
    """Build a transformation autoregressive network for `features` columns.

    `transforms` pairs of a linear and a recurrent layer, whose map is a "shift" or "leaky" (shift, scale and two
    slopes), from a state of `state` numbers; then a linear layer and mixtures of `components` logistics, `conditionals`
    from a network that is "recurrent" (of the same state) or "masked" (`hidden` units in `blocks` residual blocks).
    `linear` is "plu" (random permutation and LU factors, as published) or another of Glow's. Raises `OptionError` for
    other names or sizes that make no model.

    >>> import torch
    >>> tan(3, transforms=1, state=8, components=4).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 0:
        raise OptionError(f"transforms: {transforms} came, an integer >= 0 was expected (0: the mixtures alone).")
    if recurrence not in ("shift", "leaky"):
        raise OptionError(f"recurrence: '{recurrence}' came, 'shift' or 'leaky' was expected.")
    if conditionals not in ("recurrent", "masked"):
        raise OptionError(f"conditionals: '{conditionals}' came, 'recurrent' or 'masked' was expected.")
    steps: list[Transform] = []
    for _ in range(transforms):
        bend: Elementwise = Additive()
        if recurrence == "leaky":
            bend = Stacked([Affine.one_of(transforms), TwoSlopes()])
        recurrent = Recurrent(features, bend.spec.size, hidden=state, context=context)
        steps.extend([*mixing(linear, features), Conditional(bend, recurrent)])
    mixture = LogisticMixture(components)
    conditioner: Conditioner
    if conditionals == "recurrent":
        conditioner = Recurrent(features, mixture.spec.size, hidden=state, context=context)
    else:
        conditioner = Masked(features, mixture.spec.size, hidden=hidden, blocks=blocks, context=context)
    steps.extend([*mixing(linear, features), Conditional(mixture, conditioner)])
    return Flow(Compose(steps), StandardLogistic(features), context=context)
