"""Whole numbers with the density of a continuous model behind them: uniform and variational dequantisation.

Rounding down is a surjection: every whole number k has a cube of points k + u above it. A model p of the points is a
model P(k) of the numbers, whose logarithm is bounded from below by averages over any noise q in the cube:

    log P(k) = log int p(k + u) du >= E_q[ log mean_s p(k + u_s) / q(u_s | k) ]

References: Theis, van den Oord & Bethge, A note on the evaluation of generative models, ICLR 2016 (uniform noise);
Ho et al., Flow++, ICML 2019 (learned noise); Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016
(several samples); Nielsen et al., SurVAE Flows, NeurIPS 2020 (surjections).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rosenblatt.bases.simple import SMALLEST_UNIFORM, StandardLogistic
from rosenblatt.conditioners.conv_coupling import ConvCoupling
from rosenblatt.conditioners.coupling import Coupling
from rosenblatt.core.density import Density, FactorisedDensity, Flow
from rosenblatt.core.eager import runs_eagerly
from rosenblatt.core.errors import OptionError
from rosenblatt.core.transform import Compose
from rosenblatt.core.types import Batch, Likelihood
from rosenblatt.elementwise.affine import Affine
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.shape import image_shape

NUMBERS_AT_ONCE = 1 << 18  # scored together: splines of images take some hundred bytes for each


class Dequantised(Density):
    """Whole numbers 0 .. levels - 1 under a continuous density: P(k) is the mass of the cube [k, k + 1).

    `density` lives on `y = 2 (k + u) / levels - 1`, in (-1, 1); mass beyond belongs to the first and the last level,
    so that P is normalised. `log_prob` is a lower bound of log P(k) in nats, with `samples` noises per row: the
    more, the tighter. `noise` is q: None for the uniform law, or a flow of
    `features` given as many, which are k itself, scaled to (-1, 1); u is the sigmoid of what it draws.
    In eval mode the noise of a row is a fixed function of its numbers, so that scores repeat and do not depend on the
    batch; in training mode it is drawn anew, from the stream that dropout draws from. `bound` takes a generator.
    A row that is not of such whole numbers has log-probability -inf. `eval.bits.bits_per_dimension` gives bits.
    Raises `OptionError` for sizes below 1, a noise of other widths or without quantiles, or a density with an objective
    of its own.

    >>> from rosenblatt.bases import Box
    >>> Dequantised(Box(1), levels=4).log_prob(torch.tensor([[3.0], [4.0]])).exp()
    tensor([0.2500, 0.0000])
    """

    def __init__(self, density: Density, levels: int = 256, *, noise: Flow | None = None, samples: int = 1) -> None:
        super().__init__()
        for name, value in {"levels": levels, "samples": samples}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name}: {value!r} came, an integer >= 1 was expected.")
        if noise is not None and not (
            noise.features == noise.context == density.features and isinstance(noise.base, FactorisedDensity)
        ):
            raise OptionError(
                f"noise: a flow of {noise.features} features given {noise.context} came; {density.features} of both, "
                "and a base with independent coordinates, were expected."
            )
        if density.objective is not None:
            raise OptionError(
                f"density: it is trained by an objective of its own ({type(density.objective).__name__}), which whole "
                "numbers would drop; choose a model trained by likelihood."
            )
        self.density, self.noise = density, noise
        self.features, self.context = density.features, density.context
        self.levels, self.samples = levels, samples

    @property
    def likelihood(self) -> Likelihood:
        """A bound, whatever the density is."""
        return Likelihood.weakest(Likelihood.LOWER_BOUND, self.density.likelihood)

    def initialise(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Let the density start from the rows `x`, spread evenly over their cubes."""
        self.density.initialise(self._spread_evenly(x), context, weight)

    def refresh(self, batches: Iterable[Batch]) -> None:
        """Let the density recompute its statistics from the rows, spread likewise."""
        self.density.refresh(batch._replace(x=self._spread_evenly(batch.x)) for batch in batches)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Lower bound of the log-probability of whole numbers `x`, in nats; NaN for a row with NaN."""
        return self.bound(x, context)

    def bound(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`log_prob` with another number of noises per row, or with noise from `generator`."""
        self.check(x, context)
        if context is not None:  # the axis of the samples comes in front of both
            x = x.expand(*torch.broadcast_shapes(x.shape[:-1], context.shape[:-1]), self.features)
        samples = self.samples if samples is None else samples
        whole = ((x >= 0) & (x < self.levels) & (x == x.floor())).all(dim=-1)
        counts = torch.where(whole.unsqueeze(-1), x, 0.0)
        bound = self._bound_in_pieces(counts, context, samples, generator)
        answer = torch.where(torch.isnan(x).any(dim=-1), torch.nan, -torch.inf).to(bound.dtype)
        return torch.where(whole, bound, answer)

    def sample_and_log_prob(
        self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw points and round them down to levels; their log-probabilities are lower bounds."""
        counts = self.sample(n, context, generator=generator)
        return counts, self.log_prob(counts, context)

    def sample(self, n: int, context: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw points and round them down to levels, which needs no log-probability."""
        with torch.no_grad():
            y = self.density.sample(n, context, generator=generator)
            return ((y + 1) * (self.levels / 2)).floor().clamp(0, self.levels - 1)

    def _bound_in_pieces(
        self, counts: Tensor, context: Tensor | None, samples: int, generator: torch.Generator | None
    ) -> Tensor:
        """The bound of rows of whole numbers; without gradients a part of them at a time, in constant memory."""
        batch = counts.shape[:-1]
        rows = max(1, NUMBERS_AT_ONCE // (samples * self.features))
        if torch.is_grad_enabled() or not runs_eagerly() or math.prod(batch) <= rows:
            return self._bound(counts, context, self._uniform(counts, samples, generator))
        pieces = counts.reshape(-1, self.features).split(rows)
        given: Sequence[Tensor | None] = [None] * len(pieces)
        if context is not None:
            given = context.expand(*batch, self.context).reshape(-1, self.context).split(rows)
        parts = [
            self._bound(piece, part, self._uniform(piece, samples, generator))
            for piece, part in zip(pieces, given, strict=True)
        ]
        return torch.cat(parts).reshape(batch)

    def _bound(self, counts: Tensor, context: Tensor | None, uniform: Tensor) -> Tensor:
        u, log_q = self._spread(counts, uniform)
        log_scale = self.features * math.log(2 / self.levels)
        log_ratio = self.density.log_prob(self._scaled(counts + u), context) + log_scale - log_q
        if len(log_ratio) == 1:
            return log_ratio[0]
        return torch.logsumexp(log_ratio, dim=0) - math.log(len(log_ratio))

    def _spread(self, counts: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The noise u (samples, *batch, features) in the cube and its log-density log q."""
        if self.noise is None:
            return uniform.to(counts.dtype), counts.new_zeros(uniform.shape[:-1])
        base = self.noise.base
        assert isinstance(base, FactorisedDensity)
        z = base.quantile(uniform).to(counts.dtype)
        given = self._scaled(counts + 0.5).expand_as(z)
        v, log_det = self.noise.transform.inverse(z, given)
        log_slope = (logsigmoid(v) + logsigmoid(-v)).sum(dim=-1)
        return torch.sigmoid(v), base.log_prob(z) - log_det - log_slope

    def _uniform(self, counts: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
        """Uniform numbers (samples, *batch, features) in double precision, never 0."""
        if generator is None and not self.training:
            return row_noise(counts, samples)
        device = counts.device if generator is None else generator.device
        drawn = torch.rand(samples, *counts.shape, generator=generator, dtype=torch.float64, device=device)
        return drawn.clamp(min=SMALLEST_UNIFORM).to(counts.device)

    def _spread_evenly(self, x: Tensor) -> Tensor:
        """Points of the density for rows `x`, by noise that depends on their numbers alone."""
        return self._scaled(x + row_noise(x)[0].to(x.dtype))

    def _scaled(self, points: Tensor) -> Tensor:
        return points * (2 / self.levels) - 1


def coupling_noise(
    features: int, *, image: Sequence[int] | None = None, transforms: int = 2, hidden: int = 32, blocks: int = 1
) -> Flow:
    """Flow of noise given the numbers it is for: `transforms` affine couplings of halves (checkerboards of an `image`).

    Its base is the logistic, whose sigmoid is uniform, so that it starts nearly as uniform dequantisation.
    Raises `OptionError` for sizes below 1.

    >>> coupling_noise(4, image=[1, 2, 2]).context
    4
    """
    if transforms < 1:
        raise OptionError(f"transforms: {transforms} came, an integer >= 1 was expected.")
    net: dict[str, Any] = {"hidden": hidden, "blocks": blocks, "context": features}
    layers = []
    for number in range(transforms):
        affine = Affine.one_of(transforms)
        if image is None:
            mask = "odd" if number % 2 else "even"
            conditioner: Coupling | ConvCoupling = Coupling(features, affine.spec.size, mask=mask, **net)
        else:
            mask = "checkerboard_turned" if number % 2 else "checkerboard"
            shape = image_shape(image, features)
            conditioner = ConvCoupling(shape, affine.spec.size, mask=mask, spatial=True, **net)
        layers.append(Conditional(affine, conditioner))
    return Flow(Compose(layers), StandardLogistic(features), context=features)


def row_noise(x: Tensor, samples: int = 1) -> Tensor:
    """Uniform numbers (samples, *batch, features) in (0, 1) that depend on the whole numbers of each row alone.

    In double precision, by the finaliser of SplitMix64 (Steele, Lea & Flood 2014) of a running number and the row.

    >>> first, again = row_noise(torch.tensor([[1.0, 2.0], [1.0, 2.0]]))[0]
    >>> bool((first == again).all())
    True
    """
    features = x.shape[-1]
    place = torch.arange(1, features + 1, device=x.device) * _STRIDE
    seed = _mixed(_mixed(x.long() + place) + place).sum(dim=-1, keepdim=True)
    number = torch.arange(1, samples * features + 1, device=x.device).reshape(samples, *([1] * (x.ndim - 1)), features)
    bits = _shifted(_mixed(seed + number * _STRIDE), 11)
    return (bits.double() + 0.5) * 2.0**-53


_STRIDE = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number; products wrap around


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * -4658895280553007687
    bits = (bits ^ _shifted(bits, 27)) * -7723592293110705685
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift to the right and fill with zeros, not with the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
