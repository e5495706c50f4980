"""Images on the command line: fitted, scored, drawn, compressed and given back."""

import json
import math

import numpy as np
import pytest
import torch
from cli_helpers import one_sentence
from PIL import Image

from rosenblatt.cli import main
from rosenblatt.data import Images, digits, write_grid
from rosenblatt.eval import bits_per_dim
from rosenblatt.image_runs import restore_images
from rosenblatt.preparation import TEST_SPLIT
from rosenblatt.summary import read_summary, write_summary
from rosenblatt.train import RunFolder
from rosenblatt.train.runtime import seeded_generator

QUICK = ("--option", "filters=4", "--max-steps", "12", "--batch-size", "16")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "digits.npy", digits().pixels[:150, 0].numpy())
    words = [str(folder / "digits.npy"), "--model", "pixelcnn_mol", "--option", "levels=17", *QUICK]
    assert main(["fit", *words, "--samples", "9", "--out", str(folder / "run")]) == 0
    return folder


def test_a_run_keeps_its_model_and_a_grid_of_samples(fitted, capsys):
    run = RunFolder.open(fitted / "run")
    assert (run.config["kind"], run.config["shape"], run.config["levels"]) == ("images", [1, 8, 8], 17)
    with Image.open(fitted / "run" / "samples.png") as picture:
        assert picture.size == (26, 26)
    assert json.loads((fitted / "run" / "report.json").read_text())["fit"]["steps"] == 12
    model = restore_images(run)
    assert not model.training
    assert model.log_prob(digits().rows(5).x).isfinite().all()


def test_info_and_report_keep_the_bits_of_the_test_images(fitted, capsys):
    run = RunFolder.open(fitted / "run")
    stored = json.loads((fitted / "run" / "report.json").read_text())
    summary = read_summary(run)
    assert stored["bits_per_dim"]["test"] == summary.bits._asdict()
    assert summary.bits.claim == "exact"
    _, held = Images(digits().pixels[:150], levels=17).split((0.9, 0.1), seeded_generator(0, TEST_SPLIT))
    assert bits_per_dim(restore_images(run), held.rows().x).value == pytest.approx(summary.bits.value, rel=1e-5)
    write_summary(run, summary._replace(bits=None))
    assert read_summary(run).bits is None
    write_summary(run, summary)
    assert main(["info", str(fitted / "run")]) == 0
    out = capsys.readouterr().out
    assert "1 x 8 x 8 (channels, height, width), 17 levels" in out
    assert "150 images" in out
    assert f"{summary.bits}" in out
    best = -summary.report.best_validation / 64 / math.log(2)
    assert f"{best:.4f} bits/dim at step" in out


def test_files_shrink_and_come_back(fitted, capsys):
    pytest.importorskip("constriction")
    source, run = str(fitted / "digits.npy"), str(fitted / "run")
    assert main(["compress", run, source, "--out", str(fitted / "digits.rsb")]) == 0
    assert "150 images" in capsys.readouterr().out
    assert main(["decompress", run, str(fitted / "digits.rsb"), "--out", str(fitted / "back.npy")]) == 0
    back = np.load(fitted / "back.npy")
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, digits().pixels[:150].numpy())
    damaged = (fitted / "digits.rsb").read_bytes()[:-5]
    (fitted / "damaged.rsb").write_bytes(damaged)
    assert main(["decompress", run, str(fitted / "damaged.rsb"), "--out", str(fitted / "no.npy")]) == 2
    assert "the file is cut" in one_sentence(capsys.readouterr().err)
    assert not (fitted / "no.npy").exists()


def test_scores_and_samples(fitted, capsys, tmp_path):
    run, out = str(fitted / "run"), tmp_path / "scores.csv"
    assert main(["score", run, str(fitted / "digits.npy"), "--out", str(out)]) == 0
    assert "bits/dim (exact)" in capsys.readouterr().err
    scores = np.loadtxt(out, skiprows=1)
    model = restore_images(RunFolder.open(run)).double()
    with torch.no_grad():
        expected = model.log_prob(digits().pixels[:150].flatten(1).double())
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-9)
    assert main(["sample", run, "-n", "5", "--out", str(tmp_path / "new.npy"), "--seed", "3"]) == 0
    drawn = np.load(tmp_path / "new.npy")
    assert drawn.shape == (5, 1, 8, 8)
    assert drawn.max() <= 16
    assert main(["sample", run, "-n", "4", "--out", str(tmp_path / "new.png")]) == 0
    assert Images.from_any(tmp_path / "new.png").shape == (1, 17, 17)


def test_an_array_of_several_is_named_after_a_colon(fitted, tmp_path, capsys):
    pixels = digits().pixels[:, 0].numpy()
    np.savez(tmp_path / "both.npz", train=pixels[:100], test=pixels[100:150], label=np.arange(9))
    words = [f"{tmp_path}/both.npz:train", "--test", f"{tmp_path}/both.npz:test", "--model", "pixelcnn_mol"]
    words += ["--option", "levels=17", *QUICK, "--max-steps", "1", "--no-plots"]
    assert main(["fit", *words, "--out", str(tmp_path / "run")]) == 0
    assert "100 of 1 x 8 x 8, 17 levels, 50 held out" in capsys.readouterr().out
    assert main(["score", str(tmp_path / "run"), f"{tmp_path}/both.npz:test"]) == 0
    assert main(["score", str(tmp_path / "run"), f"{tmp_path}/both.npz"]) == 2
    assert "'train', 'test', 'label'" in capsys.readouterr().err


def test_bundled_digits_need_no_file_and_a_stopped_run_goes_on(tmp_path, capsys):
    words = ["--model", "nits_conv", "--option", "widths=[2,1]", "--option", "filters=2", "--batch-size", "16"]
    words += ["--test-fraction", "0.98", "--no-plots", "--validation-fraction", "0"]
    assert main(["fit", *words, "--max-steps", "2", "--out", str(tmp_path / "run")]) == 0
    assert "held-out images: " in capsys.readouterr().out
    assert main(["fit", "--resume", str(tmp_path / "run"), "--max-steps", "3"]) == 0
    assert "after 3 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "{run}/none", "--model", "nits_conv", "--out", "{new}"], "there is no such file or folder"),
        (["fit", "{empty}", "--model", "nits_conv", "--out", "{new}"], "holds no picture"),
        (["fit", "{one}", "--model", "nits_conv", "--out", "{new}"], "1 came, at least 2"),
        (["fit", "{data}", "--model", "nits_conv", "--columns", "a", "--out", "{new}"], "--columns: is for tables"),
        (["fit", "{data}", "--model", "nits_conv", "--option", "levels=9", "--out", "{new}"], "the value 16 came"),
        (["score", "{run}", "{one}"], "images of shape"),
        (["sample", "{run}"], "--out: None came"),
        (["sample", "{run}", "--out", "x.csv"], "x.csv came"),
        (["audit", "{run}", "--as-is"], "--as-is: is for tables"),
        (["audit", "{run}", "--data", "{one}"], "images of shape"),
        (["compress", "{run}", "{one}", "--out", "{new}"], "images of shape"),
        (["decompress", "{run}", "{data}", "--out", "{new}"], "ends in .npy"),
        (["decompress", "{run}", "{data}", "--out", "{new}.npy"], "no compressed file of this library"),
        (["decompress", "{run}", "{empty}", "--out", "{new}.npy"], "cannot be read"),
    ],
)
def test_what_cannot_be_is_one_sentence(fitted, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    write_grid(tmp_path / "one.png", np.zeros((1, 1, 5, 5)))
    places = {
        "run": fitted / "run",
        "data": fitted / "digits.npy",
        "one": tmp_path / "one.png",
        "empty": tmp_path / "empty",
        "new": tmp_path / "new",
    }
    capsys.readouterr()
    assert main([word.format(**places) for word in words]) == 2
    assert message in one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "new").exists()
