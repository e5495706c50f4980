"""Files that survive a kill or a full disk, and files that can be believed: the bytes under a run folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from rosenblatt.core.errors import CheckpointError

HEADER_LIMIT = 4 << 20  # bytes; a safetensors header takes about a hundred bytes per tensor
JSON_LIMIT = 64 << 20
REPLACED = ".replaced"  # the earlier folder of a name, while its successor moves in
_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def to_json(value: Mapping[str, Any]) -> bytes:
    """Encode canonically: equal values give equal bytes, floats keep every bit; NaN raises ValueError."""
    return (json.dumps(value, sort_keys=True, allow_nan=False) + "\n").encode()


def sha256(data: bytes) -> str:
    """Fingerprint of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Encode tensors as safetensors; each is copied first, since weights may share memory."""
    return safetensors.torch.save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})


def decode_tensors(data: bytes, where: Path) -> dict[str, Tensor]:
    """Decode safetensors; whatever is wrong becomes a `CheckpointError`."""
    tensor_header(data, where)
    try:
        return safetensors.torch.load(data)
    except Exception as error:
        raise CheckpointError(f"{where}: not a readable safetensors file ({error}); restore it from a copy.") from None


def tensor_header(data: bytes, where: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Read dtype name and shape of every tensor in the head of a safetensors file, without making any."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(HEADER_LIMIT, len(data) - 8):
        raise CheckpointError(f"{where}: not a safetensors file (impossible header); restore it from a copy.")
    try:
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        return {
            str(name): (_TORCH_NAMES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]))
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{where}: not a safetensors file (unreadable header); restore it from a copy.") from None


def read_bytes(path: Path, *, limit: int | None = None) -> bytes:
    """Read a file; raises `CheckpointError` when it is missing or longer than `limit` bytes."""
    try:
        size = path.stat().st_size
        if limit is not None and size > limit:
            raise CheckpointError(f"{path}: {size} bytes is too long for such a file; it is not from this library.")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); restore it from a copy.") from None


def read_head(path: Path) -> bytes:
    """Read as much of a safetensors file as its header can take."""
    try:
        with open(path, "rb") as file:
            return file.read(8 + HEADER_LIMIT)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); restore it from a copy.") from None


def read_json(data: bytes, where: Path) -> dict[str, Any]:
    """Decode a JSON object; raises `CheckpointError`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{where}: not readable JSON; restore it from a copy.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: a JSON object was expected, {type(value).__name__} came.")
    return value


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a new file, with `sync` down to the disk."""
    with open(path, "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def replace_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace a file in one step: a reader finds the old bytes or the new ones, never a part."""
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        write_bytes(beside, data, sync=sync)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder `path` with `files` appear in one step; leaves nothing behind on failure."""
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        beside.mkdir()
        for name, data in files.items():
            write_bytes(beside / name, data)
        sync_folder(beside)
        _swap(beside, path)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync_folder(path.parent)


def _swap(beside: Path, path: Path) -> None:
    """Put a finished folder in the place of an earlier one, which is given up last."""
    earlier = path.with_name(path.name + REPLACED)
    if path.exists():
        os.rename(path, earlier)
    try:
        os.rename(beside, path)
    except OSError:
        if earlier.exists():
            os.rename(earlier, path)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed writer left half done; only for the holder of the folder's lock."""
    for path in list(folder.iterdir()):
        if re.fullmatch(r"step-\d{8,12}" + re.escape(REPLACED), path.name):
            good = path.with_name(path.name.removesuffix(REPLACED))
            shutil.rmtree(path) if good.exists() else os.rename(path, good)
        elif re.fullmatch(r"(step-\d{8,12}|latest|best|metrics\.jsonl|config\.json)\.(tmp|old)-\d+", path.name):
            remove_path(path)


def remove_path(path: Path) -> None:
    """Remove a file or a whole folder; a link is removed, not followed."""
    if path.is_dir() and not path.is_symlink():
        # Renamed first, so that a kill in the middle never leaves half a checkpoint under a good name.
        doomed = path if ".tmp-" in path.name else path.with_name(f"{path.name}.old-{os.getpid()}")
        if doomed != path:
            os.rename(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Bring a folder's list of names down to the disk."""
    if sys.platform == "win32":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FolderLock:
    """A lock on a folder that the system lets go of when its process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock; raises `CheckpointError` when another writer holds it."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise CheckpointError(
                f"{self.path.parent}: process {holder} is writing to this run; wait or take another folder."
            ) from None
        self._handle = handle
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let go; the file stays, since removing it would race with the next writer."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
