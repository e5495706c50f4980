"""Round trips of trained flows where the data ends: rows, rows x 3 and base noise x 3, float32 and float64.

    python -m benchmarks.roundtrip

Six columns (eight Gaussians on a ring, correlated heavy-tailed and log-normal rest), standardised; hidden 128, five
transforms, 400 Adam steps at 1e-3 with batches of 512, then 2,000 rows. An entry is the largest |x - f^-1(f(x))| over
columns and the rows that `from_base` lets pass, and the number of rows that its `InverseError` named.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from torch import Tensor

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import InverseError
from rosenblatt.core.registry import build
from rosenblatt.data import Table
from rosenblatt.train import FitConfig, Fitter

SEEDS = (0, 1, 2)
MODELS = {
    "maf": ("maf", {"hidden": 128}),
    "nsf (autoregressive)": ("nsf", {"hidden": 128}),
    "nsf (coupling)": ("nsf", {"hidden": 128, "coupling": True}),
    "nits": ("nits", {"hidden": 128}),
}


def toy_rows(rows: int, generator: torch.Generator) -> Tensor:
    """Draw the common toy set, not yet standardised."""
    angle = torch.randint(0, 8, (rows,), generator=generator) * (torch.pi / 4)
    ring = torch.stack([angle.cos(), angle.sin()], dim=1) * 4 + 0.3 * torch.randn(rows, 2, generator=generator)
    noise = torch.randn(rows, 4, generator=generator)
    chi = torch.randn(rows, 3, generator=generator).square().mean(dim=1, keepdim=True).sqrt()
    heavy = (noise[:, :2] @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])) / chi  # Student-t with 3 degrees of freedom
    log_normal = torch.exp(noise[:, 2:] @ torch.tensor([[1.0, 0.7], [0.0, 0.7]]))
    return torch.cat([ring, heavy, log_normal], dim=1)


def largest_error(flow: Flow, start: Tensor, *, from_base: bool) -> dict[str, float | int]:
    """Go there and back: the largest error of the rows let pass, and how many an `InverseError` named."""
    index = torch.arange(len(start))
    with torch.no_grad():
        z = start if from_base else flow.to_base(start)
        while True:  # another batch size rounds differently, so that a border row may be named the second time
            try:
                x = flow.from_base(z[index])
                break
            except InverseError as error:
                keep = torch.ones(len(index), dtype=torch.bool)
                keep[error.rows] = False
                index = index[keep]
        returned = flow.to_base(x) if from_base else x
    return {"error": (returned - start[index]).abs().max().item(), "rows named": len(start) - len(index)}


def measure(seed: int) -> dict[str, dict[str, object]]:
    """Train each model on rows, weights and noise of one seed and go round."""
    generator = torch.Generator().manual_seed(seed)
    data = toy_rows(52_000, generator)
    data = (data - data.mean(dim=0)) / data.std(dim=0)
    train, rows = data[:-2000], data[-2000:]
    z = torch.randn(2000, 6, generator=generator)
    results: dict[str, dict[str, object]] = {}
    for label, (name, options) in MODELS.items():
        flow = build(name, 6, options=options, seed=seed)
        assert isinstance(flow, Flow)
        config = FitConfig(
            max_steps=400, schedule="constant", clip_norm=None, ema_decay=None, validation_fraction=0.0, seed=seed
        )
        Fitter(config, progress=False).fit(flow, Table.from_any(train.numpy()))
        double = copy.deepcopy(flow).double()
        results[label] = {
            "rows": largest_error(flow, rows, from_base=False),
            "rows x 3": largest_error(flow, rows * 3, from_base=False),
            "z x 3": largest_error(flow, z * 3, from_base=True),
            "rows x 3, float64": largest_error(double, rows.double() * 3, from_base=False),
            "z x 3, float64": largest_error(double, z.double() * 3, from_base=True),
            "held-out nats": flow.log_prob(rows).mean().item(),
        }
        print(seed, label, results[label], flush=True)
    return results


def main() -> None:
    """Measure every seed and write benchmarks/results/roundtrip.json."""
    # How `from_base` disturbs the noise was settled on seed 0; the other seeds were first run afterwards.
    results = {f"seed {seed}": measure(seed) for seed in SEEDS}
    path = Path(__file__).resolve().parent / "results" / "roundtrip.json"
    path.write_text(
        json.dumps({"command": "python -m benchmarks.roundtrip", "largest_error": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
