"""Normal bases that learn: one with a full covariance, one whose mean and scale are functions of the context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rosenblatt.bases.simple import LOG_SQRT_2PI, GaussianMixture, noise, only_finite, require_positive
from rosenblatt.core.density import Density
from rosenblatt.core.logspace import soft_bound
from rosenblatt.nets import MLP

LOG_SCALE_BOUND = 7.0


class FullNormal(GaussianMixture):
    """Normal with a trainable mean and covariance, `p(x) = |A| N(A (x - m); 0, 1)`; the standard normal at the start.

    A is lower triangular with a log-diagonal smoothly bounded to (-7, 7). Raises `OptionError` unless features >= 1.

    >>> FullNormal(2).log_prob(torch.zeros(2))
    tensor(-1.8379, grad_fn=<...>)
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, components=1, covariance="full")
        nn.init.zeros_(self.locations)


class ConditionalNormal(Density):
    """Independent normals given the context, `x_i = m_i(c) + exp(s_i(c)) z_i`; the standard normal at the start.

    A residual network of `hidden` units and `blocks` blocks emits m and s, the latter smoothly bounded to (-7, 7). (A
    flow whose last layer is affine in a network of the context is the same density and keeps its coordinate-wise CDF.)
    Raises `OptionError` for sizes below 1.

    >>> ConditionalNormal(2, context=3).log_prob(torch.zeros(5, 2), torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(self, features: int, context: int, *, hidden: int = 64, blocks: int = 1) -> None:
        super().__init__()
        require_positive("features", features)
        require_positive("context", context)
        self.features, self.context = features, context
        self.net = MLP(context, 2 * features, hidden=hidden, blocks=blocks)
        self.net.start_at(torch.zeros(2 * features))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats; -inf for a row with an infinity, NaN for a row with NaN."""
        self.check(x, context)
        mean, log_scale = self._decode(context)

        def log_density(x: Tensor) -> Tensor:
            return -0.5 * ((x - mean) * torch.exp(-log_scale)).square() - LOG_SQRT_2PI - log_scale

        return only_finite(log_density, x.expand(torch.broadcast_shapes(x.shape, mean.shape))).sum(dim=-1)

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` vectors for each context, differentiable in the network, and their log-densities."""
        mean, log_scale = self._decode(context)
        _, normal = noise((n, *mean.shape), mean.device, generator)
        x = mean + torch.exp(log_scale) * normal().to(mean)
        return x, self.log_prob(x, context)

    def _decode(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, raw = self.net(context).chunk(2, dim=-1)
        return mean, soft_bound(raw, LOG_SCALE_BOUND)
