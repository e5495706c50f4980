"""What training is made of at one moment: tensors and plain values to put away and take up again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rosenblatt.core.density import Density
from rosenblatt.train import storage
from rosenblatt.train.ema import EMA
from rosenblatt.train.guard import Guard
from rosenblatt.train.processes import Processes
from rosenblatt.train.weights import AdamW, FlatWeights

Stored = tuple[dict[str, Tensor], dict[str, Tensor], int]  # weights for use, what the next step needs, averaged steps


@dataclass
class Progress:
    """Counters and scores of a run; JSON values throughout, None for a score that is not finite yet."""

    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_validation: float | None = None
    anchor: float | None = None  # the score that the next gain is measured from
    waits: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    snapshot_step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def judge(self, score: float | None, min_gain: float) -> bool:
        """Take in a validation score (None: not finite, or not made) and say whether it is the best yet."""
        improved = self.best_validation is None or (score is not None and score > self.best_validation)
        if improved:
            self.best_step, self.best_validation = self.step, score
        if score is not None and (self.anchor is None or score > self.anchor + min_gain):
            self.anchor, self.waits = score, 0
        elif self.anchor is not None:
            self.waits += 1
        return improved

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)


class TrainState:
    """Weights, optimiser and average of a run, packed and unpacked as one; none of the last two for a closed form.

    The weights for use are the averaged ones where there is an average.
    """

    def __init__(self, model: Density, optimizer: AdamW | None, ema: EMA | None) -> None:
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.guard = Guard()
        self.progress = Progress()

    @classmethod
    def fresh(cls, model: Density, *, weight_decay: float, ema_decay: float | None) -> TrainState:
        """The state of a model that no step was taken on, whose trained weights become one vector."""
        weights = FlatWeights([p for p in model.parameters() if p.requires_grad])
        return cls(model, AdamW(weights, weight_decay), None if ema_decay is None else EMA(weights, ema_decay))

    def weights(self) -> dict[str, Tensor]:
        """Copy the weights for use: averaged parameters, present buffers."""
        chosen = {}
        if self.ema is not None:
            flat = self.ema.weights
            pairs = zip(flat.parameters, flat.parts(self.ema.average), strict=True)
            chosen = {id(parameter): average for parameter, average in pairs}
        state = self.model.state_dict(keep_vars=True)
        return {name: chosen.get(id(tensor), tensor).detach().clone() for name, tensor in state.items()}

    def working(self) -> dict[str, Tensor]:
        """Copy what the next step needs besides random streams: raw weights and the optimiser's memory."""
        memory = {} if self.optimizer is None else self.optimizer.memory
        return {
            **{f"weight.{name}": tensor.detach().clone() for name, tensor in self.model.state_dict().items()},
            **{f"optimizer.{name}": tensor.clone() for name, tensor in memory.items()},
        }

    @property
    def ema_updates(self) -> int:
        """How many steps the average holds."""
        return 0 if self.ema is None else self.ema.updates

    def snapshot(self) -> Stored:
        """Copy all that `restore` takes."""
        return self.weights(), self.working(), self.ema_updates

    def restore(self, weights: Mapping[str, Tensor], working: Mapping[str, Tensor], ema_updates: int) -> None:
        """Take up what `weights` and `working` returned."""
        if self.ema is not None:
            self.model.load_state_dict(dict(weights))
            self.ema.average.copy_(self.ema.weights.vector)
            self.ema.updates = ema_updates
        self.model.load_state_dict(_of("weight.", working))
        if self.optimizer is not None:
            self.optimizer.restore(_of("optimizer.", working))

    def release(self) -> None:
        """Give the model's parameters memory of their own, as before training."""
        if self.optimizer is not None:
            self.optimizer.weights.release()


def _of(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@dataclass
class Standing:
    """Where a run stands, for processes that take it up from one another as bytes."""

    now: Stored
    snapshot: Stored
    best: dict[str, Tensor] | None
    streams: dict[str, Tensor]
    guard: Guard
    progress: Progress
    resumed_from: int | None

    def encode(self) -> bytes:
        """Encode as JSON and safetensors."""
        tensors = {f"streams.{name}": tensor for name, tensor in self.streams.items()}
        for place, (weights, working, _) in (("now", self.now), ("snapshot", self.snapshot)):
            tensors |= {f"{place}.use.{name}": tensor for name, tensor in weights.items()}
            tensors |= {f"{place}.work.{name}": tensor for name, tensor in working.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in (self.best or {}).items()}
        plain = {
            "averaged": [self.now[2], self.snapshot[2]],
            "guard": self.guard.to_dict(),
            "progress": self.progress.to_dict(),
            "resumed_from": self.resumed_from,
        }
        head = storage.to_json(plain)
        return len(head).to_bytes(8, "little") + head + storage.encode_tensors(tensors)

    @classmethod
    def decode(cls, data: bytes) -> Standing:
        """Decode what `encode` made."""
        sender = Path("the first process")
        length = int.from_bytes(data[:8], "little")
        plain = storage.read_json(data[8 : 8 + length], sender)
        tensors = storage.decode_tensors(data[8 + length :], sender)
        now, snapshot = plain["averaged"]
        return cls(
            (_of("now.use.", tensors), _of("now.work.", tensors), now),
            (_of("snapshot.use.", tensors), _of("snapshot.work.", tensors), snapshot),
            _of("best.", tensors) or None,
            _of("streams.", tensors),
            Guard.from_dict(plain["guard"]),
            Progress(**plain["progress"]),
            plain["resumed_from"],
        )


def random_streams(device: torch.device, generator: torch.Generator, processes: Processes) -> dict[str, Tensor]:
    """Copy the state of the global streams and of the objective's own, in every process; all must call this."""
    streams = _own_streams(device, generator)
    each = {name: processes.of_each(state) for name, state in streams.items()}
    return {name + _suffix(rank): state for name, states in each.items() for rank, state in enumerate(states)}


def _suffix(rank: int) -> str:
    return f".{rank}" if rank else ""


def _own_streams(device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    streams = {"rng.cpu": torch.get_rng_state(), "rng.objective": generator.get_state()}
    if device.type == "cuda":
        streams["rng.cuda"] = torch.cuda.get_rng_state(device)
    return streams


def set_random_streams(
    tensors: Mapping[str, Tensor], device: torch.device, generator: torch.Generator, rank: int
) -> None:
    """Put back what `random_streams` copied for process `rank`, as far as there is any and this device has it."""
    own = _suffix(rank)
    if f"rng.cpu{own}" not in tensors:
        return
    torch.set_rng_state(tensors[f"rng.cpu{own}"])
    if device.type == "cuda" and f"rng.cuda{own}" in tensors:
        torch.cuda.set_rng_state(tensors[f"rng.cuda{own}"], device)
    state = tensors[f"rng.objective{own}"]
    if state.shape == generator.get_state().shape:  # another kind of device has another kind of stream
        generator.set_state(state)
