"""The Bernstein flow: increasing polynomials in Bernstein form, autoregressive or by coupling.

Each step bends every coordinate by a polynomial whose increasing coefficients a network emits; the order turns around
between steps (coupling: the halves change places):

    y_i = sum_k c_ik(x_<i) C(n, k) t_i^k (1 - t_i)^(n - k),   t_i = (x_i + bound) / (2 bound)

Exact: density (one pass) and sampling (a root search per coordinate). Outside [-bound, bound] a polynomial goes on as a
straight line with the slope of its end, so tails are those of the base up to scale. One step without columns before it
is the unconditional transformation model.
References: Ramasinghe, Fernando, Khan & Barnes, Robust Normalizing Flows Using Bernstein-type Polynomials, BMVC 2022;
Sick, Hothorn & Dürr, Deep Transformation Models, ICPR 2020.
"""

from __future__ import annotations

from typing import Any

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose
from rosenblatt.elementwise.bernstein import BernsteinPolynomial
from rosenblatt.layers.autoregressive import alternating
from rosenblatt.layers.couplings import couplings


@register(
    "bernstein",
    summary="increasing Bernstein polynomials, autoregressive or coupling; smooth densities, robust by design",
    citation="Ramasinghe, Fernando, Khan & Barnes, Robust Normalizing Flows Using Bernstein-type Polynomials, "
    "BMVC 2022.",
    facts=Facts(
        formula=r"z_i = \sum_k \theta_{ik}(x_{<i})\, B_k^n(x_i)",
        forward="1 pass",
        inverse="1 pass in all, D root searches; coupling: 2 passes",
        determinant="D",
        universal="yes, by degree (autoregressive)",
    ),
)
def bernstein(
    features: int,
    context: int = 0,
    *,
    coupling: bool = False,
    transforms: int = 3,
    degree: int = 16,
    bound: float = 5.0,
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
) -> Flow:
    """Build a Bernstein flow for `features` columns.

    With `residual=False`, `blocks` counts plain hidden layers. Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> bernstein(3, transforms=2, hidden=16, degree=8).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    maps = [BernsteinPolynomial(degree=degree, bound=bound) for _ in range(transforms)]
    net: dict[str, Any] = {"hidden": hidden, "blocks": blocks, "residual": residual, "dropout": dropout}
    if coupling:
        steps = couplings(maps, features, context, **net)
    else:
        steps = alternating(maps, features, context, activation="relu", **net)
    return Flow(Compose(steps), StandardNormal(features), context=context)
