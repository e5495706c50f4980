"""DDN: exact mass, orders averaged, the box and its tails, the latent layer, and what the histogram computes."""

import math

import pytest
import torch

from rosenblatt.conditional import fit_conditional
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.types import Likelihood
from rosenblatt.data import Table
from rosenblatt.data.conditional_toys import CONDITIONAL_TOYS
from rosenblatt.elementwise.histogram import Histogram
from rosenblatt.layers.fitted_box import FittedBox
from rosenblatt.models.ddn import ddn, paper_config, some_orders
from rosenblatt.testing.tables import disturbed, rows_like_data
from rosenblatt.train import FitConfig

SMALL = {"bins": 16, "channels": [4], "codes": 4, "hidden": 8}


def made(features, context=0, **options):
    return disturbed(build("ddn", features, context, options={**SMALL, **options}, seed=0), 0.3).double()


@pytest.mark.parametrize("orders", [1, 2])
def test_the_histogram_in_two_columns_has_mass_one_to_rounding(orders):
    model = made(2, 1, orders=orders, tails=False, box=[-1.0, 1.0])
    # At each middle of a bin of the first column the bins of the second add up to one, and then those of the first.
    middles = (torch.arange(16, dtype=torch.float64) + 0.5) / 8 - 1
    y = torch.cartesian_prod(middles, middles)
    context = torch.full((len(y), 1), 0.3, dtype=torch.float64)
    if orders == 1:
        assert torch.exp(model.log_prob(y, context)).sum().item() / 64 == pytest.approx(1, abs=1e-12)
    else:
        each = model.base.log_probs(model.transform(y).value, context) + model.transform(y).log_det.unsqueeze(-1)
        torch.testing.assert_close(torch.exp(each).sum(dim=0) / 64, torch.ones(2).double(), atol=1e-12, rtol=0)


def test_the_density_is_the_mean_over_orders_of_the_chain_rule():
    model = made(3, 2, orders=4)
    average = model.base
    x, context = rows_like_data(10, 3), rows_like_data(10, 2, seed=3)
    y, log_det = model.transform(x)
    assert len({tuple(order) for order in average.orders}) == 4
    total = torch.zeros(10, dtype=torch.float64)
    for order in average.orders:
        chain = torch.zeros(10, dtype=torch.float64)
        for place, column in enumerate(order):
            theta, _ = average.network.at(column, order[:place], y, context)
            logits = 15 * torch.tanh(theta / 15)
            place_in_box = ((y[:, column] + 7) / (14 / 16)).floor().long()
            mass = torch.softmax(logits, dim=-1)[torch.arange(10), place_in_box] * math.tanh(3.5)
            chain += torch.log(mass / (14 / 16))
        total += torch.exp(chain + log_det) / 4
    torch.testing.assert_close(model.log_prob(x, context), torch.log(total), atol=1e-10, rtol=0)


def test_the_average_is_at_least_the_mean_of_single_orders():
    model = made(3, orders=3)
    y = model.transform(rows_like_data(50, 3)).value
    each = model.base.log_probs(y)
    assert (each.std(dim=-1) > 1e-3).all()
    assert (model.base.log_prob(y) > each.mean(dim=-1)).all()


def test_a_column_never_sees_itself_nor_later_ones():
    network = made(3, orders=2).base.network
    x = rows_like_data(4, 3).requires_grad_()
    theta, _ = network.at(1, [2], x, None)
    (gradient,) = torch.autograd.grad(theta.square().sum(), x)
    assert (gradient[:, :2] == 0).all()
    assert (gradient[:, 2] != 0).all()


def test_rows_beyond_the_training_range_are_possible_unless_the_published_box_is_chosen():
    rows = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    beyond = torch.tensor([[1.2, 0.5], [-3.0, 0.5], [0.5, 40.0], [1e6, -1e6]])
    tails, box = made(2).float(), made(2, tails=False).float()
    for model in (tails, box):
        model.initialise(rows)
        assert torch.isfinite(model.log_prob(rows)).all()
    found = tails.log_prob(beyond)
    assert torch.isfinite(found).all()
    assert (found[1:] < -7).all()
    assert torch.isneginf(box.log_prob(beyond)).all()
    assert box.sample(2000, generator=torch.Generator().manual_seed(1)).abs().max() < 1.1


def test_tails_hold_what_the_logistic_has_there():
    model = made(1)
    x = torch.tensor([[7.0], [20.0]], dtype=torch.float64)  # the box is [-7, 7] until rows are seen
    assert 1 - model.to_uniform(x)[0].item() == pytest.approx(1 / (1 + math.exp(7)), rel=1e-9)
    assert model.log_prob(x)[1].item() == pytest.approx(-20 - 2 * math.log1p(math.exp(-20)), abs=1e-12)


def test_the_box_is_the_range_of_rows_that_count():
    layer = FittedBox(2, bound=7.0, margin=0.1)
    rows = torch.tensor([[0.0, 3.0], [10.0, 3.0], [99.0, 3.0]])
    layer.initialise(rows, weight=torch.tensor([1.0, 1.0, 0.0]))
    ends = layer(torch.tensor([[-1.0, 2.5], [11.0, 3.5]])).value
    torch.testing.assert_close(ends, torch.tensor([[-7.0, -7.0], [7.0, 7.0]]))
    with pytest.raises(DataError, match="0 rows"):
        layer.initialise(rows, weight=torch.zeros(3))
    with pytest.raises(OptionError, match="box"):
        FittedBox(1, box=[1.0, 1.0])


def test_the_latent_layer_is_noise_in_training_and_exact_in_use():
    model = made(2, 1, latent=True)
    x, context = rows_like_data(20, 2), rows_like_data(20, 1, seed=4)
    assert model.likelihood is Likelihood.EXACT
    assert (model.log_prob(x, context) == model.log_prob(x, context)).all()
    model.train()
    assert model.likelihood is Likelihood.ESTIMATE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = model.log_prob(x, context), model.log_prob(x, context)
    assert (first != second).all()


def test_the_divergence_of_the_code_is_what_torch_says():
    model = made(1, 1, latent=True, orders=1)
    network = model.transform.steps[1].conditioner.train()
    context = rows_like_data(5, 1, seed=4)
    x = torch.zeros(5, 1, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, divergence = network.at(0, [], x, context)
    mean, raw = network.encoder(torch.cat([x, x, context], dim=-1)).chunk(2, dim=-1)
    code = torch.distributions.Normal(mean, torch.exp(5 * torch.tanh(raw / 10)))
    expected = torch.distributions.kl_divergence(code, torch.distributions.Normal(0.0, 1.0)).sum(dim=-1)
    torch.testing.assert_close(divergence, expected)


def test_orders_are_different_and_repeat():
    assert some_orders(3, 100, seed=1)[0] == [0, 1, 2]
    assert len({tuple(order) for order in some_orders(3, 100)}) == 6
    assert some_orders(6, 5, seed=2) == some_orders(6, 5, seed=2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"orders": 0}, "orders"),
        ({"bins": 30}, "bins"),
        ({"codes": 0}, "codes"),
        ({"beta": -1.0}, "beta"),
        ({"margin": -0.1}, "margin"),
    ],
)
def test_options_that_make_no_model_are_refused(options, named):
    with pytest.raises(OptionError, match=named):
        ddn(2, **{**SMALL, **options})


def test_published_settings_build():
    for dataset, orders in (("toys", 2), ("uci", 5)):
        options = paper_config(dataset)["model"]
        assert options["orders"] == orders
        build("ddn", 2, 1, options=options, seed=0)
    with pytest.raises(OptionError, match="dataset"):
        paper_config("power")


def test_intervals_of_a_histogram_are_sums_of_bins():
    histogram = Histogram(8, 4.0)
    theta = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = torch.tensor([-9.0, -4.5, -1.3, 0.0, 0.4, 3.9, 6.0], dtype=torch.float64)
    for low in range(len(ends) - 1):
        for high in range(low + 1, len(ends)):
            found = histogram.log_interval(ends[low], ends[high], theta).exp()
            expected = histogram.cdf(ends[high], theta) - histogram.cdf(ends[low], theta)
            assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_it_learns_a_heteroscedastic_regression():
    toy = CONDITIONAL_TOYS["heteroscedastic"]
    x, y = toy.sample(1500, torch.Generator().manual_seed(0))
    config = FitConfig(epochs=60, batch_size=128, learning_rate=4e-3, patience=None)
    options = {"bins": 64, "channels": [8, 8], "codes": 8, "hidden": 32}
    model = fit_conditional("ddn", Table(y, ["y"]), x, options=options, config=config)
    given, value = toy.sample(4000, torch.Generator().manual_seed(1))
    # A density that ignored the context would lose 0.9 nats.
    assert (toy.log_prob(value, given) - model.log_prob(value, given)).mean().item() < 0.2
