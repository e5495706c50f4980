"""Ensembles of conditional densities: exact means, quantiles from both tails, folds that cover the rows, and noise."""

import math

import pytest
import scipy.stats
import torch

from rosenblatt.bases import StandardNormal
from rosenblatt.conditional import conditional_density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Batch
from rosenblatt.data import Table
from rosenblatt.ensemble import Ensemble, fit_ensemble
from rosenblatt.objectives import NLL, Disturbed
from rosenblatt.preparation import DataWarning
from rosenblatt.train import FitConfig

QUICK = FitConfig(epochs=1000, max_steps=150, batch_size=64, learning_rate=3e-3, ema_decay=0.9, validate_every=50)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_member(slope, offset, deviation, features=1):
    """An exact Gaussian regression `v = slope g + offset + deviation e`, for columns in units far from one."""
    given = 100 + 5 * torch.randn(400, 1, generator=generator(1), dtype=torch.float64)
    noise = torch.randn(400, features, generator=generator(2), dtype=torch.float64)
    values = slope * given + offset + deviation * noise
    density = conditional_density("gaussian", Table(values, [f"v{i}" for i in range(features)]), given).double()
    density.initialise(values, given)
    return density.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ensemble():
    return Ensemble(
        [gaussian_member(2.0, 10.0, 3.0), gaussian_member(2.5, -30.0, 6.0), gaussian_member(2.0, 40.0, 1.0)]
    )


def laws(ensemble, given):
    """The members as scipy sees them, read off their own 16 % and 84 % quantiles."""
    normals = []
    for member in ensemble.members:
        ends = [
            member.flow.from_uniform(torch.full((1, 1), u, dtype=torch.float64), member.encode(given))
            for u in (0.25, 0.75)
        ]
        mean = float(ends[0] + ends[1]) / 2
        normals.append(scipy.stats.norm(mean, float(ends[1] - ends[0]) / 2 / scipy.stats.norm.ppf(0.75)))
    return normals


def test_density_and_cdf_are_the_means_of_the_members(ensemble):
    given = torch.tensor([[103.0]]).double()
    normals = laws(ensemble, given)
    x = torch.linspace(150, 300, 31).double().unsqueeze(1)
    density = ensemble.log_prob(x, given.expand(31, 1)).exp().numpy()
    assert density == pytest.approx(sum(law.pdf(x[:, 0].numpy()) for law in normals) / 3, rel=1e-7, abs=1e-250)
    below, above = ensemble.tails(x, given.expand(31, 1))
    assert below[:, 0].numpy() == pytest.approx(sum(law.cdf(x[:, 0].numpy()) for law in normals) / 3, rel=1e-6)
    assert above[:, 0].numpy() == pytest.approx(sum(law.sf(x[:, 0].numpy()) for law in normals) / 3, rel=1e-6)


def test_quantiles_invert_the_cdf_in_both_tails(ensemble):
    given = 100 + 5 * torch.randn(40, 1, generator=generator(3), dtype=torch.float64)
    for level in (1e-9, 0.01, 0.3, 1 / 3, 0.5, 0.9, 1 - 1e-9):
        u = torch.full((40, 1), level, dtype=torch.float64)
        x = ensemble.from_uniform(u, given)
        assert ensemble.to_uniform(x, given)[:, 0].numpy() == pytest.approx(level, rel=1e-9)
    ends = ensemble.from_uniform(torch.tensor([[0.0], [1.0]]).double(), given[:2])
    assert ends[:, 0].tolist() == [-math.inf, math.inf]
    twins = Ensemble([ensemble.members[0]] * 2)
    u = torch.tensor([[0.2]]).double()
    assert torch.equal(
        twins.from_uniform(u, given[:1]),
        ensemble.members[0].flow.from_uniform(u, ensemble.members[0].encode(given[:1])),
    )


def test_levels_broadcast_against_given_rows(ensemble):
    given = torch.tensor([[98.0], [103.0]]).double()
    levels = torch.tensor([0.1, 0.5, 0.9]).double().reshape(3, 1, 1)
    together = ensemble.from_uniform(levels, given)
    assert together.shape == (3, 2, 1)
    for row in range(2):
        alone = ensemble.from_uniform(levels[:, 0], given[row].expand(3, 1))
        assert torch.allclose(together[:, row], alone, rtol=1e-12)


def test_samples_follow_the_cdf(ensemble):
    draws = ensemble.sample(20_000, torch.tensor([[103.0]]).double(), generator=generator(4))
    u = ensemble.to_uniform(draws[:, 0], torch.tensor([[103.0]]).double().expand(20_000, 1))[:, 0]
    statistic = scipy.stats.kstest(u.numpy(), "uniform").statistic
    assert statistic < math.sqrt(math.log(2 / 1e-6) / (2 * 20_000))  # Dvoretzky-Kiefer-Wolfowitz at 1e-6


def test_several_values_have_a_density_but_no_cdf():
    pair = Ensemble([gaussian_member(2.0, 0.0, 3.0, features=2), gaussian_member(1.0, 50.0, 3.0, features=2)])
    rows = torch.full((4, 2), 180.0).double()
    assert bool(torch.isfinite(pair.log_prob(rows, torch.full((4, 1), 100.0).double())).all())
    assert pair.sample(3, torch.full((4, 1), 100.0).double(), generator=generator()).shape == (3, 4, 2)
    for ask in (pair.to_uniform, pair.from_uniform):
        with pytest.raises(OptionError, match="2 values have no CDF"):
            ask(rows / 200, torch.full((4, 1), 100.0).double())
    with pytest.raises(OptionError, match="components"):
        Ensemble([])


def test_a_fit_learns_from_every_row_and_beats_its_members():
    given = torch.randn(240, 1, generator=generator(5), dtype=torch.float64)
    values = given.sin() + 0.2 * torch.randn(240, 1, generator=generator(6), dtype=torch.float64)
    table = Table(1e3 + 50 * values, ["price"])
    fitted = fit_ensemble("maf", table, given, members=3, given_noise=0.05, options={"hidden": 16}, config=QUICK)
    with torch.no_grad():
        members = torch.stack([member.log_prob(table.values, given).mean() for member in fitted.members])
        together = fitted.log_prob(table.values, given).mean()
    assert together >= members.mean()
    # log p of the truth is -log(50 * 0.2 * sqrt(2 pi e)) = -3.72 nats
    assert -4.3 < float(together) < -3.4
    assert len({report.best_validation for report in fitted.reports}) == 3
    assert not any(p.requires_grad for p in fitted.parameters())
    again = fit_ensemble("maf", table, given, members=3, given_noise=0.05, options={"hidden": 16}, config=QUICK)
    assert torch.equal(again.log_prob(table.values, given), fitted.log_prob(table.values, given))


@pytest.mark.parametrize(("members", "fraction", "held_out"), [(4, 0.5, 12), (4, 0.25, 12), (3, 0.125, 6)])
def test_members_hold_out_parts_that_do_not_meet(members, fraction, held_out):
    given = (2.0 ** torch.arange(48)).double().unsqueeze(1)  # a sum says which rows are in it
    table = Table(torch.randn(48, 1, generator=generator(7), dtype=torch.float64), ["v"])
    fitted = fit_ensemble("gaussian", table, given, members=members, config=FitConfig(validation_fraction=fraction))
    sets = []
    for member in fitted.members:
        learned = round(float(member.given_units.map.steps[-1].location) * (48 - held_out))
        left_out = int(given.sum()) - learned
        sets.append({row for row in range(48) if left_out >> row & 1})
    assert [len(rows) for rows in sets] == [held_out] * members
    assert len(set.union(*sets)) == held_out * members


def test_without_validation_every_member_has_all_rows():
    given = torch.randn(40, 1, generator=generator(12), dtype=torch.float64)
    config = FitConfig(validation_fraction=0.0, epochs=2)
    fitted = fit_ensemble("maf", Table(given.sin(), ["v"]), given, members=2, options={"hidden": 4}, config=config)
    locations = [member.given_units.map.steps[-1].location for member in fitted.members]
    assert torch.equal(locations[0], locations[1])
    assert fitted.reports[0].best_validation is None


def test_a_grid_is_spread_and_said():
    given = torch.randn(300, 1, generator=generator(8), dtype=torch.float64)
    table = Table((2 * given + torch.randn(300, 1, generator=generator(9), dtype=torch.float64)).round(), ["grade"])
    with pytest.warns(DataWarning, match="dequantise"):
        fit_ensemble("gaussian", table, given, members=2)
    fitted = fit_ensemble(
        "nits", table, given, members=1, steps={"grade": 1.0}, options={"hidden": 16, "widths": [8, 1]}, config=QUICK
    )
    x = torch.linspace(-12, 12, 4801).double().unsqueeze(1)
    with torch.no_grad():
        density = fitted.log_prob(x, torch.zeros(4801, 1).double()).exp()
    assert float(density.sum() * 0.005) == pytest.approx(1, abs=1e-3)
    assert float(density.max()) < 1  # narrower than its cell a peak would pass 1


def test_disturbed_rows_have_the_noise_that_was_asked_for():
    seen = []

    class Watcher(NLL):
        def __call__(self, model, batch, generator):
            seen.append(batch)
            return super().__call__(model, Batch(batch.x), generator)

    n = 200_000
    rows = Batch(torch.zeros(n, 2).double(), torch.zeros(n, 1).double(), torch.ones(n).double())
    objective = Disturbed(
        Watcher(),
        width=torch.tensor([1.0, 0.0]).double(),
        noise=torch.tensor([0.0, 0.5]).double(),
        context_noise=torch.tensor([0.1]).double(),
    )
    model = StandardNormal(2).double()
    objective(model.train(), rows, generator())
    objective(model.eval(), rows, generator())
    training, use = seen
    # Standard errors: s / sqrt(2 n) of a normal deviation, below 5 of them at 1e-6.
    assert float(training.x[:, 0].abs().max()) <= 0.5
    assert float(training.x[:, 0].var()) == pytest.approx(1 / 12, abs=5 * 0.075 / math.sqrt(n))
    assert float(training.x[:, 1].std()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2 * n))
    assert float(training.context.std()) == pytest.approx(0.1, abs=5 * 0.1 / math.sqrt(2 * n))
    assert training.weight is rows.weight
    assert float(use.x[:, 0].std()) > 0.2
    assert bool((use.x[:, 1] == 0).all())
    assert bool((use.context == 0).all())
    assert objective.measure == "nats"


def test_refusals():
    table, given = Table(torch.arange(6.0).unsqueeze(1), ["v"]), torch.arange(6.0).unsqueeze(1)
    with pytest.raises(OptionError, match="members: 0 came"):
        fit_ensemble("maf", table, given, members=0)
    with pytest.raises(DataError, match="6 rows came for 4 members"):
        fit_ensemble("maf", table, given, members=4)
    with pytest.raises(OptionError, match="context_noise"):
        fit_ensemble("maf", table, given, members=2, given_noise=-0.1)


def test_a_fitted_flow_is_in_use_with_all_its_parts():
    given = torch.randn(60, 1, generator=generator(10), dtype=torch.float64)
    table = Table(given + 0.3 * torch.randn(60, 1, generator=generator(11), dtype=torch.float64), ["v"])
    options = {"hidden": 8, "bins": 16, "channels": [4], "dropout": 0.5}
    fitted = fit_ensemble("ddn", table, given, members=1, options=options, config=QUICK)
    x = torch.full((20, 1), 0.1, dtype=torch.float64)
    given = torch.linspace(-1, 1, 20, dtype=torch.float64).unsqueeze(1)
    below, width = fitted.to_uniform(x, given), 1e-7
    density = (fitted.to_uniform(x + width, given) - below)[:, 0] / width
    # Dropout that goes on in use makes every answer another one, and the density none of its CDF.
    assert torch.equal(fitted.log_prob(x, given), fitted.log_prob(x, given))
    assert torch.equal(fitted.to_uniform(x, given), below)
    assert density.numpy() == pytest.approx(fitted.log_prob(x, given).exp().numpy(), rel=1e-5)
