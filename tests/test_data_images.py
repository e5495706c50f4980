import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Images, digits
from rosenblatt.models.dequantised import dequantised
from rosenblatt.objectives import NLL
from rosenblatt.train import FitConfig, Fitter


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(count=300, shape=(2, 3, 5), **options):
    """Images that all differ, and differ from their mirror images."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return Images.from_any(pixels, layout="NCHW", **options)


def rows_of(batches):
    return torch.cat([batch.x for batch in batches])


def as_set(rows):
    return {tuple(row) for row in rows.tolist()}


def test_bundled_digits_are_those_of_scikit_learn():
    images = digits()
    expected = load_digits().images
    np.testing.assert_array_equal(images.pixels[:, 0].numpy(), expected)
    np.testing.assert_array_equal(images.rows().x.numpy(), expected.reshape(-1, 64))
    assert images.levels == 17
    assert images.check() == []
    assert images.digest() == digits().digest() != Images(images.pixels, levels=18).digest()


def test_rows_are_channels_then_lines_then_pixels_unscaled():
    images = numbered()
    x = images.rows().x
    assert x.dtype == torch.float32
    assert images.pixels.dtype == torch.uint8
    assert images.features == 30
    assert x[7, 1 * 15 + 2 * 5 + 3] == images.pixels[7, 1, 2, 3]
    assert torch.equal(rows_of(images.ordered_batches(7)), x)


def test_a_pass_holds_every_image_once_and_resumes_at_any_batch():
    images = numbered()
    whole = list(images.batches(64, generator()))
    assert [len(batch.x) for batch in whole] == [64, 64, 64, 64, 44]
    assert as_set(rows_of(whole)) == as_set(images.rows().x)
    assert not torch.equal(rows_of(whole), images.rows().x)
    for start in range(6):
        resumed = list(images.batches(64, generator(), start))
        assert len(resumed) == 5 - min(start, 5)
        assert all(torch.equal(a.x, b.x) for a, b in zip(resumed, whole[start:], strict=True))


def test_flips_turn_half_of_a_pass_left_to_right_and_nothing_else():
    images = numbered(1000, flip=True)
    plain, mirrored = as_set(images.rows().x), as_set(images.pixels.flip(-1).flatten(1).float())
    shown = list(images.batches(128, generator()))
    seen = as_set(rows_of(shown))
    assert len(seen) == 1000
    turned = len(seen & mirrored)
    assert len(seen & plain) == 1000 - turned
    assert stats.binomtest(turned, 1000).pvalue > 1e-6
    again = list(images.batches(128, generator(), 3))
    assert all(torch.equal(a.x, b.x) for a, b in zip(again, shown[3:], strict=True))
    other = as_set(rows_of(images.batches(128, generator(1)))) & mirrored
    assert other != seen & mirrored
    assert torch.equal(rows_of(images.ordered_batches(128)), images.rows().x)
    assert all(part.flip for part in images.split((0.5, 0.5), generator()))


def test_split_is_disjoint_and_whole():
    first, second = numbered().split((0.75, 0.25), generator())
    assert (len(first), len(second)) == (225, 75)
    assert as_set(first.rows().x) | as_set(second.rows().x) == as_set(numbered().rows().x)
    with pytest.raises(DataError, match="1 images are too few to split"):
        numbered(1).split((0.9, 0.1), generator())
    with pytest.raises(OptionError, match="add up to 1"):
        numbered().split((0.9, 0.2), generator())


def test_large_images_come_in_smaller_ordered_batches():
    images = Images(torch.zeros(9, 3, 512, 512, dtype=torch.uint8))
    assert [len(batch.x) for batch in images.ordered_batches(4096)] == [1] * 9
    assert len(images.rows(100).x) == 5
    assert len(images.rows().x) == 9
    assert numbered(10).rows(3).x.tolist() == numbered(10).rows().x[[0, 3, 6]].tolist()


def test_fewer_bits_keep_the_highest():
    images = numbered().reduced(3)
    assert images.levels == 8
    assert torch.equal(images.pixels, numbered().pixels // 32)
    with pytest.raises(OptionError, match="of 8 levels"):
        images.reduced(2)


@pytest.mark.parametrize(
    ("pixels", "options", "error", "message"),
    [
        (torch.zeros(2, 1, 3, 3), {}, DataError, "torch.float32 of shape"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), {}, DataError, r"shape \(2, 3, 3\)"),
        (torch.full((2, 1, 3, 3), 9, dtype=torch.uint8), {"levels": 9}, DataError, "the value 9 came"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), {"levels": 257}, OptionError, "levels: 257"),
    ],
)
def test_wrong_pixels_are_refused(pixels, options, error, message):
    with pytest.raises(error, match=message):
        Images(pixels, **options)


def test_check_says_what_cannot_be_learned_from():
    with pytest.raises(DataError, match="1 came, at least 2"):
        numbered(1).check()
    with pytest.raises(DataError, match="all 5 are the same"):
        Images(torch.zeros(5, 1, 2, 2, dtype=torch.uint8)).check()
    doubled = Images(torch.cat([numbered(20).pixels, numbered(10).pixels]))
    assert doubled.check() == ["10 of 30 images are copies of others."]
    assert "levels=17" in Images(digits().pixels).check()[0]


def test_a_dequantised_model_learns_from_images_by_the_fitter():
    images = digits().split((0.4, 0.6), generator())[0]
    model = dequantised(images.features, levels=images.levels, model="maf", options={"hidden": 64})
    config = FitConfig(epochs=15, batch_size=64, seed=0, learning_rate=3e-3)
    report = Fitter(config, progress=False).fit(model, images, NLL())
    uniform = -images.features * math.log(images.levels)
    assert report.measure == "nats (lower bound)"
    assert report.best_validation > uniform + 20
