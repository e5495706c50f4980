"""Glow and RealNVP of images, and whole numbers by dequantisation."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

from rosenblatt.bases import StandardNormal
from rosenblatt.core import registry
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import OptionError
from rosenblatt.core.transform import Identity
from rosenblatt.core.types import Likelihood
from rosenblatt.data.table import Table
from rosenblatt.eval.bits import bits_per_dimension
from rosenblatt.layers import surjection
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.convolution import MaskedConvolution, PeriodicConvolution
from rosenblatt.layers.shape import FactorOut, Squeeze
from rosenblatt.layers.surjection import Dequantised, coupling_noise, row_noise
from rosenblatt.models.dequantised import dequantised
from rosenblatt.testing.tables import disturbed, seeded
from rosenblatt.train import FitConfig, Fitter

SMALL = {"transforms": 1, "hidden": 6, "blocks": 1}
STATISTICAL = stats.norm.isf(1e-6 / 20)  # of each of at most ten two-sided comparisons


def data(*shape, seed=1, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES = {
    "glow": {"convolution": "1x1"},
    "glow emerging": {"convolution": "emerging"},
    "glow periodic": {"convolution": "periodic", "linear": "svd"},
    "nsf_image": {},
    "nsf_image whole": {"multi_scale": False, "bins": 3},
    "realnvp": {},
    "realnvp additive": {"additive": True},
}


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("name", IMAGES)
def test_image_flows_are_exact_in_two_scales(name, context):
    options = {"image": [2, 4, 4], "levels": 2, **SMALL, **IMAGES[name]}
    model = registry.build(name.split()[0], 32, context, options=options, seed=0)
    given = data(4, context, seed=3) if context else None
    x = 3 + data(200, 32, scale=2.0)
    model.initialise(x.float(), None if given is None else given[:1].expand(200, -1).float())
    model = disturbed(model, 0.1).double()
    x = x[:4]
    z, log_det = model.transform(x, given)
    back = model.transform.inverse(z, given)
    assert (back.value - x).abs().max() <= 1e-10
    assert (back.log_det + log_det).abs().max() <= 1e-10
    one = None if given is None else given[0]
    jacobian = torch.func.jacrev(lambda row: model.transform(row, one).value)(x[0])
    assert np.linalg.slogdet(jacobian.detach().numpy())[1] == pytest.approx(log_det[0].item(), abs=1e-9)
    assert (model.log_prob(x, given) - StandardNormal(32).log_prob(z) - log_det).abs().max() <= 1e-10
    assert model.likelihood is Likelihood.EXACT
    if context:
        assert (model.log_prob(x, given + 1) != model.log_prob(x, given)).all()


def test_glow_of_images_has_the_published_skeleton():
    model = registry.build("glow", 48, options={"image": [3, 4, 4], "levels": 2, **SMALL, "transforms": 3}, seed=0)
    *first, factor = model.transform.steps
    assert isinstance(first[0], Squeeze)
    assert first[0].after == (12, 2, 2)
    assert isinstance(factor, FactorOut)
    assert factor.staying == 24
    couplings = [step for step in first if isinstance(step, Conditional)]
    assert len(couplings) == 4  # three steps, and the law of what leaves given what stays
    assert couplings[-1] is first[-1]
    assert couplings[-1].conditioner.levels[1].tolist() == list(range(24, 48))
    assert factor.rest.steps[0].after == (24, 1, 1)
    assert sum(isinstance(step, Conditional) for step in factor.rest.steps) == 3
    kinds = {"emerging": (MaskedConvolution, 2), "periodic": (PeriodicConvolution, 1)}
    for name, (kind, each) in kinds.items():
        model = registry.build("glow", 48, options={"image": [3, 4, 4], **SMALL, "convolution": name})
        assert sum(isinstance(step, kind) for step in model.transform.steps) == each


def test_glow_of_images_starts_standardised():
    x = (data(400, 16) @ data(16, 16, seed=4) / 4 + 5).float()
    model = registry.build("glow", 16, options={"image": [1, 4, 4], "levels": 2, **SMALL}, seed=0)
    model.initialise(x)
    z = model.to_base(x).detach().reshape(400, 16)
    assert z.mean(dim=0).abs().max() <= 1.5  # channels are standardised, not pixels
    assert abs(float(z.square().mean()) - 1) <= 0.3


def test_realnvp_of_images_has_the_published_masks():
    options = {"image": [1, 4, 4], "levels": 2, **SMALL, "transforms": 3}
    steps = registry.build("realnvp", 16, options=options).transform.steps
    first = [step.conditioner.levels[0].tolist() for step in steps if isinstance(step, Conditional)]
    board = [n for n in range(16) if (n // 4 + n % 4) % 2 == 0]
    other = sorted(set(range(16)) - set(board))
    assert first[:3] == [board, other, board]
    assert first[3:] == [list(range(8)), list(range(8, 16)), list(range(8))]
    assert isinstance(steps[3], Squeeze)
    assert len(steps[-1].rest.steps) == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("glow", {"image": [1, 4, 4]}, "holds 16 numbers"),
        ("glow", {"image": [1, 4, 3]}, "even sides"),
        ("glow", {"image": [12, 1, 1], "levels": 0}, "levels: 0"),
        ("glow", {"image": [1, 2, 6], "levels": 3}, "even sides"),
        ("glow", {"image": [3, 2, 2], "convolution": "2x2"}, "convolution: '2x2'"),
        ("glow", {"levels": 2}, "image="),
        ("glow", {"convolution": "periodic"}, "image="),
        ("nsf_image", {"image": [1, 4, 3]}, "even sides"),
        ("nsf_image", {"transforms": 0}, "transforms: 0"),
        ("nsf_image", {"levels": 6}, "cannot leave by half"),
        ("nsf_image", {"bins": 1}, "bins: 1"),
        ("realnvp", {"image": [12, 1]}, "three integers"),
        ("realnvp", {"levels": 2}, "image="),
        ("realnvp", {"image": [1, 3, 4], "levels": 2}, "even sides"),
    ],
)
def test_options_that_make_no_image_flow(name, options, message):
    with pytest.raises(OptionError, match=message):
        registry.build(name, 12, options={**SMALL, **options})


def test_image_flows_export_for_any_number_of_rows():
    flow = registry.build("glow", 4, options={"image": [1, 2, 2], **SMALL, "convolution": "periodic"}, seed=0)
    rows = torch.export.Dim("rows", min=2, max=4096)
    x = data(9, 4).float()
    program = torch.export.export(flow, (x,), dynamic_shapes=({0: rows},)).module()
    assert (program(x[:5]) - flow(x[:5])).abs().max() <= 1e-5


LEVELS = 4


def ends(k):
    """Borders of the cells of levels `k` in the units of the density."""
    return 2 * k / LEVELS - 1, 2 * (k + 1) / LEVELS - 1


def every_row():
    return torch.cartesian_prod(*[torch.arange(float(LEVELS))] * 2).double()


def noises():
    made = disturbed(seeded(lambda: coupling_noise(2, hidden=8)), 0.1).double()
    return {"uniform": None, "learned": made}


@pytest.mark.parametrize("kind", ["uniform", "learned"])
def test_weights_of_noise_average_to_the_mass_of_each_cell(kind):
    """E_q[p(k + u) / q(u)] = P(k), for any q: wrong noise, or a wrong log q, would show."""
    model = Dequantised(StandardNormal(2).double(), LEVELS, noise=noises()[kind]).eval()
    k = every_row()
    lower, upper = ends(k.numpy())
    exact = np.log(stats.norm.cdf(upper) - stats.norm.cdf(lower)).sum(axis=1)
    draws = 20_000
    repeated = k.repeat(draws, 1)
    with torch.no_grad():
        log_weight = model.bound(repeated, generator=torch.Generator().manual_seed(0)).reshape(draws, len(k)).numpy()
    ratio = np.exp(log_weight - exact)
    assert (np.abs(ratio.mean(axis=0) - 1) <= STATISTICAL * ratio.std(axis=0) / math.sqrt(draws) + 1e-9).all()
    # On average it is a bound, the tighter the more samples there are.
    with torch.no_grad():
        many = model.bound(k.repeat(500, 1), samples=50, generator=torch.Generator().manual_seed(1))
    gap, gap_of_many = exact.mean() - log_weight.mean(), exact.mean() - many.mean().item()
    error = log_weight.std() / math.sqrt(log_weight.size), many.std().item() / math.sqrt(len(many))
    assert gap > STATISTICAL * error[0]
    assert abs(gap_of_many) < 0.1 * gap + STATISTICAL * error[1]


def test_uniform_noise_has_the_bound_of_its_integral():
    model = Dequantised(StandardNormal(2).double(), LEVELS).eval()
    k = every_row()
    lower, upper = (torch.as_tensor(end) for end in ends(k))
    square = (lower.square() + lower * upper + upper.square()) / 3
    expected = (-square / 2 - math.log(2 * math.pi) / 2 + math.log(2 / LEVELS)).sum(dim=1)
    values = model.bound(k.repeat(5000, 1), generator=torch.Generator().manual_seed(2)).reshape(5000, -1)
    error = STATISTICAL * values.std(dim=0) / math.sqrt(5000)
    assert ((values.mean(dim=0) - expected).abs() <= error).all()


def test_scores_of_whole_numbers_depend_on_the_row_alone():
    image = {"image": [1, 2, 2], **SMALL}
    for noise in (None, {"hidden": 4}):
        model = seeded(lambda noise=noise: dequantised(4, levels=6, options=image, noise=noise, samples=3))
        model = disturbed(model, 0.1).double()
        x = torch.randint(6, (40, 4), generator=torch.Generator().manual_seed(3)).double()
        state = torch.get_rng_state()
        whole = model.log_prob(x)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(model.log_prob(x), whole)
        assert torch.allclose(model.log_prob(x.flip(0)[:7]), whole.flip(0)[:7], rtol=1e-12)
        spoiled = x.clone()
        spoiled[0, 1], spoiled[1, 1], spoiled[2, 1], spoiled[3, 1], spoiled[4, 1] = 0.5, 6, -1, torch.nan, torch.inf
        answer = model.log_prob(spoiled)
        assert (answer[[0, 1, 2, 4]] == -torch.inf).all()
        assert torch.isnan(answer[3])
        assert torch.equal(answer[5:], whole[5:])
        with torch.random.fork_rng(devices=[]):
            model.train()
            assert (model.log_prob(x) != model.log_prob(x)).all()
            model.log_prob(x).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        if noise is not None:
            assert any(p.grad is not None and bool((p.grad != 0).any()) for p in model.noise.parameters())
        assert model.likelihood is Likelihood.LOWER_BOUND


def test_scores_without_gradients_go_in_pieces_that_change_nothing(monkeypatch):
    options = {"image": [1, 2, 2], **SMALL}
    model = dequantised(4, 2, levels=6, options=options, noise={"hidden": 4}, samples=3, seed=0)
    model = disturbed(model, 0.1).double()
    context = data(5, 2)
    x = torch.randint(6, (7, 5, 4), generator=torch.Generator().manual_seed(3)).double()
    whole = model.log_prob(x, context)
    seen, log_prob = [], model.density.log_prob
    monkeypatch.setattr(model.density, "log_prob", lambda y, c: seen.append(y.numel()) or log_prob(y, c))
    monkeypatch.setattr(surjection, "NUMBERS_AT_ONCE", 100)
    with torch.no_grad():
        pieces = model.log_prob(x, context)
        assert max(seen) <= 100
        assert len(seen) == 5  # of 35 rows, 8 at a time
        assert model.log_prob(x[:0], context).shape == (0, 5)
    assert (pieces - whole).abs().max() <= 1e-12


def test_a_thousand_colour_images_are_not_scored_at_once(monkeypatch):
    model, seen = Dequantised(StandardNormal(3072)).eval(), []
    monkeypatch.setattr(model.density, "log_prob", lambda y, c: seen.append(y.numel()) or y.sum(dim=-1))
    with torch.no_grad():
        assert model.log_prob(torch.zeros(1000, 3072)).shape == (1000,)
    assert sum(seen) == 1000 * 3072
    assert max(seen) <= 2**18


@pytest.mark.parametrize("noise", [None, {"hidden": 4}])
def test_contexts_of_whole_numbers_broadcast(noise):
    options = {"image": [1, 2, 2], **SMALL}
    model = seeded(lambda: dequantised(4, 2, levels=6, options=options, noise=noise, samples=3))
    model = disturbed(model, 0.1).double()
    context = data(5, 2)
    x, log_prob = model.sample_and_log_prob(3, context, generator=torch.Generator().manual_seed(5))
    assert x.shape == (3, 5, 4)
    loop = torch.stack([model.log_prob(row, c) for rows in x for row, c in zip(rows, context, strict=True)])
    assert (log_prob.reshape(-1) - loop).abs().max() <= 1e-12
    assert torch.allclose(model.log_prob(x[0, 0], context), model.log_prob(x[0, 0].expand(5, 4), context), rtol=1e-12)


def test_noise_of_rows_is_uniform_and_of_neighbours_unrelated():
    rows = torch.cartesian_prod(*[torch.arange(30.0)] * 3)
    u = row_noise(rows, 2)
    assert u.shape == (2, 27_000, 3)
    columns = u.permute(1, 0, 2).reshape(27_000, 6)
    for column in columns.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-7
    normal = torch.special.ndtri(columns)
    limit = STATISTICAL * 1.5 / math.sqrt(27_000)
    correlation = torch.corrcoef(normal.T) - torch.eye(6)
    assert correlation.abs().max() <= limit
    for shift in (1, 30, 900):  # rows that differ by one in one place
        assert (normal[shift:] * normal[:-shift]).mean(dim=0).abs().max() <= limit
    assert len(columns.unique()) == columns.numel()


def test_samples_are_whole_numbers_with_their_mass():
    model = Dequantised(Flow(Identity(), StandardNormal(2)), LEVELS)
    drawn, log_prob = model.eval().sample_and_log_prob(20_000, generator=torch.Generator().manual_seed(4))
    assert torch.equal(model.log_prob(drawn), log_prob)
    borders = np.array([-np.inf, *ends(np.arange(1, LEVELS))[0], np.inf])
    mass = np.diff(stats.norm.cdf(borders))  # what lies beyond belongs to the first and the last level
    counts = np.bincount((drawn[:, 0] * LEVELS + drawn[:, 1]).long().numpy(), minlength=LEVELS**2)
    assert stats.chisquare(counts, 20_000 * np.outer(mass, mass).flatten()).pvalue > 1e-6


def test_options_that_make_no_dequantisation():
    base = StandardNormal(3)
    with pytest.raises(OptionError, match="levels: 0"):
        Dequantised(base, 0)
    with pytest.raises(OptionError, match="samples: 0"):
        Dequantised(base, 2, samples=0)
    with pytest.raises(OptionError, match="noise: a flow of 3 features given 0"):
        Dequantised(base, 2, noise=Flow(Identity(), StandardNormal(3)))
    with pytest.raises(OptionError, match="transforms: 0"):
        coupling_noise(3, transforms=0)
    with pytest.raises(OptionError, match="noise: image="):
        dequantised(4, noise={"image": [1, 2, 2]})
    with pytest.raises(OptionError, match=r"samples: 1\.5"):
        Dequantised(base, 2, samples=1.5)
    with pytest.raises(OptionError, match="model: 'glo'"):
        dequantised(3, model="glo")


def test_glow_of_digits_beats_single_pixels_and_a_gaussian():
    images = torch.tensor(load_digits().data).float()
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    train, test = images[:1400], images[1400:]
    counts = torch.stack([(train == level).sum(dim=0) for level in range(17)]) + 1.0
    pixels = torch.log(counts / counts.sum(dim=0)).gather(0, test.long()).sum(dim=1)
    gaussian = dequantised(64, levels=17, model="gaussian", samples=20).eval()
    gaussian.initialise(train)
    options = {"image": [1, 8, 8], "levels": 2, "transforms": 2, "hidden": 32, "blocks": 1}
    model = seeded(lambda: dequantised(64, levels=17, options=options, samples=1))
    config = FitConfig(
        max_steps=300, epochs=100, batch_size=100, learning_rate=1.5e-2, validation_fraction=0.05, validate_every=300
    )
    Fitter(config, progress=False).fit(model, Table.from_any(train.numpy()))
    with torch.no_grad():
        bits = bits_per_dimension(model.bound(test, samples=10).mean(), 64)
        single = bits_per_dimension(model.log_prob(test).mean(), 64)
        of_gaussian, of_pixels = (bits_per_dimension(lp.mean(), 64) for lp in (gaussian.log_prob(test), pixels))
    assert bits < single
    assert bits < of_pixels
    assert bits < of_gaussian - 0.4


def test_a_fit_of_whole_numbers_reports_a_bound_and_drops_no_objective():
    rows = torch.randint(0, 4, (64, 3), generator=torch.Generator().manual_seed(0)).float()
    model = dequantised(3, levels=4, model="realnvp", options={"transforms": 1, "hidden": 8})
    report = Fitter(FitConfig(max_steps=2, batch_size=32)).fit(model, Table.from_any(rows.numpy()))
    assert report.measure == "nats (lower bound)"
    with pytest.raises(OptionError, match="FlowMatching"):
        dequantised(3, levels=4, model="flow_matching", options={"hidden": 8})
