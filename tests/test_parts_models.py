"""The models built of these parts: exactness, odd rows, tools of torch, and the Gaussian's closed fit."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

import rosenblatt.models
from rosenblatt.core import registry
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.models.gaussian import GaussianDensity

SMALL = {
    "maf": {"hidden": 16, "transforms": 3},
    "nsf": {"hidden": 16, "transforms": 2},
    "nsf coupling": {"hidden": 16, "transforms": 2, "coupling": True},
    "nsf permutation": {"hidden": 16, "transforms": 2, "linear": "permutation"},
    "nsf none": {"hidden": 16, "transforms": 2, "linear": "none"},
    "made_mixture": {"hidden": 16, "components": 4},
    "gaussian": {},
}


def data(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(row, features, context=0, scale=0.1):
    model = registry.build(row.split()[0], features, context, options=SMALL[row], seed=0).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize(("features", "context"), [(1, 0), (3, 0), (3, 2)])
@pytest.mark.parametrize("row", list(SMALL))
def test_model_is_invertible_with_the_jacobian_it_reports(row, features, context):
    model = build(row, features, context)
    x, c = data(3, 4, features), data(3, 4, context, seed=2) if context else None
    z, log_det = model.transform(x, c)
    back, back_log_det = model.transform.inverse(z, c)
    assert (back - x).abs().max() <= 1e-7
    assert (log_det + back_log_det).abs().max() <= 1e-7
    for i, row_x in enumerate(x.reshape(12, features)):
        row_c = None if c is None else c.reshape(12, context)[i]
        jacobian = torch.func.jacrev(lambda v, row_c=row_c: model.transform(v, row_c)[0])(row_x)
        assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(log_det.flatten()[i].item(), abs=1e-8)
    drawn, log_prob = model.sample_and_log_prob(6, c, generator=torch.Generator().manual_seed(0))
    expected = (6, 3, 4, features) if context else (6, features)
    assert drawn.shape == expected
    wide = None if c is None else c.expand(6, *c.shape)
    assert torch.allclose(model.log_prob(drawn, wide), log_prob, atol=1e-6)
    assert model.log_prob(x[:0], None if c is None else c[:0]).shape == (0, 4)


@pytest.mark.parametrize("row", list(SMALL))
def test_odd_rows_are_answered_and_stay_alone(row):
    model = build(row, 3).float()
    x = data(5, 3).float()
    clean = model.log_prob(x)
    x[0, 0], x[1, 1], x[2, 2] = math.nan, math.inf, 1e30
    log_prob = model.log_prob(x)
    assert torch.isnan(log_prob[0])
    assert log_prob[1] == -math.inf
    assert log_prob[2] < -1e20
    assert torch.equal(log_prob[3:], clean[3:])
    if row == "gaussian":  # has no parameters
        return
    log_prob[[1, 3, 4]].sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("row", ["maf", "nsf", "nsf coupling", "made_mixture"])
def test_mass_is_one_in_two_dimensions(row):
    model = build(row, 2, scale=0.05)
    t = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    line = torch.tan(math.pi * (t - 0.5)) * 1.5
    weight = math.pi / 300 / torch.cos(math.pi * (t - 0.5)).square() * 1.5
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        mass = (torch.exp(model.log_prob(grid)) * torch.cartesian_prod(weight, weight).prod(dim=-1)).sum()
    assert mass.item() == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize(("row", "scale"), [("maf", 0.05), ("nsf", 0.02), ("nsf coupling", 0.05)])
def test_float32_round_trip_far_from_the_data(row, scale):
    model = build(row, 4, scale=scale).float()
    x = 3 * data(500, 4).float()
    z = model.transform(x).value
    assert (model.transform.inverse(z).value - x).abs().max() <= 1e-3
    noise = 3 * data(500, 4, seed=3).float()
    there = model.transform.inverse(noise).value
    assert (model.transform(there).value - noise).abs().max() <= 1e-3


@pytest.mark.parametrize("row", ["maf", "nsf", "nsf coupling", "made_mixture", "gaussian"])
def test_torch_tools_and_low_precision(row):
    model = build(row, 3, 2).float()
    x, c = data(8, 3).float(), data(8, 2, seed=2).float()
    expected = model.log_prob(x, c)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x, c), expected, atol=1e-5)
    slopes = torch.func.vmap(torch.func.grad(model.log_prob))(x, c)
    assert torch.isfinite(slopes).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.log_prob(x, c)
    assert low.dtype == torch.float32
    assert (low - expected).abs().max() <= 0.5


def test_random_permutations_are_restored_with_the_weights():
    saved, other = (registry.build("nsf", 6, options=SMALL["nsf"], seed=seed) for seed in (0, 1))
    x = data(4, 6).float()
    assert not torch.equal(saved.log_prob(x), other.log_prob(x))
    other.load_state_dict(saved.state_dict())
    assert torch.equal(saved.log_prob(x), other.log_prob(x))


def test_gaussian_is_scipys_on_the_weighted_moments():
    mixing = data(3, 3, seed=4)
    x = data(500, 3) @ mixing.T + 10
    weight = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = GaussianDensity(3).double()
    model.initialise(x, None, weight)
    covariance = np.cov(x.numpy().T, ddof=0, aweights=weight.numpy())
    oracle = scipy.stats.multivariate_normal(np.average(x, axis=0, weights=weight), covariance)
    np.testing.assert_allclose(model.log_prob(x), oracle.logpdf(x.numpy()), atol=1e-10)
    u = model.to_uniform(model.sample(5000, generator=torch.Generator().manual_seed(1)))
    assert scipy.stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-6


def test_gaussian_with_context_is_least_squares():
    c = data(400, 2, seed=2) * torch.tensor([1.0, 100.0]) + 5
    x = c @ data(2, 3, seed=3) + data(400, 3, seed=4) @ data(3, 3, seed=5) + 7
    model = GaussianDensity(3, 2).double()
    model.initialise(x, c)
    design = np.column_stack([np.ones(400), c.numpy()])
    solution = np.linalg.lstsq(design, x.numpy(), rcond=None)[0]
    rest = x.numpy() - design @ solution
    oracle = scipy.stats.multivariate_normal(np.zeros(3), rest.T @ rest / 400)
    np.testing.assert_allclose(model.log_prob(x, c), oracle.logpdf(rest), atol=1e-8)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (lambda a, b: [a, torch.ones_like(a), b], r"columns \[1\] are constant"),
        (lambda a, b: [a, b, a], "column 2 is a linear combination"),
        (lambda a, b: [a, 3 * a - 1, b], "column 1 is a linear combination"),
        (lambda a, b: [a, b, a - 2 * b], "column 2 is a linear combination"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_names_the_columns_that_make_it_singular(columns, message, dtype):
    a, b = data(100, 2).to(dtype).T
    with pytest.raises(DataError, match=message):
        GaussianDensity(3).initialise(torch.stack(columns(a, b), dim=-1))


def test_gaussian_refuses_fewer_rows_than_columns():
    with pytest.raises(DataError, match="too few rows"):
        GaussianDensity(4).initialise(data(3, 4))


@pytest.mark.parametrize("name", ["maf", "nsf", "made_mixture", "gaussian"])
def test_paper_configs_build(name):
    module = getattr(rosenblatt.models, name)
    for dataset in ("power", "gas", "hepmass", "miniboone", "bsds300"):
        config = module.paper_config(dataset)
        registry.build(name, 2, options={**config["model"], **({} if name == "gaussian" else {"hidden": 8})})
    with pytest.raises(OptionError, match="power"):
        module.paper_config("mnist")


@pytest.mark.parametrize(
    ("name", "options"), [("maf", {"transforms": 0}), ("nsf", {"transforms": 0}), ("nsf", {"linear": "qr"})]
)
def test_bad_options_are_refused(name, options):
    with pytest.raises(OptionError):
        registry.build(name, 2, options=options)
