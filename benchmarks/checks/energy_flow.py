"""S8: energy flows against laws that are known, and what a training step costs without the determinant."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from benchmarks.checks.common import BATCH, Check, fresh_rows, gap, near, trained
from rosenblatt.core.density import Density, Flow
from rosenblatt.core.types import Batch
from rosenblatt.data import TOYS, Table
from rosenblatt.eval import energy_distance
from rosenblatt.models.energy_flow import EnergyFlow, energy_flow
from rosenblatt.models.maf import maf
from rosenblatt.models.realnvp import realnvp
from rosenblatt.objectives.rules import energy_score
from rosenblatt.objectives.two_sample import TwoSampleScore, norm_factor
from rosenblatt.testing.tables import seeded
from rosenblatt.train import FitConfig, Fitter

METHOD = "S8 energy flow"
STEPS, TOY_STEPS, TEST_ROWS = 2500, 1000, 4000
NET = {"network": "plain", "hidden": 128, "blocks": 3}
DRAWS = 4  # for each row and step; with 2 the noise of a sliced score is most of it
MODES, RADIUS, WIDTH, CORRELATION = 6, 2.5, 0.3, 0.8  # of the target in four columns
TOYS_TRIED = ("parabola", "checkerboard")
WIDE, WIDE_ROWS, TIMED = 64, 128, 5  # columns, rows a step, steps


def checks() -> Iterator[Check]:
    """(a) to (c) of the specification, the rivals, and the cost."""
    yield from identities()
    yield from ring_and_pair()
    yield from toys()
    yield from cost()
    yield from likelihood_of_an_invertible_one()


def identities() -> Iterator[Check]:
    """The norm by projections, and the score of a Gaussian."""
    draw = np.random.default_rng(0)
    for features in (2, 8):
        directions = draw.normal(size=(400_000, features))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        x = np.arange(1.0, features + 1)
        found = norm_factor(features) * float(np.abs(directions @ x).mean()) / float(np.linalg.norm(x))
        what = f"(a) norm by projections over the norm, {features} columns"
        yield Check(METHOD, what, "1 +- 0.005", found, near(found, 1, 0.005))
    mean, spread, outcome = 0.4, 1.3, -0.5
    z = (outcome - mean) / spread
    closed = spread * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    samples = mean + spread * torch.from_numpy(draw.normal(size=(2, 4_000_000, 1)))
    found = energy_score(samples, torch.full((4_000_000, 1), outcome, dtype=torch.float64)).mean().item()
    error = found - closed
    what = "(a) energy score of N(0.4, 1.3^2) from two draws, minus its closed CRPS"
    yield Check(METHOD, what, "0 +- 0.001", error, near(error, 0, 0.001))


def target(count: int, seed: int) -> Tensor:
    """Six modes on a ring beside a correlated normal pair."""
    draw = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi / MODES * torch.randint(0, MODES, (count,), generator=draw)
    ring = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=-1)
    noise = torch.randn(count, 4, generator=draw)
    second = CORRELATION * noise[:, 2] + math.sqrt(1 - CORRELATION**2) * noise[:, 3]
    return torch.cat([ring + WIDTH * noise[:, :2], noise[:, 2:3], second.unsqueeze(-1)], dim=-1)


@dataclass
class Found:
    """Energy distance of 4,000 own samples to as many fresh rows, its standard error, and the weights trained."""

    value: float
    error: float
    weights: int


def fitted(make: Callable[[], Density], rows: Tensor, steps: int) -> Density:
    """A model trained on rows that are each seen once."""
    model = seeded(make)
    config = FitConfig(max_steps=steps, batch_size=BATCH, learning_rate=2e-3, validation_fraction=0.0, patience=None)
    Fitter(config, progress=False).fit(model, Table.from_any(rows.float().numpy()))
    return model


def distance(model: Density, test: Tensor) -> Found:
    """How far free-running samples are from the truth."""
    with torch.no_grad():
        drawn = model.sample(TEST_ROWS, generator=torch.Generator().manual_seed(7)).double()
    found = energy_distance(drawn, test)
    return Found(found.value, found.standard_error, sum(p.numel() for p in model.parameters() if p.requires_grad))


def gaussian_distance(test: Tensor) -> float:
    """Of a Gaussian with the moments of the rows."""
    normal = torch.randn(len(test), test.shape[1], generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return energy_distance(test.mean(dim=0) + normal @ torch.linalg.cholesky(test.T.cov()).T, test).value


def ring_and_pair() -> Iterator[Check]:
    """One block by both norms, and two blocks, against the moment-matched Gaussian and a likelihood-trained flow."""
    rows, test = target(STEPS * BATCH, 0), target(TEST_ROWS, 1).double()
    gaussian = gaussian_distance(test)
    full = distance(fitted(lambda: energy_flow(4, parts=1, draws=DRAWS, **NET), rows, STEPS), test)
    sliced = distance(fitted(lambda: energy_flow(4, parts=1, draws=DRAWS, score="sliced", **NET), rows, STEPS), test)
    blocks = distance(fitted(lambda: energy_flow(4, parts=2, draws=DRAWS, **NET), rows, STEPS), test)
    for name, found in (("one block", full), ("one block, 16 projections", sliced)):
        what = f"(b) ring and pair, {name}: energy distance over the Gaussian's ({gaussian:.4f})"
        ratio = found.value / gaussian
        yield Check(METHOD, what, "< 0.5", ratio, ratio < 0.5)
    what = f"(b) ring and pair, 2 + 2 columns: energy distance over that of one block ({full.value:.4f})"
    yield Check(METHOD, what, "< 0.3", blocks.value / full.value, blocks.value < 0.3 * full.value)
    yield rival("ring and pair", blocks, distance(fitted(lambda: maf(4, hidden=56), rows, STEPS), test), "maf")


def toys() -> Iterator[Check]:
    """Two columns: as many weights in an energy flow as in flows trained by likelihood."""
    for name in TOYS_TRIED:
        rows = fresh_rows(name, TOY_STEPS)
        location, scale = rows.mean(dim=0), rows.std(dim=0)
        rows = (rows - location) / scale
        test = (TOYS[name].sample(TEST_ROWS, torch.Generator().manual_seed(2)) - location) / scale
        found = distance(fitted(lambda: energy_flow(2, **NET), rows, TOY_STEPS), test)
        yield rival(name, found, distance(fitted(lambda: maf(2, hidden=56), rows, TOY_STEPS), test), "maf")


def rival(target_name: str, found: Found, other: Found, model: str) -> Check:
    """The energy flow against a flow; where both are as near as the rows can tell, two standard errors are allowed."""
    what = (
        f"{target_name}: energy distance of the energy flow ({found.weights} weights, s.e. "
        f"{found.error:.4f}) minus 1.2 times that of {model} by likelihood ({other.weights} weights, {other.value:.4f})"
    )
    excess = found.value - 1.2 * other.value
    margin = 2 * math.hypot(found.error, 1.2 * other.error)
    return Check(METHOD, what, f"<= 2 s.e. = {margin:.4f}", excess, excess <= margin)


def cost() -> Iterator[Check]:
    """A step of one densely connected net by the energy score, and by the likelihood it would have if inverted."""
    model = seeded(lambda: energy_flow(WIDE, parts=1, hidden=128, blocks=3)).train()
    model.scaling.initialised.fill_(True)
    x = torch.randn(WIDE_ROWS, WIDE, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    objective = TwoSampleScore()

    def by_energy() -> Tensor:
        return objective(model, Batch(x), generator).mean()

    def by_likelihood() -> Tensor:
        return -log_likelihood(model, x).mean()

    energy, likelihood = (step_time(model, loss) for loss in (by_energy, by_likelihood))
    what = (
        f"densely connected net, {WIDE} columns, {WIDE_ROWS} rows: a likelihood step with the Jacobian's slogdet "
        f"({1e3 * likelihood:.0f} ms) over an energy step ({1e3 * energy:.0f} ms)"
    )
    yield Check(METHOD, what, "> 5", likelihood / energy, likelihood > 5 * energy)


def log_likelihood(model: EnergyFlow, x: Tensor) -> Tensor:
    """`log N(g(x)) + log|det dg/dx|` with the net as the map g to noise, its Jacobian by autodiff."""

    def push(row: Tensor) -> tuple[Tensor, Tensor]:
        z = row + model.nets[0](row)
        return z, z

    jacobian, z = torch.func.vmap(torch.func.jacrev(push, has_aux=True))(x)
    normal = -0.5 * z.square().sum(dim=-1) - 0.5 * WIDE * math.log(2 * math.pi)
    return normal + torch.linalg.slogdet(jacobian).logabsdet


def step_time(model: EnergyFlow, loss: Callable[[], Tensor]) -> float:
    """Median seconds of a step, forward, backward and Adam, after one to warm up."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-5)
    taken = []
    for _ in range(TIMED + 1):
        start = time.perf_counter()
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        taken.append(time.perf_counter() - start)
    return sorted(taken[1:])[TIMED // 2]


class Invertible:
    """A flow as a sampler of one block, so that the energy score can train it."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.features, self.sizes, self.training = flow.features, (flow.features,), True

    def standardised(self, x: Tensor) -> Tensor:
        """Rows as they are."""
        return x

    def forced(self, noise: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Noise carried to data."""
        return self.flow.transform.inverse(noise, context).value


class OfTheSamples:
    """The energy score of what a flow samples."""

    measure = "minus energy score"

    def __init__(self) -> None:
        self.score = TwoSampleScore()

    def __call__(self, model: Density, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the losses of `batch`."""
        return self.score(Invertible(model), batch, generator)  # type: ignore[arg-type]


def likelihood_of_an_invertible_one() -> Iterator[Check]:
    """The paper's own caveat: good samples need not have a good likelihood."""
    rows = fresh_rows("parabola", TOY_STEPS)

    def by_energy() -> Flow:
        flow = realnvp(2, transforms=6, hidden=64)
        flow.objective = OfTheSamples()
        return flow

    gaps: Sequence[float] = [
        gap(trained(make, rows, steps=TOY_STEPS), "parabola")
        for make in (by_energy, lambda: realnvp(2, transforms=6, hidden=64))
    ]
    what = f"(c) parabola, couplings trained by the energy score: gap, nats (by likelihood: {gaps[1]:.3f})"
    yield Check(METHOD, what, "reported; larger than by likelihood", gaps[0], gaps[0] > gaps[1])
