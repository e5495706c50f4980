"""NITS as a model: the work of sampling, its parts, its options."""

from itertools import pairwise

import pytest
import torch

from rosenblatt.conditioners.masked import Masked, MaskedLinear
from rosenblatt.core.errors import DataError, InverseError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.models.nits import nits, paper_config
from rosenblatt.testing.tables import disturbed, rows_like_data, seeded


def test_sampling_computes_each_unit_once_and_inverts_one_coordinate_at_a_time(monkeypatch):
    features = 43
    model = seeded(lambda: nits(features, hidden=64, blocks=2, widths=(4, 1)))
    computed, inverted = {}, []
    rows, inverse = MaskedLinear.rows, MonotoneNet.inverse

    def counted_rows(self, x, start, stop):
        computed.setdefault(self, []).append((start, stop))
        return rows(self, x, start, stop)

    def counted_inverse(self, y, theta):
        inverted.append(tuple(y.shape))
        return inverse(self, y, theta)

    def refused(self, x, context=None):
        raise AssertionError("sampling ran a whole pass of the conditioner")

    monkeypatch.setattr(MaskedLinear, "rows", counted_rows)
    monkeypatch.setattr(MonotoneNet, "inverse", counted_inverse)
    monkeypatch.setattr(Masked, "forward", refused)
    x = model.sample(5, generator=torch.Generator().manual_seed(0))
    assert x.shape == (5, features)
    assert inverted == [(5, 1)] * features
    layers = [part for part in model.modules() if isinstance(part, MaskedLinear)]
    assert set(computed) == set(layers)
    for layer, ranges in computed.items():
        pieces = sorted(piece for piece in ranges if piece[1] > piece[0])
        assert pieces[0][0] == 0
        assert all(a[1] == b[0] for a, b in pairwise(pieces))
        assert pieces[-1][1] == layer.out_features


def test_samples_follow_one_pass_exactly():
    model = disturbed(seeded(lambda: nits(6, hidden=32, widths=(6, 1), order=[3, 0, 5, 1, 4, 2]))).double()
    x, log_prob = model.sample_and_log_prob(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.log_prob(x), log_prob, rtol=1e-9, atol=1e-9)


def test_the_pathwise_gradient_passes_through_earlier_coordinates():
    model = disturbed(seeded(lambda: nits(3, hidden=16, widths=(6, 1)))).double()
    z = torch.tensor([[0.3, -0.7, 1.1]], dtype=torch.float64)
    step = 1e-6

    def path(z):
        return model.transform.inverse(z).value

    jacobian = torch.autograd.functional.jacobian(lambda z: path(z)[0], z)[:, 0]
    for column in range(3):
        offset = torch.zeros_like(z)
        offset[0, column] = step
        slope = (path(z + offset) - path(z - offset))[0] / (2 * step)
        torch.testing.assert_close(jacobian[:, column], slope, rtol=1e-6, atol=1e-8)
    assert (jacobian.triu(1) == 0).all()
    assert jacobian[1, 0] != 0
    assert jacobian[2, 0] != 0


def test_rosenblatt_transform_is_the_conditional_cdf_in_order():
    model = disturbed(seeded(lambda: nits(3, hidden=16, widths=(6, 1), order=[2, 0, 1]))).double()
    x = rows_like_data(5, 3)
    layer = model.transform.steps[0]
    u = layer.elementwise.cdf(x, layer.conditioner(x))
    torch.testing.assert_close(model.to_uniform(x), u, rtol=1e-12, atol=1e-12)
    changed = x.clone()
    changed[:, 1] += 1  # the last in order
    assert (model.to_uniform(changed)[:, [0, 2]] == u[:, [0, 2]]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": [16, 2]}, "widths"),
        ({"interval": [1.0, 1.0]}, "lower"),
        ({"interval": [1.0]}, "interval"),
        ({"order": [0, 0]}, "order"),
        ({"hidden": 0}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"activation": "sine"}, "activation"),
        ({"transforms": 0}, "transforms"),
        ({"transforms": 2, "interval": [-1, 1]}, "transforms"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"width": [16, 1]}, "width"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(OptionError, match=words):
        build("nits", 2, options=options)


def test_wrong_rows_are_refused():
    model = nits(2, hidden=8)
    with pytest.raises(DataError, match="2 features"):
        model.log_prob(torch.zeros(3, 3))
    with pytest.raises(DataError, match="dtype"):
        model.log_prob(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(DataError, match="context"):
        model.log_prob(torch.zeros(3, 2), torch.zeros(3, 1))


def test_published_settings_build():
    for dataset in ("power", "gas", "hepmass", "miniboone", "bsds300"):
        options = paper_config(dataset)["model"] | {"hidden": 16}
        assert build("nits", 3, options=options, seed=0).log_prob(torch.zeros(1, 3)).isfinite().all()
    with pytest.raises(OptionError, match="power"):
        paper_config("mnist")


def test_noise_that_is_not_a_number_stays_so():
    model = nits(2, hidden=8)
    z = torch.tensor([[0.1, 0.2], [torch.nan, 0.3], [0.4, 0.5]])
    x = model.transform.inverse(z).value
    assert torch.isnan(x[1]).any()
    expected = model.transform.inverse(z[[0, 2]]).value
    assert (x[[0, 2]] == expected).all()


def test_inverse_error_names_rows():
    error = InverseError("inverse: row 3", [3])
    assert error.rows == [3]
    assert isinstance(error, ArithmeticError)
