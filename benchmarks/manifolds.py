"""Densities of real angles and places: flows on the torus and the sphere against mixtures, kernels and the uniform.

    python -m benchmarks manifolds [NAME ...]

Backbone angles (phi, psi) of adenylate kinase, test rows being residues that training has not seen (the frames of one
residue are correlated, so standard errors count residues), and four sets of places on Earth, split 80/10/10 at random.
Everything is chosen on the validation rows: when to stop a flow, how many components a mixture has, how wide kernels
are. Figures are test negative log-likelihoods in nats, with respect to radians on the torus and steradians on the
sphere. Where test rows repeat training rows (most volcanoes do), ever narrower kernels score ever better, and a figure
says little. The flows are trained for 900 steps only, so that all of it takes minutes on one core. The files are found
in ROSENBLATT_DATA or ../shared/data (protein_torsions.npz, earth_sphere.npz).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import rosenblatt.models  # noqa: F401 - fills the registry
from benchmarks.power import data_file
from rosenblatt.core.density import Flow
from rosenblatt.core.registry import build
from rosenblatt.data import Table
from rosenblatt.eval.bits import mean_log_prob
from rosenblatt.layers.sphere import from_degrees, to_chart
from rosenblatt.train import FitConfig, Fitter

SEED = 0
NAMES = ("torsions", "volcano", "earthquake", "flood", "fire")
COMPONENTS = (4, 8, 16, 32, 64, 128)
BACKGROUND = 0.05  # share of the uniform beside the kernels
KAPPAS = tuple(float(2**k) for k in range(2, 28))  # the last: half a kilometre on Earth
FLOWS = {
    "spline": {"circle": "spline", "transforms": 3, "bins": 16, "hidden": 48},
    "moebius": {"circle": "moebius", "transforms": 3, "components": 16, "hidden": 48},
}


class Split(NamedTuple):
    """Chart rows of each part, the cluster of every test row, and the model that lives there."""

    model: str
    train: Tensor
    validation: Tensor
    test: Tensor
    clusters: Tensor

    @property
    def log_volume(self) -> float:
        """Logarithm of (2 pi)^2 or 4 pi."""
        return 2 * math.log(2 * math.pi) if self.model == "torus" else math.log(4 * math.pi)


def load(name: str) -> Split:
    """Rows in radians, or (height, longitude), split by the seed."""
    generator = torch.Generator().manual_seed(SEED)
    if name == "torsions":
        degrees = torch.tensor(np.load(data_file("protein_torsions.npz"))["phi_psi_deg"]).double()
        residue = torch.arange(len(degrees)) % 212  # in every frame the chain from end to end
        rank = torch.randperm(212, generator=generator)[residue]
        part = [torch.deg2rad(degrees[kept]) for kept in (rank >= 64, (rank >= 42) & (rank < 64), rank < 42)]
        return Split("torus", *part, clusters=rank[rank < 42])
    degrees = torch.tensor(np.load(data_file("earth_sphere.npz"))[f"{name}_latlon"]).double()
    rows = to_chart(from_degrees(degrees))[torch.randperm(len(degrees), generator=generator)]
    tenth = len(rows) // 10
    return Split("sphere", rows[2 * tenth :], rows[tenth : 2 * tenth], rows[:tenth], torch.arange(tenth))


def vectors(split: Split, chart: Tensor) -> Tensor:
    """Unit vectors (rows, blocks, axes): two circles, or one sphere."""
    if split.model == "torus":
        return torch.stack([torch.cos(chart), torch.sin(chart)], dim=-1)
    flat = torch.sqrt(1 - chart[:, 0].square())
    height, longitude = chart.unbind(dim=-1)
    return torch.stack([flat * torch.cos(longitude), flat * torch.sin(longitude), height], dim=-1).unsqueeze(1)


def log_kernels(x: Tensor, centres: Tensor, kappa: Tensor) -> Tensor:
    """Log-densities (rows, centres) of products of von Mises(-Fisher) densities, `kappa` (centres, blocks)."""
    total = torch.zeros(len(x), len(centres), dtype=x.dtype)
    for block in range(x.shape[1]):
        k = kappa[:, block]
        if x.shape[2] == 2:
            level = -math.log(2 * math.pi) - torch.log(torch.special.i0e(k))
        else:
            level = torch.log(k) - math.log(2 * math.pi) - torch.log(-torch.expm1(-2 * k))
        total += level + k * (x[:, block] @ centres[:, block].t() - 1)
    return total


def mixture(x: Tensor, count: int, steps: int = 60) -> Callable[[Tensor], Tensor]:
    """Fit `count` components by expectation maximisation, with concentrations by Banerjee et al. (2005)."""
    generator = torch.Generator().manual_seed(SEED)
    centres = x[torch.randperm(len(x), generator=generator)[:count]].clone()
    kappa = torch.full(centres.shape[:2], 10.0, dtype=x.dtype)
    log_weight = torch.full((count,), -math.log(count), dtype=x.dtype)
    axes = x.shape[2]
    for _ in range(steps):
        share = torch.softmax(log_weight + log_kernels(x, centres, kappa), dim=-1)
        size = share.sum(dim=0) + 1e-3
        mean = torch.einsum("rk,rba->kba", share, x) / size.reshape(-1, 1, 1)
        length = mean.norm(dim=-1).clamp(1e-6, 1 - 1e-6)
        centres = mean / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        kappa = (length * (axes - length.square()) / (1 - length.square())).clamp(1e-3, 1e4)
        log_weight = torch.log(size / size.sum())
    return lambda at: torch.logsumexp(log_weight + log_kernels(at, centres, kappa), dim=-1)


def kernels(x: Tensor, kappa: float, log_volume: float) -> Callable[[Tensor], Tensor]:
    """Von Mises(-Fisher) kernels of one width on every training row, and a share of the uniform for rows far away."""
    width = torch.full(x.shape[:2], kappa, dtype=x.dtype)
    far = torch.tensor(math.log(BACKGROUND) - log_volume, dtype=x.dtype)

    def log_density(at: Tensor) -> Tensor:
        parts = [torch.logsumexp(log_kernels(piece, x, width), dim=-1) for piece in at.split(256)]
        return torch.logaddexp(torch.cat(parts) + math.log((1 - BACKGROUND) / len(x)), far)

    return log_density


def best(candidates: dict[float, Callable[[Tensor], Tensor]], validation: Tensor) -> float:
    """The candidate with the largest mean log-density of the validation rows."""
    return max(candidates, key=lambda size: float(candidates[size](validation).mean()))


def fit_flow(split: Split, options: dict[str, object]) -> tuple[Flow, dict[str, object]]:
    """Train to the best validation likelihood."""
    flow = build(split.model, 2, options=options, seed=SEED)
    assert isinstance(flow, Flow)
    config = FitConfig(
        batch_size=256, max_steps=900, epochs=10_000, learning_rate=5e-3, validate_every=100, patience=4, seed=SEED
    )
    tables = [Table.from_any(part.numpy()) for part in (split.train, split.validation)]
    started = time.process_time()
    report = Fitter(config, progress=False).fit(flow, tables[0], validation=tables[1])
    seconds = time.process_time() - started
    return flow.double().eval(), {"steps": report.steps, "stopped": report.stopped, "cpu_seconds": round(seconds, 1)}


def by_cluster(log_prob: Tensor, clusters: Tensor) -> Tensor:
    """Mean log-density of each cluster of rows; all clusters here are of one size."""
    order = clusters.unique()
    return torch.stack([log_prob[clusters == cluster].mean() for cluster in order])


def measure(name: str) -> dict[str, object]:
    """Fit everything to one set and score its test rows."""
    split = load(name)
    train, validation, test = (vectors(split, part) for part in split[1:4])
    scores: dict[str, Tensor] = {"uniform": torch.full((len(test),), -split.log_volume, dtype=torch.float64)}
    notes: dict[str, dict[str, object]] = {}
    with torch.no_grad():
        found = {count: mixture(train, count) for count in COMPONENTS if 4 * count <= len(train)}
        chosen = best(found, validation)
        scores["mixture"], notes["mixture"] = found[chosen](test), {"components": chosen}
        widths = {kappa: kernels(train, kappa, split.log_volume) for kappa in KAPPAS}
        kappa = best(widths, validation)
        scores["kernels"], notes["kernels"] = widths[kappa](test), {"kappa": kappa}
    for label, options in FLOWS.items():
        flow, notes[f"flow ({label})"] = fit_flow(split, options)
        with torch.no_grad():
            scores[f"flow ({label})"] = flow.log_prob(split.test)
    means = {label: by_cluster(score, split.clusters) for label, score in scores.items()}
    result: dict[str, object] = {"rows": [len(part) for part in split[1:4]], "clusters": len(means["uniform"])}
    repeated = (split.test.unsqueeze(1) == split.train.unsqueeze(0)).all(dim=-1).any(dim=1)
    result["test rows that training holds too"] = int(repeated.sum())
    for label, mean in means.items():
        value, error = mean_log_prob(mean)
        result[label] = {
            "nll": round(-value, 4),
            "standard_error": round(error, 4),
            **notes.get(label, {}),
        }
        print(name, label, result[label], flush=True)
    return result


def main(arguments: list[str]) -> int:
    """Measure the sets named, or all, and write benchmarks/results/manifolds.json."""
    chosen = arguments or list(NAMES)
    if unknown := set(chosen) - set(NAMES):
        raise SystemExit(f"{', '.join(unknown)} came; choose of {', '.join(NAMES)}.")
    path = Path(__file__).resolve().parent / "results" / "manifolds.json"
    results = json.loads(path.read_text())["sets"] if path.exists() and arguments else {}
    facts = {
        "command": "python -m benchmarks manifolds",
        "seed": SEED,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "flows": FLOWS,
        "unit": "test negative log-likelihood in nats per row, by radian (torus) or steradian (sphere)",
    }
    for name in chosen:
        results[name] = measure(name)
        path.write_text(json.dumps({**facts, "sets": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
