"""ELF, the exact-Lipschitz flow: a stack of autoregressive residual layers with an exact density.

Each coordinate is moved by a one-layer network whose weights a masked network emits from the coordinates before it.
Its Lipschitz constant is known in closed form and kept below 1, so a layer is invertible as in a residual flow, but
the Jacobian is triangular and the log-determinant exact, without a power series:

    z_i = x_i + g_i(x_i; x_<i),   |g_i'| < c < 1,   log p(x) = log N(z; 0, 1) + sum over layers and i of log(1 + g_i')

Exact: density (one pass), sampling (a root search, level by level). A shift and scale per column that standardises what
reaches it stands before every layer and after the last. One layer stretches by at most 1 + c and contracts by at
least 1 - c, so strong deformations need several.
Reference: Gopal, ELF: Exact-Lipschitz Based Universal Density Approximator Flow, 2021.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.elf import ExactLipschitz
from rosenblatt.layers.autoregressive import alternating
from rosenblatt.layers.scaling import ActNorm


@register(
    "elf",
    summary="autoregressive residual layers with an exact Lipschitz constant below one; smooth, exact density",
    citation="Gopal, ELF: Exact-Lipschitz Based Universal Density Approximator Flow, arXiv:2112.06997, 2021.",
    facts=Facts(
        formula=r"z_i = x_i + g_i(x_i; x_{<i}), \quad |g_i'| < c < 1",
        forward="1 pass a layer",
        inverse="1 pass in all and D root searches a layer",
        determinant="D",
        universal="yes, by layers",
    ),
)
def elf(
    features: int,
    context: int = 0,
    *,
    transforms: int = 4,
    units: int = 32,
    unit: str = "tanh",
    lipschitz: float = 0.97,
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
    activation: str = "relu",
) -> Flow:
    """Build an exact-Lipschitz flow for `features` columns.

    `units` is the width of each one-layer network and `unit` its activation: "tanh", "softplus" or "relu" (whose
    constant is exact, but which learns worse by likelihood). `activation` is that of the masked network; with
    `residual=False`, `blocks` counts plain hidden layers. Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> elf(3, transforms=2, units=8, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    maps = [ExactLipschitz(units, unit=unit, lipschitz=lipschitz) for _ in range(transforms)]
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
    steps: list[Transform] = [step for layer in stack for step in (ActNorm(features), layer)]
    steps.append(ActNorm(features))
    return Flow(Compose(steps), StandardNormal(features), context=context)
