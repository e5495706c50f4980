"""ImageDensity: the numbers of the functions beneath it, the run folders of the command line, and clear refusals."""

import shutil

import numpy as np
import pytest
import torch
from cli_helpers import one_sentence
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

import rosenblatt
from rosenblatt.cli import main
from rosenblatt.compression import compress
from rosenblatt.core.errors import CheckpointError, DataError, OptionError
from rosenblatt.data import Images, digits
from rosenblatt.estimators import ConditionalFlow, DataWarning, FlowDensity, ImageDensity
from rosenblatt.eval import bits_per_dim, mean_log_prob
from rosenblatt.image_runs import image_model, inpaint, restore_images
from rosenblatt.preparation import TEST_SPLIT
from rosenblatt.summary import read_summary
from rosenblatt.train import FitConfig, Fitter, RunFolder
from rosenblatt.train.runtime import seeded_generator
from rosenblatt.train.session import SPLIT

PIXELS = digits().pixels[:120]
IMAGES = Images(PIXELS, levels=17)
TEST = Images(digits().pixels[200:230], levels=17)
SMALL = {"model": "pixelcnn_mol", "model_options": {"filters": 4}, "max_steps": 6, "batch_size": 16}
WORDS = ("--model", "pixelcnn_mol", "--option", "filters=4", "--option", "levels=17")
STEPS = ("--max-steps", "6", "--batch-size", "16", "--no-plots", "--seed", "3")


def density(**options):
    return ImageDensity(**{**SMALL, "random_state": 3, **options})


@pytest.fixture(scope="module")
def fitted():
    return density().fit(IMAGES)


def same_weights(first, second):
    other = second.state_dict()
    return all(torch.equal(tensor.double(), other[name].double()) for name, tensor in first.state_dict().items())


def test_the_fit_is_that_of_the_functions_beneath(fitted):
    config = FitConfig(max_steps=6, batch_size=16, learning_rate=3e-3, seed=3)
    model = image_model("pixelcnn_mol", IMAGES, options={"filters": 4}, seed=3)
    report = Fitter(config, progress=False).fit(model, IMAGES)
    assert same_weights(model, fitted.model_)
    assert fitted.report_.best_validation == report.best_validation
    model.double().eval()
    with torch.no_grad():
        expected = model.log_prob(TEST.rows().x.double())
    assert np.array_equal(fitted.score_samples(TEST), expected.numpy())
    assert np.array_equal(fitted.log_prob(TEST), expected.numpy())
    assert fitted.score(TEST) == expected.mean().item()
    assert fitted.bits_per_dim(TEST) == bits_per_dim(model, TEST.rows().x.double())
    assert fitted.bits_per_dim(TEST).claim == "exact"
    drawn = fitted.sample(5, random_state=1)
    assert drawn.shape == (5, 1, 8, 8)
    assert drawn.dtype == np.uint8
    expected = model.sample(5, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(drawn.reshape(5, 64), expected.numpy())


def test_held_out_images_are_scored(fitted):
    _, held = IMAGES.split((0.9, 0.1), seeded_generator(3, SPLIT))
    assert fitted.validation_score_ == mean_log_prob(torch.from_numpy(fitted.score_samples(held)))
    assert fitted.validation_bits_ == fitted.bits_per_dim(held)
    assert fitted.validation_score_.value == pytest.approx(fitted.report_.best_validation, rel=1e-5)
    assert fitted.test_bits_ is None
    for none in (density(validation_fraction=0, max_steps=1), density(validation_fraction=0.01, max_steps=1)):
        assert none.fit(IMAGES).validation_bits_ is None


def test_every_source_gives_the_same_bits(fitted, tmp_path):
    expected = fitted.score_samples(TEST)
    np.savez(tmp_path / "test.npz", TEST.pixels.numpy())
    np.save(tmp_path / "first.npy", TEST.pixels[:9].numpy())
    np.save(tmp_path / "last.npy", TEST.pixels[9:].numpy())
    array = TEST.pixels.numpy()
    sources = [array, array[:, 0], array.transpose(0, 2, 3, 1), array.astype(float), TEST.pixels]
    for source in [*sources, tmp_path / "test.npz", [tmp_path / "first.npy", tmp_path / "last.npy"]]:
        assert np.array_equal(fitted.score_samples(source), expected)
    assert fitted.score_samples(array[4]) == pytest.approx(expected[4:5], rel=1e-12)  # (1, 8, 8): one image
    flat = density(shape=[1, 8, 8], levels=17).fit(PIXELS.flatten(1))
    assert np.array_equal(flat.score_samples(array.reshape(len(array), 64)), expected)
    assert (fitted.shape_, fitted.levels_, flat.levels_) == ((1, 8, 8), 17, 17)


def test_one_random_state_gives_one_result(fitted):
    again = density(levels=17).fit(PIXELS[:, 0].numpy())
    assert np.array_equal(again.score_samples(TEST), fitted.score_samples(TEST))
    assert not np.array_equal(density(random_state=4).fit(IMAGES).score_samples(TEST), fitted.score_samples(TEST))
    assert np.array_equal(fitted.sample(3, random_state=0), again.sample(3, random_state=0))
    assert not np.array_equal(fitted.sample(3, random_state=0), fitted.sample(3, random_state=1))
    assert density(random_state=np.random.RandomState(0)).fit(IMAGES).seed_ == np.random.RandomState(0).randint(
        2**31 - 1
    )


def test_clone_and_parameters(fitted):
    copy = clone(fitted)
    assert not hasattr(copy, "model_")
    assert copy.get_params() == fitted.get_params()
    copy.set_params(max_steps=2, flip=True)
    assert copy.fit(IMAGES).report_.steps == 2
    assert not same_weights(copy.model_, density(max_steps=2).fit(IMAGES).model_)  # what is flipped differs
    grid = {"max_steps": np.array([1, 30])}
    search = GridSearchCV(density(levels=17), grid, cv=2).fit(PIXELS[:60].numpy())
    assert search.best_params_ == {"max_steps": 30}


def test_completions_keep_the_known_rows(fitted):
    drawn = fitted.inpaint(TEST.pixels[:4], 5, draws=3, random_state=2)
    assert drawn.shape == (4, 3, 1, 8, 8)
    assert drawn.dtype == np.uint8
    assert (drawn[..., :5, :] == TEST.pixels[:4, None, :, :5].numpy()).all()
    few = Images(TEST.pixels[:4], levels=17)
    expected = inpaint(fitted.model_, few, 5, draws=3, generator=torch.Generator().manual_seed(2))
    assert np.array_equal(drawn, expected.numpy())


def test_files_come_back(fitted):
    pytest.importorskip("constriction")
    file = fitted.compress(TEST)
    assert file == compress(fitted.model_, TEST)
    assert np.array_equal(fitted.decompress(file), TEST.pixels.numpy())
    with pytest.raises(DataError, match="rows of a table"):
        fitted.decompress(compress(fitted.model_, TEST.pixels[:1].flatten(1)))
    with pytest.raises(DataError, match="another model"):
        density(max_steps=1).fit(IMAGES).decompress(file)


def test_save_and_load(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    again = ImageDensity.load(tmp_path / "run")
    assert np.array_equal(again.score_samples(TEST), fitted.score_samples(TEST))
    for name in ("report_", "validation_score_", "validation_bits_", "test_bits_", "shape_", "levels_", "seed_"):
        assert getattr(again, name) == getattr(fitted, name), name
    assert again.get_params() == {**fitted.get_params(), "levels": 17}
    assert same_weights(again.fit(IMAGES).model_, fitted.model_)
    with pytest.raises(CheckpointError, match="holds a run already"):
        fitted.save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="without training state"):
        ImageDensity.resume(tmp_path / "run", IMAGES)


def test_the_command_line_takes_what_was_saved(fitted, tmp_path, capsys):
    fitted.save(tmp_path / "run")
    np.save(tmp_path / "test.npy", TEST.pixels.numpy())
    run, source = str(tmp_path / "run"), str(tmp_path / "test.npy")
    assert main(["info", run]) == 0
    assert "1 x 8 x 8 (channels, height, width), 17 levels" in capsys.readouterr().out
    assert main(["score", run, source, "--out", str(tmp_path / "scores.csv")]) == 0
    assert str(fitted.bits_per_dim(TEST)) in capsys.readouterr().err
    scores = np.loadtxt(tmp_path / "scores.csv", skiprows=1)
    assert scores == pytest.approx(fitted.score_samples(TEST), rel=1e-12)
    assert main(["sample", run, "-n", "4", "--seed", "1", "--out", str(tmp_path / "new.npy")]) == 0
    drawn = np.load(tmp_path / "new.npy")  # in single precision, which can move a number to the next level
    assert (drawn == fitted.sample(4, random_state=1)).mean() > 0.9
    capsys.readouterr()
    assert main(["fit", "--resume", run]) == 2
    assert "resume it in Python by ImageDensity.resume" in one_sentence(capsys.readouterr().err)
    pytest.importorskip("constriction")
    assert main(["compress", run, source, "--out", str(tmp_path / "file")]) == 0
    assert (tmp_path / "file").read_bytes() == fitted.compress(TEST)


def test_runs_of_the_command_line_are_taken(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS.numpy())
    words = [str(tmp_path / "images.npy"), *WORDS, *STEPS, "--option", "flip=true", "--out", str(tmp_path / "run")]
    assert main(["fit", *words]) == 0
    shell = ImageDensity.load(tmp_path / "run")
    fit, held = IMAGES.split((0.9, 0.1), seeded_generator(3, TEST_SPLIT))
    assert same_weights(restore_images(RunFolder.open(tmp_path / "run")), shell.model_)
    assert shell.get_params()["flip"] is True
    assert same_weights(density(flip=True).fit(fit).model_, shell.model_)
    assert same_weights(clone(shell).fit(fit).model_, shell.model_)
    assert shell.test_bits_.value == pytest.approx(shell.bits_per_dim(held).value, rel=1e-5)
    assert shell.report_.steps == 6
    assert shell.validation_bits_ is None
    shell.save(tmp_path / "copy")
    assert read_summary(RunFolder.open(tmp_path / "copy")).bits == shell.test_bits_
    with pytest.raises(CheckpointError, match="holds out test images; go on with: rosenblatt fit --resume"):
        ImageDensity.resume(tmp_path / "run")


def test_resume_is_bit_for_bit(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS.numpy())
    whole = density(levels=17, flip=True).fit(tmp_path / "images.npy")
    options = {"run": tmp_path / "run", "fit_options": {"checkpoint_every": 1, "keep_last": 99}}
    density(levels=17, flip=True, **options).fit(tmp_path / "images.npy")
    for folder in (tmp_path / "run").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > 2:
            shutil.rmtree(folder)
    resumed = ImageDensity.resume(tmp_path / "run")
    assert resumed.report_.resumed_from == 2
    assert same_weights(resumed.model_, whole.model_)
    assert np.array_equal(ImageDensity.load(tmp_path / "run").score_samples(TEST), whole.score_samples(TEST))
    with pytest.raises(DataError, match=r"X: 119 images came that differ from the 120 images .*SHA-256"):
        ImageDensity.resume(tmp_path / "run", PIXELS[1:])
    density(run=tmp_path / "memory", max_steps=1).fit(IMAGES)
    with pytest.raises(DataError, match="in memory"):
        ImageDensity.resume(tmp_path / "memory")


def test_a_model_with_bounds_is_fitted_and_says_so(tmp_path):
    bound = density(model="glow", model_options={"transforms": 1, "hidden": 4}, max_steps=2).fit(IMAGES)
    bits = bound.bits_per_dim(TEST)
    assert bits.claim == bound.validation_bits_.claim == "upper bound"
    assert bits == bits_per_dim(bound.model_, TEST.rows().x.double())
    assert bound.sample(2, random_state=0).shape == (2, 1, 8, 8)
    bound.save(tmp_path / "run")
    again = ImageDensity.load(tmp_path / "run")
    assert np.array_equal(again.score_samples(TEST), bound.score_samples(TEST))
    assert again.validation_bits_ == bound.validation_bits_
    for refused in (lambda: bound.compress(TEST), lambda: bound.decompress(b""), lambda: bound.inpaint(TEST, 3)):
        with pytest.raises(OptionError, match=r"model: 'glow' has no exact probabilities of images \(lower bound\)"):
            refused()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "magic"}, "model: 'magic'"),
        ({"model_options": {"depth": 3}}, "'depth' is not an option"),
        ({"model_options": {"levels": 17}}, "model_options: 'levels' is set by the argument levels"),
        ({"model_options": {"image": [1, 8, 8]}}, "'image' is set by the images"),
        ({"model_options": {"flip": True}}, "'flip' is set by the argument flip"),
        ({"levels": 9}, "the value 16 came, values below 9"),
        ({"levels": "17"}, "levels: '17' came"),
        ({"levels": 300}, "levels: 300 came"),
        ({"flip": "yes"}, "flip: 'yes' came"),
        ({"epochs": 0}, "epochs: 0"),
        ({"fit_options": {"seed": 3}}, "'seed' is set by the argument random_state"),
        ({"random_state": -1}, "random_state: -1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        density(**options).fit(IMAGES)


def test_wrong_images_are_refused(fitted):
    calls = {"score_samples": [IMAGES], "score": [IMAGES], "bits_per_dim": [IMAGES], "compress": [IMAGES]}
    for call, words in {**calls, "sample": [], "inpaint": [IMAGES, 3], "decompress": [b""], "save": ["run"]}.items():
        with pytest.raises(NotFittedError):
            getattr(density(), call)(*words)
    with pytest.raises(DataError, match=r"X: images of shape \(1, 8, 7\) came, \(1, 8, 8\)"):
        fitted.score(PIXELS[..., :7])
    with pytest.raises(DataError, match="X: a pixel of 40 came, the fit had 17 levels, from 0 to 16"):
        fitted.inpaint(torch.full((2, 8, 8), 40), 3)
    with pytest.raises(DataError, match="X: images of 256 levels came, the fit had 17 levels"):
        fitted.compress(Images(PIXELS))
    assert fitted.score(Images(PIXELS.clamp(max=7), levels=8)) == fitted.score(PIXELS.clamp(max=7))
    with pytest.raises(DataError, match="no images came"):
        fitted.score_samples(np.zeros((0, 8, 8), np.uint8))
    with pytest.raises(DataError, match="at least two rows"):
        fitted.bits_per_dim(PIXELS[:1])
    with pytest.raises(DataError, match="whole numbers from 0 to 255"):
        fitted.score_samples(PIXELS.numpy() / 2)
    with pytest.raises(OptionError, match="known_rows: 9"):
        fitted.inpaint(TEST, 9)
    with pytest.raises(OptionError, match="n_samples: 0"):
        fitted.sample(0)
    with pytest.raises(DataError, match="1 came, at least 2"):
        density().fit(PIXELS[:1])
    with pytest.warns(DataWarning, match="120 of 240 images are copies"):
        density(max_steps=1, levels=17).fit(torch.cat([PIXELS, PIXELS]))


def test_runs_of_another_kind_are_refused(fitted, tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 2))
    FlowDensity("gaussian", random_state=0).fit(rows).save(tmp_path / "table")
    fitted.save(tmp_path / "images")
    with pytest.raises(CheckpointError, match="not of a model of images"):
        ImageDensity.load(tmp_path / "table")
    with pytest.raises(CheckpointError, match=r"resume it by FlowDensity\.resume"):
        ImageDensity.resume(tmp_path / "table", IMAGES)
    with pytest.raises(CheckpointError, match="a model of another kind"):
        FlowDensity.load(tmp_path / "images")
    with pytest.raises(CheckpointError, match=r"of images; load it by ImageDensity\.load"):
        ConditionalFlow.load(tmp_path / "images")
    run = RunFolder.create(tmp_path / "broken", {**RunFolder.open(tmp_path / "images").config, "fit": {"speed": 1}})
    run.save(0, {name: t.float() for name, t in fitted.model_.state_dict().items()}, {}, {}, best=True)
    with pytest.raises(CheckpointError, match="not the config of such a fit"):
        ImageDensity.load(tmp_path / "broken")


def test_it_is_public_and_leaves_the_random_state_alone():
    assert rosenblatt.ImageDensity is ImageDensity
    before = torch.get_rng_state()
    found = density(max_steps=1).fit(IMAGES)
    found.sample(1)
    found.inpaint(TEST.pixels[:1], 2, draws=1)
    assert torch.equal(before, torch.get_rng_state())
