"""Poison in training: steps are skipped or rolled back, reported, and the fit ends finite or says why not."""

import math

import pytest
import torch
from train_stubs import Gaussian, Rows, fit, table

from rosenblatt.core.errors import FitDiverged
from rosenblatt.objectives import NLL
from rosenblatt.train.guard import ROLL_BACKS, SKIPS_IN_A_ROW, WINDOW, Guard, Verdict


class Poison(NLL):
    """Multiplies the losses of chosen training calls, forward (`loss`) or in the gradient alone."""

    def __init__(self, calls, factor=math.nan, gradient_only=False):
        self.calls, self.factor, self.gradient_only, self.count = calls, factor, gradient_only, 0

    def __call__(self, model, batch, generator):
        losses = super().__call__(model, batch, generator)
        if model.training:
            self.count += 1
            if self.count in self.calls:
                if self.gradient_only:
                    losses.register_hook(lambda gradient: gradient * self.factor)
                else:
                    losses = losses * self.factor
        return losses


def finite(model):
    return all(torch.isfinite(t).all() for t in model.state_dict().values())


@pytest.mark.parametrize("row", [math.nan, math.inf])
def test_one_poisoned_row_costs_one_step_an_epoch(row):
    clean, _, _ = fit(epochs=30, model=Gaussian(dropout=0.0))
    data = table()
    data.x[7, 1] = row
    model, report, _ = fit(epochs=30, model=Gaussian(dropout=0.0), data=data)
    x = table(1000, seed=4).x
    assert finite(model)
    assert report.poisoned_rows == 1
    assert report.skipped_steps == 30
    assert report.events[0]["kind"] == "skip"
    assert report.events[0]["poisoned_rows"] == 1
    expected = clean.log_prob(x).mean().item()
    assert model.log_prob(x).mean().item() == pytest.approx(expected, rel=0.05)


def test_an_infinite_gradient_skips_the_step():
    _, report, _ = fit(objective=Poison({5}, math.inf, gradient_only=True))
    assert report.skipped_steps == 1
    assert report.events == [
        {"step": 4, "kind": "skip", "reason": "gradient not finite", "poisoned_rows": 0},
    ]


def test_a_skipped_step_leaves_weights_optimiser_and_average_alone():
    plain, _, _ = fit(max_steps=4, schedule="constant", model=Gaussian(dropout=0.0))
    skipped, _, _ = fit(max_steps=5, schedule="constant", model=Gaussian(dropout=0.0), objective=Poison({5}))
    for ours, theirs in zip(skipped.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_many_bad_steps_roll_back_and_halve_the_rate():
    calls = set(range(20, 20 + SKIPS_IN_A_ROW))
    model, report, _ = fit(objective=Poison(calls), schedule="constant")
    assert (report.rolled_back, report.skipped_steps) == (1, SKIPS_IN_A_ROW)
    assert report.history[-1]["lr"] == pytest.approx(0.01)
    assert finite(model)


def test_roll_back_restores_the_snapshot_exactly():
    # Steps 8 to 17 are bad, so the roll back at 17 must bring back what the checkpoint at 5 held.
    calls = set(range(8, 8 + SKIPS_IN_A_ROW))
    changes = {
        "schedule": "constant",
        "checkpoint_every": 5,
        "validate_every": 100,
        "validation_fraction": 0.0,
    }
    rolled, _, _ = fit(max_steps=17, objective=Poison(calls), model=Gaussian(dropout=0.0), **changes)
    plain, _, _ = fit(max_steps=5, model=Gaussian(dropout=0.0), **changes)
    for ours, theirs in zip(rolled.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_wild_learning_rate_ends_finite_or_says_why():
    model = Gaussian(dropout=0.0)
    with pytest.raises(FitDiverged, match="learning_rate"):
        fit(model=model, learning_rate=200.0, schedule="constant", epochs=100, clip_norm=None)
    assert finite(model)
    assert not model.training


def test_hopeless_data_names_the_poisoned_rows():
    x = table().x
    x[::3] = math.nan
    with pytest.raises(FitDiverged, match=r"120 of 360 are not finite|1[0-9]{2} of 360 are not finite"):
        fit(data=Rows(x), epochs=100)


def test_a_single_wild_batch_is_not_a_run_away():
    _, report, _ = fit(objective=Poison({15}, 1e4))
    assert report.rolled_back == 0


def test_a_lasting_spike_is():
    guard = Guard()
    for _ in range(30):
        assert guard.judge(5.0, 1.0) is Verdict.GOOD
    verdicts = [guard.judge(500.0, 1.0) for _ in range(WINDOW)]
    assert verdicts[0] is Verdict.GOOD
    assert verdicts[-1] is Verdict.ROLL_BACK
    assert not guard.calm


def test_noise_around_a_level_is_no_spike():
    guard = Guard()
    noise = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 30 + 100
    assert all(guard.judge(value, 1.0) is Verdict.GOOD for value in noise.tolist())


def test_the_guard_gives_up_after_five_roll_backs_and_travels_through_json():
    guard = Guard()
    guard.judge(1.0, 1.0)
    assert [guard.roll_back() for _ in range(ROLL_BACKS + 1)] == [True] * ROLL_BACKS + [False]
    assert guard.lr_scale == 2.0 ** -(ROLL_BACKS + 1)
    assert Guard.from_dict(guard.to_dict()).to_dict() == guard.to_dict()
