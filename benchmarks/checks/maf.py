"""S15: masked autoregressive flows on the parabola, and the ladder of POWER."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.checks.common import Check, fresh_rows, gap, near, test_nats, trained
from benchmarks.heads import SIDE, patches
from benchmarks.power import data_file
from rosenblatt.bases import StandardNormal
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.density import Flow
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Compose
from rosenblatt.data import TOYS, maf_power
from rosenblatt.elementwise.affine import Affine
from rosenblatt.layers.conditional import Conditional
from rosenblatt.models.made_mixture import made_mixture
from rosenblatt.models.maf import maf
from rosenblatt.models.realnvp import realnvp
from rosenblatt.testing.tables import seeded
from rosenblatt.train import FitConfig, Fitter

METHOD = "S15 MAF"
STEPS = 2500
LADDER_STEPS = 4000
RIGHT, WRONG = [1, 0], [0, 1]  # the parabola's first column depends on its second


def stack(*orders: list[int]) -> Flow:
    """Affine autoregressive layers in the given orders, with H = 64."""
    layers = [Conditional(Affine(), Masked(2, 2, hidden=64, blocks=2, residual=False, order=order)) for order in orders]
    return Flow(Compose(layers), StandardNormal(2))


def checks() -> Iterator[Check]:
    """The parabola, then what real tables allow."""
    yield from parabola()
    yield from real_gaussians()
    yield from ladder()


def parabola() -> Iterator[Check]:
    """Depth with and without turning the order around."""
    rows = fresh_rows("parabola", STEPS)
    gaussian = build("gaussian", 2)
    gaussian.initialise(rows)
    found = gap(gaussian, "parabola")
    yield Check(
        METHOD, "parabola, one Gaussian: gap to the entropy, nats", "0.553 +- 0.02", found, near(found, 0.553, 0.02)
    )
    for what, flow, wrong in (
        ("MADE in the right order", [RIGHT], False),
        ("MADE in the wrong order", [WRONG], True),
        ("MAF(5) from the wrong order, turned around", [WRONG, RIGHT, WRONG, RIGHT, WRONG], False),
        ("MAF(5) in the wrong order throughout", [WRONG] * 5, True),
    ):
        model = trained(lambda flow=flow: stack(*flow), rows, steps=STEPS)
        found = gap(model, "parabola")
        holds = 0.32 <= found <= 0.36 if wrong else found < 0.01
        yield Check(METHOD, f"parabola, {what}: gap, nats", "0.32 to 0.36" if wrong else "< 0.01", found, holds)
        if len(flow) == 5 and not wrong:
            test = TOYS["parabola"].sample(10_000, torch.Generator().manual_seed(2))
            with torch.no_grad():
                back = model.transform.inverse(model.transform(test).value).value
            error = (back - test).abs().max().item()
            yield Check(METHOD, "parabola, MAF(5): largest round-trip error", "< 1e-5", error, error < 1e-5)


def real_gaussians() -> Iterator[Check]:
    """The published Gaussian rows of POWER and BSDS300, which need no training."""
    train, validation = maf_power(data_file("power_full_train_val.npz"))
    gaussian = build("gaussian", 6)
    gaussian.initialise(train.values.double())
    found = -test_nats(gaussian, validation.values)
    yield Check(METHOD, "POWER, Gaussian, validation rows, nats", "-7.74 +- 0.05", found, near(found, -7.74, 0.05))
    stored = np.load(data_file("bsds300_gray.npz"), allow_pickle=False)
    draw = np.random.default_rng(0)
    rows, test = (torch.from_numpy(patches(stored[part], 200_000, draw)) for part in ("train", "test"))
    gaussian = build("gaussian", SIDE * SIDE - 1)
    gaussian.initialise(rows)
    found = -test_nats(gaussian, test)
    yield Check(METHOD, "BSDS300 patches (own draws), Gaussian, nats", "96.67 +- 1", found, near(found, 96.67, 1.0))


def ladder() -> Iterator[Check]:
    """A few thousand steps are enough for the order of the published column."""
    train, validation = maf_power(data_file("power_full_train_val.npz"))
    config = FitConfig(max_steps=LADDER_STEPS, learning_rate=1e-3, validation_fraction=0.0, patience=None)
    scores = {}
    for name, make in (
        ("MADE", lambda: maf(6, transforms=1, hidden=96, residual=False)),
        ("MAF(5)", lambda: maf(6, transforms=5, hidden=96, residual=False)),
        ("RealNVP(5)", lambda: realnvp(6, transforms=5, hidden=96)),
        ("MADE-MoG", lambda: made_mixture(6, components=10, hidden=96, residual=False)),
    ):
        model = seeded(make)
        Fitter(config, progress=False).fit(model, train)
        scores[name] = -test_nats(model, validation.values)
    published = {"MADE": -3.08, "MAF(5)": 0.14, "RealNVP(5)": -0.02, "MADE-MoG": 0.40}
    flows = (scores["MAF(5)"], scores["RealNVP(5)"])
    for name, found in scores.items():
        what = f"POWER, {name}, {LADDER_STEPS} steps of 512 rows, nats"
        if name == "MADE":
            yield Check(
                METHOD,
                what,
                f"above the Gaussian, below the flows (published {published[name]})",
                found,
                -7.74 < found < min(flows),
            )
        elif name == "MADE-MoG":
            yield Check(
                METHOD, what, f"> 0 and above the flows (published {published[name]})", found, found > max(0.0, *flows)
            )
        else:
            yield Check(
                METHOD,
                what,
                f"between MADE and MADE-MoG (published {published[name]})",
                found,
                scores["MADE"] < found < scores["MADE-MoG"],
            )
