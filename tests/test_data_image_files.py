import gzip
import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Images, write_grid

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 7, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 7, 5, 3), dtype=np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def refused(source, message, **options):
    """The one sentence that reading `source` gives."""
    with pytest.raises(DataError, match=message) as caught:
        Images.from_any(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def mode_of(path):
    with Image.open(path) as picture:
        return picture.mode


def channels_first(array):
    return array.transpose(0, 3, 1, 2)


class TestFolders:
    def test_pictures_come_exactly_in_the_order_of_their_paths(self, tmp_path):
        (tmp_path / "b").mkdir()
        for number, name in enumerate(["a.png", "b/1.PNG", "b/2.png", "c.png"]):
            save(tmp_path / name, COLOUR[number], format="PNG")
        images = Images.from_any(tmp_path)
        np.testing.assert_array_equal(images.pixels.numpy(), channels_first(COLOUR[:4]))
        assert Images.from_any([tmp_path / "c.png", tmp_path / "a.png"]).pixels.shape == (2, 3, 7, 5)

    def test_other_and_hidden_files_are_left_out(self, tmp_path):
        save(tmp_path / "a.png", GREY[0])
        (tmp_path / "._b.png").write_bytes(b"resource fork")
        (tmp_path / "notes.txt").write_text("no picture")
        (tmp_path / "Thumbs.db").write_bytes(b"\0")
        (tmp_path / "folder.png").mkdir()
        np.testing.assert_array_equal(Images.from_any(str(tmp_path)).pixels.numpy(), GREY[:1, None])

    def test_jpeg_is_what_pillow_decodes(self, tmp_path):
        save(tmp_path / "a.JPG", COLOUR[0], format="JPEG")
        save(tmp_path / "b.jpeg", COLOUR[1], format="JPEG")
        images = Images.from_any(tmp_path).pixels.numpy()
        with Image.open(tmp_path / "b.jpeg") as picture:
            np.testing.assert_array_equal(images[1].transpose(1, 2, 0), np.asarray(picture))

    def test_empty_folder_and_missing_path(self, tmp_path):
        refused(tmp_path, "holds no picture")
        (tmp_path / "notes.txt").write_text("x")
        refused(tmp_path, "holds no picture")
        refused(tmp_path / "nothing", "no such file or folder")

    @pytest.mark.parametrize("second", [GREY[0, :6], GREY[0, :, :4], COLOUR[0]], ids=["lower", "narrower", "colours"])
    def test_mixed_sizes_name_the_file_that_differs(self, tmp_path, second):
        save(tmp_path / "a.png", GREY[0])
        save(tmp_path / "b.png", second)
        text = refused(tmp_path, "all pictures must have one size")
        assert "b.png" in text
        assert "5 x 7 in grey of a.png" in text

    def test_broken_link_and_locked_file(self, tmp_path):
        (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
        refused(tmp_path, "a.png: cannot be read as a picture .No such file")
        (tmp_path / "a.png").unlink()
        locked = save(tmp_path / "b.png", GREY[0])
        locked.chmod(0)
        if not os.access(locked, os.R_OK):
            refused(tmp_path, "Permission denied")
            refused(locked, "Permission denied")


class TestPictures:
    def test_palette_is_looked_up_and_bilevel_fills_the_range(self, tmp_path):
        few = (COLOUR[0] // 128) * 200
        save(tmp_path / "palette.png", few)
        Image.fromarray(few).quantize(8, dither=Image.Dither.NONE).save(tmp_path / "palette.png")
        assert mode_of(tmp_path / "palette.png") == "P"
        np.testing.assert_array_equal(
            Images.from_any(tmp_path / "palette.png").pixels[0].numpy(), few.transpose(2, 0, 1)
        )
        Image.fromarray(GREY[0] > 127).save(tmp_path / "two.png")
        pixels = Images.from_any(tmp_path / "two.png").pixels[0, 0].numpy()
        np.testing.assert_array_equal(pixels, np.where(GREY[0] > 127, 255, 0))

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha_is_dropped_where_it_does_nothing_and_refused_where_it_does(self, tmp_path, mode):
        picture = Image.fromarray(COLOUR[0]).convert(mode)
        picture.save(tmp_path / "solid.png")
        expected = np.asarray(Image.fromarray(COLOUR[0]).convert(mode[:-1]))
        found = Images.from_any(tmp_path / "solid.png").pixels[0].numpy()
        np.testing.assert_array_equal(found, expected[None] if mode == "LA" else expected.transpose(2, 0, 1))
        alpha = np.full((7, 5), 255, dtype=np.uint8)
        alpha[3, 2] = 254
        picture.putalpha(Image.fromarray(alpha))
        picture.save(tmp_path / "clear.png")
        refused(tmp_path / "clear.png", "transparent pixels")

    def test_transparent_colours_are_refused(self, tmp_path):
        Image.fromarray(GREY[0] // 64).save(tmp_path / "key.png", transparency=1)
        refused(tmp_path / "key.png", "transparent pixels")
        Image.fromarray(COLOUR[0]).quantize(8).save(tmp_path / "palette.png", transparency=0)
        refused(tmp_path / "palette.png", "transparent pixels")
        Image.fromarray(COLOUR[0]).save(tmp_path / "rgb.png", transparency=(0, 1, 2))  # a colour that does not occur
        assert Images.from_any(tmp_path / "rgb.png").shape == (3, 7, 5)

    def test_sixteen_bits_are_refused_in_grey_and_in_colours(self, tmp_path):
        save(tmp_path / "grey.png", GREY[0].astype(np.uint16) * 256)
        refused(tmp_path / "grey.png", "16 bits")
        # Pillow would drop the lower byte of such colours without a word.
        lines = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
        (tmp_path / "colour.png").write_bytes(png(struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0), zlib.compress(lines)))
        assert mode_of(tmp_path / "colour.png") == "RGB"
        refused(tmp_path / "colour.png", "16 bits")

    def test_other_colours_and_frames_are_refused(self, tmp_path):
        Image.fromarray(COLOUR[0]).convert("CMYK").save(tmp_path / "print.jpg")
        refused(tmp_path / "print.jpg", "a picture in CMYK")
        frames = [Image.fromarray(frame) for frame in GREY]
        frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
        refused(tmp_path / "film.png", "several frames")

    def test_every_cut_and_every_changed_byte_of_a_png_is_found(self, tmp_path):
        whole = save(tmp_path / "a.png", COLOUR[0]).read_bytes()
        path = tmp_path / "b.png"
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            refused(path, r"b\.png: ")
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            refused(path, r"b\.png: ")

    def test_cut_jpeg(self, tmp_path):
        whole = save(tmp_path / "a.jpg", COLOUR[0]).read_bytes()
        for length in range(0, len(whole) - 40, 7):
            (tmp_path / "b.jpg").write_bytes(whole[:length])
            refused(tmp_path / "b.jpg", r"b\.jpg: ")

    @pytest.mark.parametrize(
        "content", [b"", b"plain text", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a\1\0\1\0\0\0\0;", b"BM"]
    )
    def test_what_is_no_png_or_jpeg_is_refused_whatever_its_name(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        refused(tmp_path, "neither a PNG nor a JPEG")
        refused(tmp_path / "a.png", "this is no PNG or JPEG")

    @pytest.mark.parametrize("side", [9_000, 12_000, 60_000, 2**31 - 1])
    def test_decompression_bomb_is_refused_before_it_is_unpacked(self, tmp_path, side):
        body = zlib.compress(bytes(1000))
        (tmp_path / "a.png").write_bytes(png(struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), body))
        refused(tmp_path, f"{2**26} .*are decoded")

    def test_one_picture_is_one_image(self, tmp_path):
        images = Images.from_any(save(tmp_path / "a.png", GREY[0]))
        assert len(images) == 1
        with pytest.raises(DataError, match="at least 2"):
            images.check()


def png(header, body):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


class TestPublishedSets:
    def test_sheet_holds_an_image_in_each_row(self, tmp_path):
        path = save(tmp_path / "sheet.png", COLOUR.reshape(6, 35, 3))
        images = Images.from_any(path, shape=(3, 7, 5))
        np.testing.assert_array_equal(images.pixels.numpy(), channels_first(COLOUR))
        both = Images.from_any([path, path], shape=(3, 7, 5))
        assert len(both) == 12
        refused(path, "a sheet of 35 pixels a row and 3 channels", shape=(3, 5, 5))
        refused(path, "a sheet of 35 pixels a row and 3 channels", shape=(1, 7, 5))

    def cifar(self, path, images, label=3):
        records = [bytes([label]) + image.tobytes() for image in images]
        path.write_bytes(b"".join(records))
        return path

    def test_cifar_files_and_folder(self, tmp_path):
        images = RNG.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
        for number in range(5):
            self.cifar(tmp_path / f"data_batch_{number + 1}.bin", images[2 * number : 2 * number + 2])
        self.cifar(tmp_path / "test_batch.bin", images[3:4])
        np.testing.assert_array_equal(Images.from_any(tmp_path).pixels.numpy(), images)
        np.testing.assert_array_equal(Images.from_any(tmp_path / "test_batch.bin").pixels.numpy(), images[3:4])

    @pytest.mark.parametrize("damage", ["cut", "label", "empty"])
    def test_damaged_cifar(self, tmp_path, damage):
        path = self.cifar(tmp_path / "a.bin", np.zeros((2, 3, 32, 32), np.uint8), label=10 if damage == "label" else 0)
        if damage != "label":
            path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 4000])
        refused(path, "not records of CIFAR-10")

    @pytest.mark.parametrize("pack", [bytes, gzip.compress])
    def test_idx(self, tmp_path, pack):
        head = b"\0\0\x08\x03" + struct.pack(">III", *GREY.shape)
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(pack(head + GREY.tobytes()))
        np.testing.assert_array_equal(Images.from_any(path).pixels.numpy(), GREY[:, None])
        path.write_bytes(pack(head + GREY.tobytes()[:-1]))
        refused(path, "209 bytes came, 6 images of 5 x 7")
        path.write_bytes(pack(head + GREY.tobytes() + b"\0"))
        refused(path, "more bytes came")
        path.write_bytes(pack(b"\0\0\x08\x03" + struct.pack(">III", 2**31, 2**31, 2**31) + bytes(99)))
        refused(path, "99 bytes came")
        path.write_bytes(pack(b"\0\0\x08\x01" + struct.pack(">I", 6) + bytes(6)))
        refused(path, "labels are not images")
        whole = pack(head + GREY.tobytes())
        path.write_bytes(whole[: len(whole) // 2])
        refused(path, re.escape(str(path)))


class TestArrays:
    def test_layouts(self):
        expected = channels_first(COLOUR)
        for array, options in [(COLOUR, {}), (expected, {}), (expected.reshape(6, -1), {"shape": (3, 7, 5)})]:
            np.testing.assert_array_equal(Images.from_any(array, **options).pixels.numpy(), expected)
        ambiguous = np.zeros((2, 3, 4, 1), dtype=np.uint8)
        refused(ambiguous, "give layout=")
        assert Images.from_any(ambiguous, layout="NHWC").shape == (1, 3, 4)
        assert Images.from_any(ambiguous, layout="NCHW").shape == (3, 4, 1)
        refused(np.zeros((2, 7, 5, 2), dtype=np.uint8), "give layout=")
        refused(np.zeros((2, 35), dtype=np.uint8), "for flat rows give `shape`")
        with pytest.raises(OptionError, match="layout"):
            Images.from_any(ambiguous, layout="CHWN")
        with pytest.raises(OptionError, match="shape"):
            Images.from_any(ambiguous, shape=(1, 0, 4))

    def test_numbers_that_are_no_pixels_are_refused(self):
        for good in (GREY, GREY.astype(np.int64), GREY.astype(np.float32), torch.tensor(GREY), GREY > 9):
            assert Images.from_any(good).pixels.sum() == int(good.sum())
        refused(GREY.astype(np.uint16) * 257, "uint16 from 0 to 63993")
        refused(GREY / 255, "float64 from")
        refused(GREY - 1.0, "float64 from -1.0")
        refused(np.where(GREY == 0, np.nan, GREY), "float64 from nan")
        refused(GREY.astype("S3"), "values of |S3")
        refused(GREY.tolist(), "a list came")

    def test_changes_of_the_source_do_not_reach_the_images(self):
        source = GREY.copy()
        images = Images.from_any(source)
        copy = Images.from_any(images)
        source[:] = 0
        images.pixels[0] = 0
        np.testing.assert_array_equal(copy.pixels[:, 0].numpy(), GREY)
        np.testing.assert_array_equal(images.pixels[1:, 0].numpy(), GREY[1:])

    def test_archives(self, tmp_path):
        np.savez_compressed(tmp_path / "one.npz", x=GREY)
        np.savez(tmp_path / "two.npz", train=COLOUR, label=np.arange(6))
        np.save(tmp_path / "a.npy", GREY)
        for path in (tmp_path / "one.npz", tmp_path / "a.npy"):
            np.testing.assert_array_equal(Images.from_any(path).pixels[:, 0].numpy(), GREY)
        images = Images.from_any(tmp_path / "two.npz", member="train")
        np.testing.assert_array_equal(images.pixels.numpy(), channels_first(COLOUR))
        refused(tmp_path / "two.npz", "no member was chosen; give member as one of 'train', 'label'")
        refused(tmp_path / "two.npz", "no member 'test'", member="test")
        refused(tmp_path / "two.npz", r"shape \(6,\)", member="label")
        np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
        refused(tmp_path / "objects.npy", "it holds Python objects")
        whole = (tmp_path / "one.npz").read_bytes()
        for length in (4, 40, len(whole) // 2, len(whole) - 1):
            (tmp_path / "cut.npz").write_bytes(whole[:length])
            refused(tmp_path / "cut.npz", "damaged or foreign|no PNG or JPEG")


def test_grid_shows_every_image_in_its_place(tmp_path):
    write_grid(tmp_path / "grid.png", GREY[:, None], columns=4, gap=2)
    sheet = Images.from_any(tmp_path / "grid.png").pixels[0, 0].numpy()
    assert sheet.shape == (2 * 7 + 2, 4 * 5 + 6)
    np.testing.assert_array_equal(sheet[9:16, 7:12], GREY[5])
    assert (sheet[7:9] == 255).all()
    write_grid(tmp_path / "levels.png", torch.tensor([[[[0, 8, 16]]]]), levels=17)
    assert Images.from_any(tmp_path / "levels.png").pixels.flatten().tolist() == [0, 128, 255]
    with pytest.raises(DataError, match="cannot be written"):
        write_grid(tmp_path / "no" / "grid.png", GREY[:, None])
    with pytest.raises(DataError, match="shape"):
        write_grid(tmp_path / "grid.png", GREY)
    with pytest.raises(OptionError, match="columns=0"):
        write_grid(tmp_path / "grid.png", GREY[:, None], columns=0)
