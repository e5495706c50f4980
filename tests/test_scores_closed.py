"""CRPS by formula: against another implementation, the integral of its definition, and flows that have such laws."""

import itertools
import math

import pytest
import scipy.integrate
import scipy.stats
import scoringrules as sr
import torch

from rosenblatt.bases import Mixture, StandardLogistic, StandardNormal, StudentT
from rosenblatt.conditional import conditional_density
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError
from rosenblatt.core.laws import HistogramLaw, LogisticLaw, NormalLaw
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Compose
from rosenblatt.core.types import Support
from rosenblatt.data import Table
from rosenblatt.elementwise.affine import Affine
from rosenblatt.elementwise.normal_mixture import NormalMixture
from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.scaling import ActNorm, Standardise
from rosenblatt.objectives.closed import StudentLaw, closed_crps, closed_law

OUTCOMES = torch.tensor([-30.0, -1.3, 0.0, 0.4, 5.0], dtype=torch.float64)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


WEIGHT, PLACE, SCALE = tensor(0.2, 0.5, 0.3), tensor(-1.0, 0.3, 4.0), tensor(0.5, 1.0, 0.02)
PARTS = [part.tolist() for part in (WEIGHT, PLACE, SCALE)]
LAWS = {
    "normal": (NormalLaw(tensor(1.0), tensor(0.5), tensor(2.0)), lambda y: scipy.stats.norm.cdf(y, 0.5, 2.0)),
    "logistic": (LogisticLaw(tensor(1.0), tensor(0.5), tensor(2.0)), lambda y: scipy.stats.logistic.cdf(y, 0.5, 2.0)),
    "mixture of normals": (
        NormalLaw(WEIGHT, PLACE, SCALE),
        lambda y: sum(w * scipy.stats.norm.cdf(y, m, s) for w, m, s in zip(*PARTS, strict=True)),
    ),
    "mixture of logistics": (
        LogisticLaw(WEIGHT, PLACE, SCALE),
        lambda y: sum(w * scipy.stats.logistic.cdf(y, m, s) for w, m, s in zip(*PARTS, strict=True)),
    ),
    "student": (
        StudentLaw(StudentT(1, df=3.5), tensor(0.5)[0], tensor(2.0)[0]),
        lambda y: scipy.stats.t.cdf(y, 3.5, 0.5, 2.0),
    ),
    "histogram": (
        HistogramLaw(tensor(-2.0, -1.0, 0.5, 3.0), tensor(0.2, 0.0, 0.8)),
        lambda y: 0.2 * min(max(y + 2, 0), 1) + 0.8 * min(max((y - 0.5) / 2.5, 0), 1),
    ),
}


def integral(cdf, y, edge):
    """The CRPS by its definition, on pieces that have no kink inside."""
    ends = sorted({-edge, -10.0, -2.0, -1.0, 0.5, 3.0, 3.9, 4.0, 4.1, 10.0, edge, float(y)})
    total = 0.0
    for a, b in itertools.pairwise(ends):
        part = (lambda x: cdf(x) ** 2) if b <= y else (lambda x: (1 - cdf(x)) ** 2)
        total += scipy.integrate.quad(part, a, b, limit=200, epsabs=1e-12)[0]
    return total


@pytest.mark.parametrize("name", LAWS)
def test_crps_and_cdf_are_those_of_the_definition(name):
    law, cdf = LAWS[name]
    edge = 3000.0 if name == "student" else 100.0  # beyond, F^2 of this Student-t adds below 1e-9
    for y, found, below in zip(OUTCOMES, law.crps(OUTCOMES), law.cdf(OUTCOMES), strict=True):
        assert float(found) == pytest.approx(integral(cdf, float(y), edge), rel=1e-8)
        assert float(below) == pytest.approx(cdf(float(y)), rel=1e-10, abs=1e-13)


def test_formulas_agree_with_another_implementation():
    y = OUTCOMES.numpy()
    assert torch.allclose(LAWS["normal"][0].crps(OUTCOMES), tensor(*sr.crps_normal(y, 0.5, 2.0)), rtol=1e-12)
    assert torch.allclose(LAWS["logistic"][0].crps(OUTCOMES), tensor(*sr.crps_logistic(y, 0.5, 2.0)), rtol=1e-12)
    assert torch.allclose(LAWS["student"][0].crps(OUTCOMES), tensor(*sr.crps_t(y, 3.5, 0.5, 2.0)), rtol=1e-10)
    mixed = [sr.crps_mixnorm(float(one), PLACE.numpy(), SCALE.numpy(), WEIGHT.numpy()) for one in y]
    assert torch.allclose(LAWS["mixture of normals"][0].crps(OUTCOMES), tensor(*mixed), rtol=1e-12)
    uniform = HistogramLaw(tensor(-1.0, 0.0, 2.0), tensor(1 / 3, 2 / 3))
    assert torch.allclose(uniform.crps(OUTCOMES), tensor(*sr.crps_uniform(y, -1.0, 2.0)), rtol=1e-12)


@pytest.mark.parametrize("ratio", [1.0, 0.3, 1e-6])
@pytest.mark.parametrize("offset", [0.0, 1e-3, 2.0, 50.0])
def test_mean_difference_of_two_logistics(ratio, offset):
    one = tensor(1.0)
    found = float(LogisticLaw(one, one, one)._mean_difference(tensor(offset), one, ratio * one))
    if ratio == 1:
        expected = offset / math.tanh(offset / 2) if offset else 2.0
    elif ratio == 0.3:
        first, second = scipy.stats.logistic(offset, 1.0), scipy.stats.logistic(0.0, 0.3)

        def both(x):
            return first.cdf(x) * second.sf(x) + first.sf(x) * second.cdf(x)

        cuts = [-60.0, -5.0, 0.0, 5.0, 45.0, 55.0, 120.0]
        expected = sum(
            scipy.integrate.quad(both, a, b, epsabs=1e-13, limit=200)[0] for a, b in itertools.pairwise(cuts)
        )
    else:  # hardly more than a point: E|m + Z| and its curvature times half the variance
        expected = abs(offset) + 2 * math.log1p(math.exp(-abs(offset)))
    assert found == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("name", LAWS)
def test_moments_and_moved_laws(name):
    law, cdf = LAWS[name]
    moved = law.moved(tensor(3.0)[0], tensor(0.25)[0])
    assert torch.allclose(moved.crps(3 + 0.25 * OUTCOMES), 0.25 * law.crps(OUTCOMES), rtol=1e-9)
    assert torch.allclose(moved.cdf(3 + 0.25 * OUTCOMES), law.cdf(OUTCOMES), rtol=1e-9, atol=1e-13)
    assert float(moved.mean) == pytest.approx(3 + 0.25 * float(law.mean))
    assert float(moved.variance) == pytest.approx(0.25**2 * float(law.variance))
    if name == "student":
        assert float(law.mean) == 0.5
        assert float(law.variance) == pytest.approx(4 * 3.5 / 1.5)
        return
    # E X = int (1 - F) - int F, E X^2 = 2 int x (1 - F) - 2 int x F over the two halves of the line.
    cuts = [0.0, 0.5, 1.0, 2.0, 3.0, 3.9, 4.0, 4.1, 10.0, 100.0]
    pieces = list(itertools.pairwise(cuts))
    first = sum(scipy.integrate.quad(lambda x: 1 - cdf(x) - cdf(-x), a, b, limit=200)[0] for a, b in pieces)
    second = sum(scipy.integrate.quad(lambda x: 2 * x * (1 - cdf(x) + cdf(-x)), a, b, limit=200)[0] for a, b in pieces)
    assert float(law.mean) == pytest.approx(first, rel=1e-7)
    assert float(law.variance) == pytest.approx(second - first**2, rel=1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_outcomes_that_are_not_finite(name):
    law, _ = LAWS[name]
    y = tensor(math.nan, math.inf, -math.inf, 0.0).requires_grad_()
    crps = law.crps(y)
    assert torch.isnan(crps[0])
    assert (crps[1:3] == math.inf).all()
    crps[3].backward()
    assert torch.isfinite(y.grad[3])


def test_gradients_of_the_formulas():
    logits, place, size = tensor(0.1, 0.5), tensor(-1.0, 1.0), tensor(0.3, 0.9)
    parameters = tuple(part.requires_grad_() for part in (logits, place, size))
    for kind in (NormalLaw, LogisticLaw):
        assert torch.autograd.gradcheck(
            lambda a, b, c, y, kind=kind: kind(torch.softmax(a, -1), b, c).crps(y),
            (*parameters, tensor(0.0, 0.4, -3.0).requires_grad_()),
        )
    edges = tensor(-1.0, 0.0, 2.0, 5.0)
    assert torch.autograd.gradcheck(
        lambda a, y: HistogramLaw(edges, torch.softmax(a, -1)).crps(y),
        (tensor(0.1, 0.5, -1.0).requires_grad_(), tensor(-3.0, 0.4, 3.0).requires_grad_()),
    )


def roughened(density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return density.double().eval()


def masked(elementwise):
    return Conditional(elementwise, Masked(1, elementwise.spec.size, hidden=8, context=2))


FLOWS = {
    "gaussian": lambda: build("gaussian", 1, 2),
    "maf": lambda: build("maf", 1, 2, options={"hidden": 8, "transforms": 2}),
    "maf with normalisation": lambda: build("maf", 1, 2, options={"hidden": 8, "transforms": 2, "batch_norm": True}),
    "made_mixture": lambda: build("made_mixture", 1, 2, options={"hidden": 8, "components": 4}),
    "mixture of normals": lambda: Flow(masked(NormalMixture(3)), StandardNormal(1), context=2),
    "affine logistic": lambda: Flow(masked(Affine()), StandardLogistic(1), context=2),
    "affine student": lambda: Flow(masked(Affine()), StudentT(1, df=4.0), context=2),
    "steps before a mixture": lambda: Flow(
        Compose([Standardise([3.0], [0.5]), masked(Affine()), ActNorm(1), masked(LogisticMixture(3))]),
        StandardLogistic(1),
        context=2,
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_law_of_a_flow_is_the_law_of_its_density(name):
    flow = roughened(FLOWS[name]())
    context = tensor([0.3, -0.2], [1.0, 2.0])
    law = closed_law(flow, context)
    y = tensor([0.2], [2.5])
    assert torch.allclose(law.cdf(y[:, 0]), flow.to_uniform(y, context)[:, 0], rtol=1e-9, atol=1e-12)
    far = torch.logspace(-6, 6, 7, base=math.e, dtype=torch.float64)
    for side in (far, -far):  # as good as all levels
        places = side.reshape(-1, 1, 1).expand(-1, 2, 1)
        assert torch.allclose(
            law.cdf(places[..., 0]), flow.to_uniform(places, context.expand(7, 2, 2))[..., 0], rtol=1e-8, atol=1e-12
        )
    assert closed_crps(flow, y, context).shape == (2,)


@pytest.mark.parametrize("name", ["made_mixture", "gaussian"])
def test_crps_of_a_conditional_density_is_in_the_units_of_the_target(name):
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(50, 2, dtype=torch.float64, generator=generator)
    target = 1000 + 30 * torch.randn(50, 1, dtype=torch.float64, generator=generator)
    density = conditional_density(name, Table(target, ["y"]), given, seed=0).double().eval()
    found = closed_crps(density, target, given)
    standardised = (target - target.mean()) / target.std(correction=0)
    inner = closed_crps(density.flow.model, standardised, density.encode(given))
    assert torch.allclose(found, target.std(correction=0) * inner, rtol=1e-9)
    bent = conditional_density(name, Table(target, ["y"]), given, support={"y": Support(0.0)}, seed=0)
    assert closed_crps(bent, target, given) is None  # a support bends the line, and no formula is left


@pytest.mark.parametrize("name", ["mdn", "kmn"])
@pytest.mark.parametrize("context", [0, 2])
def test_mixture_density_networks_have_a_formula(name, context):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 1, generator=generator, dtype=torch.float64)
    given = torch.randn(30, context, generator=generator, dtype=torch.float64) if context else None
    flow = build(name, 1, context, options={"components" if name == "mdn" else "centres": 3}, seed=0).double().eval()
    flow.initialise(rows, given)
    law = closed_law(flow, given)
    assert torch.allclose(law.cdf(rows[:, 0]), flow.to_uniform(rows, given)[:, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "made_mixture"])
def test_law_of_a_mixture_of_densities(name):
    options = {} if name == "gaussian" else {"hidden": 8, "components": 3}
    parts = [build(name, 1, 2, options=options, seed=seed).double().eval() for seed in range(3)]
    given, rows = torch.randn(2, 30, 2, generator=torch.Generator().manual_seed(1)).double()
    if name == "gaussian":
        for number, part in enumerate(parts):
            part.initialise((number + 1) * rows[:, :1] + number, given)
    mixture = Mixture(parts, context=2, hidden=8).double()
    with torch.no_grad():
        for parameter in mixture.gate.parameters():
            parameter.add_(0.3)
    law = closed_law(mixture, given)
    share = mixture.log_weights(given).exp()
    below = torch.stack([part.to_uniform(rows[:, :1], given)[:, 0] for part in parts], dim=-1)
    assert torch.allclose(law.cdf(rows[:, 0]), (share * below).sum(dim=-1), rtol=1e-9)
    assert law.crps(rows[:, 0]).shape == (30,)
    assert closed_law(Mixture([StandardNormal(1), StandardLogistic(1)])) is None
    two = closed_law(Mixture([StandardNormal(1), Flow(Standardise([3.0], [2.0]), StandardNormal(1))]))
    assert float(two.mean.detach()) == pytest.approx(1.5)


def test_models_without_a_formula_have_none():
    y = torch.zeros(3, 1)
    assert closed_crps(build("nits", 1, options={"hidden": 8}), y) is None
    assert closed_crps(StandardNormal(2), torch.zeros(3, 2)) is None
    two = Conditional(LogisticMixture(2), Masked(1, LogisticMixture(2).spec.size, hidden=8))
    start = roughened(Flow(Compose([two, two]), StandardLogistic(1)))
    assert closed_law(start) is None  # a mixture of a mixture
    with pytest.raises(DataError, match="y:"):
        closed_crps(StandardNormal(1), torch.zeros(3, 2))
    with pytest.raises(DataError, match="edges"):
        HistogramLaw(torch.zeros(3), torch.ones(3))


def test_student_law_without_a_mean():
    law = StudentLaw(StudentT(1, df=1.0), torch.zeros(()), torch.ones(()))
    assert torch.isnan(law.crps(tensor(0.0)[0]))
    assert torch.isnan(law.mean)
