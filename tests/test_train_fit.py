"""What a fit does: learns, stops, keeps the best weights and leaves the rest of the program alone."""

import math
import os
import signal

import pytest
import torch
from train_stubs import Fixed, Gaussian, Rows, fit, table

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Batch
from rosenblatt.objectives import NLL
from rosenblatt.train import FitConfig, Fitter, LocalRuntime
from rosenblatt.train.ema import EMA
from rosenblatt.train.session import Session
from rosenblatt.train.weights import FlatWeights

TRUTH = -2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))  # nats a row of two N(2, 0.5) columns


def test_learns_a_gaussian():
    model, report, _ = fit(epochs=60, model=Gaussian(dropout=0.0), data=table(2000), validate_every=None)
    assert report.stopped == "epochs"
    assert report.best_validation == pytest.approx(TRUTH, abs=0.15)
    x = table(20_000, seed=5).x
    assert model.log_prob(x).mean().item() == pytest.approx(TRUTH, abs=0.05)


def test_best_weights_are_restored_and_score_what_the_report_says():
    held_out = table(300, seed=9)
    model = Gaussian()
    config = FitConfig(epochs=8, batch_size=32, learning_rate=0.3, schedule="constant", patience=None)
    report = Fitter(config, progress=False).fit(model, table(), validation=held_out)
    scores = [record["validation"] for record in report.history]
    assert report.best_validation == max(scores)
    assert report.best_step == report.history[scores.index(max(scores))]["step"]
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert model.log_prob(held_out.x).mean().item() == pytest.approx(report.best_validation, abs=1e-5)


def test_early_stopping_counts_validations_without_gain():
    _, report, _ = fit(epochs=500, patience=3, min_gain=0.5, validate_every=None)
    scores = [record["validation"] for record in report.history]
    assert report.stopped == "patience"
    anchor, last_gain = scores[0], 0
    for index, score in enumerate(scores):
        if score > anchor + 0.5:
            anchor, last_gain = score, index
    assert len(scores) == last_gain + 1 + 3


def test_max_steps_and_time_limit_stop_between_steps():
    _, report, _ = fit(max_steps=10)
    assert (report.stopped, report.steps) == ("steps", 10)
    assert report.history[-1]["step"] == 10
    _, report, _ = fit(time_limit=1e-9)
    assert (report.stopped, report.steps) == ("time", 0)
    assert len(report.history) == 1


def test_same_seed_same_weights_another_seed_other_weights():
    first, again, other = fit()[0], fit()[0], fit(seed=1)[0]
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.net[0].weight, other.net[0].weight)


def test_global_state_is_left_alone():
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit(threads=1, max_steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_weights_of_rows_count():
    x = torch.cat([torch.zeros(200, 2), torch.full((200, 2), 4.0)]) + 0.1 * table(400).x
    weight = torch.cat([torch.full((200,), 1e-6), torch.ones(200)])
    changes = {"epochs": 40, "ema_decay": 0.9, "validate_every": None}
    model, report, _ = fit(model=Gaussian(dropout=0.0), data=Rows(x, weight), **changes)
    assert model.log_prob(x[200:]).mean() > model.log_prob(x[:200]).mean() + 10
    _, other, _ = fit(model=Gaussian(dropout=0.0), data=Rows(x, weight * 64), **changes)
    assert other.best_validation == pytest.approx(report.best_validation, rel=1e-5)


def test_closed_form_takes_all_rows_and_no_steps():
    data = table(1000)
    model, report, run = fit(model=Fixed(start=True), data=data, validation_fraction=0.0)
    assert (report.stopped, report.steps) == ("closed form", 0)
    assert torch.allclose(model.offset, data.x.mean(dim=0))
    assert run is None


def test_closed_form_is_saved_and_resumed(tmp_path):
    model, report, run = fit(tmp_path / "run", model=Fixed(start=True))
    assert run.load("best").state["progress"]["history"] == report.history
    again, second, _ = fit(tmp_path / "run", model=Fixed(start=True), resume=True)
    assert torch.equal(again.offset, model.offset)
    assert second.best_validation == report.best_validation


def test_starting_values_come_from_sound_rows_only():
    data = table(400)
    data.x[3, 0] = math.nan
    model, report, _ = fit(model=Gaussian(start=True), data=data, max_steps=1, validation_fraction=0.0)
    assert torch.isfinite(model.offset).all()
    assert report.poisoned_rows == 1


def test_without_validation_rows_the_last_weights_are_kept():
    _, report, _ = fit(validation_fraction=0.0)
    assert report.best_validation is None
    assert report.best_step == report.steps


def test_validation_of_minus_infinity_is_reported_as_such():
    class Box(Gaussian):
        def log_prob(self, x, context=None):
            inside = (x < 1.5).all(dim=-1) | torch.tensor(self.training)
            return torch.where(inside, super().log_prob(x), -torch.inf)

    _, report, _ = fit(model=Box())
    assert report.best_validation == -math.inf
    assert all(record["validation"] is None for record in report.history)
    assert report.events[0]["kind"] == "validation"


def test_float64():
    model, _, _ = fit(dtype="float64", max_steps=2)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float64}


def test_every_row_is_seen_once_an_epoch():
    seen = []

    class Watch(NLL):
        def __call__(self, model, batch, generator):
            if model.training:
                seen.append(batch.x[:, 0])
            return super().__call__(model, batch, generator)

    data = table(100)
    fit(objective=Watch(), data=data, epochs=2, validation_fraction=0.0)
    first, second = torch.cat(seen)[:100], torch.cat(seen)[100:]
    assert torch.equal(first.sort().values, data.x[:, 0].sort().values)
    assert torch.equal(second.sort().values, data.x[:, 0].sort().values)
    assert not torch.equal(first, second)


def test_first_step_is_adam_on_the_weighted_clipped_gradient():
    model, reference = Gaussian(dropout=0.0), Gaussian(dropout=0.0)
    data = Rows(table(32).x, torch.linspace(0.1, 1.0, 32))
    fit(model=model, data=data, max_steps=1, validation_fraction=0.0, clip_norm=0.01, ema_decay=None)
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.02)
    loss = -(data.weight * reference.log_prob(data.x)).sum() / data.weight.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.01)
    optimizer.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_ema_is_the_bias_corrected_average_of_a_long_run():
    weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    ema, total = EMA(FlatWeights([weight]), 0.9), 0.0
    for step in range(400):  # from update 91 on the decay alone counts, and 0.9^300 of what came before is left
        value = math.sin(step)
        weight.data.fill_(value)
        ema.update()
        total = 0.9 * total + 0.1 * value
    assert ema.average[0].item() == pytest.approx(total, rel=1e-9)
    with ema.applied():
        assert weight.item() == ema.average[0].item()
    assert weight.item() == math.sin(399)


def test_ema_of_a_short_run_forgets_its_start():
    weight = torch.nn.Parameter(torch.zeros(()))
    ema = EMA(FlatWeights([weight]), 0.999)
    for step in range(100):
        weight.data.fill_(1000.0 if step < 50 else 2.0)
        ema.update()
        if step == 0:
            assert ema.average[0].item() == 1000.0
    # Each update t keeps 1 - 10 / (9 + t) of the past: from update 51 to 100 that leaves 1 part in 679.
    left = math.prod(1 - 10 / (9 + t) for t in range(51, 101))
    assert ema.average[0].item() == pytest.approx(2.0 + 998.0 * left, rel=1e-3)


@pytest.mark.parametrize(("schedule", "expected"), [("cosine", 0.5), ("constant", 1.0)])
def test_learning_rate_schedule(schedule, expected):
    config = FitConfig(epochs=10, batch_size=10, learning_rate=2.0, schedule=schedule, warmup_steps=4)
    session = Session(
        config,
        runtime=LocalRuntime("cpu"),
        model=Gaussian(),
        data=(table(100), None),
        objective=NLL(),
        run=None,
        loggers=(),
    )
    rates = [session._learning_rate(step) for step in range(100)]
    assert session.total == 100
    assert rates[0] == pytest.approx(2.0 / 4)
    assert rates[50] == pytest.approx(2.0 * expected)
    if schedule == "cosine":
        assert rates[99] == pytest.approx(1 - math.cos(math.pi / 100))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_returns(number):
    class Stop(NLL):
        calls = 0

        def __call__(self, model, batch, generator):
            self.calls += model.training
            if model.training and self.calls == 4:
                os.kill(os.getpid(), number)
            return super().__call__(model, batch, generator)

    model, report, _ = fit(objective=Stop())
    assert (report.stopped, report.signal, report.steps, report.best_step) == ("interrupted", number, 4, None)
    assert not model.training


def test_a_logger_gets_every_record():
    class List:
        def __init__(self):
            self.records = []

        def log(self, record):
            self.records.append(record)

    logger = List()
    config = FitConfig(epochs=3, batch_size=64)
    report = Fitter(config, loggers=[logger], progress=False).fit(Gaussian(), table())
    assert logger.records == report.history
    assert [record["epoch"] for record in logger.records] == [1, 2, 3]


def test_progress_bar_is_silent_unless_asked_or_on_a_terminal(capsys):
    Fitter(FitConfig(epochs=1)).fit(Gaussian(), table())
    assert capsys.readouterr().out == ""
    Fitter(FitConfig(epochs=1), progress=True).fit(Gaussian(), table())
    assert "nats" in capsys.readouterr().out


def test_config_round_trip_and_refusals():
    config = FitConfig(epochs=3, clip_norm=None)
    assert FitConfig.from_dict(config.to_dict()) == config
    with pytest.raises(OptionError, match="'epoch' is unknown"):
        FitConfig.from_dict({"epoch": 3})
    for name, value in [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("patience", 0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("learning_rate", "fast"),
        ("ema_decay", 1.0),
        ("validation_fraction", 1.0),
        ("time_limit", math.inf),
        ("schedule", "step"),
        ("dtype", "float16"),
        ("device", 3),
        ("amp", 1),
        ("seed", -1),
    ]:
        with pytest.raises(OptionError, match=name):
            FitConfig.from_dict({name: value})


def test_refusals_of_the_fitter():
    with pytest.raises(OptionError, match="resume"):
        Fitter().fit(Gaussian(), table(), resume=True)
    with pytest.raises(DataError, match="no rows"):
        Fitter().fit(Gaussian(), Rows(torch.zeros(0, 2)))
    with pytest.raises(DataError, match="no row is finite"):
        Fitter().fit(Gaussian(), Rows(torch.full((9, 2), math.nan)), validation=table())
    with pytest.raises(DataError, match="validation"):
        Fitter().fit(Gaussian(), table(), validation=Rows(table().x, torch.zeros(400)))
    with pytest.raises(OptionError, match="device"):
        LocalRuntime("nonsense")
    with pytest.raises(OptionError, match="amp"):
        LocalRuntime("meta", amp=True)


@pytest.mark.parametrize("units", [True, False])
def test_mixed_precision_on_a_processor_needs_its_bfloat16_units(monkeypatch, units):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    if units:
        with LocalRuntime("cpu", amp=True).autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    else:
        with pytest.raises(OptionError, match="amp: 'cpu' has no units for bfloat16"):
            LocalRuntime("cpu", amp=True)


def test_a_pass_of_the_wrong_length_is_refused():
    class Short(Rows):
        def batches(self, size, generator, start=0):
            return iter([])

    with pytest.raises(DataError, match="a pass over"):
        fit(data=Short(table().x), validation_fraction=0.0)


def test_nll_is_minus_log_prob():
    model, x = Gaussian().eval(), table(5).x
    assert torch.equal(NLL()(model, Batch(x), torch.Generator()), -model.log_prob(x))
