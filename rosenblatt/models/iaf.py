"""IAF, the inverse autoregressive flow: a MAF turned around, so that samples come in one pass.

Shifts and scales are autoregressive in the noise, which is all there at once when a sample is drawn; the order turns
around between layers:

    x_i = (z_i - mu_i(z_<i)) exp(s_i(z_<i)),   log p(x) = log N(z; 0, 1) - sum over layers and i of s_i

Cheap: `sample` and `sample_and_log_prob`, one network pass per layer, differentiable in the weights; made for
variational inference, where only own samples are scored. Dear: `log_prob` of given rows and maximum likelihood, which
invert each layer level by level (one level per column). Exact: all of them.
Reference: Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling, Improved Variational Inference with Inverse
Autoregressive Flow, NeurIPS 2016; the ungated form. Published sizes: 2 to 8 layers, two hidden layers of 320 to 1920.
"""

from __future__ import annotations

from rosenblatt.bases import StandardNormal
from rosenblatt.conditioners.independent import Independent
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Inverse
from rosenblatt.elementwise.affine import Affine
from rosenblatt.layers.autoregressive import alternating
from rosenblatt.layers.conditional import Conditional


@register(
    "iaf",
    summary="autoregressive in the noise: samples in one pass, density level by level; for variational inference",
    citation=(
        "Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling, Improved Variational Inference with Inverse "
        "Autoregressive Flow, NeurIPS 2016."
    ),
    facts=Facts(
        formula=r"x_i = \mu_i(z_{<i}) + \sigma_i(z_{<i})\, z_i",
        forward="1 pass in all a layer, level by level",
        inverse="1 pass a layer",
        determinant="D",
        universal="no (affine)",
    ),
)
def iaf(
    features: int,
    context: int = 0,
    *,
    transforms: int = 4,
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
    activation: str = "relu",
) -> Flow:
    """Build an IAF for `features` columns; with `residual=False`, `blocks` counts plain hidden layers as published.

    `transforms=0` leaves the Gaussian with independent columns that the method starts from (mean field); `hidden=0`
    makes shifts and scales linear, one such layer being at least a Gaussian with full covariance.
    Towards the base all layers together contract by at most e^3.5 and stretch by at most e^10, as in a MAF.
    Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> x, log_prob = iaf(3, transforms=2, hidden=16).sample_and_log_prob(4)
    >>> x.shape, log_prob.shape
    (torch.Size([4, 3]), torch.Size([4]))
    """
    if transforms < 0:
        raise OptionError(f"transforms: {transforms} came, an integer >= 0 was expected (0: independent columns).")
    if transforms == 0:
        elementwise = Affine.one_of(1)
        free = Independent(
            features,
            elementwise.spec.size,
            context=context,
            hidden=hidden,
            blocks=blocks,
            dropout=dropout,
            residual=residual,
        )
        return Flow(Conditional(elementwise, free), StandardNormal(features), context=context)
    maps = [Affine.one_of(transforms, backwards=True) for _ in range(transforms)]
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
    return Flow(Compose(Inverse(layer) for layer in stack), StandardNormal(features), context=context)
