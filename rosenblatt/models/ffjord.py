"""FFJORD, a free-form continuous flow: data drift along a learned velocity field until they are noise.

A network v without any constraint moves every point for one unit of time; the log-density changes at the rate of its
divergence:

    dz/dt = v(z, t),  z(0) = x,   log p(x) = log N(z(1); 0, 1) + integral of tr(dv/dz) dt

What runs is a fixed number of Runge-Kutta steps. Exact: the density of that map (`features` passes a stage beside the
one of the value), and sampling (steps undone one by one, to a residual). Beyond 8 columns the training loss estimates
the integral of the trace by one random vector, as published; validation and scores are exact always. The estimate
belongs to the field, not to the steps, and a field may learn to be too fast for them: validation then falls behind
the training score, or is refused where steps fold space. The exact loss keeps away from that by itself; else take more
steps, or `kinetic` and `jacobian`, which penalise long and winding paths (`EnergyPenalty`, Finlay et al. 2020).
References: Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud, FFJORD, ICLR 2019; Finlay, Jacobsen, Nurbekyan &
Oberman, How to Train Your Neural ODE, ICML 2020. The published solver is adaptive; a field trained here should be
judged by the same number of steps.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.layers.continuous import ContinuousFlow
from rosenblatt.layers.scaling import ActNorm
from rosenblatt.layers.velocity import VelocityNet
from rosenblatt.objectives.energy import EnergyPenalty

EXACT_COLUMNS = 8  # up to so many the exact determinant is worth its passes in training


@register(
    "ffjord",
    summary="a free velocity field carries data to noise; continuous in time, smooth, no masks or orders",
    citation=(
        "Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud, FFJORD: Free-form Continuous Dynamics for Scalable "
        "Reversible Generative Models, ICLR 2019."
    ),
    facts=Facts(
        formula=r"\frac{dz}{dt} = v(z, t), \quad \frac{d \log p}{dt} = -\mathrm{tr} \frac{\partial v}{\partial z}",
        forward="4 N passes (N steps)",
        inverse="about 28 N passes",
        determinant="4 N D passes and N determinants; 4 N passes in training where estimated",
        universal="no (keeps topology)",
    ),
)
def ffjord(
    features: int,
    context: int = 0,
    *,
    transforms: int = 1,
    hidden: int = 64,
    layers: int = 3,
    activation: str = "tanh",
    steps: int = 8,
    solver: str = "rk4",
    trace: str | None = None,
    tolerance: float | None = None,
    kinetic: float = 0.0,
    jacobian: float = 0.0,
) -> Flow:
    """Build a continuous flow for `features` columns: `transforms` fields, each with `steps` steps and `layers` layers.

    `activation` is "tanh", "softplus" or "silu"; `solver`, `trace` and `tolerance` are those of `ContinuousFlow`, with
    the trace "exact" up to 8 columns and "auto" (an estimate in training) beyond, unless it is given. `kinetic` and
    `jacobian` weigh the penalties of the training loss. Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> ffjord(3, hidden=16, steps=2).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    if trace is None:
        trace = "exact" if features <= EXACT_COLUMNS else "auto"
    parts: list[Transform] = []
    for number in range(transforms):
        velocity = VelocityNet(features, context, hidden=hidden, layers=layers, activation=activation)
        flow = ContinuousFlow(velocity, steps=steps, solver=solver, trace=trace, tolerance=tolerance, seed=number)
        parts += [ActNorm(features), flow]
    model = Flow(Compose(parts), StandardNormal(features), context=context)
    if kinetic or jacobian:
        model.objective = EnergyPenalty(kinetic=kinetic, jacobian=jacobian)
    return model
