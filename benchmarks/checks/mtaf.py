"""S19: tail indices estimated, and kept by marginal tail-adaptive flows where other bases lose them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scipy import stats
from torch import Tensor

from benchmarks.checks.common import BATCH, Check, near, test_nats, trained
from rosenblatt.core.density import Density
from rosenblatt.core.registry import build
from rosenblatt.eval.tail_index import distances, hill
from rosenblatt.eval.tails import tail_report

METHOD = "S19 mTAF"
ROWS, STEPS, SAMPLES, LARGEST = 15_000, 1200, 1_000_000, 100
HEAVY_DF = 2.0


def checks() -> Iterator[Check]:
    """Estimators first, then the flows."""
    yield from estimators()
    yield from flows()


def estimators() -> Iterator[Check]:
    """Hill's index of Student-t columns, means over six seeds as the specification has them."""
    for df in (1.0, 2.0, 3.0):
        columns = {str(seed): torch.from_numpy(stats.t.rvs(df, size=10_000, random_state=seed)) for seed in range(6)}
        found = tail_report(columns).columns
        index = sum(1 / column.hill.xi for column in found) / len(found)
        yield Check(
            METHOD,
            f"t_{df:g}, 10,000 rows: mean tail index of 6 seeds",
            f"{df:g} +- 15 %",
            index,
            near(index, df, 0.15 * df),
        )
    normal = {str(s): torch.randn(10_000, generator=torch.Generator().manual_seed(s)) for s in range(6)}
    light = sum(not column.heavy for column in tail_report(normal).columns)
    yield Check(METHOD, "normal, 10,000 rows: columns of 6 called light", "6", light, light == 6)


def copula_rows(rows: int, seed: int) -> Tensor:
    """Gaussian copula with neighbours correlated 0.25; marginals normal, normal, t_2, t_2."""
    factor = torch.linalg.cholesky(correlation())
    z = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ factor.T
    heavy = stats.t.ppf(stats.norm.cdf(z[:, 2:].numpy()), HEAVY_DF)
    return torch.cat([z[:, :2], torch.from_numpy(heavy)], dim=-1)


def correlation() -> Tensor:
    """The copula's matrix."""
    index = torch.arange(4)
    near_by = (index[:, None] - index).abs() == 1
    return torch.eye(4, dtype=torch.float64) + 0.25 * near_by


def copula_nats(x: Tensor) -> float:
    """Mean negative log-density of the true law."""
    heavy = x[:, 2:].numpy()
    scores = torch.from_numpy(stats.norm.ppf(stats.t.cdf(heavy, HEAVY_DF)))
    z = torch.cat([x[:, :2], scores], dim=-1)
    joint = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), correlation()).log_prob(z)
    change = torch.from_numpy(stats.t.logpdf(heavy, HEAVY_DF)) - torch.from_numpy(stats.norm.logpdf(scores.numpy()))
    return -(joint + change.sum(dim=-1)).mean().item()


def indices(model: Density) -> list[float]:
    """Hill's index of each column of a million samples, from the hundred largest."""
    with torch.no_grad():
        x = model.float().sample(SAMPLES, generator=torch.Generator().manual_seed(3)).double()
    ks = torch.tensor([LARGEST])
    return [1 / hill(distances(column)[: LARGEST + 1].log(), ks).item() for column in x.T]


def flows() -> Iterator[Check]:
    """The same splines behind three bases."""
    # The 15,000 rows again and again: STEPS batches of them.
    rows = copula_rows(ROWS, 0)
    passes = -(-STEPS * BATCH // ROWS)
    repeated = rows.repeat(passes, 1)[: STEPS * BATCH]
    test = copula_rows(75_000, 1)
    truth = copula_nats(test)
    sizes = {"transforms": 3, "bins": 5, "bound": 2.5, "hidden": 64}
    makes = {
        "Gaussian base": lambda: build("nsf", 4, options={**sizes}),
        # From 50, the default, so few steps do not bring df down to where a Hill estimate could see it.
        "TAF": lambda: build("taf", 4, options={**sizes, "df": 10.0}),
        "mTAF": lambda: build("mtaf", 4, options={**sizes, "df": [None, None, HEAVY_DF, HEAVY_DF]}),
    }
    nats, found, dfs = {}, {}, {}
    for name, make in makes.items():
        model = trained(make, repeated, steps=STEPS)
        if name == "TAF":
            dfs[name] = float(model.base.df.detach().flatten()[0])
        nats[name], found[name] = test_nats(model, test), indices(model)
    yield Check(
        METHOD,
        f"mTAF: nats over the truth ({truth:.3f})",
        "smallest of the three",
        nats["mTAF"] - truth,
        nats["mTAF"] < nats["TAF"],
    )
    yield Check(
        METHOD,
        "TAF: nats over the truth",
        "between the others",
        nats["TAF"] - truth,
        nats["mTAF"] < nats["TAF"] < nats["Gaussian base"],
    )
    yield Check(
        METHOD,
        "Gaussian base: nats over the truth",
        "largest of the three",
        nats["Gaussian base"] - truth,
        nats["TAF"] < nats["Gaussian base"],
    )
    for number, index in enumerate(found["mTAF"]):
        heavy = number >= 2
        yield Check(
            METHOD,
            f"mTAF: tail index of {'heavy' if heavy else 'light'} column {number + 1}",
            "1.6 to 2.8" if heavy else "> 10",
            index,
            1.6 <= index <= 2.8 if heavy else index > 10,
        )
    for index in (min(found["TAF"]), max(found["TAF"])):
        yield Check(
            METHOD,
            f"TAF: extreme tail index of its columns (df {dfs['TAF']:.1f})",
            "within 30 % of df",
            index,
            near(index, dfs["TAF"], 0.3 * dfs["TAF"]),
        )
    index = min(found["Gaussian base"])
    yield Check(METHOD, "Gaussian base: smallest tail index of its columns", "> 10", index, index > 10)
