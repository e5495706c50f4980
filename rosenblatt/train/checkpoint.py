"""Run folders: checkpoints that survive kill -9, a full disk and damage, without pickle.

run/config.json        schema, library version and what the caller needs to build the model again
run/step-00012000/     model.safetensors, train.safetensors, state.json, MANIFEST.json (SHA-256, sizes)
run/latest, run/best   step numbers for people and scripts; the manifests are what counts
run/metrics.jsonl      one record per validation
run/lock               held by the writer
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rosenblatt._version import __version__
from rosenblatt.core.errors import CheckpointError, OptionError
from rosenblatt.train import storage

SCHEMA = 2  # raised when a stored weight gets another meaning
MODEL, TRAIN, STATE, MANIFEST = "model.safetensors", "train.safetensors", "state.json", "MANIFEST.json"
Which = Literal["latest", "best"] | int


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint: weights to use, tensors to train on with, and plain state."""

    step: int
    model: dict[str, Tensor]
    train: dict[str, Tensor]
    state: dict[str, Any]


class RunFolder:
    """A folder with the config, the checkpoints and the metrics of one training run.

    Make one with `create` or `open`. Every failure to read or write is a `CheckpointError`.
    """

    def __init__(self, path: Path, config: dict[str, Any], config_hash: str) -> None:
        self.path = path
        self.config = config
        self._config_hash = config_hash
        self._lock = storage.FolderLock(path / "lock")
        self._depth = 0

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], *, overwrite: bool = False) -> RunFolder:
        """Make a run folder holding `config` (JSON values).

        Raises `CheckpointError` when `path` is not empty; `overwrite` allows to replace an earlier run, but
        no other folder, and leaves files alone that are not a run's own.
        """
        path = Path(path)
        try:
            data = storage.to_json({"schema": SCHEMA, "library": __version__, "config": dict(config)})
        except (TypeError, ValueError) as error:
            raise OptionError(f"config: {error}; only finite numbers, text, lists and booleans.") from None
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, dict(config), storage.sha256(data))
            if any(path.iterdir()):
                if not (path / "config.json").is_file():
                    raise CheckpointError(f"{path}: not empty and not a run folder; choose another folder.")
                if not overwrite:
                    raise CheckpointError(f"{path}: holds a run already; resume it, overwrite it or choose another.")
            with run.writing():
                run._forget(lambda step: True)
                (path / "metrics.jsonl").unlink(missing_ok=True)
                storage.replace_bytes(path / "config.json", data)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot make a run folder here ({error.strerror}).") from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run folder."""
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path}: there is no such run folder; check the path.")
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path}: has no config.json, so it is not a run folder; check the path.")
        data = storage.read_bytes(path / "config.json", limit=storage.JSON_LIMIT)
        config = storage.read_json(data, path / "config.json")
        if config.get("schema") != SCHEMA or not isinstance(config.get("config"), dict):
            raise CheckpointError(
                f"{path / 'config.json'}: schema {config.get('schema')!r} came, {SCHEMA} was expected; "
                "open it with the version of the library that wrote it."
            )
        run = cls(path, config["config"], storage.sha256(data))
        newest = run._newest_manifest()
        if newest is not None and newest.get("config") != run._config_hash:
            raise CheckpointError(
                f"{path / 'config.json'}: changed since checkpoint {newest['step']}; restore it from a copy."
            )
        return run

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder's lock; a second writer is refused, a dead writer's leftovers are removed."""
        if self._depth == 0:
            try:
                self._lock.acquire()
                storage.remove_leftovers(self.path)
            except OSError as error:
                self._lock.release()
                raise CheckpointError(f"{self.path}: cannot be written to ({error.strerror}).") from None
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._lock.release()

    def steps(self) -> list[int]:
        """Steps of the checkpoints here, oldest first."""
        found = (re.fullmatch(r"step-(\d{8,12})", path.name) for path in self.path.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def save(
        self,
        step: int,
        model: Mapping[str, Tensor],
        train: Mapping[str, Tensor],
        state: Mapping[str, Any],
        *,
        best: bool,
        keep_last: int = 3,
        keep: Collection[int] = (),
    ) -> None:
        """Write checkpoint `step` in one step, then drop all but the best, the last `keep_last` and those to `keep`.

        Raises `CheckpointError` when the disk is full or read-only; earlier checkpoints are then intact.
        """
        with self.writing():
            best_step = step if best else self._best_step()
            files = {
                MODEL: storage.encode_tensors(model),
                TRAIN: storage.encode_tensors(train),
                STATE: storage.to_json(state),
            }
            files[MANIFEST] = self._manifest(step, best_step, files)
            try:
                storage.write_folder(self._folder(step), files)
                self._point(step, best_step)
                kept = {*self.steps()[-keep_last:], *keep, best_step}
                self._forget(lambda s: s not in kept)
            except OSError as error:
                raise CheckpointError(self._write_failure(f"checkpoint {step}", error)) from None

    def load(self, which: Which = "best") -> Checkpoint:
        """Load and verify a checkpoint: "best", "latest" or a step number.

        A damaged latest checkpoint is passed over for the one before, with a warning.
        """
        if which == "latest":
            step = self._newest_sound()
        elif which == "best":
            best_step = self._best_step()
            step = self._newest_sound() if best_step is None else best_step
        else:
            step = which
        files = self._verified(step)
        folder = self._folder(step)
        model = storage.decode_tensors(files[MODEL], folder / MODEL)
        for name, tensor in model.items():
            if torch.isnan(tensor).any():
                raise CheckpointError(f"{folder / MODEL}: '{name}' holds NaN; use an earlier checkpoint.")
        train = storage.decode_tensors(files[TRAIN], folder / TRAIN)
        return Checkpoint(step, model, train, storage.read_json(files[STATE], folder / STATE))

    def load_model_into(self, module: nn.Module, which: Which = "best") -> Checkpoint:
        """Put the weights of a checkpoint into `module`, whose names, shapes and dtypes must be the same."""
        checkpoint = self.load(which)
        where = self._folder(checkpoint.step) / MODEL
        found = {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in checkpoint.model.items()}
        _compare(found, module, where)
        for name, _ in module.named_parameters():
            if not torch.isfinite(checkpoint.model[name]).all():
                raise CheckpointError(f"{where}: weight '{name}' is not finite; use an earlier checkpoint.")
        module.load_state_dict(checkpoint.model, strict=True)
        return checkpoint

    def check_model(self, module: nn.Module, which: Which = "best") -> None:
        """Compare `module`, which may be on meta, with a checkpoint by the head of its file alone."""
        best_step = self._best_step() if which == "best" else None
        step = which if isinstance(which, int) else best_step
        if step is None:
            step = self._newest_sound()
        where = self._folder(step) / MODEL
        _compare(storage.tensor_header(storage.read_head(where), where), module, where)

    def digest(self) -> str:
        """SHA-256 of the config and of the weights that `load` gives by default, to say which model made something."""
        best_step = self._best_step()
        listed = self._read_manifest(self._newest_sound() if best_step is None else best_step)["files"]
        return storage.sha256(f"{self._config_hash} {listed[MODEL]['sha256']}".encode())

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one record to metrics.jsonl."""
        with self.writing():
            try:
                with open(self.path / "metrics.jsonl", "ab") as file:
                    file.write(storage.to_json(record))
            except OSError as error:
                raise CheckpointError(self._write_failure("metrics.jsonl", error)) from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read all records; a last line cut short by a kill is passed over."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = storage.read_bytes(path).split(b"\n")[:-1]
        return [storage.read_json(line, path) for line in lines]

    def forget_metrics(self) -> None:
        """Remove all records."""
        with self.writing():
            try:
                (self.path / "metrics.jsonl").unlink(missing_ok=True)
            except OSError as error:
                raise CheckpointError(self._write_failure("metrics.jsonl", error)) from None

    def rewind(self, step: int) -> None:
        """Forget every checkpoint and metric after `step`, so that training can go on from there."""
        with self.writing():
            try:
                self._forget(lambda s: s > step)
                if (self.path / "metrics.jsonl").exists():
                    kept = [record for record in self.read_metrics() if record.get("step", 0) <= step]
                    storage.replace_bytes(self.path / "metrics.jsonl", b"".join(map(storage.to_json, kept)))
                if step in self.steps():
                    self._point(step, self._best_step())
            except OSError as error:
                raise CheckpointError(self._write_failure("the run folder", error)) from None

    def _folder(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _point(self, latest: int, best: int | None) -> None:
        # Not forced to the disk: nothing is read from these files.
        for name, step in (("latest", latest), ("best", best)):
            if step is not None:
                storage.replace_bytes(self.path / name, f"{step}\n".encode(), sync=False)

    def _forget(self, doomed: Callable[[int], bool]) -> None:
        for step in self.steps():
            if doomed(step):
                storage.remove_path(self._folder(step))
        if not self.steps():
            for name in ("latest", "best"):
                (self.path / name).unlink(missing_ok=True)

    def _write_failure(self, what: str, error: OSError) -> str:
        steps = self.steps()
        intact = f"the last good checkpoint, step {steps[-1]}, is intact" if steps else "there is no checkpoint yet"
        return f"{self.path}: cannot write {what} ({error.strerror}); {intact}; free space or allow writing."

    def _manifest(self, step: int, best: int | None, files: Mapping[str, bytes]) -> bytes:
        listed = {name: {"sha256": storage.sha256(data), "size": len(data)} for name, data in files.items()}
        manifest = {
            "schema": SCHEMA,
            "step": step,
            "best": best,
            "config": self._config_hash,
            "files": listed,
        }
        return _sealed(manifest)

    def _read_manifest(self, step: int) -> dict[str, Any]:
        path = self._folder(step) / MANIFEST
        data = storage.read_bytes(path, limit=storage.JSON_LIMIT)
        manifest = storage.read_json(data, path)
        manifest.pop("digest", None)
        try:
            sound = data == _sealed(manifest)
        except ValueError:
            sound = False
        if not sound:
            raise CheckpointError(f"{path}: damaged; restore it from a copy or use an earlier checkpoint.")
        best = manifest.get("best")
        if manifest.get("schema") != SCHEMA or manifest.get("step") != step or not isinstance(best, int | None):
            raise CheckpointError(f"{path}: belongs to another checkpoint or version; restore it from a copy.")
        return manifest

    def _verified(self, step: int) -> dict[str, bytes]:
        listed = dict(self._read_manifest(step)["files"])
        files = {}
        for name in (MODEL, TRAIN, STATE):
            path = self._folder(step) / name
            files[name] = storage.read_bytes(path)
            if {"sha256": storage.sha256(files[name]), "size": len(files[name])} != listed.get(name):
                raise CheckpointError(f"{path}: damaged (SHA-256 differs); use an earlier checkpoint.")
        return files

    def _newest_sound(self) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.path}: has no checkpoint yet; fit the model first.")
        for step in reversed(steps):
            try:
                self._verified(step)
            except CheckpointError as error:
                reason = error
                warnings.warn(f"{reason} Falling back to the checkpoint before step {step}.", stacklevel=3)
            else:
                return step
        raise CheckpointError(f"{self.path}: no checkpoint is sound; the oldest: {reason}")

    def _newest_manifest(self) -> dict[str, Any] | None:
        for step in reversed(self.steps()):
            try:
                return self._read_manifest(step)
            except CheckpointError:
                continue
        return None

    def _best_step(self) -> int | None:
        manifest = self._newest_manifest()
        best: int | None = None if manifest is None else manifest["best"]
        return best if best is not None and self._folder(best).is_dir() else None


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    return storage.to_json({**manifest, "digest": storage.sha256(storage.to_json(manifest))})


def _compare(found: Mapping[str, tuple[str, tuple[int, ...]]], module: nn.Module, where: Path) -> None:
    expected = {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in module.state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{where}: tensor '{name}' is {_describe(found.get(name))} in the file and "
                f"{_describe(expected.get(name))} in the model; build the model with the run's own config."
            )


def _describe(entry: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if entry is None else f"{entry[0]} {list(entry[1])}"
