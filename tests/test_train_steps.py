"""What a step is made of: weights as one vector, AdamW, slices of a batch, compiled models, rows near the device."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from train_stubs import Gaussian, Rows, fit, table

from rosenblatt.core.errors import OptionError
from rosenblatt.data import Table
from rosenblatt.objectives import NLL
from rosenblatt.train import FitConfig, RunFolder
from rosenblatt.train.weights import AdamW, FlatWeights

ROOT = Path(__file__).resolve().parents[1]
SHAPES = [(5, 3), (5,), (7, 5), (1,), (), (33,)]


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_is_that_of_torch(dtype):
    ours, theirs = parameters(dtype), parameters(dtype)
    weights = FlatWeights(ours)
    mine, reference = AdamW(weights, 0.1), torch.optim.AdamW(theirs, weight_decay=0.1)
    draw = torch.Generator().manual_seed(2)
    for step in range(1, 30):
        gradients = [torch.randn(p.shape, generator=draw, dtype=dtype) * 10.0 ** (step % 5 - 3) for p in ours]
        for group in (ours, theirs):
            for parameter, gradient in zip(group, gradients, strict=True):
                parameter.grad = gradient.clone()
        mine.step(weights.gradient(), 0.1 / step)
        reference.param_groups[0]["lr"] = 0.1 / step
        reference.step()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=20 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)


def test_flat_weights_are_the_parameters_and_let_them_go_again():
    held = parameters()
    before = [p.detach().clone() for p in held]
    weights = FlatWeights(held)
    assert all(torch.equal(p, value) for p, value in zip(held, before, strict=True))
    versions = [p._version for p in held]
    weights.vector.mul_(2.0)
    weights.changed()
    assert all(torch.equal(p, 2 * value) for p, value in zip(held, before, strict=True))
    assert all(p._version > version for p, version in zip(held, versions, strict=True))
    with torch.no_grad():
        held[0].fill_(3.0)
    assert torch.equal(weights.parts(weights.vector)[0], held[0])
    assert all(part.data_ptr() % 64 == weights.vector.data_ptr() % 64 for part in weights.parts(weights.vector))
    weights.release()
    weights.vector.zero_()
    assert torch.equal(held[0], torch.full((5, 3), 3.0))
    assert len({p.untyped_storage().data_ptr() for p in held}) == len(held)


def test_gradient_is_handed_over_once_and_is_zero_where_there_is_none():
    held = parameters()
    weights = FlatWeights(held)
    for parameter in held:
        parameter.grad = torch.ones_like(parameter)
    assert weights.gradient().sum() == sum(p.numel() for p in held)
    assert all(p.grad is None for p in held)
    held[0].grad = torch.full((3, 5), 2.0).t()  # not contiguous
    parts = weights.parts(weights.gradient())
    assert torch.equal(parts[0], torch.full((5, 3), 2.0))
    assert not any(part.any() for part in parts[1:])


def test_a_fit_does_not_import_the_compiler():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from train_stubs import fit\n"
        "fit(max_steps=3)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulated_slices_make_the_same_steps(weighted):
    x = table(330).x  # 300 rows to train on in steps of 32: the last of a pass has 12 rows
    data = Rows(x, torch.linspace(0.0, 2.0, 330) if weighted else None)
    seen = []

    class Watch(NLL):
        def __call__(self, model, batch, generator):
            seen.append(len(batch.x)) if model.training else None
            return super().__call__(model, batch, generator)

    models = []
    for accumulate in (1, 4, 32):
        seen.clear()
        changes = {"dtype": "float64", "max_steps": 25, "validation_fraction": 30 / 330, "clip_norm": 0.5}
        model, report, _ = fit(
            model=Gaussian(dropout=0.0), data=data, objective=Watch(), accumulate=accumulate, **changes
        )
        assert max(seen) == 32 // accumulate
        assert sum(seen) == 23 * 32 + 2 * 12
        models.append((model, report.best_validation))
    for model, score in models[1:]:
        assert score == pytest.approx(models[0][1], rel=1e-12)
        for ours, theirs in zip(model.parameters(), models[0][0].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_accumulate_must_divide_the_batch():
    with pytest.raises(OptionError, match=r"accumulate: 3 came, a divisor of batch_size, 32,"):
        FitConfig(batch_size=32, accumulate=3)
    for name, value in (("accumulate", 0), ("compile", 1)):
        with pytest.raises(OptionError, match=name):
            FitConfig.from_dict({name: value})


def test_compiled_and_plain_runs_interchange(tmp_path, monkeypatch):
    compiled = []

    def traced(model, **options):
        compiled.append(model)
        return original(model, backend="eager", **options)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    changes = {"model": Gaussian(dropout=0.0), "epochs": 2}
    plain, _, _ = fit(tmp_path / "plain", **changes)
    for name, first in (("first", True), ("second", False)):
        path = tmp_path / name
        fit(path, **{**changes, "model": Gaussian(dropout=0.0)}, max_steps=10, compile=first, schedule="constant")
        model = Gaussian(dropout=0.0)
        _, report, _ = fit(
            path, **{**changes, "model": model}, schedule="constant", resume=True, compile=not first, accumulate=2
        )
        assert report.steps == 24
        saved = RunFolder.open(path).load("latest").model
        assert saved.keys() == plain.state_dict().keys()
        reference, _, _ = fit(**{**changes, "model": Gaussian(dropout=0.0)}, schedule="constant")
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert len(compiled) == 2


def test_a_compiler_that_fails_is_one_sentence(monkeypatch):
    def broken(*_):
        raise ValueError("no g++ here")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    with pytest.raises(OptionError, match=r"compile: .*no g\+\+ here.*switch compile off"):
        fit(compile=True, max_steps=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
def test_compiled_by_the_default_compiler():
    one, plain, _ = fit(model=Gaussian(dropout=0.0), max_steps=20)
    two, compiled, _ = fit(model=Gaussian(dropout=0.0), max_steps=20, compile=True)
    assert compiled.best_validation == pytest.approx(plain.best_validation, abs=1e-4)
    for ours, theirs in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_table_lives_on_the_gpu_where_it_fits(monkeypatch):
    rows = Table(torch.zeros(100, 2), ("a", "b"), torch.ones(100))
    moved = []
    monkeypatch.setattr(Table, "to", lambda self, dtype=None, device=None: moved.append(device) or "moved")
    size = 100 * 3 * 4
    device = torch.device("cuda", 1)
    for free, expected in ((4 * size + 1, "moved"), (4 * size, rows)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda asked, free=free: (free if asked == device else 0, 1))
        assert rows.near(device) is expected
    assert moved == [device]
    assert rows.near(torch.device("cpu")) is rows


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fits", [True, False])
def test_rows_on_the_gpu_and_rows_sent_there_give_the_same_fit(monkeypatch, fits):
    rows = Table(table(400).x, ("a", "b"))
    if not fits:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 1))
    model, _, _ = fit(model=Gaussian(dropout=0.0), data=rows, device="cuda")
    reference, _, _ = fit(model=Gaussian(dropout=0.0), data=rows, device="cpu")
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)
