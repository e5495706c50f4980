"""Training a model of images: accumulated steps, a run taken up again, and the averaged weights that are kept."""

import pytest
import torch
from test_train_resume import StopAt, assert_same_run

from rosenblatt.data import digits
from rosenblatt.image_runs import image_model
from rosenblatt.objectives import NLL
from rosenblatt.train import FitConfig, Fitter, RunFolder

IMAGES = digits().split([60 / 1797, 1 - 60 / 1797], torch.Generator().manual_seed(1))[0]
CONFIG = {"epochs": 3, "batch_size": 16, "learning_rate": 0.02, "dtype": "float64", "ema_decay": 0.8}


def fit(path=None, *, objective=None, resume=False, dropout=0.0, **changes):
    """Fit 54 digits in steps of 16, the last of a pass of 6; returns (model, report)."""
    model = image_model("nits_conv", IMAGES, options={"filters": 4, "widths": [4, 1], "dropout": dropout}, seed=0)
    run = None
    if path is not None:
        run = RunFolder.open(path) if resume else RunFolder.create(path, {"model": "nits_conv"})
    report = Fitter(FitConfig.from_dict({**CONFIG, **changes}), progress=False).fit(
        model, IMAGES, objective, run=run, resume=resume
    )
    return model, report


def test_accumulated_steps_are_the_same_steps():
    whole, report = fit()
    assert (report.steps, report.skipped_steps) == (12, 0)
    parts, accumulated = fit(accumulate=4)
    assert accumulated.best_validation == pytest.approx(report.best_validation, abs=1e-10)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("accumulate", "call", "step"), [(1, 6, 6), (2, 13, 7)])
def test_a_run_taken_up_again_is_the_same_bit_for_bit(tmp_path, unbroken, accumulate, call, step):
    changes = {"accumulate": accumulate, "dropout": 0.2}
    _, part = fit(tmp_path / "run", objective=StopAt(call), **changes)
    assert (part.stopped, part.steps) == ("interrupted", step)
    model, rest = fit(tmp_path / "run", resume=True, **changes)
    assert (rest.steps, rest.resumed_from) == (12, part.steps)
    assert_same_run(tmp_path / "run", unbroken[accumulate])
    best = RunFolder.open(tmp_path / "run").load("best").model
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Runs that nothing stopped, by the parts of their steps."""
    paths = {accumulate: tmp_path_factory.mktemp("whole") / "run" for accumulate in (1, 2)}
    for accumulate, path in paths.items():
        fit(path, accumulate=accumulate, dropout=0.2)
    return paths


def test_the_weights_kept_are_the_averaged_ones(tmp_path):
    seen = []

    class Watch(NLL):
        def __call__(self, model, batch, generator):
            if model.training:
                seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
            return super().__call__(model, batch, generator)

    model, _ = fit(tmp_path / "run", objective=Watch(), validation_fraction=0, patience=None)
    last = RunFolder.open(tmp_path / "run").load("latest")
    trained = [*seen[1:], {name: last.train[f"weight.{name}"] for name in seen[0]}]
    assert len(trained) == last.step == 12
    for name, parameter in model.named_parameters():
        average = torch.zeros_like(parameter)
        for step, weights in enumerate(trained, start=1):
            gain = max(0.2 / (1 - 0.8**step), 10 / (9 + step))
            average = (1 - gain) * average + gain * weights[name]
        torch.testing.assert_close(parameter, average, rtol=0, atol=1e-12)
        assert torch.equal(parameter, last.model[name])
    assert not all(torch.equal(parameter, trained[-1][name]) for name, parameter in model.named_parameters())
