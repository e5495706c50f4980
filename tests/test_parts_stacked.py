"""Maps one after the other, and the mixture couplings built from them."""

import math

import numpy as np
import pytest
import scipy.special
import torch

from rosenblatt.core.errors import OptionError
from rosenblatt.elementwise.additive import Additive
from rosenblatt.elementwise.sigmoid_mixture import LOG_SLOPE_BOUND
from rosenblatt.elementwise.spline import RationalQuadraticSpline
from rosenblatt.elementwise.stacked import Stacked
from rosenblatt.layers.conditional import Conditional
from rosenblatt.models.flowpp import flowpp


def data(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_coupling_is_the_logit_of_a_mixture_and_an_affine_map():
    components = 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = flowpp(3, transforms=1, components=components, hidden=8).double().eval()
    layer = next(step for step in flow.transform.steps if isinstance(step, Conditional))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * data(*parameter.shape, seed=parameter.numel()))
    x = data(5, 3)
    theta = layer.conditioner(x).detach().numpy()
    value, log_det = layer(x)
    logits, locations, raw, shift = np.split(theta, np.cumsum([components, components, components]), axis=-1)
    weights = scipy.special.softmax(logits, axis=-1)
    slopes = np.exp(LOG_SLOPE_BOUND * np.tanh(raw / LOG_SLOPE_BOUND))
    cdf = (weights * scipy.special.expit(slopes * (x.numpy()[..., None] - locations))).sum(-1)
    scaling = layer.elementwise.maps[1]
    expected, slope = scaling(torch.tensor(scipy.special.logit(cdf)), torch.tensor(shift))
    np.testing.assert_allclose(value.detach(), expected, rtol=1e-10)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: layer(row).value))(x)
    np.testing.assert_allclose(torch.linalg.slogdet(jacobian)[1].detach(), log_det.detach(), atol=1e-10)
    assert slope.abs().max() > 0.01


def test_every_map_gets_its_own_part_of_theta():
    stacked = Stacked([Additive(), Additive(), Additive()])
    x = torch.tensor([10.0])
    assert stacked(x, torch.tensor([[1.0, 2.0, 4.0]])).value.item() == 3
    assert stacked.inverse(x, torch.tensor([[1.0, 2.0, 4.0]])).value.item() == 17
    assert stacked.spec.size == 3


def test_no_maps_or_maps_of_an_interval_are_refused():
    with pytest.raises(OptionError, match="0 maps"):
        Stacked([])
    with pytest.raises(OptionError, match="whole line"):
        Stacked([Additive(), RationalQuadraticSpline(4, 3.0, "none")])


def test_flowpp_refuses_sizes_and_names_it_does_not_know():
    for options, named in (({"transforms": 0}, "transforms"), ({"components": 0}, "components")):
        with pytest.raises(OptionError, match=named):
            flowpp(2, **options)
    with pytest.raises(OptionError, match="linear"):
        flowpp(2, linear="none")
    assert math.isfinite(flowpp(1, hidden=8).log_prob(torch.zeros(1, 1)).item())
