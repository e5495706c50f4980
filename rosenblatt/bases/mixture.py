"""A mixture of any densities, its weights free or given by the context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rosenblatt.bases.simple import log_sum, noise
from rosenblatt.core.density import Density
from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Likelihood
from rosenblatt.nets import MLP


class Mixture(Density):
    """`p(x | c) = sum_k w_k(c) p_k(x | c)` with components p_k of any kind; equal weights at the start.

    Without `context` the weights are free numbers behind a softmax, with it a residual network of `hidden` units and
    `blocks` blocks emits them (a gate), unless `gated=False` keeps them free. Samples are exact, and differentiable
    except in the weights.
    Raises `OptionError` for no component, or components with other features or contexts.

    >>> from rosenblatt.bases import StandardNormal, StudentT
    >>> round(Mixture([StandardNormal(1), StudentT(1, df=1.0)]).log_prob(torch.zeros(1)).exp().item(), 4)
    0.3586
    """

    def __init__(
        self,
        components: Sequence[Density],
        *,
        context: int = 0,
        hidden: int = 64,
        blocks: int = 1,
        gated: bool = True,
    ) -> None:
        super().__init__()
        if not components:
            raise OptionError("components: none came, at least one density was expected.")
        features = components[0].features
        if any(part.features != features or part.context not in (0, context) for part in components):
            shapes = [(part.features, part.context) for part in components]
            raise OptionError(
                f"components: (features, context) {shapes} came, the same features and a context of 0 or {context} "
                "were expected of all."
            )
        self.features, self.context = features, context
        self.components = nn.ModuleList(components)
        self.logits = nn.Parameter(torch.zeros(len(components)))
        self.gate = MLP(context, len(components), hidden=hidden, blocks=blocks) if context and gated else None
        if self.gate is not None:
            self.gate.start_at(torch.zeros(len(components)))

    @property
    def parts(self) -> list[Density]:
        """The components."""
        return list(self.components)  # type: ignore[arg-type]

    @property
    def likelihood(self) -> Likelihood:
        """What the weakest component can claim."""
        return Likelihood.weakest(*(part.likelihood for part in self.parts))

    def log_weights(self, context: Tensor | None = None) -> Tensor:
        """log w_k, (components,) or (*batch, components) for contexts."""
        logits = self.logits if self.gate is None else self.logits + self.gate(context)
        return torch.log_softmax(logits, dim=-1)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density in nats; -inf for a row with an infinity, NaN for a row with NaN."""
        self.check(x, context)
        each = [part.log_prob(x, context if part.context else None) for part in self.parts]
        joint = self.log_weights(context) + torch.stack(torch.broadcast_tensors(*each), dim=-1)
        unknown = torch.isnan(joint).any(dim=-1)
        log_prob = log_sum(torch.where(unknown.unsqueeze(-1), 0.0, joint))
        return torch.where(unknown, torch.nan, log_prob)

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose a component for each row, then draw from it."""
        batch = () if context is None else tuple(context.shape[:-1])
        spread = None if context is None else context.expand(n, *context.shape).reshape(-1, self.context)
        rows = torch.Size((n, *batch)).numel()
        uniform, _ = noise((rows, 1), self.logits.device, generator)
        edges = torch.exp(self.log_weights(spread).detach().double()).cumsum(dim=-1)[..., :-1]
        chosen = (uniform() > edges).sum(dim=-1)
        places, drawn = [], []
        for number, part in enumerate(self.parts):
            place = (chosen == number).nonzero().squeeze(-1)
            if part.context and spread is not None:
                drawn.append(part.sample(1, spread[place], generator=generator)[0])
            else:
                drawn.append(part.sample(len(place), generator=generator))
            places.append(place)
        x = torch.cat(drawn)[torch.cat(places).argsort()].reshape(n, *batch, self.features)
        return x, self.log_prob(x, None if context is None else context.expand(n, *context.shape))
