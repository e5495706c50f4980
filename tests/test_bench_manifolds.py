"""The baselines of the benchmark on manifolds are the densities they claim to be."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from benchmarks.manifolds import BACKGROUND, Split, kernels, log_kernels, mixture, vectors

KAPPA = torch.tensor([[3.0], [40.0]], dtype=torch.float64)


def test_kernels_are_von_mises_fisher_densities():
    x = torch.tensor(scipy.stats.uniform_direction(3).rvs(20, random_state=np.random.RandomState(0))).unsqueeze(1)
    found = log_kernels(x, x[:2], KAPPA)
    for column, kappa in enumerate(KAPPA.flatten().tolist()):
        truth = scipy.stats.vonmises_fisher(x[column, 0].numpy(), kappa).logpdf(x[:, 0].numpy())
        assert found[:, column].numpy() == pytest.approx(truth, abs=1e-10)
    whole = torch.exp(kernels(x, 40.0, math.log(4 * math.pi))(x))
    assert (whole > BACKGROUND / (4 * math.pi)).all()


def test_a_mixture_on_the_torus_has_mass_one_and_finds_its_centres():
    draw = np.random.RandomState(1)
    angles = torch.tensor(np.concatenate([draw.vonmises([3, -1], 20, (200, 2)), draw.vonmises([0, 1], 20, (200, 2))]))
    split = Split("torus", angles, angles, angles, torch.arange(400))
    density = mixture(vectors(split, angles), 2)
    nodes = 2 * math.pi * torch.arange(120, dtype=torch.float64) / 120
    p = torch.exp(density(vectors(split, torch.cartesian_prod(nodes, nodes))))
    assert p.mean().item() * (2 * math.pi) ** 2 == pytest.approx(1, abs=1e-8)
    known = [scipy.stats.vonmises(20, loc=loc) for loc in (3, -1, 0, 1)]
    x, y = angles.numpy().T
    truth = np.log(0.5 * known[0].pdf(x) * known[1].pdf(y) + 0.5 * known[2].pdf(x) * known[3].pdf(y))
    assert float(density(vectors(split, angles)).mean()) == pytest.approx(truth.mean(), abs=0.05)
