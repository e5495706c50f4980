"""The audit finds what is wrong, and leaves the model as it was; the measures of `eval` against known answers."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from rosenblatt.bases import StandardLogistic, StandardNormal
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Compose, Identity, Transform
from rosenblatt.core.types import Mapped
from rosenblatt.elementwise.affine import Affine
from rosenblatt.eval import (
    KernelProposal,
    bits_per_dimension,
    dkw_band,
    grid_mass,
    importance_mass,
    mean_log_prob,
    nats_from_bits,
    paired_difference,
    pit_bands,
    rosenblatt_report,
    uniformity,
)
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.scaling import Standardise
from rosenblatt.testing import audit
from rosenblatt.testing.checks_conditioner import check_causality
from rosenblatt.testing.checks_density import check_sampler_against_density
from rosenblatt.testing.checks_elementwise import check_log_det_by_differences, check_mass, check_oracle
from rosenblatt.testing.checks_transform import check_log_det, check_round_trip, check_row_independence
from rosenblatt.testing.model_table import MODELS
from rosenblatt.testing.tables import (
    CONDITIONERS,
    ELEMENTWISE,
    ConditionerRow,
    ElementwiseRow,
    ModelRow,
    disturbed,
    rows_like_data,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(features=2, context=0):
    options = {"hidden": 8, "widths": [4, 1]}
    return disturbed(build("nits", features, context, options=options, seed=0), 0.05)


class Wrong(Transform):
    """A transform with one fault of choice."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, context=None):
        if self.fault == "batch":
            x = x + 1e-3 * x.mean(dim=0, keepdim=True) if x.ndim > 1 else x
        log_det = torch.full(x.shape[:-1], 0.01 if self.fault == "log_det" else 0.0, dtype=x.dtype)
        return Mapped(x, log_det)

    def inverse(self, y, context=None):
        y = y.clamp(-1, 1) if self.fault == "clamp" else y
        return Mapped(y, y.new_zeros(y.shape[:-1]))


@pytest.mark.parametrize(
    ("fault", "caught"),
    [("log_det", {"R2", "R3", "R5"}), ("clamp", {"R1", "R16"}), ("batch", {"R1", "R13"})],
)
def test_audit_finds_planted_faults(fault, caught):
    model = Flow(Wrong(fault), StandardNormal(2))
    report = audit(model, rows_like_data(300, 2), generator=seeded(), seconds=5)
    assert not report.passed
    assert caught <= {row.check for row in report.rows if row.passed is False}


def test_audit_finds_a_leak():
    model = Flow(Conditional(Affine(), Leaky(3, 2, hidden=8)), StandardNormal(3))
    report = audit(disturbed(model), rows_like_data(100, 3), generator=seeded(), seconds=5)
    assert {row.check: row.passed for row in report.rows}["R11"] is False
    assert "R11" in str(report)


class Leaky(Masked):
    """Every theta sees a little of its own coordinate."""

    def forward(self, x, context=None):
        return super().forward(x, context) + 1e-9 * x.unsqueeze(-1)


@pytest.mark.parametrize("context", [0, 2])
def test_audit_passes_a_sound_model_and_leaves_it_alone(context):
    model = small(2, context).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    given = rows_like_data(200, 2, seed=9) if context else None
    report = audit(model, rows_like_data(200, 2), context=given, generator=seeded(), seconds=10)
    assert report.passed, str(report)
    assert {row.check for row in report.rows} == {"R1", "R2", "R3", "R5", "R8", "R11", "R13", "R16"}
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (torch.get_rng_state() == state).all()
    assert all(
        value.dtype == torch.float32 and (value == before[name]).all() for name, value in model.state_dict().items()
    )
    assert str(report).count("\n") >= 14
    assert "All checks passed." in str(report)


def test_audit_takes_unstandardised_and_discrete_data():
    rows = torch.round(rows_like_data(300, 2) * 3) * 1e4 + 1e6
    model = small().after(Standardise(rows.mean(dim=0), rows.std(dim=0)))
    rows[0, 0], rows[1, 1] = torch.nan, torch.inf
    report = audit(model, rows, generator=seeded(), seconds=5)
    failed = {row.check for row in report.rows if row.passed is False}
    assert failed <= {"R1", "R8"}  # what float32 loses at 1e6, said and not hidden


def test_audit_refuses_rows_without_density():
    with pytest.raises(DataError, match="finite log-density"):
        audit(small(), torch.full((10, 2), torch.nan))
    with pytest.raises(DataError, match="2 features"):
        audit(small(), torch.zeros(10, 3))


def test_a_constant_column_does_not_stop_the_audit():
    rows = rows_like_data(100, 2)
    rows[:, 1] = 0.5
    assert audit(small(), rows, generator=seeded(), seconds=5).passed


class Shifted(Affine):
    """An affine map whose log-derivative is off by 1e-4."""

    def forward(self, x, theta):
        value, log_det = super().forward(x, theta)
        return Mapped(value, log_det + 1e-4)


class Doubled(Affine):
    """An affine map that runs at twice its formula."""

    def forward(self, x, theta):
        value, log_det = super().forward(x, theta)
        return Mapped(2 * value, log_det + math.log(2))


def test_elementwise_checks_find_planted_faults():
    row = ELEMENTWISE["affine"]
    for check in (check_log_det_by_differences, check_mass):
        with pytest.raises(AssertionError, match="R"):
            check(ElementwiseRow("shifted", Shifted, row.oracle))
    with pytest.raises(AssertionError, match="R7"):
        check_oracle(ElementwiseRow("doubled", Doubled, row.oracle))


def test_conditioner_checks_find_a_leak():
    with pytest.raises(AssertionError, match="R11"):
        check_causality(ConditionerRow("leaky", lambda d, p: Leaky(d, p, hidden=8)))


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("log_det", check_log_det),
        ("clamp", check_round_trip),
        ("batch", check_row_independence),
        ("clamp", check_sampler_against_density),
    ],
)
def test_flow_checks_find_planted_faults(fault, check):
    with pytest.raises(AssertionError):
        check(ModelRow(fault, lambda features: Flow(Wrong(fault), StandardNormal(features))))


def test_tables_name_their_rows():
    for table in (ELEMENTWISE, CONDITIONERS, MODELS):
        assert all(name == row.name for name, row in table.items())


def test_mean_log_prob_and_paired_difference():
    values = torch.tensor([1.0, 2.0, 4.0, 5.0])
    mean = mean_log_prob(values)
    assert mean.value == 3.0
    assert mean.standard_error == pytest.approx(stats.sem([1, 2, 4, 5]))
    weighted = mean_log_prob(values, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert weighted.value == 3.0
    assert weighted.standard_error == pytest.approx(math.sqrt(2) / 2)
    ignored = mean_log_prob(torch.tensor([-torch.inf, 1.0, 3.0]), torch.tensor([0.0, 1.0, 1.0]))
    assert ignored.value == 2.0
    assert mean_log_prob(torch.tensor([-torch.inf, 1.0])).value == -math.inf
    difference = paired_difference(values + torch.tensor([0.1, 0.2, 0.1, 0.2]), values)
    assert difference.value == pytest.approx(0.15)
    assert difference.p_value < 1e-5
    assert paired_difference(values, values).p_value == 1.0
    with pytest.raises(DataError, match="rows"):
        paired_difference(values, values[1:])
    with pytest.raises(DataError, match="two rows"):
        mean_log_prob(values[:1])
    with pytest.raises(DataError, match="weight"):
        mean_log_prob(values, -torch.ones(4))


def test_bits_per_dimension():
    assert bits_per_dimension(torch.tensor(0.0), 4, bin_width=1 / 256).item() == pytest.approx(8.0)
    nats = torch.tensor([-123.4, 5.6])
    torch.testing.assert_close(nats_from_bits(bits_per_dimension(nats, 7, bin_width=0.5), 7, bin_width=0.5), nats)
    with pytest.raises(OptionError, match="dimensions"):
        bits_per_dimension(nats, 0)


def test_uniformity_is_the_exact_ks_test():
    u = torch.rand(500, 3, generator=seeded(), dtype=torch.float64)
    u[:, 2] = u[:, 2] ** 1.5
    found = uniformity(u)
    for column in range(3):
        expected = stats.ks_1samp(u[:, column].numpy(), stats.uniform.cdf, method="exact")
        assert found.statistic[column].item() == pytest.approx(expected.statistic, abs=1e-12)
        assert found.p_value[column].item() == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.p_value[2] < 1e-6
    with pytest.raises(DataError, match="outside"):
        uniformity(u + 1)
    with pytest.raises(DataError, match="at least one row"):
        uniformity(u[:0])


def test_bands_hold_and_detect():
    assert dkw_band(20_000) < 0.02
    low, high = pit_bands(1000, 20, false_alarm=1e-3)
    inside = stats.binom(1000, 1 / 20).cdf(high) - stats.binom(1000, 1 / 20).cdf(low - 1)
    assert inside >= 1 - 1e-3 / 20
    assert stats.binom(1000, 1 / 20).cdf(high - 1) - stats.binom(1000, 1 / 20).cdf(low) < 1 - 1e-3 / 40
    with pytest.raises(OptionError, match="false_alarm"):
        dkw_band(10, false_alarm=0.0)
    with pytest.raises(OptionError, match="bins"):
        pit_bands(10, 0)


def test_rosenblatt_report_tells_a_right_model_from_a_wrong_one():
    model = Flow(Identity(), StandardNormal(2))
    right = StandardNormal(2).sample(20_000, generator=seeded())
    assert rosenblatt_report(model, right).calibrated
    wrong = right * torch.tensor([1.0, 1.1])
    report = rosenblatt_report(model, wrong)
    assert not report.calibrated
    assert report.uniformity.statistic[0] < report.band
    assert "column 1" in str(report)
    with pytest.raises(DataError, match="NaN"):
        rosenblatt_report(model, torch.tensor([[torch.nan, 0.0]]))


@pytest.mark.parametrize("features", [1, 2])
def test_grid_mass_of_known_densities(features):
    assert grid_mass(StandardNormal(features), cells=100) == pytest.approx(1, abs=1e-6)
    scaled = Flow(Compose([Standardise([50.0] * features, [1e-3] * features)]), StandardLogistic(features)).double()
    near = scaled.sample(500, generator=seeded()).detach()
    assert grid_mass(scaled, near=near, cells=160) == pytest.approx(1, abs=1e-3)
    box = torch.ones(features)
    part = (2 * stats.norm.cdf(1) - 1) ** features
    assert grid_mass(StandardNormal(features), lower=-box, upper=box, cells=50) == pytest.approx(part, abs=1e-6)
    assert grid_mass(Flow(Wrong("log_det"), StandardNormal(features)), cells=100) == pytest.approx(
        math.exp(0.01), abs=1e-6
    )


def test_grid_mass_refuses_what_it_cannot_do():
    with pytest.raises(OptionError, match="at most 2"):
        grid_mass(StandardNormal(3))
    with pytest.raises(OptionError, match="both ends"):
        grid_mass(StandardNormal(1), lower=torch.zeros(1))


def test_importance_mass_and_its_proposal():
    rows = rows_like_data(600, 3)
    proposal = KernelProposal(rows)
    drawn, log_prob = proposal.sample_and_log_prob(4000, generator=seeded())
    torch.testing.assert_close(proposal.log_prob(drawn), log_prob)
    own = importance_mass(StandardNormal(3), proposal, rows=20_000, generator=seeded(1))
    assert own.standard_error < 0.01
    assert abs(own.value - 1) < 5 * own.standard_error
    wrong = importance_mass(Flow(Wrong("log_det"), StandardNormal(3)), proposal, rows=20_000, generator=seeded(1))
    assert wrong.value == pytest.approx(own.value * math.exp(0.01), rel=1e-6)
    other = KernelProposal(rows, bandwidth=2.0)
    mutual = importance_mass(proposal, other, rows=20_000, generator=seeded(2))
    assert abs(mutual.value - 1) < 5 * mutual.standard_error
    with pytest.raises(DataError, match="singular"):
        KernelProposal(torch.cat([rows, rows], dim=1))
