"""VAE: a density of few hidden numbers z pushed through a noisy decoder, trained on a lower bound.

    p(x) = int p(x | z) p(z) dz,   log p(x) >= E_q(z | x)[ log p(x | z) + log p(z) - log q(z | x) ]

The encoder emits the context of a flow q(z | x): a Gaussian, or with `transforms` an inverse autoregressive flow. The
decoder is a Gaussian whose means and scales depend on z, or independent bits; the prior is normal or any flow. Not in
the registry, because `log_prob` is a lower bound (`Likelihood.LOWER_BOUND`): the importance-weighted one, which rises
to log p(x) as `samples` grow. Sampling is exact: z from the prior, x from the decoder. Trained by `objective`.
References: Kingma & Welling, Auto-Encoding Variational Bayes, ICLR 2014; Kingma et al., Improved Variational Inference
with Inverse Autoregressive Flow, NeurIPS 2016; Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, ICLR
2016. Published sizes for MNIST: 32 to 64 latent numbers, two hidden layers of 200 to 500 units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from rosenblatt.bases import StandardNormal
from rosenblatt.conditioners.independent import Independent
from rosenblatt.core.density import Density, Flow, fresh_generator
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.types import Likelihood
from rosenblatt.elementwise.affine import Affine
from rosenblatt.layers.bits import Bits
from rosenblatt.layers.conditional import Conditional
from rosenblatt.nets import MLP
from rosenblatt.objectives.bounds import LatentBound, VariationalBound, draw, importance_bound

VECTORS_AT_ONCE = 1 << 15  # latent vectors scored at once where no gradient is taken


class VAE(Density):
    """`p(x | context) = int p(x | z, context) p(z) dz` with an approximate posterior `q(z | x, context)`.

    `log_prob` is the importance-weighted bound with `samples` latent vectors, a lower bound in the mean over `seed`.
    All rows share one set of scrambled Sobol points, fixed by `seed`, which q turns into theirs: the number of a row
    depends neither on the rest of the batch nor on the call. `bound` takes fresh points.
    """

    steps_seen: Tensor
    points: Tensor

    def __init__(
        self,
        encoder: MLP,
        posterior: Flow,
        decoder: Density,
        prior: Density,
        *,
        context: int,
        samples: int,
        seed: int,
        objective: VariationalBound,
    ) -> None:
        super().__init__()
        self.encoder, self.posterior, self.decoder, self.prior = encoder, posterior, decoder, prior
        self.features, self.context, self.latent = decoder.features, context, prior.features
        self.objective = objective
        uniform = torch.quasirandom.SobolEngine(self.latent, scramble=True, seed=seed).draw(samples).double()
        points = torch.special.ndtri(uniform.clamp(1e-7, 1 - 1e-7)).float()
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.long))

    @property
    def likelihood(self) -> Likelihood:
        """A lower bound, in the mean."""
        return Likelihood.LOWER_BOUND

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Raise `DataError` for rows of a Bernoulli decoder that are not made of 0 and 1."""
        if isinstance(self.decoder, Bits) and not bool(((x == 0) | (x == 1)).all()):
            raise DataError("x: values other than 0 and 1 came, which a Bernoulli decoder cannot emit; binarise them.")

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Lower bound on the log-density in nats, at the model's fixed points; see `Density.log_prob` for bad rows."""
        return self._guarded(x, context, None, len(self.points))

    def bound(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Lower bound (*batch) from `samples` fresh latent vectors for each row: one gives the ELBO."""
        return self._guarded(x, context, fresh_generator(x.device) if generator is None else generator, samples)

    def latent_bound(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        samples: int,
        path_derivative: bool,
        generator: torch.Generator,
    ) -> LatentBound:
        """Draw `samples` latent vectors for each row of `x` (rows, features)."""
        code = self.encoder(_joined(x, context))
        z, log_q = draw(self.posterior, samples, code, path_derivative=path_derivative, generator=generator)
        return self._worth(x, context, z, log_q)

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` rows (per context row) and the bounds on their log-densities."""
        x = self.sample(n, context, generator=generator)
        return x, self.log_prob(x, None if context is None else context.expand(n, *context.shape))

    def sample(self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw z from the prior and x from the decoder."""
        self.check_context(context)
        generator = fresh_generator(self.points.device) if generator is None else generator
        batch = () if context is None else tuple(context.shape[:-1])
        z = self.prior.sample(n * math.prod(batch), generator=generator).reshape(n, *batch, self.latent)
        given = None if context is None else context.expand(n, *context.shape)
        return self.decoder.sample(1, _joined(z, given), generator=generator)[0]

    def _guarded(self, x: Tensor, context: Tensor | None, generator: torch.Generator | None, samples: int) -> Tensor:
        """Bounds of finite rows, in pieces; other rows are answered without being computed."""
        self.check(x, context)
        size = x.detach().abs().amax(dim=-1)
        batch = size.shape
        if context is not None:
            known = torch.isfinite(context)
            batch = torch.broadcast_shapes(batch, context.shape[:-1])
            size = torch.where(known.all(dim=-1), size, torch.nan)
            context = torch.where(known, context, 0.0).expand(*batch, -1).reshape(-1, self.context)
        finite = size < torch.inf
        rows = torch.where(finite.unsqueeze(-1), x, 0.0).reshape(-1, self.features)
        step = len(rows) if torch.is_grad_enabled() else max(1, VECTORS_AT_ONCE // samples)
        parts = []
        for start in range(0, max(len(rows), 1), max(step, 1)):
            given = None if context is None else context[start : start + step]
            parts.append(self._bound_of_finite(rows[start : start + step], given, generator, samples))
        return torch.where(finite, torch.cat(parts).reshape(batch), -size)

    def _bound_of_finite(
        self, x: Tensor, context: Tensor | None, generator: torch.Generator | None, samples: int
    ) -> Tensor:
        if generator is not None:
            found = self.latent_bound(x, context, samples=samples, path_derivative=False, generator=generator)
        else:
            code = self.encoder(_joined(x, context))
            points = self.points.to(x).unsqueeze(1).expand(-1, len(x), -1)
            z, log_det = self.posterior.transform.inverse(points, code.expand(samples, *code.shape))
            found = self._worth(x, context, z, self.posterior.base.log_prob(points) - log_det)
        return importance_bound(found.fit - found.divergence)

    def _worth(self, x: Tensor, context: Tensor | None, z: Tensor, log_q: Tensor) -> LatentBound:
        given = None if context is None else context.expand(*z.shape[:-1], -1)
        fit = self.decoder.log_prob(x.expand(*z.shape[:-1], -1), _joined(z, given))
        return LatentBound(z, fit, log_q - self.prior.log_prob(z))


def vae(
    features: int,
    context: int = 0,
    *,
    latent: int = 8,
    hidden: int = 128,
    blocks: int = 2,
    decoder: Literal["gaussian", "bernoulli"] = "gaussian",
    transforms: int = 0,
    prior: str | None = None,
    prior_options: Mapping[str, Any] | None = None,
    particles: int = 1,
    free_bits: float = 0.0,
    warmup: int = 0,
    samples: int = 64,
    seed: int = 0,
) -> VAE:
    """Build a VAE for `features` columns, of about unit scale, or of bits with `decoder="bernoulli"`.

    latent: hidden numbers; `hidden` and `blocks` are the sizes of encoder, decoder and posterior networks.
    transforms: IAF steps of the posterior; 0 for a Gaussian with independent coordinates.
    prior: name of a registered flow with its `prior_options`; None for the standard normal.
    particles, free_bits, warmup: the training objective, see `objectives.bounds.VariationalBound`.
    samples, seed: the latent vectors that `log_prob` weighs, and what fixes them.
    Raises `OptionError` for sizes that make no model or a prior without exact density.

    >>> model = vae(3, latent=2, hidden=16, samples=8)
    >>> model.log_prob(torch.zeros(4, 3)).shape, model.likelihood.value
    (torch.Size([4]), 'lower bound')
    """
    for name, value in {"latent": latent, "hidden": hidden, "blocks": blocks, "samples": samples}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name}: {value} came, an integer >= 1 was expected.")
    if decoder not in ("gaussian", "bernoulli"):
        raise OptionError(f"decoder: '{decoder}' came; choose 'gaussian' or 'bernoulli'.")
    objective = VariationalBound(particles, free_bits=free_bits, warmup=warmup)
    sizes: dict[str, Any] = {"hidden": hidden, "blocks": blocks}
    posterior = build("iaf", latent, hidden, options={"transforms": transforms, **sizes})
    hidden_prior: Density = StandardNormal(latent)
    if prior is not None:
        hidden_prior = build(prior, latent, options=dict(prior_options or {}))
        if hidden_prior.likelihood is not Likelihood.EXACT:
            raise OptionError(f"prior: '{prior}' has no exact log-density; choose an exact model.")
    emitted: Density
    if decoder == "bernoulli":
        emitted = Bits(features, latent + context, **sizes)
    else:
        affine = Affine()
        net = Independent(features, affine.spec.size, context=latent + context, **sizes)
        emitted = Flow(Conditional(affine, net), StandardNormal(features), context=latent + context)
    assert isinstance(posterior, Flow)
    encoder = MLP(features + context, hidden, **sizes)
    return VAE(
        encoder, posterior, emitted, hidden_prior, context=context, samples=samples, seed=seed, objective=objective
    )


def _joined(x: Tensor, context: Tensor | None) -> Tensor:
    """Numbers and their context side by side."""
    return x if context is None else torch.cat([x, context.expand(*x.shape[:-1], -1)], dim=-1)
