"""Images from folders, files and arrays: which reader a source needs, and the formats of published sets."""

from __future__ import annotations

import gzip
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data.io import BROKEN_FILE, file_errors
from rosenblatt.data.pictures import (
    JPEG_START,
    PNG_START,
    Pixels,
    read_folder,
    read_picture,
    read_sheet,
)

CIFAR_SHAPE = (3, 32, 32)
CIFAR_RECORD = 1 + math.prod(CIFAR_SHAPE)  # a label before the planes of red, green and blue
CIFAR_LABELS = 10
IDX_START, IDX_IMAGES = b"\x00\x00\x08", 3  # unsigned bytes; as many axes as images have in the file
GZIP_START, ZIP_START, NUMPY_START = b"\x1f\x8b", b"PK", b"\x93NUMPY"
CHANNELS = (1, 3)


def image_array(
    source: object,
    *,
    member: str | None = None,
    shape: Sequence[int] | None = None,
    layout: str | None = None,
) -> Pixels:
    """Pixels (count, channels, height, width) of any source that `Images.from_any` takes; may share its memory."""
    if shape is not None:
        shape = tuple(shape)
        if len(shape) != 3 or min(shape) < 1:
            raise OptionError(f"shape: {list(shape)} came, (channels, height, width) of at least 1 was expected.")
    if layout not in (None, "NCHW", "NHWC"):
        raise OptionError(f"layout: {layout!r} came, 'NCHW' or 'NHWC' was expected.")
    options: dict[str, Any] = {"member": member, "shape": shape, "layout": layout}
    if isinstance(source, str | Path):
        return _from_path(Path(source), **options)
    if isinstance(source, list | tuple) and source and all(isinstance(part, str | Path) for part in source):
        return _joined([Path(part) for part in source], options)
    if isinstance(source, np.ndarray):
        return as_images(source, "images", shape=shape, layout=layout)
    raise DataError(
        f"images: a {type(source).__name__} came; a folder, a file, a list of them, an array or a tensor was expected."
    )


def looks_like_images(path: Path) -> bool:
    """Whether a path holds images, where a table could be meant as well.

    Images are a folder, a picture, an idx file, a binary file of CIFAR-10, one array of an archive (FILE.npz:NAME), and
    a NumPy file with an array of three axes or more. All else is left to the reader of tables, and so is what cannot be
    read.
    """
    if not path.is_file():
        archive, colon, _ = str(path).rpartition(":")
        return path.is_dir() or (bool(colon) and Path(archive).is_file())
    try:
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(0)
            if start.startswith(NUMPY_START):
                return _count_axes(file) > 2
        if start.startswith(GZIP_START):
            with gzip.open(path) as unpacked:
                return unpacked.read(len(IDX_START)) == IDX_START
        if start.startswith(ZIP_START):
            with zipfile.ZipFile(path) as arrays:
                return any(_count_axes(arrays.open(name)) > 2 for name in arrays.namelist())
    except BROKEN_FILE:
        return False
    return start.startswith((PNG_START, JPEG_START, IDX_START)) or path.suffix.lower() == ".bin"


def _count_axes(file: IO[bytes]) -> int:
    """The number of axes that the head of a NumPy array says it has."""
    first = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    return len(read(file)[0])


def _joined(paths: Sequence[Path], options: dict[str, Any]) -> Pixels:
    parts = [_from_path(path, **options) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            raise DataError(
                f"{path}: images of shape {part.shape[1:]} came after {parts[0].shape[1:]} of {paths[0].name}; all "
                "images must have one shape."
            )
    return np.concatenate(parts)


def _from_path(path: Path, *, member: str | None, shape: Sequence[int] | None, layout: str | None) -> Pixels:
    if path.is_dir():
        batches = sorted(path.glob("data_batch_*.bin"))
        return np.concatenate([read_cifar(batch) for batch in batches]) if batches else read_folder(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder; check the path.")
    with file_errors(path):
        with path.open("rb") as file:
            start = file.read(8)
        if start.startswith((PNG_START, JPEG_START)):
            return read_picture(path)[None] if shape is None else read_sheet(path, shape)
        if start.startswith((ZIP_START, NUMPY_START)):
            return as_images(_numpy_array(path, member), str(path), shape=shape, layout=layout)
        if start.startswith((GZIP_START, IDX_START)):
            return read_idx(path)
        if path.suffix.lower() == ".bin":
            return read_cifar(path)
    raise DataError(
        f"{path}: this is no PNG or JPEG picture, no NumPy array, no idx file and no .bin of CIFAR-10; convert it."
    )


def _numpy_array(path: Path, member: str | None) -> npt.NDArray[Any]:
    """The array of a .npy file, or the one named `member` of an .npz archive."""
    with path.open("rb") as handle:
        loaded = np.load(handle, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = list(loaded.files)
            if member is None and len(names) == 1:
                member = names[0]
            if member not in names:
                came = "no member was chosen" if member is None else f"there is no member '{member}'"
                raise DataError(f"{path}: {came}; give member as one of {', '.join(map(repr, names)) or 'none'}.")
            array: npt.NDArray[Any] = loaded[member]
            return array


def as_images(
    array: npt.NDArray[Any], label: str, *, shape: Sequence[int] | None = None, layout: str | None = None
) -> Pixels:
    """An array of whole numbers 0 .. 255 as uint8 (count, channels, height, width).

    Raises `DataError` for other numbers or for axes that are not those of images.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{label}: values of {array.dtype} came, whole numbers from 0 to 255 were expected.")
    if array.dtype != np.uint8 and array.size:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 255 and (array.dtype.kind != "f" or bool((array == np.floor(array)).all()))):
            raise DataError(
                f"{label}: {array.dtype} from {low} to {high} came, whole numbers from 0 to 255 were expected; "
                "round or scale them, and drop to 8 bits."
            )
    pixels: Pixels = _axes(array, label, shape, layout).astype(np.uint8)
    return pixels


def _axes(array: npt.NDArray[Any], label: str, shape: Sequence[int] | None, layout: str | None) -> npt.NDArray[Any]:
    if array.ndim == 2 and shape is not None and array.shape[1] == math.prod(shape):
        return array.reshape(-1, *shape)
    if array.ndim == 3:
        array = array[:, None]
        layout = "NCHW"
    if array.ndim != 4:
        raise DataError(
            f"{label}: an array of shape {array.shape} came, (count, height, width), (count, channels, height, width) "
            "or (count, height, width, channels) was expected; for flat rows give `shape`."
        )
    if layout is None:
        found = [name for name, axis in {"NCHW": 1, "NHWC": 3}.items() if array.shape[axis] in CHANNELS]
        if len(found) != 1:
            raise DataError(
                f"{label}: it is not clear which axis of {array.shape} is the channels; give layout='NCHW' or 'NHWC'."
            )
        layout = found[0]
    return array if layout == "NCHW" else array.transpose(0, 3, 1, 2)


def read_cifar(path: Path) -> Pixels:
    """Images (count, 3, 32, 32) of a binary file of CIFAR-10 (Krizhevsky 2009), without their labels.

    A record is a label and 3072 bytes, the planes of red, green and blue. Raises `DataError` for another size or labels
    above 9.
    """
    with file_errors(path):
        data = np.fromfile(path, dtype=np.uint8)
    if len(data) == 0 or len(data) % CIFAR_RECORD or data[::CIFAR_RECORD].max() >= CIFAR_LABELS:
        raise DataError(
            f"{path}: {len(data)} bytes came that are not records of CIFAR-10 ({CIFAR_RECORD} bytes, the first below "
            f"{CIFAR_LABELS}); the file is cut or foreign."
        )
    return data.reshape(-1, CIFAR_RECORD)[:, 1:].reshape(-1, *CIFAR_SHAPE)


def read_idx(path: Path) -> Pixels:
    """Images (count, 1, height, width) of an idx3 file of unsigned bytes, plain or compressed by gzip (LeCun 1998).

    Raises `DataError` for other idx files (labels have one axis) and for one that is too short or too long.
    """
    with file_errors(path), path.open("rb") as raw:
        packed = raw.read(2) == GZIP_START
        raw.seek(0)
        if not packed:
            return _idx_pixels(path, raw)
        with gzip.GzipFile(fileobj=raw) as file:
            return _idx_pixels(path, file)


def _idx_pixels(path: Path, file: IO[bytes] | gzip.GzipFile) -> Pixels:
    start = file.read(4)
    if len(start) < 4 or not start.startswith(IDX_START) or start[3] != IDX_IMAGES:
        axes = f"{start[3]} axes" if start.startswith(IDX_START) and len(start) == 4 else "another beginning"
        raise DataError(f"{path}: {axes} came, an idx file of images has 3 of unsigned bytes; labels are not images.")
    sizes = [int.from_bytes(file.read(4), "big") for _ in range(IDX_IMAGES)]
    total = math.prod(sizes)
    data = bytearray()
    while len(data) <= total and (part := file.read(min(1 << 24, total + 1 - len(data)))):
        data += part
    if len(data) != total or total == 0:
        more = "more" if len(data) > total else len(data)
        raise DataError(
            f"{path}: {more} bytes came, {sizes[0]} images of {sizes[2]} x {sizes[1]} were announced; the file "
            "is damaged."
        )
    return np.frombuffer(bytes(data), dtype=np.uint8).reshape(sizes[0], 1, sizes[1], sizes[2])
