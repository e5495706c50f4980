"""NITS as a model: the work of sampling, its parts, its options."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rosenblatt.conditioners.masked import Masked
from rosenblatt.conditioners.staircase import MaskedLinear
from rosenblatt.core.errors import DataError, InverseError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.models.nits import nits, paper_config
from rosenblatt.testing.tables import disturbed, rows_like_data, seeded


def test_sampling_costs_one_pass_of_the_network_and_inverts_one_coordinate_at_a_time(monkeypatch):
    features, rows = 43, 64
    model = seeded(lambda: nits(features, hidden=256, blocks=2, widths=(4, 1)))
    inverted, inverse = [], MonotoneNet.inverse

    def counted_inverse(self, y, theta):
        inverted.append(tuple(y.shape))
        return inverse(self, y, theta)

    def refused(self, x, context=None):
        raise AssertionError("sampling ran a whole pass of the conditioner")

    monkeypatch.setattr(MonotoneNet, "inverse", counted_inverse)
    monkeypatch.setattr(Masked, "parts", refused)
    layers = [part for part in model.modules() if isinstance(part, MaskedLinear)]
    visible = rows * sum(int(layer.mask.sum()) for layer in layers)
    with torch.no_grad(), _Products() as products:
        x = model.sample(rows, generator=torch.Generator().manual_seed(0))
    assert x.shape == (rows, features)
    assert inverted == [(rows, 1)] * features
    # Each visible weight enters one product; only tiles at the edge of a block hold some more.
    assert visible <= products.count <= 1.1 * visible


class _Products(TorchDispatchMode):
    """Counts the multiply-adds of matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.count += args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
        return func(*args, **(kwargs or {}))


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
