"""Contractive residual layers: the identity plus a network that cannot stretch."""

from __future__ import annotations

import torch
from torch import Tensor

from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Likelihood, Mapped
from rosenblatt.layers.contraction import BoundNet, Contraction, Pass
from rosenblatt.layers.searched import Searched
from rosenblatt.layers.traces import Probes, log_det_by_series, roulette, signs

LOG_DETS = ("auto", "exact", "unbiased", "truncated")
EXACT_FEATURES = 16  # "auto" trains with the exact determinant up to here, where it costs little more than an estimate


class Contractive(Searched[Pass]):
    """`y = x + g(x)` with a `Contraction` g: invertible because g cannot stretch; starts nearly as the identity.

    In eval mode `log_det = log det(1 + dg/dx)` is exact, from the Jacobian: features tangents through the network and a
    factorisation. In training `log_det` says what it is:

    - "exact": the same;
    - "unbiased": the power series `sum_k (-1)^(k+1) tr(J^k) / k` with random signs for the traces, `terms` of them and
      further ones with probability `survival` each (Chen et al. 2019). Its variance is finite for all weights if
      `survival` > `lipschitz`^2; in practice networks contract more than they must;
    - "truncated": `terms` terms, biased by at most `features sum_(k > terms) lipschitz^k / k` (Behrmann et al. 2019);
    - "auto": "exact" up to 16 features, "unbiased" beyond.

    The inverse is a Newton search, and raises `InverseError` where that fails. With `context`, a network of it emits
    the biases of g. Raises `OptionError` for another `log_det` or `unit`, sizes below 1, `lipschitz` or `survival`
    outside (0, 1).
    References: Behrmann, Grathwohl, Chen, Duvenaud & Jacobsen, Invertible Residual Networks, ICML 2019;
    Chen, Behrmann, Duvenaud & Jacobsen, Residual Flows for Invertible Generative Modeling, NeurIPS 2019.

    >>> layer = Contractive(2, hidden=8)
    >>> x = torch.tensor([1.0, 2.0])
    >>> (layer.inverse(layer(x).value).value - x).abs().max().item() < 1e-6
    True
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: int = 64,
        depth: int = 2,
        lipschitz: float = 0.97,
        unit: str = "lipswish",
        dense: bool = False,
        log_det: str = "auto",
        terms: int = 4,
        survival: float = 0.5,
        context: int = 0,
    ) -> None:
        if log_det not in LOG_DETS:
            raise OptionError(f"log_det: '{log_det}' came, one of {', '.join(map(repr, LOG_DETS))} was expected.")
        if terms < 1:
            raise OptionError(f"terms: {terms} came, an integer >= 1 was expected.")
        if not 0 < survival < 1:
            raise OptionError(f"survival: {survival} came, a probability between 0 and 1 was expected.")
        net = Contraction(features, hidden=hidden, depth=depth, lipschitz=lipschitz, unit=unit, dense=dense)
        super().__init__(net.shifts, context, hidden)
        self.net = net
        self.probes = Probes()
        trained = "exact" if features <= EXACT_FEATURES else "unbiased"
        self.log_det = trained if log_det == "auto" else log_det
        self.terms, self.survival = terms, survival
        self.conditioner.start_at(torch.cat([torch.randn(depth * hidden), torch.zeros(features)]))

    @property
    def likelihood(self) -> Likelihood:
        """Exact, except in training with an estimate of the log-determinant."""
        return Likelihood.ESTIMATE if self.training and self.log_det != "exact" else Likelihood.EXACT

    def placed(self, theta: Tensor, dtype: torch.dtype) -> BoundNet:
        """The network with these biases."""
        return self.net.at(theta, dtype)

    def mapped(self, run: Pass) -> Mapped:
        """Value and log-determinant of one pass."""
        if self.likelihood is Likelihood.EXACT:
            return Mapped(run.value, torch.linalg.slogdet(run.jacobian()).logabsdet)
        generator = self.probes.generator()
        probe = signs(run.value, generator)
        weights = [1.0] * self.terms
        if self.log_det == "unbiased":
            weights = roulette(generator, self.terms, self.survival)
        return Mapped(run.value, log_det_by_series(run.pull, probe, weights))
