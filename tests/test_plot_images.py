"""Pictures of models of images, and the command that draws them."""

import numpy as np
import pytest
import torch
from cli_helpers import one_sentence

from rosenblatt.cli import main
from rosenblatt.core.errors import DataError
from rosenblatt.data import Images, digits
from rosenblatt.eval import bits_per_dim
from rosenblatt.plot import bits_by_place, image_grids, level_calibration, save_image_plots, training_curve
from rosenblatt.testing.checks_discrete import DISCRETE

ROW = DISCRETE["pixelcnn_mol"]
QUICK = ("--option", "filters=4", "--max-steps", "6", "--batch-size", "16")
NAMES = ["bits.png", "calibration.png", "images.png", "training.png"]


@pytest.fixture(scope="module")
def model():
    return ROW.make()


@pytest.fixture(scope="module")
def own(model):
    return as_images(model.sample(1500, generator=torch.Generator().manual_seed(0)))


def as_images(x):
    return Images(x.reshape(-1, *ROW.image).to(torch.uint8), levels=ROW.levels)


def test_maps_hold_the_bits_of_each_pixel_and_what_is_off(model, own):
    figure = bits_by_place(model, own)
    bits, excess = (axes.images[0].get_array() for axes in figure.axes[:2])
    assert bits.shape == excess.shape == ROW.image[1:]
    some = Images(own.pixels[torch.arange(500) * 3], levels=ROW.levels)
    total = bits_per_dim(model, some.rows().x).value * ROW.features
    assert bits.sum() == pytest.approx(total, rel=1e-5)
    value, error = figure.axes[1].get_title().split("\n")[1].split(" bits")[0].split(" +- ")
    assert abs(float(value)) < 5 * float(error)
    uniform = as_images(torch.randint(ROW.levels, (1500, ROW.features), generator=torch.Generator().manual_seed(1)))
    value, error = bits_by_place(model, uniform).axes[1].get_title().split("\n")[1].split(" bits")[0].split(" +- ")
    assert float(value) > 10 * float(error)


def test_curves_of_own_samples_stay_in_the_band_and_others_leave_it(model, own):
    def labels(images):
        return [text.get_text() for text in level_calibration(model, images, seed=1).legends[0].get_texts()]

    assert len(labels(own)) == 3
    assert all("in the band" in label for label in labels(own))
    assert labels(own)[0].startswith("entropy 0.")
    other = as_images(torch.zeros(1500, ROW.features))
    assert any("off at" in label for label in labels(other))


def test_grids_show_images_from_white_to_black(own):
    figure = image_grids(own, own)
    sheet = figure.axes[0].images[0].get_array()
    assert sheet.shape == (6 * 3 - 1, 6 * 4 - 1)
    assert set(np.unique(sheet)) == {0.0, 0.5, 1.0}
    colours = Images(torch.arange(36, dtype=torch.uint8).reshape(1, 3, 4, 3))
    assert image_grids(colours, colours).axes[0].images[0].get_array().shape == (4, 3, 3)
    with pytest.raises(DataError, match="of shape"):
        image_grids(own, colours)
    two = Images(torch.zeros(1, 2, 3, 3, dtype=torch.uint8))
    with pytest.raises(DataError, match="1 or 3"):
        image_grids(two, two)


def test_training_in_bits_marks_the_fewest():
    records = [{"step": 10 * k, "train": -100.0 + k, "validation": -110.0 + k - 0.2 * k * k} for k in range(1, 6)]
    axes = training_curve(records, dimensions=50).axes[0]
    best = 108.8 / 50 / np.log(2)
    assert f"held-out images, best {best:.3f} at step 20" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert axes.get_ylabel() == "bits per dimension"
    assert axes.lines[0].get_ydata()[0] == pytest.approx(99 / 50 / np.log(2))


def test_what_does_not_fit_is_refused(model, own, tmp_path):
    wrong = Images(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), levels=3)
    for draw in (bits_by_place, level_calibration, lambda *args: save_image_plots(*args, tmp_path)):
        with pytest.raises(DataError, match="images: 3 of 4 numbers"):
            draw(model, wrong)
    with pytest.raises(DataError, match="images: 0 of"):
        bits_by_place(model, Images(own.pixels[:0], levels=3))
    with pytest.raises(DataError, match="cannot be written"):
        save_image_plots(model, Images(own.pixels[:5], levels=3), tmp_path / "nowhere")


def test_fit_and_plot_draw_all_of_them(tmp_path, capsys):
    np.save(tmp_path / "digits.npy", digits().pixels[:120, 0].numpy())
    source, run = str(tmp_path / "digits.npy"), str(tmp_path / "run")
    words = [source, "--model", "pixelcnn_mol", "--option", "levels=17", *QUICK]
    assert main(["fit", *words, "--out", run]) == 0
    said = capsys.readouterr().out
    assert all((tmp_path / "run" / name).exists() and name in said for name in [*NAMES, "samples.png"])
    assert main(["plot", run, "--out", str(tmp_path / "again")]) == 0
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == NAMES
    for name in NAMES[:3]:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert main(["plot", run, "--data", source, "--out", str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "bits.png").read_bytes() != (tmp_path / "run" / "bits.png").read_bytes()
    capsys.readouterr()
    assert main(["plot", run, "--as-is"]) == 2
    assert "--as-is: is for tables" in one_sentence(capsys.readouterr().err)
    np.save(tmp_path / "other.npy", np.zeros((4, 5, 5), dtype=np.uint8))
    assert main(["plot", run, "--data", str(tmp_path / "other.npy")]) == 2
    assert "images of shape (1, 5, 5) came" in one_sentence(capsys.readouterr().err)
    np.save(tmp_path / "digits.npy", digits().pixels[1:121, 0].numpy())
    assert main(["plot", run]) == 2
    assert "the images changed since the run" in one_sentence(capsys.readouterr().err)
    (tmp_path / "digits.npy").unlink()
    assert main(["plot", run]) == 2
    assert "there is no such file" in one_sentence(capsys.readouterr().err)
