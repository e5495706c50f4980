"""Finished chunks of a long job in a folder beside its output, so that a killed job goes on where it stopped."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rosenblatt.core.errors import CheckpointError, DataError
from rosenblatt.data.chunks import Chunk
from rosenblatt.train import storage

FACTS = "job.json"
UNFINISHED = "joined"
Floats = npt.NDArray[np.floating[Any]]


class Parts:
    """Chunks as files in `folder`; with `keep` they stay there until the job is finished."""

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self.folder, self.keep = folder, keep
        self.earlier_rows = 0  # of chunks that were there before

    @property
    def unfinished(self) -> Path | None:
        """Where the output is put together."""
        return self.folder / UNFINISHED if self.keep else None

    def done(self) -> int:
        """Number of chunks that are finished."""
        return sum(1 for _ in self.folder.glob("part-*.npy"))

    def has(self, chunk: Chunk) -> bool:
        """Whether the chunk is there from an earlier call, whole; its rows are then counted."""
        path = self._path(chunk)
        try:
            whole = path.exists() and len(np.load(path, mmap_mode="r", allow_pickle=False)) == chunk.rows
        except (ValueError, OSError, EOFError):
            return False
        self.earlier_rows += chunk.rows if whole else 0
        return whole

    def write(self, chunk: Chunk, array: Floats) -> None:
        """Store a chunk, whole or not at all."""
        data = io.BytesIO()
        np.save(data, array, allow_pickle=False)
        try:
            storage.replace_bytes(self._path(chunk), data.getvalue(), sync=self.keep)
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror}); check folder, rights and free space."
            ) from None

    def take(self, chunk: Chunk) -> Floats:
        """Read a chunk, and forget it unless it is to be kept."""
        array: Floats = np.load(self._path(chunk), allow_pickle=False)
        if not self.keep:
            self._path(chunk).unlink()
        return array

    def _path(self, chunk: Chunk) -> Path:
        return self.folder / f"part-{chunk.number:08d}.npy"


@contextmanager
def parts_for(out: Path | None, facts: Callable[[], Mapping[str, Any]]) -> Iterator[Parts]:
    """Parts for the output `out` (None: standard output, of which nothing is kept), emptied at the end.

    Parts left over by a job with the same `facts` are taken up, those of another are dropped. After a failure they stay
    for the next call of the same command. Raises `DataError` where there is no room for them, or while another process
    is at work on them.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="rosenblatt-") as name:
            yield Parts(Path(name), keep=False)
        return
    folder = out.with_name(f"{out.name}.parts")
    parts = Parts(folder, keep=True)
    with _locked(folder):
        _take_up(parts, storage.to_json(facts()))
        try:
            yield parts
        except BaseException:
            if parts.done():
                print(f"rosenblatt: what is done is kept in {folder}; the same command goes on there.", file=sys.stderr)
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = storage.FolderLock(folder / "lock")
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / "lock").exists():
            raise DataError(f"{folder}: parts of the output are kept there, but it holds other files; move them away.")
        folder.mkdir(exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); check folder and rights.") from None
    except CheckpointError:
        raise DataError(f"{folder}: another process is making this output; wait for it or choose another.") from None
    try:
        yield
    finally:
        lock.release()


def _take_up(parts: Parts, facts: bytes) -> None:
    """Keep the parts of the same job; remove everything else that a killed job left."""
    told = parts.folder / FACTS
    same = told.exists() and told.read_bytes() == facts
    if done := parts.done():
        what = "are taken up" if same else "belong to another model, table or option and are dropped"
        print(f"rosenblatt: the {done} parts in {parts.folder} {what}.", file=sys.stderr)
    for path in parts.folder.iterdir():
        if path.name not in (FACTS, "lock") and not (same and path.suffix == ".npy"):
            storage.remove_path(path)
    if not same:
        storage.replace_bytes(told, facts)
