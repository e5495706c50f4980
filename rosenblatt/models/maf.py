"""MAF, the masked autoregressive flow: a stack of affine layers whose shifts and scales are autoregressive.

Each layer standardises every coordinate given the ones before it; the order turns around between layers, so that no
coordinate stays first for all of them:

    z_i = (x_i - mu_i(x_<i)) exp(s_i(x_<i)),   log p(x) = log N(z; 0, 1) + sum over layers and i of s_i

Exact: density (one pass), sampling (level by level). The log-scales are smoothly bounded so that all layers together
contract by at most e^3.5 and stretch by at most e^10, which keeps float32 samples and round trips honest.
MAF-MoG (`components` > 0) puts a MADE whose conditionals are mixtures behind the stack, in place of the normal base;
the published mixtures are Gaussian, these are logistic, whose CDF is closed.
Reference: Papamakarios, Pavlakou & Murray, Masked Autoregressive Flow for Density Estimation, NeurIPS 2017.
Published sizes: 5 or 10 layers, one or two hidden layers of 100 (POWER, GAS) to 1024 units, no residual blocks, batch
normalisation (`batch_norm`) behind every layer.
"""

from __future__ import annotations

from typing import Any

from rosenblatt.bases import StandardLogistic, choose
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import Facts, register
from rosenblatt.core.transform import Compose, Transform
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
from rosenblatt.layers.autoregressive import alternating
from rosenblatt.layers.batch_norm import BatchNorm


@register(
    "maf",
    summary="stacked autoregressive shifts and scales; fast density, a strong classic",
    citation="Papamakarios, Pavlakou & Murray, Masked Autoregressive Flow for Density Estimation, NeurIPS 2017.",
    facts=Facts(
        formula=r"z_i = (x_i - \mu_i(x_{<i}))\, e^{-\alpha_i(x_{<i})}",
        forward="1 pass a layer",
        inverse="1 pass in all a layer, level by level",
        determinant="D",
        universal="open with a Gaussian base; yes with mixtures, by components",
    ),
)
def maf(
    features: int,
    context: int = 0,
    *,
    transforms: int = 5,
    hidden: int = 128,
    blocks: int = 2,
    residual: bool = True,
    dropout: float = 0.0,
    activation: str = "relu",
    components: int = 0,
    batch_norm: bool = False,
    parts: int | None = None,
    base: str = "normal",
) -> Flow:
    """Build a MAF for `features` columns; with `residual=False`, `blocks` counts plain hidden layers as published.

    With `components` (published: 10) a MADE with mixtures of so many logistics closes the stack, its order turned
    around once more, and its base is logistic; else `base` is a name known to `rosenblatt.bases.choose`. With
    `batch_norm` (as published) batch normalisation follows every affine layer; wherever the density is used, its
    statistics are those of all training rows. With `parts` the columns come in so many groups, each mapped given the
    groups before it: 2 make a coupling, `features` (default) the autoregressive flow, and a sample takes as many solves
    as there are parts. Raises `OptionError` for another base, a base with components, or sizes that make no model.

    >>> import torch
    >>> maf(3, transforms=2, hidden=16).log_prob(torch.zeros(4, 3)).shape
    torch.Size([4])
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    if components < 0:
        raise OptionError(f"components: {components} came, an integer >= 0 was expected (0: no mixture).")
    if components and base != "normal":
        raise OptionError(f"base: '{base}' came with components={components}, whose base is logistic; leave one out.")
    maps: list[Elementwise] = [Affine.one_of(transforms) for _ in range(transforms)]
    if components:
        maps.append(LogisticMixture(components))
    layers = alternating(
        maps,
        features,
        context,
        hidden=hidden,
        blocks=blocks,
        residual=residual,
        dropout=dropout,
        activation=activation,
        parts=parts,
    )
    steps: list[Transform] = []
    for number, layer in enumerate(layers):
        steps.append(layer)
        if batch_norm and number < transforms:
            steps.append(BatchNorm(features))
    noise = StandardLogistic(features) if components else choose(base, features, context)
    return Flow(Compose(steps), noise, context=context)


def paper_config(dataset: str) -> dict[str, Any]:
    """Return the published options and training settings of MAF(5) for one of the five UCI tables.

    Adam at a constant 1e-4, batches of 100, weight decay 1e-6, patience of 30 epochs.
    """
    sizes = {"power": 100, "gas": 100, "hepmass": 512, "miniboone": 512, "bsds300": 1024}
    if dataset not in sizes:
        raise OptionError(f"dataset: '{dataset}' came; settings are known for {', '.join(sizes)}.")
    return {
        "model": {
            "transforms": 5,
            "hidden": sizes[dataset],
            "blocks": 2,
            "residual": False,
            "activation": "tanh" if dataset == "gas" else "relu",
            "batch_norm": True,
        },
        "fit": {"learning_rate": 1e-4, "schedule": "constant", "batch_size": 100},
    }
