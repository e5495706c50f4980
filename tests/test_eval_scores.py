"""Scores of fitted densities row by row: closed forms, agreement of three ways to one number, coverage of the truth."""

import math

import pytest
import scipy.stats
import scoringrules as sr
import torch

from rosenblatt.bases import StandardLogistic, StandardNormal, StudentT
from rosenblatt.conditional import conditional_density
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Identity
from rosenblatt.core.types import Likelihood, Support
from rosenblatt.data import Table
from rosenblatt.eval import crps, order_quantiles, score_rows
from rosenblatt.layers.scaling import Standardise

SIGMAS = scipy.stats.norm.isf(0.5e-6)  # false alarm 1e-6, two-sided
OUTCOMES = torch.tensor([[-20.0], [-1.3], [0.0], [0.4], [6.0]], dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("base", [StandardNormal(1), StandardLogistic(1), StudentT(1, df=3.0)])
def test_crps_by_quantiles_is_that_by_formula(base):
    flow = Flow(Standardise([2.0], [3.0]).double(), base)
    closed, found = crps(flow, OUTCOMES, method="closed"), crps(flow, OUTCOMES, method="quantile")
    assert torch.allclose(found, closed, rtol=1e-7)
    assert torch.equal(crps(flow, OUTCOMES), closed)


def test_crps_by_samples_is_unbiased():
    y = torch.full((4000, 1), 0.4, dtype=torch.float64)
    found = crps(StandardNormal(1).double(), y, method="samples", draws=5, generator=seeded())
    error = float(found.std()) / math.sqrt(len(y))
    assert 0.5 / math.sqrt(math.pi) / 5 > SIGMAS * error  # what the score of the draws themselves would add
    assert abs(float(found.mean()) - sr.crps_normal(0.4, 0.0, 1.0)) < SIGMAS * error


def test_crps_by_quantiles_in_the_units_and_the_support_of_the_target():
    target, given = 5 * normal(60, 1).exp(), normal(60, 2, seed=1)
    density = conditional_density("gaussian", Table(target, ["y"]), given, support={"y": Support(0.0)}, seed=0)
    density.initialise(target, given)
    density = density.double()
    y = torch.tensor([[0.5], [3.0], [40.0], [-2.0]], dtype=torch.float64)
    found = crps(density, y, given[:4])
    drawn = density.sample(40_000, given[:4], generator=seeded())
    near, within = (drawn - y).abs(), (drawn[::2] - drawn[1::2]).abs() / 2
    expected = near.mean(dim=0) - within.mean(dim=0)
    error = (near.var(dim=0) / len(near) + within.var(dim=0) / len(within)).sqrt()
    assert (error < 0.02 * expected).all()
    # Two correlated means: their errors add at most.
    assert ((found - expected).abs() < SIGMAS * 2**0.5 * error).all()
    # Below the support the score grows by the distance.
    edge = crps(density, torch.zeros_like(y[:1]), given[3:4])
    assert float(found[3] - edge[0]) == pytest.approx(2.0, rel=1e-4)


def test_scores_of_the_true_law_of_one_feature():
    rows = 20_000
    y, density = normal(rows, 1), Flow(Identity(), StandardNormal(1)).double()
    scores = score_rows(density, y, draws=39, generator=seeded(7))
    assert torch.allclose(scores.log, 0.5 * y[:, 0].square() + 0.5 * math.log(2 * math.pi))
    assert torch.allclose(scores.crps[:, 0], torch.as_tensor(sr.crps_normal(y[:, 0].numpy(), 0.0, 1.0)))
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    quantiles = torch.special.ndtri(levels)
    error = y - quantiles
    assert torch.allclose(scores.pinball[:, 0], torch.maximum(levels * error, (levels - 1) * error))
    for number, level in enumerate((0.5, 0.8, 0.95)):
        assert float(scores.width[0, 0, number]) == pytest.approx(2 * scipy.stats.norm.isf((1 - level) / 2))
        share = float(scores.inside[:, 0, number].mean())
        assert abs(share - level) < SIGMAS * math.sqrt(level * (1 - level) / rows)
    # With one feature the energy score is the CRPS, here estimated.
    off = scores.energy - scores.crps[:, 0]
    assert abs(float(off.mean())) < SIGMAS * float(off.std()) / math.sqrt(rows)


def test_scores_of_several_features_are_those_of_the_draws():
    model = build("maf", 2, 1, options={"hidden": 8, "transforms": 1}, seed=0).double().eval()
    y, context = normal(6, 2), normal(6, 1, seed=1)
    scores = score_rows(model, y, context, draws=39, beta=1.0, p=0.5, generator=seeded(3))
    with torch.no_grad():
        drawn = model.sample(39, context, generator=seeded(3))
    other = drawn.movedim(0, -2).numpy()
    assert torch.allclose(scores.log, -model.log_prob(y, context))
    assert torch.allclose(scores.energy, torch.as_tensor(sr.es_ensemble(y.numpy(), other, estimator="fair")))
    each = sr.crps_ensemble(y.numpy(), drawn.movedim(0, -1).numpy(), estimator="fair")
    assert torch.allclose(scores.crps, torch.as_tensor(each))
    ordered = drawn.sort(dim=0).values
    lower, upper = ordered[3], ordered[35]  # the 4th and 36th of 39: levels 0.1 and 0.9
    assert torch.equal(scores.width[..., 1], upper - lower)
    assert torch.equal(scores.inside[..., 1], ((lower <= y) & (y <= upper)).double())
    assert torch.allclose(scores.pinball[..., 1], 0.5 * (y - ordered[19]).abs())


def test_order_quantiles_cover_as_often_as_they_say():
    rows, draws = 40_000, 9
    found = order_quantiles(normal(draws, rows), [0.1, 0.5, 0.9])
    below = (normal(rows, 1, seed=1) <= found).double().mean(dim=0)
    for share, level in zip(below.tolist(), (0.1, 0.5, 0.9), strict=True):
        assert abs(share - level) < SIGMAS * math.sqrt(level * (1 - level) / rows)
    assert order_quantiles(torch.tensor([4.0, 1.0]), [0.5]).tolist() == [2.5]


def test_columns_have_a_number_for_each_row():
    one = score_rows(StandardNormal(1), torch.zeros(3, 1), draws=39, generator=seeded())
    assert list(one.columns()) == ["log score", "CRPS", "pinball 0.1", "pinball 0.5", "pinball 0.9"]
    two = score_rows(StandardNormal(2), torch.zeros(3, 2), draws=39, generator=seeded())
    assert list(two.columns())[:4] == ["log score", "CRPS", "energy score", "variogram score"]
    assert list(two.indicators()) == ["inside 50%", "inside 80%", "inside 95%", "width 50%", "width 80%", "width 95%"]
    assert all(values.shape == (3,) for values in (*two.columns().values(), *two.indicators().values()))


def test_rows_in_pieces_are_the_same_scores(monkeypatch):
    model, y = StandardNormal(2).double(), normal(7, 2)
    whole = score_rows(model, y, draws=39, generator=seeded())
    monkeypatch.setattr("rosenblatt.eval.scores.NUMBERS_AT_ONCE", 2 * 39 * 2)
    parts = score_rows(model, y, draws=39, generator=seeded())
    assert parts.energy.shape == whole.energy.shape
    assert torch.equal(parts.log, whole.log)
    exact = crps(Flow(Identity(), StandardNormal(1)).double(), y[:, :1], method="quantile")
    assert torch.allclose(exact[:, 0], torch.as_tensor(sr.crps_normal(y[:, 0].numpy(), 0.0, 1.0)), rtol=1e-9)


def test_rows_without_an_outcome_and_models_without_a_density():
    y = torch.tensor([[math.nan], [0.0], [math.inf]])
    scores = score_rows(Flow(Identity(), StandardNormal(1)), y, draws=39, generator=seeded())
    for values in (scores.crps[:, 0], scores.energy, scores.log):
        assert torch.isnan(values).tolist() == [True, False, False]
        assert values[2] == math.inf
    assert torch.isnan(scores.inside[0]).all()
    assert (scores.inside[2] == 0).all()

    class Estimated(StandardNormal):
        likelihood = Likelihood.NONE

    assert score_rows(Estimated(1), torch.zeros(3, 1), draws=39, generator=seeded()).log is None


def test_arguments_that_make_no_score():
    model, y = StandardNormal(2), torch.zeros(3, 2)
    for method in ("closed", "quantile"):
        with pytest.raises(OptionError, match=method):
            crps(model, y, method=method)
    with pytest.raises(OptionError, match="method"):
        crps(model, y, method="best")
    with pytest.raises(DataError, match="y:"):
        crps(model, torch.zeros(3, 1))
    with pytest.raises(DataError, match="context"):
        crps(build("maf", 2, 1, options={"hidden": 8}), y, torch.zeros(2, 1))
    with pytest.raises(OptionError, match="39 draws"):
        score_rows(model, y, coverages=(0.99,), draws=39)
    for options in ({"levels": (0.0,)}, {"coverages": (1.0,)}):
        with pytest.raises(OptionError, match="probabilities"):
            score_rows(model, y, **options)
