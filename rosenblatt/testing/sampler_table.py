"""The table of samplers without an exact density: a new one is one row here, and the suite runs on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import rosenblatt.models  # noqa: F401 - enters every model in the registry
from rosenblatt.core.density import Density
from rosenblatt.core.registry import build
from rosenblatt.core.types import Likelihood
from rosenblatt.models.vae import vae
from rosenblatt.testing.tables import disturbed, rows_like_data, seeded


@dataclass(frozen=True)
class SamplerRow:
    """One sampler: how to make it, with weights that are not those of the start, for a number of features.

    `likelihood` is what its `log_prob` claims to be; with NONE it must refuse. A sampler with `blocks` draws blocks of
    columns in turn (`objectives.two_sample.BlockSampler`), and may not see those to come.
    """

    name: str
    make: Callable[[int], Density]
    features: int = 3
    context: int = 0
    likelihood: Likelihood = Likelihood.NONE
    blocks: bool = False


def _sampler(name: str, context: int = 0, **options: object) -> Callable[[int], Density]:
    def make(features: int) -> Density:
        model = build(name, features, context, options=dict(options), seed=0)
        given = rows_like_data(200, context, seed=5).float() if context else None
        model.initialise(rows_like_data(200, features).float(), given)
        return disturbed(model, 0.05)

    return make


def _vae(context: int = 0) -> Callable[[int], Density]:
    def make(features: int) -> Density:
        return disturbed(seeded(lambda: vae(features, context, latent=2, hidden=8, blocks=1, samples=8)), 0.05)

    return make


SAMPLERS: dict[str, SamplerRow] = {
    row.name: row
    for row in (
        SamplerRow("energy_flow", _sampler("energy_flow", hidden=8), blocks=True),
        SamplerRow("energy_flow_full", _sampler("energy_flow", hidden=8, parts=1, score="sliced"), blocks=True),
        SamplerRow(
            "energy_flow_context",
            _sampler("energy_flow", 2, hidden=8, parts=3, score="kernel", network="residual"),
            context=2,
            blocks=True,
        ),
        SamplerRow("energy_flow_plain", _sampler("energy_flow", hidden=8, network="plain", beta=0.5), blocks=True),
        SamplerRow("vae", _vae(), likelihood=Likelihood.LOWER_BOUND),
        SamplerRow("vae_context", _vae(2), context=2, likelihood=Likelihood.LOWER_BOUND),
    )
}
