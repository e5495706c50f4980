"""UMNN, the unconstrained monotonic neural network: every coordinate through the integral of a positive network.

A masked network emits, from the coordinates before, the weights of a small positive network g of one number; the
coordinate is its integral, by quadrature, and the order turns around between transforms:

    z_i = c_i(x_<i) + int_0^{x_i} g(t; x_<i) dt,   g > 0,   log p(x) = log N(z; 0, 1) + sum of log dz_i/dx_i

Exact: density (the derivative of the quadrature that runs, so the mass is one whatever the quadrature's error);
sampling (a root search). The publication takes log g for the log-derivative of a sum that is not quite its integral,
and lets one integrand network see an embedding of the coordinates before; here the network that looks back emits the
integrand's weights, sums run over fixed cells, and beyond |x| = bound (standardised columns) the map is a line.
Reference: Wehenkel & Louppe, Unconstrained Monotonic Neural Networks, NeurIPS 2019.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose
from rosenblatt.elementwise.integral import IntegratedNet
from rosenblatt.layers.autoregressive import alternating


@register(
    "umnn",
    summary="autoregressive integrals of positive networks, with the density of the quadrature that runs",
    citation="Wehenkel & Louppe, Unconstrained Monotonic Neural Networks, NeurIPS 2019.",
    facts=Facts(
        formula=r"z_i = b_i(x_{<i}) + \int_0^{x_i} f(t; x_{<i})\, dt, \quad f > 0",
        forward="1 pass, times the quadrature nodes for the small network",
        inverse="1 pass in all and D root searches a layer",
        determinant="D",
        universal="yes, by units",
    ),
)
def umnn(
    features: int,
    context: int = 0,
    *,
    transforms: int = 2,
    units: int = 16,
    bound: float = 4.0,
    cells: int = 24,
    nodes: int = 4,
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
    activation: str = "relu",
) -> Flow:
    """Build a UMNN for `features` columns: integrands of `units`, summed over `cells` of `nodes` points each.

    With `residual=False`, `blocks` counts plain hidden layers. Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> umnn(3, transforms=1, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    maps = [IntegratedNet(units, bound=bound, cells=cells, nodes=nodes) for _ in range(transforms)]
    stack = alternating(
        maps,
        features,
        context,
        hidden=hidden,
        blocks=blocks,
        residual=residual,
        dropout=dropout,
        activation=activation,
    )
    return Flow(Compose(stack), StandardNormal(features), context=context)
