"""Every sampler without an exact density against the checks that the library ships."""

import pytest
import torch

from rosenblatt.models.energy_flow import EnergyFlow
from rosenblatt.testing.checks_sampler import (
    SAMPLER_CHECKS,
    check_causality,
    check_finite_gradients,
    check_likelihood,
    check_row_independence,
)
from rosenblatt.testing.sampler_table import SAMPLERS, SamplerRow


@pytest.mark.parametrize("check", SAMPLER_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("row", SAMPLERS.values(), ids=SAMPLERS)
def test_sampler(row, check):
    check(row)


class Wrong(EnergyFlow):
    """An energy flow with one fault."""

    def __init__(self, flow, fault):
        super().__init__(flow.sizes, flow.nets)
        self.objective, self.fault = flow.objective, fault

    def log_prob(self, x, context=None):
        return x.sum(dim=-1) if self.fault == "density" else super().log_prob(x, context)

    def _block(self, number, noise, x, context):
        drawn = super()._block(number, noise, x, context)
        if self.fault == "leak" and x.shape[-1] == self.features:
            return drawn + 1e-9 * x[..., -1:]
        if self.fault == "batch":
            return drawn + x[..., :1].nan_to_num().mean()
        if self.fault == "root":
            return drawn + torch.sqrt(noise[..., :1] - noise[..., :1])
        return drawn


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("density", check_likelihood),
        ("leak", check_causality),
        ("batch", check_row_independence),
        ("root", check_finite_gradients),
    ],
)
def test_sampler_checks_find_planted_faults(fault, check):
    def make(features):
        flow = Wrong(SAMPLERS["energy_flow"].make(features), fault)
        if fault == "root":
            flow.nets.requires_grad_(True)
            flow.objective = _Path()
        return flow

    with pytest.raises(AssertionError):
        check(SamplerRow(fault, make, blocks=True))


class _Path:
    def __call__(self, model, batch, generator):
        return model.forced((batch.x * 1.0).unsqueeze(0), batch.x).square().sum(dim=-1)[0]
