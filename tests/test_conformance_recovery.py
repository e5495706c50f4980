"""R18: a trained model comes near a known truth, and never scores above it (that would be a wrong number)."""

import pytest
import torch

import rosenblatt.models  # noqa: F401 - enters every model in the registry
from rosenblatt.core.registry import build
from rosenblatt.data import TOYS
from rosenblatt.data.table import Table
from rosenblatt.eval import paired_difference
from rosenblatt.layers.scaling import Standardise
from rosenblatt.train import FitConfig, Fitter

NEAREST = 0.05  # nats per dimension
MODELS = {
    "nits": {"hidden": 64, "widths": [16, 16, 1]},
    "maf": {"hidden": 64, "transforms": 5},
    "nsf": {"hidden": 64, "transforms": 3},
    "made_mixture": {"hidden": 64, "components": 20},
}


def gap(toy, name, rows, steps):
    """Truth minus model on fresh rows, in nats per row, paired."""
    generator = torch.Generator().manual_seed(31)
    x = toy.sample(rows, generator)
    model = build(name, toy.features, options=MODELS[name], seed=0)
    location, scale = x.median(dim=0).values, x.quantile(torch.tensor([0.16, 0.84]).double(), dim=0).diff(dim=0)[0] / 2
    flow = model.after(Standardise(location.float(), scale.float()))
    config = FitConfig(max_steps=steps, epochs=10_000, learning_rate=2e-3, seed=0, patience=None)
    Fitter(config).fit(flow, Table.from_any(x.float()))
    test = toy.sample(10_000, torch.Generator().manual_seed(32))
    with torch.no_grad():
        found = flow.log_prob(test.float())
    return paired_difference(toy.log_prob(test), found)


def test_a_short_fit_comes_closer_and_never_beats_the_truth():
    toy = TOYS["parabola"]
    short, longer = (gap(toy, "nits", 4000, steps) for steps in (20, 150))
    assert longer.value < short.value
    assert longer.value < 0.3
    assert longer.value > -4 * longer.standard_error


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_recovery(toy, name):
    found = gap(toy, name, 50_000, 3000)
    assert found.value > -4 * found.standard_error
    if name == "nits":
        assert found.value <= NEAREST * toy.features
