import math

import pytest
import torch

import rosenblatt.models  # noqa: F401 - enters every model in the registry
from rosenblatt.bases import GaussianMixture, StandardLogistic, StandardNormal
from rosenblatt.conditioners.independent import Independent
from rosenblatt.core.density import SAMPLE_ROWS, Flow
from rosenblatt.core.errors import DataError, InverseError, OptionError
from rosenblatt.core.logspace import log_logistic_density, log_matvec, log_one_minus_exp, logit_difference, soft_bound
from rosenblatt.core.registry import build, cite, entry, names, register
from rosenblatt.core.transform import Compose, Identity, Inverse
from rosenblatt.core.types import Likelihood, Mapped, ParamSpec, Support
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.scaling import ActNorm, Standardise


def doubling():
    return Standardise([1.0, 0.0], [0.5, 2.0])


def test_log_prob_is_in_the_units_of_the_data_side():
    flow = Flow(Identity(), StandardNormal(2)).after(doubling())
    x = torch.tensor([[1.0, 0.0], [2.0, 4.0]])
    normal = torch.distributions.Normal(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(flow.log_prob(x), normal.log_prob(x).sum(-1))


def test_compose_is_flat_and_adds_log_dets():
    inner = Compose([doubling(), Identity()])
    both = Compose([inner, doubling()])
    assert [type(step) for step in both.steps] == [Standardise, Identity, Standardise]
    value, log_det = both(torch.tensor([2.0, 2.0]))
    assert value.tolist() == [2.0, 0.5]
    assert log_det.item() == pytest.approx(2 * (math.log(2) - math.log(2)), abs=1e-6)
    back, log_det_back = both.inverse(value)
    assert back.tolist() == [2.0, 2.0]
    assert log_det_back.item() == -log_det.item()


def test_inverse_turns_a_transform_round():
    transform = Standardise([1.0], [4.0])
    value, log_det = Inverse(transform)(torch.tensor([2.0]))
    assert value.item() == 9.0
    assert log_det.item() == pytest.approx(math.log(4))
    back, log_det = Inverse(transform).inverse(value)
    assert back.item() == 2.0
    assert log_det.item() == pytest.approx(-math.log(4))


def test_rows_that_are_not_finite_get_the_documented_answer_and_no_gradient():
    flow = Flow(Identity(), StandardNormal(2)).after(doubling())
    x = torch.tensor([[0.5, 1.0], [torch.nan, torch.inf], [torch.inf, 0.0], [0.5, 1.0]], requires_grad=True)
    log_prob = flow.log_prob(x)
    assert torch.isnan(log_prob[1])
    assert log_prob[2] == -torch.inf
    assert log_prob[0] == log_prob[3]
    log_prob[[0, 3]].sum().backward()
    assert (x.grad[1:3] == 0).all()
    assert torch.isfinite(x.grad).all()


def test_given_is_a_torch_distribution():
    flow = build("maf", 2, 1, options={"hidden": 8, "transforms": 1}, seed=0)
    context = torch.zeros(3, 1)
    law = flow.given(context, generator=torch.Generator().manual_seed(0))
    assert isinstance(law, torch.distributions.Distribution)
    assert law.batch_shape == (3,)
    assert law.event_shape == (2,)
    drawn = law.sample((4, 5))
    assert drawn.shape == (4, 5, 3, 2)
    assert not drawn.requires_grad
    assert law.log_prob(drawn).shape == (4, 5, 3)
    assert law.log_prob(torch.zeros(2)).shape == (3,)
    assert law.rsample((2,)).requires_grad


def test_forward_is_log_prob():
    flow = Flow(Identity(), StandardNormal(2))
    x = torch.tensor([[0.5, 1.0]])
    assert flow(x) == flow.log_prob(x)


def test_a_base_without_cdf_has_no_rosenblatt_transform():
    flow = Flow(Identity(), GaussianMixture(2, 2))
    with pytest.raises(OptionError, match="GaussianMixture"):
        flow.to_uniform(torch.zeros(1, 2))


def test_rosenblatt_transform_and_back():
    flow = Flow(doubling(), StandardLogistic(2))
    u = torch.tensor([[0.25, 0.5], [0.9, 0.01]])
    torch.testing.assert_close(flow.to_uniform(flow.from_uniform(u)), u)


@pytest.mark.parametrize(
    ("x", "context", "words"),
    [
        (torch.zeros(1, 3), None, "2 features"),
        (torch.zeros(()), None, "2 features"),
        (torch.zeros(1, 2, dtype=torch.float16), None, "dtype"),
        (torch.zeros(1, 2), torch.zeros(1, 1), "context"),
    ],
)
def test_wrong_arguments_are_named(x, context, words):
    with pytest.raises(DataError, match=words):
        Flow(Identity(), StandardNormal(2)).log_prob(x, context)


@pytest.mark.parametrize("claim", list(Likelihood))
def test_starting_values_of_many_rows_take_little_memory(claim):
    class Doubled(Identity):
        likelihood, most = claim, 0

        def forward(self, x, context=None):
            self.most = max(self.most, len(x))
            assert len(context) == len(x)
            return Mapped(2 * x, 0 * x[..., 0])

    doubled, rows = Doubled(), torch.randn(2 * SAMPLE_ROWS + 5, 2, generator=torch.Generator().manual_seed(0)) + 1
    flow = Flow(Compose([doubled, ActNorm(2)]), StandardNormal(2), context=1)
    flow.initialise(rows, rows[:, :1])
    # A step whose rows depend on one another, as in batch normalisation while it trains, must see them all.
    assert doubled.most == (SAMPLE_ROWS if claim is Likelihood.EXACT else len(rows))
    with torch.no_grad():
        assert flow.transform.steps[1](2 * rows).value.mean(dim=0).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("model", "option", "words"),
    [
        ("bnaf", {"units": 2.5}, "units: 2.5 came, an integer was expected"),
        ("bnaf", {"units": True}, "units: True came"),
        ("bnaf", {"gated": "false"}, "gated: 'false' came, true or false"),  # any text would have been true
        ("ffjord", {"solver": ["rk4"]}, "solver: .* a text"),
        ("ffjord", {"kinetic": "0.01"}, "kinetic: .* a number"),
        ("residual_flow", {"terms": 2.5}, "terms: 2.5 came"),
        ("residual_flow", {"lipschitz": float("nan")}, "lipschitz: nan came"),
        ("glow", {"image": [1.0, 1, 2]}, "image: .* a list, each an integer, or none"),
        ("glow", {"image": "112"}, "image: '112' came"),
        ("gtaf", {"df": [3.0, "x"]}, "df: "),
    ],
)
def test_an_option_of_another_kind_is_refused_by_name(model, option, words):
    with pytest.raises(OptionError, match=words):
        build(model, 2, options=option)


def test_options_of_the_right_kind_pass():
    assert build("bnaf", 2, options={"units": 2, "gated": True}).features == 2
    assert build("ffjord", 2, options={"kinetic": 1, "tolerance": None, "hidden": 4}).features == 2
    assert build("glow", 2, options={"image": (1, 1, 2), "transforms": 1, "hidden": 4}).features == 2


def test_registry_is_closed_and_seeded():
    assert {"gaussian", "made_mixture", "maf", "nits", "nsf"} <= set(names())
    with pytest.raises(OptionError, match="choose nits, or one of the"):
        build("nitz", 2)
    with pytest.raises(OptionError, match="known options"):
        build("nits", 2, options={"hiden": 3})
    with pytest.raises(OptionError, match="only numbers"):
        build("nits", 2, options={"hidden": object()})
    with pytest.raises(OptionError, match="features"):
        build("nits", 0)
    with pytest.raises(OptionError, match="twice"):
        register("nits", summary="", citation="", facts=entry("nits").facts)(entry("nits").builder)
    assert "ICML 2022" in cite("nits")
    assert "features" not in entry("nits").options
    state = torch.get_rng_state()
    first, second = (build("nits", 2, options={"hidden": 8}, seed=4) for _ in range(2))
    assert (torch.get_rng_state() == state).all()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert (a == b).all()


def test_support_and_spec_refuse_nonsense():
    with pytest.raises(OptionError, match="below"):
        Support(1.0, 1.0)
    assert Support(0.0, 1.0).bounded
    assert not Support(0.0).bounded
    assert Support().whole_line
    spec = ParamSpec(a=(2, 3), b=())
    theta = torch.arange(14.0).reshape(2, 7)
    parts = spec.split(theta)
    assert parts["a"].shape == (2, 2, 3)
    assert (spec.join(**parts) == theta).all()
    with pytest.raises(OptionError, match="7 were expected"):
        spec.split(theta[:, 1:])


@pytest.mark.parametrize("d", [1e-300, 1e-18, 1e-9, 9.9e-5, 1.01e-4, 0.3, 1.0, 40.0, 700.0])
def test_log_one_minus_exp(d):
    log_d = torch.tensor(math.log(d), dtype=torch.float64)
    expected = math.log(d) - d / 2 if d < 1e-8 else math.log(-math.expm1(-d))
    assert log_one_minus_exp(log_d).item() == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_logit_differences_do_not_cancel():
    low = torch.tensor([-1.0, 40.0, -40.0, 0.5], dtype=torch.float64)
    high = torch.tensor([2.0, 41.0, -39.0, 0.5 + 1e-12], dtype=torch.float64)
    found = logit_difference(high, low)
    assert found[0].item() == pytest.approx(math.log(torch.sigmoid(high[0]) - torch.sigmoid(low[0])), rel=1e-14)
    assert found[1].item() == pytest.approx(-40 + math.log(1 - math.exp(-1)), rel=1e-12)
    assert found[2].item() == pytest.approx(-39 + math.log(1 - math.exp(-1)), rel=1e-12)
    slope = log_logistic_density(low[3]).item()
    assert found[3].item() == pytest.approx(slope + math.log(float(high[3] - low[3])), rel=1e-9)


def test_log_matvec_neither_over_nor_underflows():
    weight = torch.tensor([[1.0, 2.0], [0.5, 0.25]], dtype=torch.float64)
    for shift in (-1e4, 0.0, 1e4):
        vectors = torch.tensor([[0.3], [-0.2]], dtype=torch.float64) + shift
        expected = torch.log(weight @ torch.exp(vectors - shift)) + shift
        torch.testing.assert_close(log_matvec(weight, vectors), expected, rtol=1e-12, atol=1e-12)


def test_soft_bound():
    x = torch.tensor([-1e6, -1.0, 0.0, 1e-3, 1e6], requires_grad=True)
    value = soft_bound(x, 7.0)
    assert value.tolist()[0] == -7
    assert value.tolist()[-1] == 7
    value.sum().backward()
    assert x.grad[2] == 1.0


def two_narrow_modes():
    """One column with modes at -10 and 10 and next to no mass between them."""
    net = MonotoneNet((2, 1), epsilon=0.0)
    theta = net.spec.join(
        slope_1=torch.full((2, 1), -3.0), offset_1=torch.tensor([-10.0, 10.0]), mixture=torch.zeros(2)
    )
    layer = Conditional(net, Independent(1, net.spec.size))
    layer.conditioner.start_at(theta)
    return Flow(layer, StandardLogistic(1))


def test_from_base_names_the_rows_that_rounding_leaves_undetermined():
    flow = two_narrow_modes()
    x = torch.tensor([[-10.0], [0.5], [10.01], [-0.3]])
    with pytest.raises(InverseError) as caught:
        flow.from_base(flow.to_base(x))
    assert caught.value.rows == [1, 3]
    modes = x[[0, 2]]
    assert torch.allclose(flow.from_base(flow.to_base(modes)), modes, atol=1e-6)


def test_from_base_leaves_rows_that_are_not_finite_alone():
    flow = two_narrow_modes()
    x = flow.from_base(torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [1.0]]))
    assert torch.isnan(x[0, 0])
    assert x[1:3, 0].tolist() == [torch.inf, -torch.inf]
    assert 9.9 < x[3, 0] < 10.2
