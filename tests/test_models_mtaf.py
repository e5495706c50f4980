"""Tail-adaptive flows: their base against scipy, what may mix with what, and the tails of their samples."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from rosenblatt.core.errors import OptionError
from rosenblatt.core.registry import build
from rosenblatt.eval import tail_report
from rosenblatt.eval.tail_index import distances, hill
from rosenblatt.models import mtaf
from rosenblatt.models.mtaf import TailBase
from rosenblatt.testing.tables import disturbed

FALSE_ALARM = 1e-6
SMALL = {"transforms": 2, "hidden": 8, "bins": 4, "bound": 2.5}


def made(name, features, size=0.3, **options):
    return disturbed(build(name, features, options=SMALL | options, seed=0), size).double()


def index_of_samples(model, rows=400_000, k=400):
    with torch.no_grad():
        x = model.sample(rows, generator=torch.Generator().manual_seed(5))
    return [1 / float(hill(distances(column)[: k + 1].log(), torch.tensor([k]))) for column in x.T]


def test_base_is_normal_or_student_by_column():
    base = TailBase(3, [None, 2.0, 7.5]).double()
    laws = [scipy.stats.norm(), scipy.stats.t(2.0), scipy.stats.t(7.5)]
    x = torch.tensor([-1e4, -30.0, -3.0, -0.2, 0.0, 1.5, 8.0, 1e3]).double()
    rows = x.unsqueeze(-1).expand(-1, 3)
    np.testing.assert_allclose(base.log_prob(rows), sum(law.logpdf(x.numpy()) for law in laws), rtol=1e-12)
    u = torch.tensor([1e-9, 0.1, 0.5, 0.999]).double().unsqueeze(-1).expand(-1, 3)
    drawn = base.sample(20_000, generator=torch.Generator().manual_seed(0))
    for column, law in enumerate(laws):
        np.testing.assert_allclose(base.cdf(rows)[:, column], law.cdf(x.numpy()), rtol=1e-11, atol=1e-300)
        np.testing.assert_allclose(base.quantile(u)[:, column], law.ppf(u[:, column].numpy()), rtol=1e-9, atol=1e-12)
        assert scipy.stats.kstest(drawn[:, column].numpy(), law.cdf).pvalue > FALSE_ALARM
    odd = torch.tensor([[math.inf, 0.0, 0.0], [0.0, 0.0, -math.inf], [math.nan, 0.0, 0.0], [0.0, math.nan, 0.0]])
    assert base.log_prob(odd.double()).tolist()[:2] == [-math.inf] * 2
    assert torch.isnan(base.log_prob(odd.double())[2:]).all()


def test_trained_df_have_the_gradient_of_the_log_density():
    base = TailBase(3, [None, 2.0, 7.5], trainable=True).double()
    x = torch.tensor([[0.3, -4.0, 1.0], [2.0, 50.0, -0.1]]).double()
    (grad,) = torch.autograd.grad(base.log_prob(x).sum(), base.log_ratio)
    for column, df in ((1, 2.0), (2, 7.5)):
        ends = [scipy.stats.t(df * math.exp(h)).logpdf(x[:, column].numpy()).sum() for h in (1e-5, -1e-5)]
        assert grad[column].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
    assert grad[0] == 0
    shared = TailBase(2, [50.0, 50.0], trainable=True, shared=True)
    with torch.no_grad():
        shared.log_ratio.fill_(-1.0)
    assert len(set(shared.df.tolist())) == 1
    assert shared.df[0].item() == pytest.approx(50 * math.exp(-3 * math.tanh(1 / 3)))


@pytest.mark.parametrize("mixing", ["heavy", "ordered"])
def test_no_heavy_column_reaches_a_lighter_one(mixing):
    df = [3.0, None, 2.0, None, 6.0]
    model = made("mtaf", 5, df=df, mixing=mixing)
    weight = torch.tensor([0.0 if index is None else 1 / index for index in df])
    rank = weight if mixing == "ordered" else (weight > 0).float()
    forbidden = rank.unsqueeze(0) > rank.unsqueeze(-1)
    z = model.base.sample(1, generator=torch.Generator().manual_seed(1))[0]
    order = torch.tensor(sorted(range(5), key=weight.tolist().__getitem__))
    back = torch.func.jacrev(lambda z: model.transform.inverse(z).value)(z)[:, torch.argsort(order)]
    assert (back[forbidden] == 0).all()
    assert back[1, 3] != 0  # light columns do mix
    assert back[0, 1] != 0  # and enter heavy ones
    assert (back[4, 0] == 0) == (mixing == "ordered")


def test_samples_have_the_tails_of_their_columns():
    # Hill's estimate of 400 values has a standard error of 5 %; a box of 2.5 shifts tails that start near 30 by 8 %.
    band = scipy.stats.norm.isf(FALSE_ALARM / 2) / math.sqrt(400) + 0.08
    found = index_of_samples(made("mtaf", 4, 0.1, df=[2.0, None, 2.0, None]))
    for column in (0, 2):
        assert abs(2 / found[column] - 1) < band, found
    for column in (1, 3):
        assert found[column] > 8, found
    everywhere = index_of_samples(made("taf", 4, 0.1, df=2.0, trainable=False))
    assert all(abs(2 / index - 1) < band for index in everywhere), everywhere


def test_options_come_from_the_data_and_are_json():
    x = torch.from_numpy(scipy.stats.t(2).rvs(size=(4000, 2), random_state=0))
    x[:, 0] = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = tail_report(x, false_alarm=FALSE_ALARM, resamples=60).options
    assert json.loads(json.dumps(options)) == options
    model = build("mtaf", 2, options=options | SMALL, seed=0)
    assert model.base.heavy.tolist() == [False, True]
    assert model.base.df[1].item() == pytest.approx(options["df"][1])


def test_columns_come_back_in_their_order():
    model = build("mtaf", 3, options=SMALL | {"df": [2.0, None, 30.0]}, seed=0).double()
    x = torch.tensor([[1e3, 0.5, 6.0]]).double()
    z, log_det = model.transform(x)
    back, back_log_det = model.transform.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    assert (log_det + back_log_det).abs().item() < 1e-9
    assert model.base.heavy.tolist() == [False, True, True]  # light first
    assert z.abs().amax() == z[0].abs()[1:].amax()


def test_infinite_df_is_light_and_no_df_is_all_light():
    for df in (None, [None, None], [math.inf, None]):
        assert not mtaf.mtaf(2, df=df, **SMALL).base.heavy.any()
    assert mtaf.gtaf(2, df=[None, 4.0], **SMALL).base.heavy.tolist() == [False, True]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mtaf", {"df": [2.0]}),
        ("mtaf", {"df": [2.0, 0.0]}),
        ("mtaf", {"df": [2.0, True]}),
        ("mtaf", {"df": 2.0}),
        ("mtaf", {"mixing": "all"}),
        ("mtaf", {"transforms": 0}),
        ("taf", {"df": -1.0}),
        ("gtaf", {"df": [1.0, 2.0, 3.0]}),
    ],
)
def test_bad_options_are_refused(name, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        build(name, 2, options=options)


def test_paper_configs_build():
    for dataset in ("synthetic8", "synthetic50"):
        build("mtaf", 3, options=mtaf.paper_config(dataset)["model"] | {"df": [None, 2.0, 3.0], "hidden": 8})
    with pytest.raises(OptionError, match="synthetic8"):
        mtaf.paper_config("weather")
