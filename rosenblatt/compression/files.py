"""Compressing and decompressing rows of whole numbers with a model of them."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rosenblatt.compression.coding import OTHER_NUMBERS, PRECISION, Decoder, Encoder, code_rows
from rosenblatt.compression.container import SUM, Header, pack, unpack
from rosenblatt.compression.fingerprint import fingerprint
from rosenblatt.core.density import Density
from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import Images
from rosenblatt.layers.discretised import Discretised

BATCH = 256  # rows computed together


def compress(model: Density, data: Images | Tensor, *, batch: int = BATCH) -> bytes:
    """Compress `data` to as many bits as its log-probability under `model`, to a fraction of a per cent.

        8 len(file) = -sum_i log2 P(x_i) + about 770   (a header, and a check sum of 16 bytes)

    `data` are images or a tensor (rows, features) of whole numbers 0 .. levels - 1; `model` is one of such numbers with
    exact probabilities (`Discretised`, as "nits_conv" and "pixelcnn_mol" with `levels` are). What `decompress` gives
    back with the same model is the same to the last bit. It takes as long as sampling; `batch` rows are computed
    together. All is computed in double precision, on the CPU and by one thread, so that the file does not depend on the
    number of threads; another processor or version of torch may compute other last digits, which `decompress` notices.
    Needs the extra "compress". Raises `OptionError` for another kind of model, `DataError` for rows that are no such
    numbers.

    >>> from rosenblatt.core.registry import build
    >>> from rosenblatt.data import digits
    >>> images = Images(digits().pixels[:20], levels=17)
    >>> model = build("pixelcnn_mol", 64, options={"image": [1, 8, 8], "levels": 17, "filters": 4}, seed=0)
    >>> file = compress(model, images)
    >>> bool((decompress(model, file).pixels == images.pixels).all())
    True
    """
    model = _coding_model(model)
    if batch < 1:
        raise OptionError(f"batch: {batch} came, an integer >= 1 was expected.")
    array, shape = _as_rows(model, data)
    coder = Encoder()
    with _one_thread():
        for first in range(0, len(array), batch):
            counts = torch.from_numpy(array[first : first + batch]).double()
            code_rows(model, coder, len(counts), counts)
    header = Header(
        kind="images" if isinstance(data, Images) else "rows",
        number=len(array),
        shape=shape,
        levels=model.levels,
        batch=batch,
        model=_fingerprint(model),
        data=_digest(array),
    )
    return pack(header, coder.payload())


def decompress(model: Density, data: bytes) -> Images | Tensor:
    """Give back what `compress` was given: `Images`, or a tensor (rows, features) of int64.

    Raises `DataError` for a file that is damaged, cut, of another format, or made with another model, and where this
    machine computes other probabilities than the one that wrote it; `OptionError` as `compress` does.
    """
    model = _coding_model(model)
    header, payload = unpack(data)
    _check_header(model, header, len(payload))
    coder, parts = Decoder(payload), []
    dtype = np.uint8 if header.kind == "images" else np.int64
    with _one_thread():
        for first in range(0, header.number, header.batch):
            rows = min(header.batch, header.number - first)
            parts.append(code_rows(model, coder, rows, None).numpy().astype(dtype))
    array = np.concatenate(parts) if parts else np.empty((0, model.features), dtype=dtype)
    if _digest(array) != header.data:
        raise DataError(OTHER_NUMBERS)
    rows_found = torch.from_numpy(array)
    if header.kind == "rows":
        return rows_found
    return Images(rows_found.reshape(header.number, *header.shape), levels=header.levels)


def _coding_model(model: Density) -> Discretised:
    """A copy of the model, in use, in double precision and on the CPU."""
    if not isinstance(model, Discretised):
        raise OptionError(
            f"model: {type(model).__name__} has no exact probabilities of whole numbers; build one with `levels`, such "
            "as nits_conv."
        )
    if model.context:
        raise OptionError(f"model: it is given {model.context} numbers of context, none was expected.")
    return copy.deepcopy(model).double().cpu().eval()


def _as_rows(model: Discretised, data: Images | Tensor) -> tuple[np.ndarray, list[int]]:
    """Rows (count, features) as uint8 or int64, and the shape of one."""
    shape = list(data.shape) if isinstance(data, Images) else list(data.shape[1:])
    rows = data.pixels.flatten(1) if isinstance(data, Images) else data
    if rows.ndim != 2 or rows.shape[1] != model.features:
        raise DataError(
            f"data: rows of shape {tuple(rows.shape[1:])} came, ({model.features},) was expected by the model."
        )
    array: np.ndarray = rows.detach().cpu().numpy()
    whole = array.dtype.kind in "biu" or bool((array == np.floor(array)).all())
    if not whole or (array.size and not (array.min() >= 0 and array.max() < model.levels)):
        raise DataError(f"data: other numbers than whole ones from 0 to {model.levels - 1}, the model's levels, came.")
    return array.astype(np.uint8 if isinstance(data, Images) else np.int64), shape


def _check_header(model: Discretised, header: Header, size: int) -> None:
    if header.model != _fingerprint(model):
        raise DataError("data: the file was made with another model; load the very model that compressed it.")
    # Every answer costs something, so that a short file that claims to hold a vast number of rows is not believed.
    most = (8 * size + 64) * PRECISION
    if (
        header.batch < 1
        or math.prod(header.shape) != model.features
        or header.levels != model.levels
        or header.number * model.features > most
        or (header.kind == "images" and (len(header.shape) != 3 or header.levels > 256))
        or size % 4
    ):
        raise DataError("data: the file's header makes no sense; it was not made by this library.")


def _fingerprint(model: Discretised) -> bytes:
    return bytes.fromhex(fingerprint(model))[:SUM]


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).astype("<i8").tobytes()).digest()[:SUM]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads come in another order than those of one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
