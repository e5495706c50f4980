"""FFJORD and flow matching: their losses against closed forms, short fits against exact entropies, whole journeys."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch

from rosenblatt import FlowDensity
from rosenblatt.assembly import assemble, restore
from rosenblatt.bases import StandardNormal
from rosenblatt.cli import main
from rosenblatt.core.density import Flow
from rosenblatt.core.errors import DataError, InverseError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.core.transform import Compose
from rosenblatt.core.types import Batch, Likelihood
from rosenblatt.data import TOYS, Table
from rosenblatt.layers.continuous import ContinuousFlow, recorded_energy
from rosenblatt.layers.scaling import Standardise
from rosenblatt.layers.velocity import Velocity
from rosenblatt.objectives import NLL, EnergyPenalty, FlowMatching, measure_of
from rosenblatt.testing.tables import disturbed
from rosenblatt.train import FitConfig, Fitter, RunFolder

SIGMAS = 5.5  # two-sided false alarm far below 1e-6
SMALL = {"hidden": 8, "layers": 1, "steps": 2}


class Optimal(Velocity):
    """The field that flow matching tends to for N(0, scale^2) data blurred by `sigma`: linear in z."""

    def __init__(self, scale, sigma):
        super().__init__()
        self.scale, self.sigma = scale, sigma
        self.gain = 1.0

    def moments(self, time):
        """Cov(dz/dt, z) and Var(z) at `time`."""
        own, noise = (1 - time) * self.scale, time + self.sigma * (1 - time)
        return (1 - self.sigma) * noise - own * self.scale, own**2 + noise**2

    def forward(self, z, time, context=None):
        covariance, variance = self.moments(time)
        ratio = self.gain * covariance / variance
        return z * (ratio.unsqueeze(-1) if isinstance(ratio, torch.Tensor) else ratio)


def matched(velocity, rows, objective, seed=0):
    """Losses of `objective` on normal data of the field's scale."""
    generator = torch.Generator().manual_seed(seed)
    x = velocity.scale * torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    model = Flow(ContinuousFlow(velocity, steps=64, trace="exact"), StandardNormal(1)).eval()
    return model, objective(model, Batch(x), generator)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_least_loss_of_flow_matching_is_the_closed_form(sigma):
    velocity = Optimal(0.5, sigma)
    model, losses = matched(velocity, 100_000, FlowMatching(sigma=sigma))
    times = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    covariance, variance = velocity.moments(times)
    least = (1 - sigma) ** 2 + 0.25 - float((covariance.square() / variance).mean())
    error = float(losses.std()) / len(losses) ** 0.5
    assert abs(float(losses.mean()) - least) <= SIGMAS * error
    for gain in (0.9, 1.1):
        velocity.gain = gain
        assert float(matched(velocity, 100_000, FlowMatching(sigma=sigma))[1].mean()) > float(losses.mean())
    velocity.gain = 1.0
    # The field of least loss carries the (blurred) data to the standard normal: its flow is their density.
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(-1)
    exact = torch.distributions.Normal(0.0, math.hypot(0.5, sigma)).log_prob(x).squeeze(-1)
    assert (model.log_prob(x) - exact).abs().max() <= 1e-6


def test_times_are_uniform_and_losses_follow_the_generator():
    seen = []

    class Watch(Optimal):
        def forward(self, z, time, context=None):
            seen.append(time)
            return super().forward(z, time)

    first, second, other = (matched(Watch(1.0, 0.0), 50, FlowMatching(), seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert (first != other).any()
    slots = (50 * seen[0]).floor().sort().values
    assert torch.equal(slots, torch.arange(50, dtype=torch.float64))
    assert not torch.equal(seen[0].sort().values, seen[0])  # no row of a fixed pass is always early


def test_optimal_coupling_pairs_rows_with_near_noise():
    # In one dimension the cheapest pairing is the sorted one, so the paths of equal distributions hardly move.
    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    class Still(Velocity):
        def forward(self, z, time, context=None):
            return torch.zeros_like(z)

    model = Flow(ContinuousFlow(Still(), trace="exact"), StandardNormal(1))
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(400, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    losses = FlowMatching(coupling="optimal")(model, Batch(x), generator)
    expected = (x.flatten().sort().values - noise.flatten().sort().values).square()
    assert (losses[x.flatten().argsort()] - expected).abs().max() <= 1e-12
    for extra in ({"context": x}, {"weight": x[:, 0].abs()}):
        with pytest.raises(DataError, match="coupling"):
            FlowMatching(coupling="optimal")(model, Batch(x, **extra), generator)
    x[5] = math.nan
    losses = FlowMatching(coupling="optimal")(model, Batch(x), generator)
    assert torch.isnan(losses).nonzero().flatten().tolist() == [5]


def test_flow_matching_sees_rows_as_the_flow_does():
    model = disturbed(build("flow_matching", 2, options=SMALL, seed=0)).double().train()
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = FlowMatching()(model, Batch(x), torch.Generator().manual_seed(1))
    shifted = model.after(Standardise([10.0, -3.0], [2.0, 5.0]).double())
    assert shifted.objective is model.objective
    moved = x * torch.tensor([2.0, 5.0]) + torch.tensor([10.0, -3.0])
    assert (FlowMatching()(shifted, Batch(moved), torch.Generator().manual_seed(1)) - plain).abs().max() <= 1e-12


def test_energy_penalty_adds_the_energies_in_training_only():
    model = disturbed(build("ffjord", 2, options=SMALL | {"transforms": 2, "kinetic": 0.5, "jacobian": 0.25}, seed=0))
    assert isinstance(model.objective, EnergyPenalty)
    assert (model.objective.kinetic, model.objective.jacobian) == (0.5, 0.25)
    assert build("ffjord", 2, options=SMALL).objective is None
    batch = Batch(torch.randn(7, 2, generator=torch.Generator().manual_seed(0)))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = model.train().objective(model, batch, torch.Generator())
    model.load_state_dict(state)
    with recorded_energy(model) as energy:
        plain = NLL()(model, batch, torch.Generator())
    kinetic, jacobian = energy()
    assert (losses - plain - 0.5 * kinetic - 0.25 * jacobian).abs().max() <= 1e-6
    assert float(kinetic.detach().min()) > 0
    assert float(jacobian.detach().min()) > 0
    model.eval()
    assert torch.equal(model.objective(model, batch, torch.Generator()), -model.log_prob(batch.x))


def short_fit(name, options, *, steps, rate=1e-2, toy="parabola"):
    truth = TOYS[toy]
    generator = torch.Generator().manual_seed(0)
    x, fresh = truth.sample(20_000, generator).float(), truth.sample(10_000, generator)
    model = build(name, truth.features, options=options, seed=0)
    config = FitConfig(
        max_steps=steps, epochs=100, batch_size=256, learning_rate=rate, validate_every=steps, ema_decay=0.99
    )
    report = Fitter(config, progress=False).fit(model, Table(x, ("a", "b")))
    with torch.no_grad():
        gap = truth.log_prob(fresh) - model.double().log_prob(fresh)
    return model, report, float(gap.mean())


@pytest.mark.parametrize("options", [{"solver": "midpoint", "steps": 4}, {"trace": "auto", "steps": 4}])
def test_ffjord_learns_the_parabola(options):
    _, report, gap = short_fit("ffjord", {"hidden": 32, "layers": 2} | options, steps=250)
    assert report.measure == "nats"
    assert -0.02 < gap < 0.03  # a Gaussian is left at 0.553


def test_flow_matching_learns_the_parabola_without_a_likelihood():
    _, report, gap = short_fit("flow_matching", {"hidden": 64, "layers": 2, "steps": 12}, steps=1200, rate=5e-3)
    assert report.measure == "minus flow-matching loss"
    assert abs(report.best_validation + 3.53) > 0.1  # not the log-likelihood, which is -3.53
    assert -0.02 < gap < 0.03


def test_penalised_paths_are_shorter():
    options = {"hidden": 16, "layers": 1, "steps": 2, "solver": "midpoint"}
    energies = []
    for weights in ({}, {"kinetic": 0.1, "jacobian": 0.1}):
        model, report, _ = short_fit("ffjord", options | weights, steps=100)
        assert report.measure == "nats"
        x = TOYS["parabola"].sample(2000, torch.Generator().manual_seed(5))
        with torch.no_grad(), recorded_energy(model) as energy:
            model.log_prob(x)
        energies.append([float(part.mean()) for part in energy()])
    (free, free_jacobian), (held, held_jacobian) = energies
    assert held < 0.8 * free
    assert held_jacobian < 0.8 * free_jacobian


@pytest.mark.parametrize("name", ["ffjord", "flow_matching"])
def test_a_table_is_fitted_saved_and_read_back(name, tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 2)) @ np.array([[1.0, 2.0], [0.0, 0.5]]) + [100.0, -5.0]
    options = SMALL | ({"kinetic": 0.01} if name == "ffjord" else {"coupling": "optimal"})
    density = FlowDensity(name, model_options=options, epochs=3, batch_size=64, random_state=0).fit(x)
    scores = density.score_samples(x)
    assert density.model_.likelihood is Likelihood.EXACT
    assert measure_of(density.model_) == density.report_.measure
    assert (density.report_.measure == "nats") is (name == "ffjord")
    # The validation score is in nats whatever the training loss was.
    held_out = density.validation_score_
    assert abs(held_out.value - scores.mean()) < SIGMAS * held_out.standard_error
    density.save(tmp_path / "run")
    again = FlowDensity.load(tmp_path / "run")
    assert np.array_equal(again.score_samples(x), scores)
    assert again.report_.measure == density.report_.measure
    assert type(restore(RunFolder.open(tmp_path / "run"))[0].objective) is type(density.model_.objective)


def test_the_command_line_calls_only_likelihoods_nats(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 2))
    np.savez(tmp_path / "rows.npz", x=x)
    words = ["fit", str(tmp_path / "rows.npz"), "--out", str(tmp_path / "run"), "--model", "flow_matching"]
    words += ["--option", "hidden=8", "--option", "steps=2", "--epochs", "2", "--no-plots", "--samples", "10"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(words) == 0
    line = next(line for line in said.getvalue().splitlines() if "best validation" in line)
    assert "minus flow-matching loss" in line
    assert "nats" not in line
    assert "held-out log-likelihood, nats per row" in said.getvalue()


def test_a_run_goes_on_bit_for_bit(tmp_path):
    rows = Table(torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), ("a", "b"))

    def fit(name, steps, *, resume=False):
        folder = tmp_path / name
        run = RunFolder.open(folder) if resume else RunFolder.create(folder, {})
        model = build("ffjord", 2, options=SMALL | {"trace": "auto"}, seed=0)
        config = FitConfig(max_steps=steps, epochs=50, batch_size=50, schedule="constant", checkpoint_every=5)
        Fitter(config, progress=False).fit(model, rows, run=run, resume=resume)
        return model.state_dict()

    whole = fit("whole", 14)
    fit("parts", 7)
    parts = fit("parts", 14, resume=True)
    assert int(whole["transform._steps.1.draws"]) > 0
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_weights_that_make_no_map_at_validation_are_not_the_best():
    class Folding:
        measure = "nats"

        def __call__(self, model, batch, generator):
            self.validations = getattr(self, "validations", 0) + (not model.training)
            if not model.training and self.validations > 1:
                raise InverseError("fold", [0])
            return -model(batch.x, batch.context)

    rows = Table(torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), ("a", "b"))
    model = build("maf", 2, options={"hidden": 8, "transforms": 1}, seed=0)
    report = Fitter(FitConfig(max_steps=6, batch_size=100, epochs=9), progress=False).fit(model, rows, Folding())
    assert report.rolled_back == 0
    assert (report.steps, report.best_step) == (6, 2)
    assert [record["validation"] is None for record in report.history] == [False, True, True]
    assert any("fold" in event["reason"] for event in report.events)


def test_a_table_model_is_judged_as_it_scores():
    table = Table(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), ("a", "b"))
    flow = assemble("ffjord", table, options=SMALL | {"trace": "auto"}, seed=0)
    assert flow.training
    assert flow.likelihood is Likelihood.ESTIMATE
    assert flow.eval().likelihood is Likelihood.EXACT
    with pytest.raises(OptionError, match="no exact log-density"):
        assemble("ffjord", table, options=SMALL | {"trace": "hutchinson"}, seed=0)


def test_training_is_exact_for_few_columns_and_estimated_for_many():
    few, many = (build("ffjord", features, options=SMALL) for features in (8, 9))
    assert (few.likelihood, many.likelihood) == (Likelihood.EXACT, Likelihood.ESTIMATE)
    assert many.eval().likelihood is Likelihood.EXACT


def test_options_are_checked():
    with pytest.raises(OptionError, match="transforms: 0 came"):
        build("ffjord", 2, options={"transforms": 0})
    with pytest.raises(OptionError, match=r"kinetic: -1.0 came"):
        build("ffjord", 2, options={"kinetic": -1.0})
    with pytest.raises(OptionError, match=r"sigma: 1.0 came"):
        build("flow_matching", 2, options={"sigma": 1.0})
    with pytest.raises(OptionError, match="coupling: 'sinkhorn' came"):
        build("flow_matching", 2, options={"coupling": "sinkhorn"})
    stacked = build("ffjord", 2, options=SMALL)
    stacked = Flow(Compose([stacked.transform, Standardise([0.0] * 2, [1.0] * 2)]), StandardNormal(2))
    with pytest.raises(OptionError, match="whose last step is a continuous one"):
        FlowMatching()(stacked, Batch(torch.zeros(3, 2)), torch.Generator())
    with pytest.raises(OptionError, match="whose last step is a continuous one"):
        FlowMatching()(StandardNormal(2), Batch(torch.zeros(3, 2)), torch.Generator())
