import copy
import functools
import hashlib
import math
import struct

import numpy as np
import pytest
import torch

from rosenblatt.compression import compress, decompress, fingerprint
from rosenblatt.compression.coding import Decoder, Encoder, code_rows
from rosenblatt.compression.container import MAGIC, pack, unpack
from rosenblatt.conditioners.coupling import Coupling
from rosenblatt.conditioners.masked import Masked
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.registry import build
from rosenblatt.data import Images, digits
from rosenblatt.elementwise.monotone_net import MonotoneNet
from rosenblatt.elementwise.sigmoid_mixture import LogisticMixture
from rosenblatt.layers.conditional import Conditional
from rosenblatt.layers.discretised import Discretised
from rosenblatt.models.dequantised import dequantised

constriction = pytest.importorskip("constriction")


def shaken(model, size=0.3, seed=0):
    """The model with random weights, which make sharp and skewed conditionals."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pixel_model(name="pixelcnn_mol", image=(1, 8, 8), levels=17, **options):
    if name == "nits_conv":
        options.setdefault("widths", [4, 1])
    options = {"image": list(image), "levels": levels, "filters": 4, **options}
    return shaken(build(name, math.prod(image), options=options, seed=0))


def table_model(levels, conditioner=Masked, features=3):
    elementwise = LogisticMixture(2)
    return shaken(Discretised(Conditional(elementwise, conditioner(features, elementwise.spec.size, hidden=8)), levels))


def exact_bits(model, rows):
    with torch.no_grad():
        return -float(copy.deepcopy(model).double().log_prob(rows.double()).sum()) / math.log(2)


def payload_bits(file):
    return 8 * len(unpack(file)[1])


def rows_of(model, count, seed=0):
    with torch.no_grad():
        return model.sample(count, generator=torch.Generator().manual_seed(seed)).long()


class TestRoundTrip:
    def test_digits_take_one_per_cent_more_than_their_likelihood_at_most(self):
        images, model = digits(), pixel_model()
        file = compress(model, images)
        back = decompress(model, file)
        assert torch.equal(back.pixels, images.pixels)
        assert (back.levels, back.shape) == (17, (1, 8, 8))
        bits = exact_bits(model, images.rows().x)
        assert bits < 8 * len(file) < 1.01 * bits
        assert bits <= payload_bits(file) < bits * (1 + 1e-4) + 64

    @pytest.mark.parametrize(
        ("name", "image", "levels", "options"),
        [
            ("nits_conv", (1, 4, 4), 17, {}),
            ("nits_conv", (1, 3, 3), 256, {"interval": [-1.1, 1.1]}),
            ("nits_conv", (3, 2, 3), 256, {"stages": 2}),
            ("nits_conv", (1, 4, 2), 64, {"patch": 2}),
            ("pixelcnn_mol", (3, 2, 3), 256, {"heads": 1}),
            ("pixelcnn_mol", (1, 3, 2), 2, {}),
        ],
    )
    def test_images_of_every_model(self, name, image, levels, options):
        model = pixel_model(name, image, levels, **options)
        random = np.random.default_rng(0).integers(0, levels, (70, *image), dtype=np.uint8)
        images = Images.from_any(random, layout="NCHW", levels=levels)
        file = compress(model, images, batch=32)
        assert torch.equal(decompress(model, file).pixels, images.pixels)
        assert payload_bits(file) == pytest.approx(exact_bits(model, images.rows().x), rel=1e-4, abs=64)

    @pytest.mark.parametrize("conditioner", [Masked, Coupling])
    @pytest.mark.parametrize("levels", [3, 1000, 100_003])
    def test_tables_of_whole_numbers(self, levels, conditioner):
        model = table_model(levels, conditioner)
        rows = rows_of(model, 500)
        file = compress(model, rows)
        back = decompress(model, file)
        assert back.dtype == torch.int64
        assert torch.equal(back, rows)
        assert payload_bits(file) == pytest.approx(exact_bits(model, rows), rel=1e-3, abs=64)

    @pytest.mark.parametrize("count", [0, 1, 255, 256, 257])
    def test_any_number_of_rows(self, count):
        model = table_model(9)
        rows = rows_of(model, count)
        assert torch.equal(decompress(model, compress(model, rows)), rows)

    def test_rows_that_the_model_holds_impossible_cost_no_more_than_a_word_a_question(self):
        model = table_model(256)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(40)
        rows = torch.randint(256, (50, 3), generator=torch.Generator().manual_seed(0))
        assert exact_bits(model, rows) > 30 * 50 * 3 * 8
        file = compress(model, rows)
        assert torch.equal(decompress(model, file), rows)
        assert payload_bits(file) <= 24 * 50 * 3 * 8 + 64


class Recorder:
    """Sums up what the answers would cost a perfect coder."""

    def __init__(self):
        self.bits = 0.0

    def answers(self, probability, truth):
        self.bits -= float(torch.where(truth, probability, 1 - probability).log2().sum())
        return truth


@pytest.mark.parametrize("levels", [2, 17, 100, 256])
def test_questions_have_the_probabilities_of_the_numbers(levels):
    model = pixel_model("nits_conv", (1, 3, 3), levels).double()
    rows = torch.randint(levels, (40, 9), generator=torch.Generator().manual_seed(0))
    recorder = Recorder()
    with torch.no_grad():
        assert torch.equal(code_rows(model, recorder, 40, rows.double()).long(), rows)
    assert recorder.bits == pytest.approx(exact_bits(model, rows), rel=1e-9)


def test_coder_takes_probabilities_in_multiples_of_its_precision():
    for probability, bits in [(0.0, 24.0), (0.25, 2.0), (0.75, -math.log2(0.75)), (1 - 2.0**-30, 0.0)]:
        encoder = Encoder()
        asked, truth = torch.full((4000,), probability, dtype=torch.float64), torch.ones(4000, dtype=torch.bool)
        encoder.answers(asked, truth)
        payload = encoder.payload()
        assert 4000 * bits <= 8 * len(payload) <= 4000 * bits * (1 + 1e-6) + 64
        assert Decoder(payload).answers(asked, None).all()


class TestSameEverywhere:
    def test_threads_dtype_and_mode_make_no_difference(self):
        images = Images(digits().pixels[:20, :, 2:6, 2:6], levels=17)
        model, before = pixel_model("nits_conv", (1, 4, 4), filters=8), torch.get_num_threads()
        files = []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                files.append(compress(model, images, batch=16))
                assert torch.get_num_threads() == threads
                assert torch.equal(decompress(model, files[0]).pixels, images.pixels)
        finally:
            torch.set_num_threads(before)
        files.append(compress(copy.deepcopy(model).double(), images, batch=16))
        model.train()
        files.append(compress(model, images, batch=16))
        assert len(set(files)) == 1
        assert model.training
        assert next(model.parameters()).dtype == torch.float32

    def test_fingerprint_tells_weights_and_settings_apart(self):
        model = pixel_model("nits_conv", (1, 2, 2), widths=[4, 1])
        same = pixel_model("nits_conv", (1, 2, 2), widths=[4, 1])
        assert fingerprint(model) == fingerprint(same) == fingerprint(copy.deepcopy(model).double().train())
        other_setting = pixel_model("nits_conv", (1, 2, 2), widths=[4, 1], epsilon=1e-4)
        with torch.no_grad():
            next(same.parameters()).view(-1)[0] *= 1 + 1e-6
        assert len({fingerprint(one) for one in (model, same, other_setting)}) == 3


@functools.cache
def made():
    model = table_model(9)
    rows = rows_of(model, 40)
    return model, rows, compress(model, rows)


class TestDamage:
    def test_every_changed_bit_is_found(self):
        model, _, file = made()
        for place in range(len(file)):
            changed = file[:place] + bytes([file[place] ^ (1 << place % 8)]) + file[place + 1 :]
            with pytest.raises(DataError, match="data: "):
                decompress(model, changed)

    def test_every_cut_and_anything_added_is_found(self):
        model, _, file = made()
        for length in range(len(file)):
            with pytest.raises(DataError, match=r"cut after|is cut"):
                decompress(model, file[:length])
        with pytest.raises(DataError, match="damaged"):
            decompress(model, file + b"\0")

    def test_another_model_says_so(self):
        model, _, file = made()
        with pytest.raises(DataError, match="another model"):
            decompress(shaken(copy.deepcopy(model), seed=1), file)
        with pytest.raises(DataError, match="another model"):
            decompress(table_model(10), file)

    def test_another_format_and_other_files_say_so(self):
        model, _, file = made()
        with pytest.raises(DataError, match="format 3, this version of the library reads format 2"):
            decompress(model, file[:8] + struct.pack("<H", 3) + file[10:])
        for foreign in (b"\x89PNG\r\n\x1a\n" + bytes(99), b"text", MAGIC.replace(b"\r\n", b"\n") + bytes(99)):
            with pytest.raises(DataError, match="no compressed file of this library"):
                decompress(model, foreign)

    @pytest.mark.parametrize(
        "change",
        [
            {"number": 10**15},
            {"batch": 0},
            {"shape": [4]},
            {"shape": []},
            {"levels": 8},
            {"kind": "images"},
        ],
    )
    def test_headers_made_up_by_others_are_refused(self, change):
        model, _, file = made()
        with pytest.raises(DataError, match="header"):
            decompress(model, with_header(file, change))

    @pytest.mark.parametrize(("place", "value"), [(10, 2), (10, 255), (11, 200)])
    def test_kinds_and_sides_that_there_are_not_are_refused(self, place, value):
        model, _, file = made()
        with pytest.raises(DataError, match=r"header|damaged"):
            decompress(model, with_byte(file, place, value))

    def test_wrong_numbers_are_noticed_though_the_file_is_whole(self):
        model, rows, file = made()
        assert torch.equal(decompress(model, with_header(file, {"batch": 64})), rows)
        for change in ({"data": bytes(16)}, {"number": 39}):
            with pytest.raises(DataError, match="other numbers than were put in"):
                decompress(model, with_header(file, change))


def with_header(file, change):
    """The file with another header and a check sum that fits."""
    header, payload = unpack(file)
    return pack(header._replace(**change), payload)


def with_byte(file, place, value):
    """The file with another byte at a place and a check sum that fits."""
    body = file[:place] + bytes([value]) + file[place + 1 : -16]
    return body + hashlib.sha256(body).digest()[:16]


class TestRefused:
    def test_models_without_exact_masses(self):
        rows = torch.zeros(2, 4, dtype=torch.long)
        for model in (build("maf", 4, seed=0), dequantised(4, levels=4, model="maf")):
            with pytest.raises(OptionError, match="no exact probabilities of whole numbers"):
                compress(model, rows)
        given = build("pixelcnn_mol", 4, 2, options={"levels": 4, "filters": 4}, seed=0)
        with pytest.raises(OptionError, match="2 numbers of context"):
            compress(given, rows)
        with pytest.raises(OptionError, match="batch: 0"):
            compress(table_model(4), torch.zeros(2, 3), batch=0)

    @pytest.mark.parametrize("wrong", [4.0, -1.0, 0.5, math.nan, math.inf])
    def test_rows_that_are_no_levels(self, wrong):
        rows = torch.zeros(5, 3)
        assert torch.equal(decompress(table_model(4), compress(table_model(4), rows)), rows.long())
        rows[3, 1] = wrong
        with pytest.raises(DataError, match="other numbers than whole ones from 0 to 3"):
            compress(table_model(4), rows)

    def test_other_shapes_and_spoilt_weights(self):
        with pytest.raises(DataError, match=r"shape \(4,\) came, \(3,\)"):
            compress(table_model(4), torch.zeros(5, 4))
        with pytest.raises(DataError, match=r"shape \(64,\) came, \(3,\)"):
            compress(table_model(17), digits())
        model = table_model(4)
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)
        with pytest.raises(DataError, match="its weights are spoilt"):
            compress(model, torch.zeros(5, 3))


def test_bounded_cdf_in_a_table():
    elementwise = MonotoneNet([4, 1], lower=-4.0, upper=4.0)
    model = shaken(Discretised(Conditional(elementwise, Masked(2, elementwise.spec.size, hidden=8)), 50))
    rows = rows_of(model, 300)
    file = compress(model, rows)
    assert torch.equal(decompress(model, file), rows)
    assert payload_bits(file) == pytest.approx(exact_bits(model, rows), rel=1e-3, abs=64)
