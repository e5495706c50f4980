"""A Gaussian mixture over whole vectors as a flow: density in one sum, Rosenblatt transform column by column."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.bases import StandardNormal
from rosenblatt.conditioners.gaussian_mixture import GaussianMixtureConditionals, MixtureSource
from rosenblatt.core.density import Flow
from rosenblatt.elementwise.normal_mixture import NormalMixture
from rosenblatt.layers.conditional import Conditional


class _MixtureLayer(Conditional):
    """The Rosenblatt transform to the normal scale, starting from rows where its source does."""

    conditioner: GaussianMixtureConditionals

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Let the source take its starting values from rows."""
        with torch.no_grad():
            self.conditioner.source.initialise(x, context, weight)


class GaussianMixtureFlow(Flow):
    """`p(x | c) = sum_k w_k(c) N(x; m_k(c), S_k(c))` as a flow to the standard normal.

    The log-density is the sum itself. Samples, CDFs and quantiles come from the conditionals of the columns, each a
    mixture of normals; `transform` and `base` give the same density, to rounding.
    """

    transform: _MixtureLayer

    def __init__(self, source: MixtureSource) -> None:
        layer = _MixtureLayer(NormalMixture(source.components), GaussianMixtureConditionals(source))
        super().__init__(layer, StandardNormal(source.features), context=source.context)

    def _log_prob_at_once(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.transform.conditioner.log_prob(x, context)
