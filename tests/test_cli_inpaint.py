"""Images completed from their first rows: exact draws from the conditional law, and the command that makes them."""

import numpy as np
import pytest
import torch
from cli_helpers import PLAIN, one_sentence, write
from PIL import Image
from scipy import stats

from rosenblatt.cli import main
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.data import Images, digits, write_grid
from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
from rosenblatt.image_runs import inpaint
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.discretised import Discretised
from rosenblatt.testing.checks_discrete import DISCRETE

FALSE_ALARM = 1e-6
QUICK = ("--option", "filters=4", "--max-steps", "6", "--batch-size", "16", "--no-plots")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inpaint")
    np.save(folder / "digits.npy", digits().pixels[:120, 0].numpy())
    words = [str(folder / "digits.npy"), "--model", "pixelcnn_mol", "--option", "levels=17", *QUICK]
    assert main(["fit", *words, "--out", str(folder / "run")]) == 0
    np.save(folder / "few.npy", digits().pixels[:20, 0].numpy())
    return folder


@pytest.mark.parametrize("name", ["nits_conv", "pixelcnn_mol_two"])
def test_draws_follow_the_law_of_what_is_below_given_what_is_above(name):
    """Every image that begins alike is counted: 20,000 draws against P(x) / sum of P, chi-square at 1e-6."""
    row = DISCRETE[name]
    model, every = row.make(), row.images()
    channels, height, width = row.image
    image = every[len(every) // 3].reshape(1, *row.image).to(torch.uint8)
    drawn = inpaint(model, Images(image, levels=row.levels), 1, draws=20_000, generator=seeded())
    assert drawn.shape == (1, 20_000, *row.image)
    assert (drawn[0, :, :, :1] == image[:, :, :1]).all()
    alike = every[(every.reshape(-1, *row.image)[:, :, :1] == image[:, :, :1]).flatten(1).all(dim=1)]
    assert len(alike) == row.levels ** (channels * (height - 1) * width)
    log_prob = model.double().log_prob(alike).detach()
    expected = (log_prob - log_prob.logsumexp(dim=0)).exp() * 20_000
    weight = row.levels ** torch.arange(row.features)
    place = {int(code): number for number, code in enumerate((alike.long() * weight).sum(dim=1))}
    codes, counts = torch.unique((drawn[0].flatten(1).long() * weight).sum(dim=1), return_counts=True)
    found = torch.zeros(len(alike), dtype=torch.float64)
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        found[place[code]] = count
    large = expected >= 5
    assert large.sum() > 5
    statistic = ((found - expected).square() / expected)[large].sum()
    assert statistic < stats.chi2.isf(FALSE_ALARM, int(large.sum()))
    even = torch.full_like(expected, 20_000 / len(expected))  # the law differs from one that ignores the model
    assert ((found - even).square() / even).sum() > 10 * statistic


def test_all_rows_or_none_may_be_known():
    row = DISCRETE["pixelcnn_mol_two"]
    model, images = row.make(), Images(row.images()[100:103].reshape(3, *row.image).to(torch.uint8), levels=2)
    assert (inpaint(model, images, 2, draws=2) == images.pixels.unsqueeze(1)).all()
    fresh = inpaint(model, images, 0, draws=50, generator=seeded())
    assert (fresh == model.sample(150, generator=seeded()).reshape(3, 50, *row.image)).all()


def test_what_cannot_be_completed_is_refused():
    row = DISCRETE["nits_conv"]
    model, images = row.make(), Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), levels=5)
    with pytest.raises(OptionError, match="known_rows: 3 came, a number from 0 to the height 2"):
        inpaint(model, images, 3)
    with pytest.raises(OptionError, match="draws: 0"):
        inpaint(model, images, 1, draws=0)
    with pytest.raises(DataError, match="6 numbers of 5 levels came, the model has 4"):
        inpaint(model, Images(torch.zeros(2, 1, 2, 3, dtype=torch.uint8), levels=5), 1)
    with pytest.raises(DataError, match="of 6 levels"):
        inpaint(model, Images(images.pixels, levels=6), 1)
    mixture = LogisticMixture(2)
    backwards = Conditional(mixture, Masked(4, mixture.spec.size, hidden=8, order=[3, 2, 1, 0]))
    with pytest.raises(OptionError, match="can be given 0, 2"):
        inpaint(Discretised(backwards, 5), images, 1)


def test_squares_of_pixels_are_known_as_a_whole():
    options = {"image": [2, 4, 4], "levels": 3, "filters": 4, "patch": 2}
    model = build("pixelcnn_mol", 32, options=options, seed=0)
    images = Images(torch.ones(1, 2, 4, 4, dtype=torch.uint8), levels=3)
    assert (inpaint(model, images, 2, draws=3)[..., :2, :] == 1).all()
    with pytest.raises(OptionError, match=r"known_rows: 1 came, but .* it can be given 0, 2, 4"):
        inpaint(model, images, 1)


def test_the_array_keeps_the_known_rows_and_follows_its_seed(fitted, tmp_path, capsys):
    words = ["sample", str(fitted / "run"), "--given", str(fitted / "few.npy"), "--known", "3", "-n", "4"]
    for name, seed in (("first", "1"), ("same", "1"), ("other", "2")):
        assert main([*words, "--seed", seed, "--out", str(tmp_path / f"{name}.npy")]) == 0
    assert "completed 20 of 20 images, 4 draws each" in capsys.readouterr().err
    first, other = (np.load(tmp_path / f"{name}.npy") for name in ("first", "other"))
    assert first.shape == (20, 4, 1, 8, 8)
    assert first.dtype == np.uint8
    given = np.load(fitted / "few.npy")[:, None, None]
    np.testing.assert_array_equal(first[..., :3, :], np.broadcast_to(given, first.shape)[..., :3, :])
    assert (first[..., 3:, :] != given[..., 3:, :]).any(axis=(2, 3, 4)).all()
    assert (tmp_path / "first.npy").read_bytes() == (tmp_path / "same.npy").read_bytes()
    assert (first != other).any()
    assert first.max() <= 16


def test_the_picture_has_a_line_for_each_of_sixteen_images(fitted, tmp_path, capsys):
    words = ["sample", str(fitted / "run"), "--given", str(fitted / "few.npy"), "--known", "3", "-n", "2"]
    assert main([*words, "--out", str(tmp_path / "grid.png")]) == 0
    assert "completed 16 of 20 images" in capsys.readouterr().err
    with Image.open(tmp_path / "grid.png") as picture:
        shown = np.asarray(picture)
    assert shown.shape == (16 * 9 - 1, 4 * 9 - 1)
    given = np.rint(np.load(fitted / "few.npy")[[line * 20 // 16 for line in range(16)]] * (255 / 16))
    for line in range(16):
        part = shown[9 * line : 9 * line + 8]
        np.testing.assert_array_equal(part[:3, :8], given[line, :3])
        assert (part[3:, :8] == 128).all()
        np.testing.assert_array_equal(part[:3, 9:17], given[line, :3])
        np.testing.assert_array_equal(part[:, 27:], given[line])
    assert main([*words[:-2], "--out", str(tmp_path / "usual.png")]) == 0
    with Image.open(tmp_path / "usual.png") as picture:
        assert picture.size == (10 * 9 - 1, 16 * 9 - 1)  # eight draws by default


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--given", "{few}", "--out", "{new}.npy"], "--known: is missing; say how many of the 8 rows"),
        (["--known", "3", "--out", "{new}.npy"], "add --given IMAGES"),
        (["--given", "{few}", "--known", "0", "--out", "{new}.npy"], "--known: 0 came, from 1 to 7 of 8"),
        (["--given", "{few}", "--known", "8", "--out", "{new}.npy"], "--known: 8 came, from 1 to 7 of 8"),
        (["--given", "{few}", "--known", "three", "--out", "{new}.npy"], "--known"),
        (["--given", "{few}", "--known", "3", "-n", "0", "--out", "{new}.npy"], "--rows: 0 came, 1 or more draws"),
        (["--given", "{few}", "--known", "3", "--out", "{new}.csv"], "ends in .png or .npy"),
        (["--given", "{one}", "--known", "3", "--out", "{new}.npy"], "images of shape (1, 5, 5) came"),
        (["--given", "{new}", "--known", "3", "--out", "{new}.npy"], "there is no such file or folder"),
        (["--given", "{few}", "--known", "3", "--out", "{new}/none/x.npy"], "cannot be written"),
        (["--given", "{few}", "--known", "3", "--out", "{new}/none/x.png"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_one_sentence(fitted, tmp_path, capsys, words, message):
    write_grid(tmp_path / "one.png", np.zeros((1, 1, 5, 5)))
    places = {"few": fitted / "few.npy", "one": tmp_path / "one.png", "new": tmp_path / "new"}
    capsys.readouterr()
    assert main(["sample", str(fitted / "run"), *(word.format(**places) for word in words)]) == 2
    assert message in one_sentence(capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png"]


def test_known_is_not_for_tables(tmp_path, capsys):
    table = write(tmp_path / "table.csv")
    assert main(["fit", table, *PLAIN, "--max-steps", "2", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["sample", str(tmp_path / "run"), "--given", table, "--known", "2"]) == 2
    assert "--known: is for images" in one_sentence(capsys.readouterr().err)
