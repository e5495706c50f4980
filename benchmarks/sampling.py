"""Cost of 1,000 NITS samples against the log-density of 1,000 rows, at the published UCI sizes, one thread.

    python -m benchmarks.sampling

Medians of seven interleaved rounds of CPU seconds, written to benchmarks/results/sampling.json.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path

import torch

import rosenblatt.models  # noqa: F401 - fills the registry
from rosenblatt.core.registry import build
from rosenblatt.models.nits import paper_config

SETS = {"power": 6, "gas": 8, "hepmass": 21, "miniboone": 43, "bsds300": 63}
ROWS, ROUNDS = 1000, 7


def main() -> None:
    """Measure every published size."""
    torch.set_num_threads(1)
    results = {}
    for name, features in SETS.items():
        flow = build("nits", features, options=paper_config(name)["model"], seed=0).eval()
        generator = torch.Generator().manual_seed(0)
        score, draw = [], []
        with torch.no_grad():
            rows = flow.sample(ROWS, generator=generator)
            for _ in range(ROUNDS):
                start = time.process_time()
                flow.log_prob(rows)
                middle = time.process_time()
                flow.sample(ROWS, generator=generator)
                score.append(middle - start)
                draw.append(time.process_time() - middle)
        log_prob, sample = statistics.median(score), statistics.median(draw)
        ratios = [b / a for a, b in zip(score, draw, strict=True)]
        results[name] = {
            "features": features,
            "log_prob_seconds": log_prob,
            "sample_seconds": sample,
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
        print(name, results[name], flush=True)
    result = {"command": "python -m benchmarks.sampling", "rows": ROWS, "machine": platform.machine(), "sets": results}
    path = Path(__file__).resolve().parent / "results" / "sampling.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
