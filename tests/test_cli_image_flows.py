"""Flows of images on the command line: fitted, scored and drawn by bounds, and refused where these do not do."""

import gzip
import json
import re

import numpy as np
import pytest
import torch
from cli_helpers import one_sentence, write

from rosenblatt.cli import main
from rosenblatt.core.errors import OptionError
from rosenblatt.data import Images, digits, write_grid
from rosenblatt.data.image_files import looks_like_images
from rosenblatt.eval import bits_per_dim
from rosenblatt.image_runs import image_model, restore_image_model
from rosenblatt.layers.shape import FactorOut
from rosenblatt.train import RunFolder

TINY = ("--option", "levels=17", "--option", "transforms=1", "--option", "hidden=4", "--option", "blocks=1")
QUICK = (*TINY, "--batch-size", "16", "--schedule", "constant", "--validation-fraction", "0.2")
MODELS = {
    "glow": ("glow",),
    "realnvp": ("realnvp", "--option", "scales=1"),
    "nsf_image": ("nsf_image", "--option", "noise=variational", "--option", "samples=2", "--option", "bins=2"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "digits.npy"
    np.save(path, digits().pixels[:90, 0].numpy())
    return path


@pytest.fixture(scope="module", params=MODELS)
def fitted(request, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    words = [str(source), "--model", *MODELS[request.param], *QUICK, "--max-steps", "3", "--samples", "4"]
    assert main(["fit", *words, "--out", str(folder / "run")]) == 0
    return request.param, folder / "run"


def test_a_run_says_that_its_bits_are_a_bound(fitted, capsys):
    name, run = fitted
    config = RunFolder.open(run).config
    assert (config["kind"], config["model"], config["shape"], config["levels"]) == ("images", name, [1, 8, 8], 17)
    report = json.loads((run / "report.json").read_text())
    assert report["fit"]["measure"] == "nats (lower bound)"
    assert {path.name for path in run.glob("*.png")} == {"samples.png", "images.png", "training.png"}
    assert main(["info", str(run)]) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"bits/dim \(upper bound\)", shown)) == 2  # of validation and of test images
    model = restore_image_model(RunFolder.open(run))
    scales = 1 + any(isinstance(step, FactorOut) for step in model.density.transform.steps)
    assert scales == (1 if name == "realnvp" else 2)  # 8 x 8 pixels are halved twice
    assert (model.noise is not None, model.samples) == ((True, 2) if name == "nsf_image" else (False, 1))


def test_scores_are_the_bounds_of_the_restored_model(fitted, source, capsys, tmp_path):
    _, run = fitted
    assert main(["score", str(run), str(source), "--out", str(tmp_path / "scores.csv")]) == 0
    said = capsys.readouterr().err
    model = restore_image_model(RunFolder.open(run)).double()
    rows = digits().pixels[:90].flatten(1).double()
    with torch.no_grad():
        np.testing.assert_allclose(np.loadtxt(tmp_path / "scores.csv", skiprows=1), model.log_prob(rows), rtol=1e-9)
    assert str(bits_per_dim(model, rows)) in said
    assert "(upper bound)" in said


def test_draws_repeat_and_are_whole_levels(fitted, tmp_path):
    _, run = fitted
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert main(["sample", str(run), "-n", "5", "--out", str(tmp_path / f"{name}.npy"), "--seed", seed]) == 0
    first, again, other = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    assert (first.dtype, first.shape) == (np.uint8, (5, 1, 8, 8))
    assert 0 < first.max() <= 16
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert main(["sample", str(run), "-n", "4", "--out", str(tmp_path / "new.png")]) == 0
    assert Images.from_any(tmp_path / "new.png").shape == (1, 17, 17)


def test_plots_are_those_that_need_no_probabilities_of_levels(fitted, source, tmp_path):
    _, run = fitted
    assert main(["plot", str(run), "--data", str(source), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"images.png", "training.png"}


def test_uses_that_need_exact_probabilities_are_refused(fitted, source, capsys, tmp_path):
    name, run = fitted
    new = tmp_path / "new.npy"
    capsys.readouterr()
    for words in (
        ["compress", str(run), str(source), "--out", str(new)],
        ["decompress", str(run), str(source), "--out", str(new)],
        ["audit", str(run)],
        ["sample", str(run), "--given", str(source), "--known", "3", "--out", str(new)],
    ):
        assert main(words) == 2
        said = one_sentence(capsys.readouterr().err)
        assert f"holds a flow ({name})" in said
        assert "exact" in said
        assert not new.exists()


def test_a_stopped_run_goes_on_as_if_nothing_had_been(source, tmp_path):
    words = [str(source), "--model", "glow", *QUICK, "--option", "noise=variational", "--no-plots", "--samples", "0"]
    assert main(["fit", *words, "--max-steps", "4", "--out", str(tmp_path / "whole")]) == 0
    assert main(["fit", *words, "--max-steps", "2", "--out", str(tmp_path / "parts")]) == 0
    assert main(["fit", "--resume", str(tmp_path / "parts"), "--max-steps", "4"]) == 0
    whole, parts = (RunFolder.open(tmp_path / name).load("latest").model for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_batches_of_images_are_small_and_tables_stay_tables(source, tmp_path, capsys):
    table = write(tmp_path / "table.csv")
    for words, expected in (
        ([str(source), "--model", "glow"], "batch_size = 64"),
        (["--model", "nsf_image"], "batch_size = 64"),
        ([str(source), "--model", "glow", "--batch-size", "32"], "batch_size = 32"),
        ([table, "--model", "glow"], None),
        ([str(source), "--model", "nits_conv"], "batch_size = 32\nlearning_rate = 0.003"),
        (["--model", "pixelcnn_mol"], "epochs = 40"),
    ):
        assert main(["fit", *words, "--print-config"]) == 0
        printed = capsys.readouterr().out
        assert expected in printed if expected else "batch_size" not in printed


def test_what_looks_like_images(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((5, 4)))
    np.save(tmp_path / "images.npy", np.zeros((5, 4, 4), dtype=np.uint8))
    np.savez(tmp_path / "columns.npz", a=np.zeros(5), b=np.ones(5))
    np.savez(tmp_path / "images.npz", train=np.zeros((5, 2, 2)), label=np.ones(5))
    write_grid(tmp_path / "one.png", np.zeros((1, 1, 5, 5)))
    (tmp_path / "idx.gz").write_bytes(gzip.compress(b"\x00\x00\x08\x03" + bytes(12)))
    (tmp_path / "table.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "images.npz").read_bytes()[:60])
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "batch.bin").write_bytes(bytes(10))
    images = {path.name for path in tmp_path.iterdir() if looks_like_images(path)}
    assert images == {"images.npy", "images.npz", "one.png", "idx.gz", "batch.bin"}
    assert looks_like_images(tmp_path)
    assert looks_like_images(tmp_path / "columns.npz:a")
    assert not looks_like_images(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["noise=loud"], "noise: 'loud' came"),
        (["noise=3"], "noise: 3 came"),
        (['noise={"width": 3}'], "noise: width=3 came"),
        (['noise={"hidden": "a"}'], "noise: hidden='a' came"),
        (['noise={"hidden": 0}'], "hidden: 0 came"),
        (["samples=0"], "samples: 0 came"),
        (["samples=many"], "samples: 'many' came"),
        (["scales=0"], "scales: 0 came"),
        (["scales=two"], "scales: 'two' came"),
        (["scales=9"], "cannot leave by half"),
        (["scales=4", "multi_scale=false"], "'multi_scale' is not an option of model 'glow'"),
        (["hidden=wide"], "hidden: 'wide' came"),
        (["levels=9"], "the value 16 came"),
        (["transforms=0"], "transforms: 0 came"),
    ],
)
def test_options_that_make_no_flow_of_images(options, message, source, tmp_path, capsys):
    words = [word for option in ("levels=17", *options) for word in ("--option", option)]
    assert main(["fit", str(source), "--model", "glow", *words, "--out", str(tmp_path / "run")]) == 2
    assert message in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_images_of_odd_sides_and_levels_in_python(tmp_path):
    odd = Images(torch.zeros(2, 1, 5, 5, dtype=torch.uint8), levels=4)
    with pytest.raises(OptionError, match="even sides"):
        image_model("glow", odd)
    assert image_model("realnvp", odd, options={"hidden": 4, "transforms": 1}).features == 25
    with pytest.raises(OptionError, match="option scales"):
        image_model("glow", digits(), options={"levels": 2})
    with pytest.raises(OptionError, match="'maf' has no probabilities"):
        image_model("maf", digits())
