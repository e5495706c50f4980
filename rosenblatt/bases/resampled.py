"""A normal base with holes: proposals that a learned function accepts or sends back."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.bases.simple import SMALLEST_UNIFORM, StandardNormal, noise
from rosenblatt.core.density import Density, fresh_generator
from rosenblatt.core.errors import OptionError
from rosenblatt.core.logspace import log_one_minus_exp
from rosenblatt.core.types import Likelihood
from rosenblatt.nets import MLP

SEED = 20_190_401


class Resampled(Density):
    """Learned accept/reject resampling (LARS) of a standard normal pi, given up after `truncation` attempts T:

    `p(z) = pi(z) ( (1 - r) a(z) / Z + r )`, `r = (1 - Z)^(T - 1)`, `Z = E_pi a(z)`, with an acceptance probability a(z)
    that a network emits; 1/2 everywhere at the start, where p = pi. The T-th proposal is taken as it is, so sampling
    always ends, and follows this law exactly. Z is a mean over `draws` proposals and so is an estimate, and with it
    `log_prob`: in training over fresh ones at each call (numbered by a saved counter), else over one quasi-random set
    that training never saw. Raises `OptionError` unless truncation >= 2 and all sizes are >= 1.
    References: Bauer & Mnih, Resampled Priors for Variational Autoencoders, AISTATS 2019; Stimper, Scholkopf &
    Hernandez-Lobato, Resampling Base Distributions of Normalizing Flows, AISTATS 2022.

    >>> base = Resampled(2, hidden=8)
    >>> bool((base.log_prob(torch.zeros(2)) + 1.8379).abs() < 0.1), base.likelihood.value
    (True, 'estimate')
    """

    context = 0
    calls: Tensor
    quasirandom: Tensor

    def __init__(
        self, features: int, *, hidden: int = 64, blocks: int = 2, truncation: int = 100, draws: int = 4096
    ) -> None:
        super().__init__()
        if truncation < 2:
            raise OptionError(f"truncation: {truncation} came, an integer >= 2 was expected.")
        if draws < 1:
            raise OptionError(f"draws: {draws} came, an integer >= 1 was expected.")
        self.features, self.truncation = features, truncation
        self.proposal = StandardNormal(features)
        self.net = MLP(features, 1, hidden=hidden, blocks=blocks)
        self.net.start_at(torch.zeros(1))
        engine = torch.quasirandom.SobolEngine(features, scramble=True, seed=SEED)
        uniform = engine.draw(draws, dtype=torch.float64).clamp(SMALLEST_UNIFORM, 1 - SMALLEST_UNIFORM)
        self.register_buffer(
            "quasirandom", torch.special.ndtri(uniform).to(torch.get_default_dtype()), persistent=False
        )
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @property
    def likelihood(self) -> Likelihood:
        """An estimate: the normaliser is a mean over draws."""
        return Likelihood.ESTIMATE

    def log_acceptance(self, z: Tensor) -> Tensor:
        """log a(z)."""
        return logsigmoid(self._logit(z))

    def log_normaliser(self) -> tuple[Tensor, Tensor]:
        """log Z and log(1 - Z), means over draws."""
        logit = self._logit(self._draws())
        few = math.log(len(logit))
        log_z, log_rest = (torch.logsumexp(logsigmoid(side), dim=0) - few for side in (logit, -logit))
        # Each from the other's small values, so that neither is rounded to 0.
        return log_z, torch.where(log_z < -1, torch.log1p(-torch.exp(log_z.clamp(max=-0.5))), log_rest)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats up to the error of log Z; -inf for a row with an infinity, NaN for a row with NaN."""
        self.check(x, context)
        log_z, log_rest = self.log_normaliser()
        log_r = (self.truncation - 1) * log_rest
        accepted = log_one_minus_exp(torch.log(-log_r)) - log_z
        size = x.detach().abs().amax(dim=-1)
        finite = size < torch.inf
        z = torch.where(finite.unsqueeze(-1), x, 0.0)
        log_ratio = torch.logaddexp(self.log_acceptance(z) + accepted, log_r)
        return torch.where(finite, self.proposal.log_prob(z) + log_ratio, -size)

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Propose until accepted, at most `truncation` times; no gradient."""
        origin = self.proposal.origin
        generator = fresh_generator(origin.device) if generator is None else generator
        with torch.no_grad():
            z = self.proposal.sample(n, generator=generator)
            waiting = torch.arange(n, device=z.device)
            for _ in range(self.truncation - 1):
                uniform, _ = noise((len(waiting),), origin.device, generator)
                waiting = waiting[torch.log(uniform()) > self.log_acceptance(z[waiting])]
                if len(waiting) == 0:
                    break
                z[waiting] = self.proposal.sample(len(waiting), generator=generator)
        return z, self.log_prob(z)

    def _logit(self, z: Tensor) -> Tensor:
        logit: Tensor = self.net(z).squeeze(-1)
        return logit

    def _draws(self) -> Tensor:
        """Draws from the proposal, in the dtype and on the device of the weights."""
        if not self.training:
            return self.quasirandom
        generator = torch.Generator().manual_seed(SEED + int(self.calls))
        self.calls += 1
        return torch.randn(len(self.quasirandom), self.features, generator=generator).to(self.quasirandom)
