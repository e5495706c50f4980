"""Stacks of couplings, even and odd columns conditioning in turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rosenblatt.conditioners.coupling import Coupling
from rosenblatt.elementwise.base import Elementwise
from rosenblatt.layers.conditional import Conditional


def couplings(
    maps: Iterable[Elementwise],
    features: int,
    context: int,
    *,
    hidden: int,
    blocks: int,
    dropout: float,
    residual: bool = True,
    angles: Sequence[int] = (),
) -> list[Conditional]:
    """One coupling for each of `maps`, with a network of its own.

    The first conditions odd columns (1, 3, ..) on even ones, the next the other way round. Columns in `angles` enter
    the networks as cosine and sine. Raises `OptionError` for sizes that make no network.

    >>> from rosenblatt.elementwise.affine import Affine
    >>> stack = couplings([Affine(), Affine()], 3, 0, hidden=8, blocks=1, dropout=0.0)
    >>> [[level.tolist() for level in layer.conditioner.levels] for layer in stack]
    [[[0, 2], [1]], [[1], [0, 2]]]
    """
    layers = []
    for number, elementwise in enumerate(maps):
        conditioner = Coupling(
            features,
            elementwise.spec.size,
            mask="odd" if number % 2 else "even",
            hidden=hidden,
            blocks=blocks,
            context=context,
            dropout=dropout,
            residual=residual,
            angles=angles,
        )
        layers.append(Conditional(elementwise, conditioner))
    return layers
