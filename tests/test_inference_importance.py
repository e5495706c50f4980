"""Importance weights, their Pareto tail, and log-joints of named parameters."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from rosenblatt.bases import StandardNormal, StudentT
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.inference import ImportanceSample, ImportanceWarning, LogJoint, importance_sample
from rosenblatt.inference.pareto import fit_pareto, smooth_tail


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(theta, scale=1.0):
    return -0.5 * (theta / scale).square().sum(dim=-1)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.7, 1.5])
def test_pareto_fit_finds_shape_and_scale(shape):
    """Asymptotic standard error of the shape, (1 + k) / sqrt n; the prior draws it towards 1/2 by 10 / (n + 10)."""
    n = 20_000
    draws = scipy.stats.genpareto(shape, scale=3.0).rvs(n, random_state=np.random.default_rng(1))
    found, scale = fit_pareto(torch.from_numpy(draws))
    assert found == pytest.approx(shape, abs=4.9 * (1 + shape) / math.sqrt(n) + 1e-3)
    assert scale == pytest.approx(3.0, rel=4.9 * math.sqrt(2 * (1 + shape) / n) + 0.01)


def test_pareto_fit_is_near_the_maximum_of_the_likelihood():
    draws = scipy.stats.genpareto(0.4, scale=2.0).rvs(400, random_state=np.random.default_rng(2))
    shape, _, scale = scipy.stats.genpareto.fit(draws, floc=0.0)
    found, found_scale = fit_pareto(torch.from_numpy(draws))
    without_prior = (found * 410 - 5) / 400
    assert without_prior == pytest.approx(shape, abs=0.02)
    assert found_scale == pytest.approx(scale, rel=0.02)


@pytest.mark.parametrize(("rate", "shape"), [(1.25, 0.2), (2.0, 0.5), (5.0, 0.8)])
def test_khat_of_exponentials_is_known(rate, shape):
    """Target Exp(1), proposal Exp(r): w = e^{(r - 1) x} / r has exactly the Pareto tail of shape (r - 1) / r."""
    n = 100_000
    x = -torch.log(torch.rand(n, generator=seeded(3), dtype=torch.float64)) / rate
    _, khat = smooth_tail((rate - 1) * x - math.log(rate))
    tail = 3 * math.sqrt(n)
    assert khat == pytest.approx(shape, abs=4.9 * (1 + shape) / math.sqrt(tail) + 10 / tail)


def test_smoothed_weights_are_quantiles_of_the_fit_in_the_same_order():
    log_weight = torch.from_numpy(scipy.stats.t(df=2).rvs(500, random_state=np.random.default_rng(0)))
    smoothed, khat = smooth_tail(log_weight + 1000.0)
    assert torch.exp(smoothed).sum().item() == pytest.approx(1.0)
    raw = log_weight - log_weight.max()
    order = raw.argsort()
    tail = math.ceil(3 * math.sqrt(500))
    largest, others = order[-tail:], order[:-tail]
    shift = (smoothed - raw)[others]
    torch.testing.assert_close(shift, shift[:1].expand_as(shift))
    threshold = torch.exp(raw[order[-tail - 1]]).item()
    exceedances = torch.exp(raw[largest]) - threshold
    shape, scale = fit_pareto(exceedances)
    assert shape == pytest.approx(khat, rel=1e-9)
    place = (np.arange(tail) + 0.5) / tail
    expected = np.minimum(threshold + scipy.stats.genpareto(shape, scale=scale).ppf(place), 1.0)
    torch.testing.assert_close(smoothed[largest] - shift[0], torch.from_numpy(np.log(expected)), rtol=1e-9, atol=1e-9)
    assert khat > 0.7
    assert (smoothed[largest].diff() >= 0).all()


def test_equal_weights_have_no_tail():
    smoothed, khat = smooth_tail(torch.full((100,), -3.0))
    assert khat == -math.inf
    torch.testing.assert_close(smoothed, torch.full((100,), -math.log(100), dtype=torch.float64))
    some_zero = torch.full((100,), 0.0)
    some_zero[:60] = -math.inf
    smoothed, khat = smooth_tail(some_zero)
    assert not torch.isnan(smoothed).any()
    assert torch.exp(smoothed).sum().item() == pytest.approx(1.0)


def test_integral_and_effective_size_of_normals():
    """Target N(0, 0.8^2) unnormalised in 3 columns: E w^2 = prod s^-2 / sqrt(2 / s^2 - 1)."""
    scale, n = 0.8, 20_000
    sample = importance_sample(lambda t: normal(t, scale), StandardNormal(3), n, generator=seeded())
    exact = 3 * math.log(scale) + 1.5 * math.log(2 * math.pi)
    second = (scale**-2 / math.sqrt(2 / scale**2 - 1)) ** 3
    assert abs(sample.log_integral.value - exact) < 4.9 * sample.log_integral.standard_error
    assert sample.log_integral.standard_error == pytest.approx(math.sqrt((second - 1) / n), rel=0.1)
    assert sample.efficiency == pytest.approx(1 / second, rel=0.05)
    assert sample.warning is None
    assert "effective size" in str(sample)
    assert sample.mean(lambda t: t.square()).tolist() == pytest.approx([scale**2] * 3, abs=0.05)


def test_a_light_proposal_is_warned_of_and_a_heavy_one_is_not():
    """A target five times as wide in 2 columns: the weights' tail has shape 1 - 1/25."""
    with pytest.warns(ImportanceWarning, match=r"k-hat .* tails are too light"):
        sample = importance_sample(lambda t: normal(t, 5.0), StandardNormal(2), 4000, generator=seeded())
    assert sample.khat > 0.7
    assert sample.warning in str(sample)
    assert importance_sample(normal, StudentT(1, df=1.0), 4000, generator=seeded()).khat < 0.5


def weighed(n=4000):
    return importance_sample(lambda t: normal(t - 0.7), StandardNormal(1), n, generator=seeded(1))


def test_resampling_keeps_the_shares():
    sample = weighed()
    drawn = sample.resample(8000, generator=seeded(2))
    values, counts = drawn.unique(return_counts=True)
    share = dict(zip(sample.theta.squeeze(-1).tolist(), torch.exp(sample.smoothed).tolist(), strict=True))
    expected = torch.tensor([8000 * share[value] for value in values.tolist()])
    assert bool(((counts - expected).abs() <= 1).all())  # systematic: never off by a whole draw
    assert drawn.mean().item() == pytest.approx(0.7, abs=0.1)
    assert abs(torch.corrcoef(torch.stack([drawn[:-1, 0], drawn[1:, 0]]))[0, 1].item()) < 0.06


def test_metropolis_leaves_the_target_unchanged():
    sample = weighed(20_000)
    states, acceptance = sample.metropolis(generator=seeded(2))
    assert len(states) == 20_000
    assert states.mean().item() == pytest.approx(0.7, abs=0.1)
    assert states.var().item() == pytest.approx(1.0, abs=0.15)
    assert acceptance == pytest.approx((states.diff(dim=0) != 0).float().mean().item(), abs=1e-6)
    assert 0.5 < acceptance < 0.9


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda t: normal(t) * math.nan, "NaN or"),
        (lambda t: torch.where(t[:, 0] > 3, torch.inf, normal(t)), "NaN or"),
        (lambda t: normal(t) - math.inf, "-inf at every draw"),
    ],
)
def test_targets_without_weights_are_named(target, words):
    with pytest.raises(DataError, match=words):
        importance_sample(target, StandardNormal(1), 4000, generator=seeded())


def test_too_few_draws_and_odd_functions_are_refused():
    with pytest.raises(OptionError, match="at least 25"):
        importance_sample(normal, StandardNormal(1), 10)
    with pytest.raises(DataError, match="rows were expected"):
        weighed(100).mean(lambda t: t.sum())


SHAPES = {"scale": (), "slope": (2, 3), "shift": (2,)}


def log_joint(p):
    return -p["scale"] + (p["slope"].sum(dim=0)[1] - p["shift"][0] * p["scale"]) ** 2


def test_named_parameters_are_packed_and_unpacked():
    joint = LogJoint(log_joint, SHAPES, supports={"scale": (0, None), "shift": (-1, 1)})
    assert joint.features == 9
    assert joint.supports == [(0, None)] + [(None, None)] * 6 + [(-1, 1)] * 2
    assert joint.names[:3] == ["scale", "slope[0,0]", "slope[0,1]"]
    assert joint.names[-3:] == ["slope[1,2]", "shift[0]", "shift[1]"]
    theta = torch.randn(4, 5, 9)
    p = joint.unpack(theta)
    assert p["slope"].shape == (4, 5, 2, 3)
    assert torch.equal(joint.pack(p), theta)
    assert torch.equal(p["slope"][1, 2, 1, 2], theta[1, 2, joint.names.index("slope[1,2]")])


def test_ways_through_the_rows_agree():
    def batched(p):
        return -p["scale"] + (p["slope"].sum(dim=-2)[..., 1] - p["shift"][..., 0] * p["scale"]) ** 2

    theta = torch.randn(6, 9, dtype=torch.float64)
    made = [
        LogJoint(f, SHAPES, rows=rows)(theta)
        for f, rows in ((log_joint, "vmap"), (log_joint, "loop"), (batched, "batched"))
    ]
    expected = [log_joint(LogJoint(log_joint, SHAPES).unpack(row)).item() for row in theta]
    for values in made:
        assert values.tolist() == pytest.approx(expected, rel=1e-12)


def test_log_joints_that_do_not_fit_are_named():
    for make, words in (
        (lambda: LogJoint(log_joint, {}), "at least one parameter"),
        (lambda: LogJoint(log_joint, SHAPES, supports={"sigma": (0, 1)}), "sigma"),
        (lambda: LogJoint(log_joint, SHAPES, rows="map"), "rows: 'map'"),
        (lambda: LogJoint(log_joint, SHAPES).pack({"scale": torch.zeros(())}), "slope"),
    ):
        with pytest.raises(OptionError, match=words):
            make()
    for rows in ("vmap", "loop"):
        with pytest.raises(DataError, match="one number was expected"):
            LogJoint(lambda p: p["slope"], SHAPES, rows=rows)(torch.zeros(2, 9))


def test_what_is_made_by_hand_reports_too():
    zero = torch.zeros(1000, dtype=torch.float64)
    sample = ImportanceSample(zero.unsqueeze(-1), zero, zero - math.log(1000), (0.0, 0.0), 1000.0, 0.69)
    assert sample.limit == pytest.approx(2 / 3)
    assert "0.67" in sample.warning
