"""The file around a payload: what it is, which model reads it, and sums that tell damage from truth.

    magic (8)  version (2)  length of header (4)  length of payload (8)  header (JSON)  payload  SHA-256 of it all (32)

Numbers are unsigned, the lowest byte first.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any, NamedTuple

from rosenblatt.core.errors import DataError

MAGIC = b"\x89RSB\r\n\x1a\n"  # as that of PNG: a transfer as text changes it
VERSION = 1
FIXED = struct.Struct("<8sHIQ")
SUM = 32  # bytes
DIGITS = 32  # hexadecimal, 128 bits: a header should not weigh more than a small set of images
LONGEST_HEADER = 1 << 16


class Header(NamedTuple):
    """What a payload holds.

    kind: "images" (uint8) or "rows" (int64).
    number: how many; shape: of one.
    levels: of the numbers; batch: rows that were computed together.
    model: `fingerprint` of the model; data: SHA-256 of the decoded numbers; of both the first `DIGITS` digits.
    """

    kind: str
    number: int
    shape: list[int]
    levels: int
    batch: int
    model: str
    data: str


def pack(header: Header, payload: bytes) -> bytes:
    """The whole file."""
    text = json.dumps(header._asdict(), separators=(",", ":")).encode()
    body = FIXED.pack(MAGIC, VERSION, len(text), len(payload)) + text + payload
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes) -> tuple[Header, bytes]:
    """Header and payload of a file; raises `DataError` that says what is wrong with it."""
    if len(data) < FIXED.size or not data.startswith(MAGIC):
        cut = MAGIC.startswith(data[: len(MAGIC)])
        what = f"it is cut after {len(data)} bytes" if cut else "it does not begin as one; bring one made by compress"
        raise DataError(f"data: this is no compressed file of this library: {what}.")
    _, version, header_size, payload_size = FIXED.unpack_from(data)
    if version != VERSION:
        raise DataError(
            f"data: the file has format {version}, this version of the library reads format {VERSION}; use the version "
            "that wrote it."
        )
    size = FIXED.size + header_size + payload_size + SUM
    if len(data) < size and header_size <= LONGEST_HEADER:
        raise DataError(f"data: the file is cut, {len(data)} of {size} bytes are there; bring a whole copy.")
    if len(data) != size or hashlib.sha256(data[:-SUM]).digest() != data[-SUM:]:
        raise DataError("data: the file is damaged, its check sum does not fit; bring a sound copy.")
    start = FIXED.size + header_size
    return _read_header(data[FIXED.size : start]), data[start:-SUM]


def _read_header(text: bytes) -> Header:
    try:
        found: dict[str, Any] = json.loads(text)
        header = Header(**found)
    except (ValueError, TypeError, RecursionError):
        raise DataError("data: the file's header cannot be read; it was not made by this library.") from None
    whole = (header.number, header.levels, header.batch, *header.shape) if isinstance(header.shape, list) else (None,)
    if not all(type(number) is int and number >= 0 for number in whole) or header.kind not in ("images", "rows"):
        raise DataError("data: the file's header makes no sense; it was not made by this library.")
    return header
