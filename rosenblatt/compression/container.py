"""The file around a payload: what it is, which model reads it, and sums that tell damage from truth.

    magic (8)  version (2)  kind (1)  sides (1)  number (8)  levels (4)  batch (4)  length of payload (8)
    model (16)  data (16)  shape (4 a side)  payload  check sum (16)

Numbers are unsigned, the lowest byte first. It is small because a file may hold a single image of a few dozen bytes.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from rosenblatt.core.errors import DataError

MAGIC = b"\x89RSB\r\n\x1a\n"  # as that of PNG: a transfer as text changes it
VERSION = 2
FIXED = struct.Struct("<8sHBBQIIQ16s16s")
SUM = 16  # bytes of a SHA-256 that are kept, of the file, the model and the data: 128 bits
KINDS = ("images", "rows")
MOST_SIDES = 3


class Header(NamedTuple):
    """What a payload holds.

    kind: "images" (uint8) or "rows" (int64).
    number: how many; shape: of one.
    levels: of the numbers; batch: rows that were computed together.
    model: `fingerprint` of the model; data: SHA-256 of the decoded numbers; of both the first `SUM` bytes.
    """

    kind: str
    number: int
    shape: list[int]
    levels: int
    batch: int
    model: bytes
    data: bytes


def pack(header: Header, payload: bytes) -> bytes:
    """The whole file."""
    kind, number, shape, levels, batch, model, data = header
    fixed = FIXED.pack(MAGIC, VERSION, KINDS.index(kind), len(shape), number, levels, batch, len(payload), model, data)
    body = fixed + struct.pack(f"<{len(shape)}I", *shape) + payload
    return body + _sum(body)


def unpack(data: bytes) -> tuple[Header, bytes]:
    """Header and payload of a file; raises `DataError` that says what is wrong with it."""
    if len(data) < FIXED.size or not data.startswith(MAGIC):
        cut = MAGIC.startswith(data[: len(MAGIC)])
        what = f"it is cut after {len(data)} bytes" if cut else "it does not begin as one; bring one made by compress"
        raise DataError(f"data: this is no compressed file of this library: {what}.")
    _, version, kind, sides, number, levels, batch, payload_size, model, digest = FIXED.unpack_from(data)
    if version != VERSION:
        raise DataError(
            f"data: the file has format {version}, this version of the library reads format {VERSION}; use the version "
            "that wrote it."
        )
    start = FIXED.size + 4 * sides
    size = start + payload_size + SUM
    if len(data) < size and sides <= MOST_SIDES:
        raise DataError(f"data: the file is cut, {len(data)} of {size} bytes are there; bring a whole copy.")
    if len(data) != size or _sum(data[:-SUM]) != data[-SUM:]:
        raise DataError("data: the file is damaged, its check sum does not fit; bring a sound copy.")
    if kind >= len(KINDS) or sides > MOST_SIDES:
        raise DataError("data: the file's header makes no sense; it was not made by this library.")
    shape = list(struct.unpack_from(f"<{sides}I", data, FIXED.size))
    return Header(KINDS[kind], number, shape, levels, batch, model, digest), data[start:-SUM]


def _sum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:SUM]
