"""Posteriors learned from 10,000 simulations of five published tasks, against reference samples.

    python -m benchmarks lfi [TASK ...]

Tasks, priors and simulators as defined by Lueckmann, Boelts, Greenberg, Goncalves & Macke, Benchmarking
simulation-based inference, AISTATS 2021, whose reference samples for the first two observations are found in
ROSENBLATT_DATA or ../shared/data (sbibm_reference.npz). One posterior per task is learned and asked at both. The score
is the accuracy of a classifier between its draws and the reference (C2ST): 0.5 is perfect, 1 is worst. Beside it stand
the nats lost on the reference, an estimate of the Kullback-Leibler divergence from the exact posterior, which sees fine
structure that the classifier may miss.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, Uniform

from benchmarks.power import data_file
from rosenblatt.eval import c2st
from rosenblatt.inference import fit_posterior, simulate
from rosenblatt.train import FitConfig

RESULTS = Path(__file__).resolve().parent / "results" / "lfi.json"
SIMULATIONS, SCORED_ROWS, OBSERVATIONS, SEED = 10_000, 3000, (1, 2), 0
EVIDENCE_DRAWS = 4_000_000
MOON_RADIUS, MOON_WIDTH, MOON_SHIFT = 0.1, 0.01, 0.25


@dataclass(frozen=True)
class Task:
    """A prior, a simulator (rows, parameters) -> (rows, numbers), its log-likelihood, and how a posterior is learned.

    log_likelihood: log p(x | theta), broadcasting (*batch, numbers) against (*batch, parameters).
    factorised: whether each number of x depends on its own parameter alone, and these on none of the others.
    """

    prior: Distribution
    simulator: Callable[[Tensor], Tensor]
    log_likelihood: Callable[[Tensor, Tensor], Tensor]
    model: str = "nsf"
    options: dict[str, Any] = field(default_factory=dict)
    fit: FitConfig = field(default_factory=FitConfig)
    factorised: bool = False


def box(half_width: float, features: int) -> Distribution:
    """Uniform law on [-half_width, half_width]^features."""
    return Independent(
        Uniform(-half_width * torch.ones(features), half_width * torch.ones(features), validate_args=False),
        1,
        validate_args=False,
    )


def linear(theta: Tensor) -> Tensor:
    """`x ~ N(theta, 0.1 I)`."""
    return theta + math.sqrt(0.1) * torch.randn_like(theta)


def linear_log_likelihood(x: Tensor, theta: Tensor) -> Tensor:
    """Log-density of `linear`."""
    return Normal(theta, math.sqrt(0.1)).log_prob(x).sum(dim=-1)


def moons(theta: Tensor) -> Tensor:
    """A thin crescent, shifted by the parameters: a half circle of radius N(0.1, 0.01^2) about (0.25, 0)."""
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = MOON_RADIUS + MOON_WIDTH * torch.randn(len(theta))
    crescent = torch.stack([radius * angle.cos() + MOON_SHIFT, radius * angle.sin()], dim=-1)
    return crescent + moon_centre(theta)


def moon_centre(theta: Tensor) -> Tensor:
    """Where the parameters move the crescent to."""
    first, second = theta.unbind(dim=-1)
    return torch.stack([-(first + second).abs(), second - first], dim=-1) / math.sqrt(2)


def moons_log_likelihood(x: Tensor, theta: Tensor) -> Tensor:
    """Log-density of `moons` in polar coordinates: uniform angle, normal radius, Jacobian 1 / radius."""
    across, along = (x - moon_centre(theta)).unbind(dim=-1)
    across = across - MOON_SHIFT
    radius = torch.hypot(across, along)
    log_density = Normal(MOON_RADIUS, MOON_WIDTH).log_prob(radius) - math.log(math.pi) - radius.log()
    return torch.where(across > 0, log_density, -torch.inf)


def mixture(theta: Tensor) -> Tensor:
    """`x ~ 0.5 N(theta, I) + 0.5 N(theta, 0.01 I)`."""
    scale = torch.where(torch.rand(len(theta), 1) < 0.5, 1.0, 0.1)
    return theta + scale * torch.randn_like(theta)


def mixture_log_likelihood(x: Tensor, theta: Tensor) -> Tensor:
    """Log-density of `mixture`."""
    parts = [Normal(theta, scale).log_prob(x).sum(dim=-1) for scale in (1.0, 0.1)]
    return torch.logaddexp(*parts) - math.log(2)


def slcp(theta: Tensor) -> Tensor:
    """Four points of a bivariate normal law whose mean, scales and correlation are the parameters."""
    return points_law(theta).sample((4,)).transpose(0, 1).reshape(len(theta), 8)


def points_law(theta: Tensor) -> MultivariateNormal:
    """`N((t1, t2), [[s1^2, r s1 s2], [r s1 s2, s2^2]])`, s1 = t3^2, s2 = t4^2, r = tanh t5."""
    s1, s2, r = theta[..., 2].square(), theta[..., 3].square(), theta[..., 4].tanh()
    zero = torch.zeros_like(s1)
    factor = torch.stack([torch.stack([s1, zero], -1), torch.stack([r * s2, s2 * (1 - r.square()).sqrt()], -1)], -2)
    return MultivariateNormal(theta[..., :2], scale_tril=factor, validate_args=False)


def slcp_log_likelihood(x: Tensor, theta: Tensor) -> Tensor:
    """Log-density of `slcp`."""
    law = points_law(theta)
    return torch.stack([law.log_prob(point) for point in x.split(2, dim=-1)]).sum(dim=0)


def fit(epochs: int, batch_size: int, learning_rate: float) -> FitConfig:
    """Training of a task: EMA over about the last 100 steps, cosine schedule, best weights on a tenth held out."""
    return FitConfig(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, patience=15, ema_decay=0.99, seed=SEED
    )


SPLINES = {"transforms": 5, "hidden": 64, "blocks": 2, "bins": 8}
ONE_LAYER = {"transforms": 1, "hidden": 64, "blocks": 1, "dropout": 0.1}
TASKS = {
    "two_moons": Task(box(1, 2), moons, moons_log_likelihood, "nsf", SPLINES, fit(40, 100, 2e-3)),
    "gaussian_linear": Task(
        Independent(Normal(torch.zeros(10), math.sqrt(0.1)), 1),
        linear,
        linear_log_likelihood,
        "maf",
        ONE_LAYER,
        fit(40, 200, 2e-3),
        factorised=True,
    ),
    "gaussian_linear_uniform": Task(
        box(1, 10),
        linear,
        linear_log_likelihood,
        "nsf",
        {**ONE_LAYER, "bins": 4, "linear": "none"},
        fit(40, 200, 2e-3),
        factorised=True,
    ),
    "slcp": Task(box(3, 5), slcp, slcp_log_likelihood, "nsf", {**SPLINES, "dropout": 0.2}, fit(50, 100, 1e-3)),
    "gaussian_mixture": Task(box(10, 2), mixture, mixture_log_likelihood, "nsf", SPLINES, fit(30, 100, 2e-3)),
}


def reference(task: str, observation: int) -> tuple[Tensor, Tensor]:
    """Reference samples of a posterior, and the data it is given, in float64."""
    with np.load(data_file("sbibm_reference.npz"), allow_pickle=False) as stored:
        names = [f"{task}__obs{observation}__{part}" for part in ("posterior", "x")]
        samples, x = (torch.from_numpy(stored[name]).double() for name in names)
    return samples, x


def log_evidence(task: Task, x: Tensor) -> float:
    """log p(x): by a grid for each parameter where the task is factorised, else the mean likelihood of prior draws."""
    if task.factorised:
        side = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
        rows = side.unsqueeze(1).expand(-1, len(x))
        law: Any = task.prior
        joint = law.base_dist.log_prob(rows) + Normal(rows, math.sqrt(0.1)).log_prob(x)
        return float((joint.logsumexp(dim=0) + math.log(6 / 60_000)).sum())
    draw = 100_000
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        parts = [
            # A parameter of exactly 0, which float32 draws, may have no density at all.
            torch.logsumexp(task.log_likelihood(x, task.prior.sample((draw,)).double()).nan_to_num(nan=-torch.inf), 0)
            for _ in range(EVIDENCE_DRAWS // draw)
        ]
    return float(torch.stack(parts).logsumexp(dim=0)) - math.log(EVIDENCE_DRAWS)


def measure(name: str, task: Task) -> dict[str, Any]:
    """Learn the posterior of a task and score it at both observations."""
    joint = simulate(task.prior, task.simulator, SIMULATIONS, seed=SEED)
    start = time.process_time()
    posterior = fit_posterior(*joint, prior=task.prior, model=task.model, options=task.options, config=task.fit)
    training = time.process_time() - start
    scores, fits, exact = [], [], []
    for observation in OBSERVATIONS:
        samples, x = reference(name, observation)
        drawn = posterior.sample(SCORED_ROWS, x, generator=torch.Generator().manual_seed(SEED))
        scores.append(c2st(samples[:SCORED_ROWS], drawn, seed=SEED))
        fits.append(posterior.log_prob(samples, x).mean().item())
        true_joint = task.log_likelihood(x, samples) + task.prior.log_prob(samples)
        exact.append(true_joint.mean().item() - log_evidence(task, x))
    report = posterior.report
    assert report is not None
    return {
        "model": task.model,
        "options": task.options,
        "fit": task.fit.to_dict(),
        "weights": sum(p.numel() for p in posterior.parameters()),
        "c2st": [score.value for score in scores],
        "c2st_standard_error": [score.standard_error for score in scores],
        "c2st_mean": float(np.mean([score.value for score in scores])),
        "reference_nats": fits,
        "reference_nats_of_the_exact_posterior": exact,
        "validation_nats": report.best_validation,
        "epochs": report.epochs,
        "training_cpu_seconds": training,
        "cpu_seconds": time.process_time() - start,
    }


def main() -> None:
    """Measure the tasks asked for, all by default, and write them into benchmarks/results/lfi.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks lfi", description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", choices=[[], *TASKS], help="which tasks to run; all without a name")
    chosen = parser.parse_args().tasks or list(TASKS)
    torch.set_num_threads(1)
    for name in chosen:
        result = measure(name, TASKS[name])
        lost = np.subtract(result["reference_nats_of_the_exact_posterior"], result["reference_nats"])
        print(
            f"{name:24} C2ST {result['c2st'][0]:.3f} {result['c2st'][1]:.3f}  mean {result['c2st_mean']:.3f}  "
            f"nats lost {lost[0]:.3f} {lost[1]:.3f}  {result['epochs']:.0f} epochs, "
            f"{result['cpu_seconds']:.0f} CPU s",
            flush=True,
        )
        write(name, result)


def write(name: str, result: dict[str, Any]) -> None:
    """Put the result of a task beside those that are there."""
    written = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"tasks": {}}
    found = {**written["tasks"], name: result}
    written = {
        "command": "python -m benchmarks lfi",
        "simulations": SIMULATIONS,
        "scored_rows": SCORED_ROWS,
        "seed": SEED,
        "threads": 1,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "tasks": {task: found[task] for task in TASKS if task in found},
    }
    RESULTS.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
