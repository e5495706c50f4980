"""PixelCNN++: a causal convolutional network whose outputs are a mixture of logistics for every pixel.

    P(x) = prod_i sum_k w_ik [ s(a_ik (u(x_i) - m_ik)) - s(a_ik (l(x_i) - m_ik)) ],   w, a, m functions of x_<i

in the order of reading, the channels of a pixel one after the other. With `levels` the model is one of whole numbers,
and `log_prob` their exact log-probability; without, it is a continuous density. The network is that of `nits_conv`.
Exact: probabilities, CDFs, sampling (one pass from pixel to pixel in all).
Reference: Salimans, Karpathy, Chen & Kingma, PixelCNN++, ICLR 2017. There the channels of a pixel share one mixture
whose means are linear in earlier channels; here the whole mixture of a channel depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence

from rosenblatt.core.density import Density
from rosenblatt.core.registry import Facts, register
from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
from rosenblatt.layers.pixels import pixels


@register(
    "pixelcnn_mol",
    summary="PixelCNN++: mixtures of logistics for pixels, from causal convolutions; exact probabilities of levels",
    citation="Salimans, Karpathy, Chen & Kingma, PixelCNN++, ICLR 2017.",
    facts=Facts(
        formula=r"z_i = \mathrm{logit} \sum_k \pi_k\, \sigma((x_i - \mu_k) / s_k), \quad (\pi, \mu, s)(x_{<i})",
        forward="1 pass",
        inverse="1 pass in all, D root searches",
        determinant="D",
        universal="yes, by components",
    ),
)
def pixelcnn_mol(
    features: int,
    context: int = 0,
    *,
    image: Sequence[int] | None = None,
    levels: int | None = None,
    components: int = 10,
    filters: int = 32,
    blocks: int = 1,
    stages: int = 1,
    heads: int = 0,
    dropout: float = 0.0,
    patch: int = 1,
) -> Density:
    """Build a PixelCNN++ for images, rows of `features` numbers in the order channel, row, column.

    `image` is [channels, height, width]; without it a row is a line of pixels. `levels` makes it a model of whole
    numbers 0 .. levels - 1 (256 for images of 8 bits); without, of continuous numbers of about unit scale.
    `filters`, `blocks`, `stages`, `heads` (of attention), `dropout` and `patch` are those of the convolutional network,
    `PixelCNN`. Raises `OptionError` for sizes that make no model.

    >>> import torch
    >>> model = pixelcnn_mol(12, image=[3, 2, 2], levels=256, filters=8)
    >>> model.sample(5, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5, 12])
    """
    return pixels(
        LogisticMixture(components),
        features,
        context,
        image=image,
        levels=levels,
        filters=filters,
        blocks=blocks,
        stages=stages,
        heads=heads,
        dropout=dropout,
        patch=patch,
    )
