"""Simulation-based calibration where the posterior is known: the right one passes, wrong ones fail."""

import math

import pytest
import torch

from rosenblatt.core.density import Density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval import sbc
from rosenblatt.eval.sbc import sbc_ranks

ROWS = 2000
NOISE = 2.0  # x ~ N(theta, NOISE^2), theta ~ N(0, PRIOR)
PRIOR = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64)


class GaussianPosterior(Density):
    """The conjugate posterior, with mean shifted, width scaled, or correlation lost on request."""

    features, context = 2, 2

    def __init__(self, *, width=1.0, shift=0.0, correlated=True):
        super().__init__()
        noise = NOISE**2 * torch.eye(2, dtype=torch.float64)
        self.gain = PRIOR @ torch.linalg.inv(PRIOR + noise)
        covariance = PRIOR - self.gain @ PRIOR
        if not correlated:
            covariance = torch.diag(covariance.diagonal())
        self.factor = width * torch.linalg.cholesky(covariance)
        self.shift = shift

    def log_prob(self, x, context=None):
        mean = context @ self.gain.T + self.shift
        return torch.distributions.MultivariateNormal(mean, scale_tril=self.factor, validate_args=False).log_prob(x)

    def sample_and_log_prob(self, n, context=None, *, generator=None):
        noise = torch.randn(n, len(context), 2, dtype=torch.float64, generator=generator)
        x = context @ self.gain.T + self.shift + noise @ self.factor.T
        return x, self.log_prob(x, context)


def joint(rows=ROWS, seed=0):
    draw = torch.Generator().manual_seed(seed)
    theta = torch.randn(rows, 2, dtype=torch.float64, generator=draw) @ torch.linalg.cholesky(PRIOR).T
    return theta, theta + NOISE * torch.randn(rows, 2, dtype=torch.float64, generator=draw)


def report_of(posterior, **options):
    return sbc(posterior, *joint(), generator=torch.Generator().manual_seed(1), **options)


def test_the_exact_posterior_passes_with_its_nominal_coverage():
    report = report_of(GaussianPosterior())
    assert report.calibrated
    assert "off" not in str(report)
    for level in (0.5, 0.8, 0.95):
        for nominal, found in report.coverage(level):
            assert abs(nominal - level) <= 0.011
            assert abs(found.value - nominal) < 4.9 * math.sqrt(nominal * (1 - nominal) / ROWS)


@pytest.mark.parametrize("change", [{"width": 1.3}, {"width": 0.75}, {"shift": 0.3}], ids=str)
def test_a_wrong_width_or_place_fails_on_every_parameter(change):
    report = report_of(GaussianPosterior(**change))
    assert not report.calibrated
    assert (report.p_value[:2] < 1e-7).all()
    assert "off" in str(report)


def test_width_shows_in_coverage():
    (_, wide), (_, narrow) = (report_of(GaussianPosterior(width=w)).coverage(0.8)[0] for w in (1.3, 0.75))
    # A central 80 % interval of a normal whose width is wrong by a factor w holds erf(w 1.2816 / sqrt 2).
    for found, width in ((wide, 1.3), (narrow, 0.75)):
        expected = math.erf(width * 1.2815515655446004 / math.sqrt(2))
        assert abs(found.value - expected) < 4.9 * math.sqrt(expected * (1 - expected) / ROWS) + 0.005  # 99 draws


def test_a_lost_correlation_is_seen_by_the_log_density_alone():
    report = report_of(GaussianPosterior(correlated=False))
    assert (report.p_value[:2] > 1e-7).all()
    assert report.p_value[2] < 1e-7
    assert not report.calibrated


def test_ranks_are_counts_of_draws_below():
    theta, x = joint(5)
    ranks = sbc_ranks(GaussianPosterior(), theta, x, draws=7, generator=torch.Generator().manual_seed(3))
    drawn, log_prob = GaussianPosterior().sample_and_log_prob(7, x, generator=torch.Generator().manual_seed(3))
    for row in range(5):
        assert ranks[row, 0] == sum(float(drawn[k, row, 0]) < float(theta[row, 0]) for k in range(7))
        own = GaussianPosterior().log_prob(theta, x)[row]
        assert ranks[row, 2] == sum(float(log_prob[k, row]) < float(own) for k in range(7))


def test_statistics_are_their_definitions():
    report = report_of(GaussianPosterior(), draws=19, bins=10)
    column = report.ranks[:, 0].numpy()
    counts = [sum(column // 2 == cell) for cell in range(10)]
    assert report.chi_square[0].item() == pytest.approx(sum((c - ROWS / 10) ** 2 for c in counts) / (ROWS / 10))
    gaps = [abs((column <= rank).mean() - (rank + 1) / 20) for rank in range(20)]
    assert report.distance[0].item() == pytest.approx(max(gaps))
    # Three columns, two tests: each has a sixth of 1e-6.
    assert report.band == pytest.approx(math.sqrt(math.log(2 * 6 / 1e-6) / (2 * ROWS)))


def test_bad_requests_are_refused():
    theta, x = joint(300)
    with pytest.raises(OptionError, match="bins must divide draws"):
        sbc(GaussianPosterior(), theta, x, draws=100)
    with pytest.raises(OptionError, match="at least 10 rows"):
        sbc(GaussianPosterior(), theta[:100], x[:100])
    with pytest.raises(DataError, match="equal rows"):
        sbc(GaussianPosterior(), theta, x[:-1])
    with pytest.raises(DataError, match="not a number"):
        sbc(GaussianPosterior(), theta, torch.where(torch.arange(300).unsqueeze(1) == 3, torch.nan, x))
    with pytest.raises(OptionError, match="level"):
        sbc(GaussianPosterior(), theta, x).coverage(1.0)
