"""A small model and an in-memory data set for the tests of training (also a script to kill)."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from rosenblatt.core.density import Density
from rosenblatt.core.types import Batch
from rosenblatt.objectives import NLL
from rosenblatt.train import FitConfig, Fitter, RunFolder


class Rows:
    """Rows in memory, with optional weights."""

    def __init__(self, x, weight=None):
        self.x, self.weight = x, weight

    def __len__(self):
        return len(self.x)

    def _take(self, index):
        return Batch(self.x[index], weight=None if self.weight is None else self.weight[index])

    def split(self, fractions, generator):
        order = torch.randperm(len(self), generator=generator)
        parts = order.split([len(self) - round(fractions[1] * len(self)), round(fractions[1] * len(self))])
        return tuple(Rows(*[t for t in self._take(part) if t is not None]) for part in parts)

    def batches(self, size, generator, start=0):
        return (self._take(i) for i in torch.randperm(len(self), generator=generator).split(size)[start:])

    def ordered_batches(self, size):
        return (self._take(i) for i in torch.arange(len(self)).split(size))

    def rows(self, limit=None):
        return self._take(torch.arange(len(self))[:limit])


class Gaussian(Density):
    """A Gaussian in two dimensions whose mean and scale come from a net with dropout."""

    context = 0

    def __init__(self, features=2, dropout=0.1, start=False):
        super().__init__()
        self.features = features
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.net = nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2 * features))
        self.start = start
        self.register_buffer("offset", torch.zeros(features))

    def initialise(self, x, context=None, weight=None):
        if self.start:
            self.offset.copy_(x.mean(dim=0))

    def log_prob(self, x, context=None):
        mean, log_scale = self.net(torch.ones_like(x)).chunk(2, dim=-1)
        z = (x - self.offset - mean) * torch.exp(-log_scale)
        return (-0.5 * z.square() - log_scale - 0.9189385332046727).sum(dim=-1)

    def sample_and_log_prob(self, n, context=None, *, generator=None):
        raise NotImplementedError


class Fixed(Gaussian):
    """A model that its starting values fit completely."""

    closed_form = True


def table(rows=400, seed=0, features=2):
    generator = torch.Generator().manual_seed(seed)
    return Rows(torch.randn(rows, features, generator=generator) * 0.5 + 2.0)


CONFIG = {
    "epochs": 6,
    "batch_size": 32,
    "learning_rate": 0.02,
    "validate_every": 7,
    "checkpoint_every": 5,
    "patience": None,
}


def fit(path=None, *, objective=None, resume=False, model=None, data=None, **changes):
    """Fit the stub; returns (model, report, run)."""
    model = Gaussian() if model is None else model
    run = None
    if path is not None:
        run = RunFolder.open(path) if resume else RunFolder.create(path, {"model": "stub"})
    config = FitConfig.from_dict({**CONFIG, **changes})
    report = Fitter(config, progress=False).fit(
        model, table() if data is None else data, objective or NLL(), run=run, resume=resume
    )
    return model, report, run


def run_and_kill(path, epochs, kills):
    """Train in child processes, killed without warning at random moments, then once to the end."""
    draw = random.Random(1)
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)  # slow imports happen once, here
    metrics = Path(path) / "metrics.jsonl"
    latest = -1
    for kill in range(kills + 1):
        before = metrics.stat() if metrics.exists() else None
        child = os.fork()
        if child == 0:
            fit(path, resume=True, epochs=epochs)
            os._exit(0)
        if kill == kills:
            assert os.waitpid(child, 0)[1] == 0
            return
        # Wait for the first record, so that the kill falls among steps and saves.
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not metrics.exists() or metrics.stat() == before):
            time.sleep(0.001)
        time.sleep(draw.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        step = RunFolder.open(path).load("latest").step
        assert step >= latest
        latest = step
        print("killed at", step)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_and_kill(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
