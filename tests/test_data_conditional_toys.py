"""Conditional toys: their mean log-density, their mass, and their samplers against both."""

import math

import pytest
import torch

from rosenblatt.core.errors import DataError
from rosenblatt.data.conditional_toys import CONDITIONAL_TOYS

ROWS = 40_000
SIGMAS = 5.0  # two-sided false alarm 6e-7
PUBLISHED = {"squares": -3.4657, "half_gaussian": -3.5310, "gaussian_stick": -3.9038, "elastic_ring": -4.1192}


@pytest.mark.parametrize("toy", CONDITIONAL_TOYS.values(), ids=CONDITIONAL_TOYS)
def test_mean_log_density_of_samples(toy):
    x, y = toy.sample(ROWS, torch.Generator().manual_seed(0))
    scores = toy.log_prob(y, x)
    assert x.dtype == y.dtype == torch.float64
    assert y.shape == (ROWS, toy.features)
    assert torch.isfinite(scores).all()
    error = scores.std().item() / math.sqrt(ROWS)
    assert abs(scores.mean().item() - toy.mean_log_prob) < SIGMAS * error + 6e-5


@pytest.mark.parametrize(("name", "value"), PUBLISHED.items())
def test_mean_log_density_is_the_known_one(name, value):
    assert CONDITIONAL_TOYS[name].mean_log_prob == pytest.approx(value, abs=6e-5)


@pytest.mark.parametrize("toy", [toy for toy in CONDITIONAL_TOYS.values() if toy.features == 2], ids=lambda t: t.name)
@pytest.mark.parametrize("given", [-0.9, 0.2, 0.75])
def test_mass_is_one(toy, given):
    cells = 1200
    axis = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 24 - 12
    y = torch.cartesian_prod(axis, axis)
    mass = torch.exp(toy.log_prob(y, torch.full((len(y), 1), given, dtype=torch.float64))).sum() * (24 / cells) ** 2
    assert mass.item() == pytest.approx(1, abs=0.01)  # edges of supports cross cells


@pytest.mark.parametrize("toy", CONDITIONAL_TOYS.values(), ids=CONDITIONAL_TOYS)
def test_samples_fill_the_half_plane_as_the_density_says(toy):
    # Importance sampling over a wide uniform box against the share of samples: both know P(y_1 > 0.5 | x = 0.4).
    generator = torch.Generator().manual_seed(1)
    given = torch.full((ROWS, 1), 0.4, dtype=torch.float64)
    share = (toy.sample_given(given, generator)[:, 0] > 0.5).double()
    half = 12.0 if toy.features == 2 else 3.0
    box = half * (2 * torch.rand(ROWS, toy.features, generator=generator, dtype=torch.float64) - 1)
    weight = torch.exp(toy.log_prob(box, given)) * (2 * half) ** toy.features * (box[:, 0] > 0.5)
    error = math.sqrt((share.var() + weight.var()).item() / ROWS)
    assert abs((share.mean() - weight.mean()).item()) < SIGMAS * error


def test_the_ring_is_where_it_should_be():
    ring = CONDITIONAL_TOYS["elastic_ring"]
    x = torch.zeros(3, 1)
    y = torch.tensor([[5.0, 0.0], [3.9, 0.0], [0.0, 6.1]])  # between the circles of radius 4 and 6, and beyond either
    found = ring.log_prob(y, x)
    assert found[0].item() == pytest.approx(-math.log(4 * math.pi * 5), abs=1e-6)  # at x = 0 evenly in the radius
    assert torch.isneginf(found[1:]).all()


def test_wrong_columns_are_refused():
    toy = CONDITIONAL_TOYS["squares"]
    with pytest.raises(DataError, match="y: shape"):
        toy.log_prob(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(DataError, match="x: shape"):
        toy.log_prob(torch.zeros(3, 2), torch.zeros(3, 2))
