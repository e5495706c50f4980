"""Simulation-based calibration: are the widths and places of a learned posterior right, over all data at once?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from rosenblatt.core.density import Density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval.bits import Estimate
from rosenblatt.eval.calibration import dkw_band

DRAWS_AT_ONCE = 50_000
LEAST_EXPECTED = 10.0  # rows a bin must expect for the chi-square law to hold far out


@dataclass(frozen=True)
class SBCReport:
    """Ranks of true values among posterior draws, and how uniform they are.

    ranks: (rows, columns), whole numbers from 0 to `draws`; a column per parameter and last one for the log-density.
    chi_square, p_value: of equally wide bins of ranks, per column; distance: largest gap between empirical and uniform
        CDF of the ranks, per column; band: what the distance stays within.
    false_alarm: probability that a right posterior is called wrong, for all columns together.
    """

    ranks: Tensor
    draws: int
    chi_square: Tensor
    p_value: Tensor
    distance: Tensor
    band: float
    false_alarm: float

    @property
    def calibrated(self) -> bool:
        """Whether no column is off by either test, each at its share of the false alarm."""
        share = self.false_alarm / (2 * self.ranks.shape[1])
        return bool((self.p_value >= share).all() and (self.distance <= self.band).all())

    def coverage(self, level: float) -> list[tuple[float, Estimate]]:
        """Per parameter, the nominal coverage nearest to `level` that draws can state, and what was found.

        The central interval from the k-th lowest to the k-th highest draw holds the truth with probability
        `1 - 2 k / (draws + 1)` exactly. Raises `OptionError` for a level outside (0, 1).

        >>> report = SBCReport(torch.arange(20).unsqueeze(1).expand(20, 2), 19, *[torch.zeros(2)] * 3, 1.0, 0.1)
        >>> report.coverage(0.8)[0][0], report.coverage(0.8)[0][1].value
        (0.8, 0.8)
        """
        if not 0 < level < 1:
            raise OptionError(f"level: {level} came, a probability in (0, 1) was expected.")
        k = min(max(round((1 - level) * (self.draws + 1) / 2), 1), self.draws // 2)
        nominal = 1 - 2 * k / (self.draws + 1)
        found = []
        for column in self.ranks[:, :-1].unbind(dim=1):
            share = float(((column >= k) & (column <= self.draws - k)).double().mean())
            found.append((nominal, Estimate(share, math.sqrt(share * (1 - share) / len(column)))))
        return found

    def __str__(self) -> str:
        lines = [f"Ranks of {len(self.ranks)} true values among {self.draws} draws, false alarm {self.false_alarm:g}"]
        share = self.false_alarm / (2 * self.ranks.shape[1])
        names = [*(f"parameter {number}" for number in range(self.ranks.shape[1] - 1)), "log-density"]
        for name, distance, p_value in zip(names, self.distance, self.p_value, strict=True):
            verdict = "ok" if p_value >= share and distance <= self.band else "off"
            lines.append(
                f"  {name}: distance {distance:.4f} (band {self.band:.4f}), chi-square p {p_value:.3g}, {verdict}"
            )
        return "\n".join(lines)


def sbc(
    density: Density,
    theta: Tensor,
    x: Tensor,
    *,
    draws: int = 99,
    bins: int = 20,
    false_alarm: float = 1e-6,
    generator: torch.Generator | None = None,
) -> SBCReport:
    """Rank each true `theta` (rows, features), simulated with `x` (rows, context), among draws of `density` given x.

    If (theta, x) are fresh draws of the joint law and the density is p(theta | x), the rank of each parameter among
    `draws` is uniform on 0 .. draws (Talts, Betancourt, Simpson, Vehtari & Gelman 2018), and so is the rank of its
    log-density, which also sees wrong dependences (Modrak et al. 2023). Two tests share the false alarm: chi-square on
    `bins` bins (its law is that of many rows) and the distance of CDFs (Dvoretzky, Kiefer & Wolfowitz; any rows). Works
    for any conditional density. Passing is necessary, not sufficient: the prior itself passes, whatever x.

    Raises `OptionError` where `bins` does not divide draws + 1 or expects fewer than 10 rows each, `DataError` for rows
    that do not pair up or a log-density that is not a number.
    """
    if len(theta) != len(x) or theta.ndim != 2 or x.ndim != 2:
        raise DataError(f"theta, x: shapes {tuple(theta.shape)} and {tuple(x.shape)} came, equal rows were expected.")
    rows = len(theta)
    if bins < 2 or draws < 1 or (draws + 1) % bins or rows < LEAST_EXPECTED * bins:
        raise OptionError(
            f"draws={draws}, bins={bins}: {rows} rows came; bins must divide draws + 1 and expect at least "
            f"{LEAST_EXPECTED:g} rows each."
        )
    ranks = sbc_ranks(density, theta, x, draws=draws, generator=generator)
    columns = ranks.shape[1]
    band = dkw_band(rows, false_alarm=false_alarm / (2 * columns))
    width = (draws + 1) // bins
    counts = torch.stack([torch.bincount(column // width, minlength=bins) for column in ranks.T]).double()
    chi_square = ((counts - rows / bins).square() / (rows / bins)).sum(dim=1)
    p_value = torch.from_numpy(stats.chi2.sf(chi_square.numpy(), bins - 1))
    below = torch.stack([torch.bincount(column, minlength=draws + 1) for column in ranks.T]).double().cumsum(dim=1)
    uniform = torch.arange(1, draws + 2, dtype=torch.float64) / (draws + 1)
    distance = (below / rows - uniform).abs().amax(dim=1)
    return SBCReport(ranks, draws, chi_square, p_value, distance, band, false_alarm)


def sbc_ranks(
    density: Density, theta: Tensor, x: Tensor, *, draws: int = 99, generator: torch.Generator | None = None
) -> Tensor:
    """How many of `draws` lie below the truth, (rows, features + 1): per parameter, and last by log-density."""
    parts = []
    size = max(1, DRAWS_AT_ONCE // draws)
    with torch.no_grad():
        for truth, given in zip(theta.split(size), x.split(size), strict=True):
            drawn, log_prob = density.sample_and_log_prob(draws, given, generator=generator)
            below = (drawn < truth).sum(dim=0)
            true_log_prob = density.log_prob(truth, given)
            if bool(torch.isnan(true_log_prob).any()):
                raise DataError("theta, x: a log-density that is not a number came; drop rows with NaN or infinities.")
            parts.append(torch.cat([below, (log_prob < true_log_prob).sum(dim=0).unsqueeze(-1)], dim=1).cpu())
    return torch.cat(parts)
