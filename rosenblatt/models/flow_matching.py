"""Flow matching: a continuous flow whose velocity is learned by regression, and whose density is exact all the same.

Training needs no solver: a data row and a noise vector are joined by a straight path, and the network learns the
velocity of the path at a random time. Averaged over all paths through a point, this is a field that carries the data
to the noise; the density follows it as in FFJORD:

    v = argmin E |v((1 - t) x + t e, t) - (e - x)|^2,   dz/dt = v(z, t),   log p(x) = log N(z(1)) + int tr(dv/dz) dt

What runs is a fixed number of Runge-Kutta steps, and the density of that map is exact, as are samples (steps undone
one by one). The training loss is no likelihood, so validation during a fit is in its own unit; scores are in nats.
References: Lipman, Chen, Ben-Hamu, Nickel & Le, Flow Matching for Generative Modeling, ICLR 2023; Tong et al.,
Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, TMLR 2024. Time runs from data
to base here, the other way round than there.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.core.density import Flow
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose
from rosenblatt.layers.continuous import ContinuousFlow
from rosenblatt.layers.scaling import ActNorm
from rosenblatt.layers.velocity import VelocityNet
from rosenblatt.objectives.flow_matching import FlowMatching


@register(
    "flow_matching",
    summary="a continuous flow trained by regression on straight paths; cheap steps, dear but exact scores",
    citation=(
        "Lipman, Chen, Ben-Hamu, Nickel & Le, Flow Matching for Generative Modeling, ICLR 2023; Tong et al., Improving "
        "and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, TMLR 2024."
    ),
    facts=Facts(
        formula=r"\frac{dz}{dt} = v(z, t), \quad v = \arg\min E |v(z_t, t) - (\epsilon - x)|^2",
        forward="4 N passes (N steps); training 1 pass",
        inverse="about 28 N passes",
        determinant="4 N D passes and N determinants; none in training",
        universal="no (keeps topology)",
    ),
)
def flow_matching(
    features: int,
    context: int = 0,
    *,
    hidden: int = 128,
    layers: int = 3,
    activation: str = "silu",
    coupling: str = "independent",
    sigma: float = 0.0,
    steps: int = 12,
    solver: str = "rk4",
    tolerance: float | None = None,
) -> Flow:
    """Build a continuous flow for `features` columns that is trained by `FlowMatching(sigma=, coupling=)`.

    `layers` layers of `hidden` units with `activation` "silu", "tanh" or "softplus"; `steps`, `solver` and `tolerance`
    are those of `ContinuousFlow`, and do not enter training. Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> flow_matching(3, hidden=16, steps=2).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    velocity = VelocityNet(features, context, hidden=hidden, layers=layers, activation=activation)
    flow = ContinuousFlow(velocity, steps=steps, solver=solver, trace="exact", tolerance=tolerance)
    # Columns are standardised by the first rows; the objective has no gradient that would move that.
    scaling = ActNorm(features).requires_grad_(False)
    model = Flow(Compose([scaling, flow]), StandardNormal(features), context=context)
    model.objective = FlowMatching(sigma=sigma, coupling=coupling)
    return model
