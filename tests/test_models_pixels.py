"""Models of whole-number images: oracles for their probabilities, and the checks against planted faults."""

import dataclasses
import math

import mpmath
import pytest
import torch
from scipy import stats

from rosenblatt.conditioners.independent import Independent
from rosenblatt.conditioners.masked import Masked
from rosenblatt.conditioners.pixelcnn import PixelCNN
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.data import Table
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
from rosenblatt.eval import bits_per_dim
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.discretised import SPAN, Discretised
from rosenblatt.layers.surjection import Dequantised
from rosenblatt.models import nits_conv
from rosenblatt.testing import checks_discrete as checks
from rosenblatt.testing.tables import CONDITIONERS, ELEMENTWISE, disturbed, seeded
from rosenblatt.train import FitConfig, Fitter

CDFS = ["nits", "nits_mixture", "nits_interval", "logistic_mixture"]
SHORT = FitConfig(
    max_steps=120, batch_size=64, learning_rate=3e-2, ema_decay=None, patience=None, seed=0, validation_fraction=0
)


def one_number(elementwise, levels):
    return Discretised(Conditional(elementwise, Independent(1, elementwise.spec.size)), levels)


def test_pixelcnn_masses_are_the_published_formula_in_fifty_digits():
    """sum_k w_k [s((x - m_k + half) / s_k) - s((x - m_k - half) / s_k)], the ends reaching to infinity."""
    mixture = LogisticMixture(3)
    model = one_number(mixture, 256).double()
    theta = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    found = model.log_masses(theta)
    logits, locations, raw = theta.tolist()[:3], theta.tolist()[3:6], theta.tolist()[6:]
    with mpmath.workdps(50):
        weights = [mpmath.exp(value) for value in logits]
        slopes = [mpmath.exp(7 * mpmath.tanh(mpmath.mpf(value) / 7)) for value in raw]
        half = mpmath.mpf(SPAN) / 255

        def cdf(level):
            if level < 0:
                return mpmath.mpf(0)
            if level >= 255:
                return mpmath.mpf(1)
            end = (2 * level + 1) * half - SPAN
            parts = (w / (1 + mpmath.exp(-a * (end - m))) for w, a, m in zip(weights, slopes, locations, strict=True))
            return sum(parts) / sum(weights)

        for level in (0, 1, 17, 128, 200, 254, 255):
            expected = mpmath.log(cdf(level) - cdf(level - 1))
            assert found[level].item() == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", CDFS)
def test_interval_probabilities_are_those_of_the_careful_way(name):
    """`interval_log_prob` against differences of the CDF in float64, ends of the domain and infinite ones included."""
    elementwise = ELEMENTWISE[name].make()
    generator = torch.Generator().manual_seed(2)
    theta = elementwise.start().double() + torch.randn(
        400, elementwise.spec.size, generator=generator, dtype=torch.float64
    )
    ends = (4 * torch.randn(400, 2, generator=generator, dtype=torch.float64)).sort(dim=-1).values
    ends[::5, 0] = -torch.inf
    ends[::7, 1] = torch.inf
    lower, upper = ends.clamp(-4.9, 4.9)[:, 0], ends.clamp(-4.9, 4.9)[:, 1] + 0.05
    lower = torch.where(ends[:, 0].isinf(), ends[:, 0], lower)
    upper = torch.where(ends[:, 1].isinf(), ends[:, 1], upper)
    found = elementwise.interval_log_prob(lower, upper, theta)
    torch.testing.assert_close(found, elementwise.log_interval(lower, upper, theta), rtol=1e-8, atol=1e-8)
    assert found[35] == 0.0  # both ends are infinite
    narrow = elementwise.interval_log_prob(lower.float(), upper.float(), theta.float())
    torch.testing.assert_close(narrow.double(), found, rtol=1e-4, atol=1e-3)


def test_far_tails_keep_their_probabilities():
    """Levels 400 logits out have log-masses that fall by the slope of the tail, and a finite gradient."""
    mixture = LogisticMixture(1)
    model = one_number(mixture, 256)
    slope = 100.0
    theta = torch.tensor([0.0, -SPAN, 7 * math.atanh(math.log(slope) / 7)]).requires_grad_()
    masses = model.log_masses(theta)
    assert torch.isfinite(masses).all()
    assert masses[200] < -400
    steps = masses[10:255].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, -slope * 2 * SPAN / 255), rtol=1e-3, atol=1e-3)
    (grad,) = torch.autograd.grad(masses.sum(), theta)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", ["nits", "nits_interval", "logistic_mixture"])
def test_gradients_of_masses(name):
    elementwise = ELEMENTWISE[name].make().double()
    model = one_number(elementwise, 7)
    theta = elementwise.start().double() + 0.3 * torch.randn(
        3, elementwise.spec.size, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    assert torch.autograd.gradcheck(model.log_masses, (theta.requires_grad_(),), fast_mode=True)


def test_any_conditioner_will_do():
    """Tables of counts: a masked network, a coupling; the probabilities of all rows add up to one."""
    rows = torch.cartesian_prod(*[torch.arange(4)] * 3)
    for name in ("masked_order", "coupling", "independent", "recurrent", "transformer"):
        mixture = LogisticMixture(3)
        net = disturbed(seeded(lambda name=name, p=mixture.spec.size: CONDITIONERS[name].make(3, p)))
        model = Discretised(Conditional(mixture, net), 4).double()
        assert model.log_prob(rows.double()).exp().sum().item() == pytest.approx(1, abs=1e-12)
        x, log_prob = model.sample_and_log_prob(50, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model.log_prob(x).detach(), log_prob)


def test_sampling_follows_the_masses_of_each_level():
    """20,000 draws of one number of 17 levels against its masses, chi-square at a false alarm of 1e-6."""
    model = one_number(MonotoneNet((6, 6, 1)), 17)
    disturbed(model, 1.0)
    drawn = model.sample(20_000, generator=torch.Generator().manual_seed(5)).long().reshape(-1)
    theta = model.layer.conditioner(torch.zeros(1, 1))[0, 0]
    expected = model.log_masses(theta).exp().double().detach() * 20_000
    counts = torch.bincount(drawn, minlength=17).double()
    large = expected >= 5
    statistic = ((counts - expected).square() / expected)[large].sum().item() + (
        (counts[~large].sum() - expected[~large].sum()).square() / expected[~large].sum().clamp(min=1)
    ).item()
    assert statistic < stats.chi2.isf(1e-6, int(large.sum()))


def test_training_finds_a_law_of_two_levels():
    """Pixels that copy their left neighbour: one bit for the first of four, none for the others."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(2, (512, 1), generator=generator) * 15
    x = first.expand(-1, 4).float()
    options = {"image": [1, 2, 2], "levels": 16, "filters": 8, "widths": [4, 4, 1]}
    model = build("nits_conv", 4, options=options, seed=0)
    before = bits_per_dim(model, x).value
    report = Fitter(SHORT).fit(model, Table.from_any(x))
    after = bits_per_dim(model, x)
    assert report.measure == "nats"
    assert 0.249 < after.value < 0.3 < before  # an entropy of one bit in four pixels
    assert after.claim == "exact"


def test_claims_of_bits():
    exact = build("pixelcnn_mol", 4, options={"image": [1, 2, 2], "levels": 4, "filters": 4}, seed=0)
    flow = build("pixelcnn_mol", 4, options={"image": [1, 2, 2], "filters": 4}, seed=0)
    assert isinstance(flow, Flow)
    x = torch.randint(4, (50, 4), generator=torch.Generator().manual_seed(1)).float()
    assert bits_per_dim(exact, x).claim == "exact"
    assert bits_per_dim(Dequantised(flow, 4), x).claim == "upper bound"
    assert "upper bound" in str(bits_per_dim(Dequantised(flow, 4), x))
    with pytest.raises(DataError, match="whole numbers"):
        bits_per_dim(flow, x)
    uniform = bits_per_dim(one_number_per_pixel(4), x)
    assert uniform.value == pytest.approx(2.0, abs=1e-5)
    assert uniform.standard_error == pytest.approx(0.0, abs=1e-6)


def one_number_per_pixel(levels):
    """A model of four numbers, uniform over its levels: a straight line for the CDF."""
    cdf = MonotoneNet((1, 1), lower=-SPAN - SPAN / (levels - 1), upper=SPAN + SPAN / (levels - 1), epsilon=1e9)
    return Discretised(Conditional(cdf, Independent(4, cdf.spec.size)), levels)


def test_a_dequantised_bound_is_below_the_exact_probability():
    """The same CDFs as a continuous density: averages over the cube are below the logarithm of its mass."""
    mixture = LogisticMixture(3)
    layer = Conditional(mixture, disturbed(seeded(lambda: Masked(3, mixture.spec.size, hidden=16)), 0.5))
    model = Discretised(layer, 5)
    x = torch.cartesian_prod(*[torch.arange(1, 4)] * 3).float()  # inner levels, whose cubes are finite
    place = model.place(x)
    u = torch.rand(200, *x.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    theta = layer.conditioner(place)
    inner = mixture.log_prob(place + u * 2 * model.half_width, theta) + math.log(2 * model.half_width)
    bound = inner.sum(dim=-1).mean(dim=0)
    assert (bound < model.log_prob(x) + 1e-3).all()
    torch.testing.assert_close(inner.exp().mean(dim=0).log().sum(dim=-1), model.log_prob(x), atol=0.2, rtol=0.1)


def test_completion_is_sampling_from_the_conditional():
    """Rows that copy their first pixel: completed from it, they copy it too; drawn afresh, they take both values."""
    model = build("pixelcnn_mol", 4, options={"image": [1, 2, 2], "levels": 2, "filters": 8, "components": 2}, seed=0)
    x = torch.tensor([[0.0] * 4, [1.0] * 4]).repeat(128, 1)
    Fitter(SHORT).fit(model, Table.from_any(x))
    started = torch.tensor([[0.0, -5.0, 9.0, torch.nan], [1.0, 0.0, 0.0, 0.0]]).repeat(50, 1)
    whole, log_prob = model.complete(started, 1, generator=torch.Generator().manual_seed(0))
    assert (whole == whole[:, :1]).float().mean() > 0.9
    assert (whole[:, 0] == started[:, 0]).all()
    torch.testing.assert_close(log_prob - math.log(2), model.log_prob(whole).detach(), atol=0.1, rtol=0)
    assert 0.2 < model.sample(100, generator=torch.Generator().manual_seed(1)).mean() < 0.8
    with pytest.raises(DataError, match="known numbers"):
        model.complete(torch.full((1, 4), 7.0), 1)
    with pytest.raises(OptionError, match="known"):
        model.complete(x, 5)


@pytest.mark.parametrize(
    ("fault", "check", "match"),
    [
        ("ends", checks.check_total_mass, "mass"),
        ("ends", checks.check_level_masses, "256 levels"),
        ("sampler", checks.check_sampler, "chi-square"),
        ("order", checks.check_causality, "R11"),
    ],
)
def test_checks_find_planted_faults(fault, check, match):
    class Wrong(Discretised):
        def _ends(self, counts):
            lower, upper = super()._ends(counts)
            return (lower, upper) if fault != "ends" else (lower, upper.clamp(max=SPAN + self.half_width))

        def _level_of(self, noise, theta):
            return super()._level_of(0.9 * noise if fault == "sampler" else noise, theta)

    class Row(checks.DiscreteRow):
        def make(self, levels=None):
            right = super().make(levels)
            wrong = Wrong(right.layer, right.levels)
            if fault == "order":
                net = wrong.layer.conditioner
                states = net.states
                net.states = lambda x, context: states(x, context) + 1e-3 * x.mean(dim=(1, 2), keepdim=True)
            return wrong.eval()

    row = Row(**dataclasses.asdict(checks.DISCRETE["pixelcnn_mol"]))
    with pytest.raises(AssertionError, match=match):
        check(row)


def test_options_that_make_no_model_are_refused():
    with pytest.raises(OptionError, match="no CDF"):
        Discretised(Conditional(Affine(), Independent(1, 2)), 4)
    with pytest.raises(OptionError, match="levels"):
        one_number(LogisticMixture(2), 1)
    with pytest.raises(OptionError, match="interval"):
        build("nits_conv", 4, options={"levels": 256, "interval": [-0.5, 0.5], "filters": 4})
    with pytest.raises(OptionError, match="image"):
        build("pixelcnn_mol", 5, options={"image": [1, 2, 2]})
    with pytest.raises(OptionError, match="filters"):
        build("nits_conv", 4, options={"filters": 0})


def test_published_settings_make_a_model():
    config = nits_conv.paper_config("cifar10")
    model = build("nits_conv", 3072, options={**config["model"], "filters": 8}, seed=0)
    assert isinstance(model, Discretised)
    FitConfig.from_dict(config["fit"])
    x = torch.randint(256, (1, 3072), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.isfinite(model.eval().log_prob(x)).all()
    with pytest.raises(OptionError, match="cifar10"):
        nits_conv.paper_config("mnist")


@pytest.mark.parametrize("name", CDFS)
def test_mixed_precision_leaves_probabilities_alone(name):
    row = ELEMENTWISE[name]
    model = disturbed(one_number(row.make(), 256), 0.5)
    levels = torch.arange(256).unsqueeze(1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.log_prob(levels)
    assert torch.equal(mixed, model.log_prob(levels))


def test_mixed_precision_leaves_the_head_alone(monkeypatch):
    net = disturbed(seeded(lambda: PixelCNN((3, 2, 2), 5, filters=4)), 0.3)
    known = torch.randn(7, 4, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(net, "states", lambda x, context: known)
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(x)
    assert torch.equal(mixed, net(x))
