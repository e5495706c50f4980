"""The audit of models of whole numbers: a sound one passes, planted faults are found, and the command says so."""

import numpy as np
import pytest
import torch

from rosenblatt.bases import StandardNormal
from rosenblatt.cli import main
from rosenblatt.conditioners.pixelcnn import PixelCNN
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import digits
from rosenblatt.layers.discretised import SPAN, Discretised
from rosenblatt.testing import audit, audit_levels
from rosenblatt.testing.checks_discrete import DISCRETE
from rosenblatt.testing.measures import forbidden_influence, influence_at_levels

ROW = DISCRETE["pixelcnn_mol"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Wrong(Discretised):
    """A model with one fault of choice."""

    fault = ""

    def _ends(self, counts):
        lower, upper = super()._ends(counts)
        if self.fault == "ends":  # the last level ends where its interval would
            upper = upper.clamp(max=SPAN + self.half_width)
        return lower, upper

    def _level_of(self, noise, theta):
        return super()._level_of(0.5 * noise if self.fault == "sampler" else noise, theta)

    def log_prob(self, x, context=None):
        log_prob = super().log_prob(x, context)
        if self.fault == "batch" and log_prob.ndim:
            log_prob = log_prob + 1e-6 * log_prob.mean()
        if self.fault == "precision" and log_prob.dtype == torch.float32:
            log_prob = log_prob + 0.01
        return log_prob + 1e-3 if self.fault == "log_prob" else log_prob

    def complete(self, x, known, context=None, *, generator=None):
        whole, log_prob = super().complete(x, known, context, generator=generator)
        if self.fault == "completion" and known:
            whole = whole.flip(0)
        return whole, log_prob


class Leaky(PixelCNN):
    """Every pixel sees a little of all others."""

    def states(self, x, context):
        return super().states(x, context) + 1e-6 * x.mean(dim=(1, 2), keepdim=True)


class LeakyInTraining(PixelCNN):
    def states(self, x, context):
        return super().states(x, context) + (1e-6 if self.training else 0.0) * x.mean(dim=(1, 2), keepdim=True)


def planted(fault):
    right = ROW.make()
    wrong = Wrong(right.layer, right.levels)
    wrong.fault = fault
    if fault in ("leak", "leak in training"):
        wrong.layer.conditioner.__class__ = Leaky if fault == "leak" else LeakyInTraining
    return wrong.eval()


def rows(count=40):
    return torch.randint(ROW.levels, (count, ROW.features), generator=seeded(3))


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        ("ends", {"masses of all levels, float64", "masses of all levels, as scored"}),
        ("sampler", {"own samples against own CDF"}),
        ("batch", {"a row alone against a row in a batch", "rows beside a NaN row"}),
        ("precision", {"log-probability as scored against float64"}),
        ("log_prob", {"log-probability against masses of levels", "log-probability of own samples"}),
        ("completion", {"completion of known numbers"}),
        ("leak", {"influence against the order, in use", "influence against the order, in training"}),
        ("leak in training", {"influence against the order, in training"}),
    ],
)
def test_planted_faults_are_found(fault, caught):
    report = audit(planted(fault), rows(), generator=seeded(), seconds=1)
    assert not report.passed
    failed = {row.what for row in report.rows if row.passed is False}
    assert caught <= failed
    if fault == "leak in training":
        assert failed == caught


@pytest.mark.parametrize("name", ["nits_conv_mixture", "pixelcnn_mol", "nits_conv_context"])
def test_a_sound_model_passes_and_is_left_alone(name):
    row = DISCRETE[name]
    model = row.make().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    x, context = row.images()[:50], row.given(50)
    report = audit(model, x, context=None if context is None else context.float(), generator=seeded(), seconds=1)
    assert report.passed, str(report)
    assert {line.check for line in report.rows} == {"R5", "R8", "R11", "R13", "R16"}
    assert all(line.passed for line in report.rows)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (torch.get_rng_state() == state).all()
    assert all((value == before[key]).all() for key, value in model.state_dict().items())
    assert f"= 0 exactly ({row.features} of {row.features} levels)" in str(report)


def test_rows_that_are_no_levels_and_other_models_are_refused():
    model = ROW.make()
    with pytest.raises(DataError, match="1 of 3 rows are whole numbers"):
        audit_levels(model, torch.tensor([[0.0] * 6, [0.5] * 6, [torch.nan] * 6]))
    with pytest.raises(DataError, match="6 features"):
        audit_levels(model, torch.zeros(4, 5))
    with pytest.raises(OptionError, match="StandardNormal came"):
        audit_levels(StandardNormal(2), torch.zeros(4, 2))


@pytest.mark.parametrize("fault", ["", "leak"])
def test_influence_of_all_levels_in_one_pass_is_that_of_one_after_the_other(fault):
    model = planted(fault).double()
    net, x = model.layer.conditioner, model.place(rows(1).double())
    apart = forbidden_influence(net, x)
    together = influence_at_levels(net, x[0], list(range(len(net.sizes))))
    assert (apart > 0) == (fault == "leak")
    # Each level's weights are drawn anew, from 1 to 2.
    assert together == 0.0 if not fault else 0.2 < together / apart < 5


def test_the_command_ends_with_one_when_a_check_fails(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "digits.npy", digits().pixels[:60, 0].numpy())
    words = ["--model", "pixelcnn_mol", "--option", "levels=17", "--option", "filters=4", "--no-plots"]
    words += ["--max-steps", "4", "--batch-size", "16", "--out", str(tmp_path / "run")]
    assert main(["fit", str(tmp_path / "digits.npy"), *words]) == 0
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "run"), "--seconds", "8"]) == 0
    out = capsys.readouterr().out
    assert "All checks passed." in out
    assert "compressed and given back" in out
    assert "influence against the order, in training" in out
    monkeypatch.setattr(Discretised, "_level_of", lambda self, noise, theta: torch.zeros_like(noise))
    assert main(["audit", str(tmp_path / "run"), "--seconds", "8"]) == 1
    out = capsys.readouterr().out
    assert "own samples against own CDF" in out
    assert "checks failed." in out
