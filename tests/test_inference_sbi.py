"""A flow built here as the density estimator of the `sbi` package; skipped where that is not installed."""

import pickle
import sys
import warnings

import pytest
import torch

from rosenblatt.core.errors import OptionError
from rosenblatt.inference.sbi import density_estimator

NOISE = 0.5
SMALL = {"transforms": 2, "hidden": 16, "blocks": 1, "bins": 4}


@pytest.fixture(scope="module")
def package():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what sbi and its dependencies say on import
        return pytest.importorskip("sbi.inference", reason="sbi is not installed: pip install rosenblatt[sbi]")


@pytest.fixture
def joint():
    draw = torch.Generator().manual_seed(0)
    theta = torch.randn(2000, 2, generator=draw)
    return theta, theta + NOISE * torch.randn(2000, 2, generator=draw)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """The package writes its logs into the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")  # sbi's own
def test_npe_of_sbi_finds_the_conjugate_posterior(package, joint):
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    trainer = package.NPE(
        prior=prior, density_estimator=density_estimator("nsf", options=SMALL, seed=0), show_progress_bars=False
    )
    torch.manual_seed(0)
    trained = trainer.append_simulations(*joint).train(training_batch_size=200, max_num_epochs=15, learning_rate=5e-3)
    posterior = trainer.build_posterior(trained)
    seen = torch.tensor([1.0, -0.5])
    drawn = posterior.sample((4000,), x=seen, show_progress_bars=False)
    gain = 1 / (1 + NOISE**2)
    deviation = NOISE * gain**0.5  # 0.447
    assert torch.allclose(drawn.mean(dim=0), gain * seen, atol=0.1)
    assert torch.allclose(drawn.std(dim=0), torch.full((2,), deviation), atol=0.07)
    assert abs(torch.corrcoef(drawn.T)[0, 1]) < 0.15
    exact = torch.distributions.Normal(gain * seen, deviation).log_prob(drawn).sum(dim=-1)
    assert abs((posterior.log_prob(drawn, x=seen, norm_posterior=False) - exact).mean()) < 0.1
    again = pickle.loads(pickle.dumps(trained))  # noqa: S301 - our own bytes
    assert torch.equal(again.log_prob(drawn[:5], seen.unsqueeze(0)), trained.log_prob(drawn[:5], seen.unsqueeze(0)))


@pytest.mark.parametrize("of", ["posterior", "likelihood"])
def test_shapes_are_those_of_sbi(package, joint, of):
    theta, x = joint[0][:50], joint[1][:50].reshape(50, 2, 1).repeat(1, 1, 2) + joint[0][:50, :1, None] * 0.1
    x[..., 1] += torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    estimator = density_estimator("nsf", options=SMALL, of=of, seed=0)(theta, x)
    value, given = (theta, x) if of == "posterior" else (x, theta)
    assert estimator.input_shape == value.shape[1:]
    assert estimator.condition_shape == given.shape[1:]
    loss = estimator.loss(value, given)
    assert loss.shape == (50,)
    rows = estimator.net.log_prob(value.reshape(50, -1), given.reshape(50, -1))
    assert torch.allclose(loss, -rows)
    drawn, log_prob = estimator.sample_and_log_prob((3, 2), given[:4])
    assert drawn.shape == (3, 2, 4, *value.shape[1:])
    assert log_prob.shape == (3, 2, 4)
    again = estimator.log_prob(drawn.flatten(0, 1), given[:4])
    assert torch.allclose(again, log_prob.flatten(0, 1), atol=1e-3)


def test_support_holds_and_the_global_stream_decides(package, joint):
    theta, x = joint[0].sigmoid(), joint[1]
    estimator = density_estimator("nsf", options=SMALL, support=[(0, 1), (0, 1)], seed=0)(theta, x)
    torch.manual_seed(5)
    drawn = estimator.sample((500,), x[:3])
    assert ((drawn >= 0) & (drawn <= 1)).all()
    torch.manual_seed(5)
    assert torch.equal(drawn, estimator.sample((500,), x[:3]))
    assert (estimator.log_prob(torch.full((1, 3, 2), 1.5), x[:3]) == -torch.inf).all()


def test_a_missing_package_is_named(monkeypatch):
    from rosenblatt.inference import sbi

    monkeypatch.setitem(sys.modules, "sbi.neural_nets.estimators.base", None)
    sbi._estimator_class.cache_clear()
    with pytest.raises(OptionError, match=r"sbi: cannot be imported .* pip install"):
        density_estimator()
    sbi._estimator_class.cache_clear()


def test_the_other_direction_is_refused():
    with pytest.raises(OptionError, match="of: 'evidence' came"):
        density_estimator(of="evidence")
