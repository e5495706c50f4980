"""What a model of whole numbers says of each of them: against its own probabilities, counted."""

import math

import pytest
import torch
from scipy import stats

from rosenblatt.bases import StandardNormal
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.eval import bits_per_number, dkw_band, level_scores, pit_per_number, uniformity
from rosenblatt.testing.checks_discrete import DISCRETE

FALSE_ALARM = 1e-6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["nits_conv_interval", "pixelcnn_mol_two", "nits_conv_context"])
def test_bits_are_quotients_of_sums_over_all_images(name):
    """P(x_i | x_<i) is a quotient of two sums of P over all images that begin alike."""
    row = DISCRETE[name]
    model, every, given = row.make().double(), row.images(), row.given(1)
    joint = model.log_prob(every, given).detach().exp()
    x = every[:: max(1, len(every) // 7)]
    context = None if given is None else given.expand(len(x), -1)
    found = bits_per_number(model, x, context)
    for image, bits in zip(x, found, strict=True):
        before, alike = torch.tensor(1.0, dtype=torch.float64), torch.ones(len(every), dtype=torch.bool)
        for number in model.layer.conditioner.order.tolist():
            alike &= every[:, number] == image[number]
            mass = joint[alike].sum()
            assert bits[number].item() == pytest.approx(-math.log2(mass / before), abs=1e-8)
            before = mass
    total = -model.log_prob(x, context).detach() / math.log(2)
    torch.testing.assert_close(found.sum(dim=1), total, rtol=1e-9, atol=1e-9)
    scores = level_scores(model, x, context, generator=seeded())
    torch.testing.assert_close(scores.bits, found, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pit_per_number(model, x, context, generator=seeded()), scores.pit, rtol=0, atol=1e-9)


def test_expected_bits_and_their_variance_are_those_of_the_first_number():
    row = DISCRETE["nits_conv"]
    model = row.make().double()
    x = torch.zeros(row.levels, row.features)
    first = int(model.layer.conditioner.order[0])
    x[:, first] = torch.arange(row.levels)
    scores = level_scores(model, x, generator=seeded())
    law = stats.rv_discrete(values=(range(row.levels), (2.0 ** -scores.bits[:, first]).numpy()))
    assert scores.expected[0, first].item() == pytest.approx(law.entropy() / math.log(2), abs=1e-9)
    second = (2.0 ** -scores.bits[:, first] * scores.bits[:, first].square()).sum()
    expected = second - scores.expected[0, first].square()
    assert scores.variance[0, first].item() == pytest.approx(expected.item(), abs=1e-9)
    below = torch.tensor(law.cdf(range(-1, row.levels)))
    assert ((scores.pit[:, first] >= below[:-1] - 1e-9) & (scores.pit[:, first] <= below[1:] + 1e-9)).all()


def test_own_samples_are_as_surprising_as_expected_and_others_are_not():
    """8,000 independent numbers: PIT in the DKW band, excess within the normal quantile, both at 1e-6."""
    row = DISCRETE["pixelcnn_mol"]
    model = row.make()
    own = model.sample(8000 // row.features, generator=seeded(1))
    scores = level_scores(model, own, generator=seeded(2))
    u = scores.pit.reshape(-1, 1)
    band = dkw_band(len(u), false_alarm=FALSE_ALARM)
    assert uniformity(u).statistic.item() <= band
    excess = (scores.bits - scores.expected).sum() / scores.variance.sum().sqrt()
    assert abs(excess) < stats.norm.isf(FALSE_ALARM / 2)
    uniform = torch.randint(row.levels, own.shape, generator=seeded(3))
    scores = level_scores(model, uniform, generator=seeded(2))
    assert (scores.bits - scores.expected).sum() / scores.variance.sum().sqrt() > 10
    assert uniformity(scores.pit.reshape(-1, 1)).statistic.item() > band


def test_modes_pieces_and_wrong_rows():
    row = DISCRETE["pixelcnn_mol"]  # with dropout
    model = row.make().train()
    x = row.images()[:100].to(torch.uint8)
    whole = bits_per_number(model, x)
    assert model.training
    torch.testing.assert_close(whole[70:71], bits_per_number(model, x[70:71]), rtol=1e-5, atol=1e-6)
    assert bits_per_number(model, x[:0]).shape == (0, row.features)
    assert level_scores(model, x[:0]).pit.shape == (0, row.features)
    for wrong in (x.float() + 0.5, x.float() * torch.nan, x.float() + row.levels):
        with pytest.raises(DataError, match="whole ones from 0 to 2"):
            level_scores(model, wrong)
    with pytest.raises(DataError, match="6 features"):
        bits_per_number(model, x[:, :5])
    with pytest.raises(OptionError, match="no probabilities of levels"):
        bits_per_number(StandardNormal(2), torch.zeros(2, 2))
    assert torch.is_grad_enabled()


def test_a_row_that_is_no_image_answers_for_all_its_numbers():
    model = DISCRETE["nits_conv"].make()
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 0.5, 3.0], [0.0, torch.nan, 1.0, 1.0]])
    found = model.log_prob_by_number(x)
    assert found[0].isfinite().all()
    assert (found[1] == -torch.inf).all()
    assert found[2].isnan().all()
