"""Stacks of autoregressive layers, whose order is turned around from one to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rosenblatt.conditioners.base import Conditioner
from rosenblatt.conditioners.linear import LinearMasked
from rosenblatt.conditioners.masked import Masked
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.layers.conditional import Conditional


def alternating(
    maps: Iterable[Elementwise],
    features: int,
    context: int,
    *,
    hidden: int,
    blocks: int,
    residual: bool,
    dropout: float,
    activation: str,
    parts: int | None = None,
    angles: Sequence[int] = (),
) -> list[Conditional]:
    """One layer for each of `maps`, its parameters from a masked network of its own; a linear one for `hidden=0`.

    Layers in one order would add up to a single one; turned around, each column comes to see every other. With `parts`
    the columns of a layer come in so many runs that see the runs before. Columns in `angles` enter the networks as
    cosine and sine. Raises `OptionError` for sizes that make no network.

    >>> from rosenblatt.elementwise.affine import Affine
    >>> net = {"hidden": 8, "blocks": 2, "residual": False, "dropout": 0.0, "activation": "relu"}
    >>> [layer.conditioner.order.tolist() for layer in alternating([Affine(), Affine()], 3, 0, **net)]
    [[0, 1, 2], [2, 1, 0]]
    """
    order = list(range(features))
    layers = []
    for elementwise in maps:
        conditioner: Conditioner
        if hidden == 0 and parts is None and not angles:
            conditioner = LinearMasked(features, elementwise.spec.size, context=context, order=order)
        else:
            conditioner = Masked(
                features,
                elementwise.spec.size,
                hidden=hidden,
                blocks=blocks,
                context=context,
                dropout=dropout,
                residual=residual,
                order=order,
                activation=activation,
                parts=parts,
                angles=angles,
            )
        layers.append(Conditional(elementwise, conditioner))
        order = order[::-1]
    return layers
