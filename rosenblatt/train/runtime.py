"""Where training runs: device, precision and the backward pass."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rosenblatt.core.errors import OptionError
from rosenblatt.core.types import Batch
from rosenblatt.train.processes import Processes


class Runtime(Protocol):
    """What the fitter asks of the machine."""

    device: torch.device
    processes: Processes

    def place(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Move `model` to the device and dtype, in place."""

    def to(self, batch: Batch, dtype: torch.dtype) -> Batch:
        """Move `batch` to the device and dtype."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Enter mixed precision for a forward pass."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`."""


class LocalRuntime:
    """One device, alone or as one of several `processes`; raises `OptionError` when the device is not there."""

    def __init__(self, device: str = "auto", *, amp: bool = False, processes: Processes | None = None) -> None:
        self.processes = Processes() if processes is None else processes
        device = self.processes.device(device)
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise OptionError(f'device: \'{device}\' is not available on this machine; use "auto" or "cpu".') from None
        if amp and not _has_bfloat16_units(self.device):
            raise OptionError(f"amp: '{self.device}' has no units for bfloat16 here; switch amp off, or use CUDA.")
        self.amp = amp

    def place(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Move `model` to the device and dtype, in place."""
        model.to(device=self.device, dtype=dtype)

    def to(self, batch: Batch, dtype: torch.dtype) -> Batch:
        """Move `batch` to the device and dtype."""
        device = self.device
        return Batch._make(None if part is None else part.to(device, dtype, non_blocking=True) for part in batch)

    def autocast(self) -> AbstractContextManager[Any]:
        """Enter bfloat16 where `amp` is on."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.amp else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`."""
        torch.autograd.backward(loss)


def _has_bfloat16_units(device: torch.device) -> bool:
    if device.type != "cpu":
        return device.type == "cuda"
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def seeded_generator(*words: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator whose stream depends on all `words`, so that (seed, epoch) pairs never share one."""
    generator = torch.Generator(device=device)
    generator.manual_seed(mixed(*words))
    return generator


def mixed(*words: int) -> int:
    """A seed that depends on all `words`."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


@contextmanager
def isolated(device: torch.device, seed: int, threads: int | None) -> Iterator[None]:
    """Give training its own global random stream and thread count, and the caller's back afterwards."""
    cuda = device.type == "cuda"
    threads_before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # torch.manual_seed would also reseed devices that fork_rng does not restore.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            if threads is not None:
                torch.set_num_threads(threads_before)


class Interrupt:
    """Notes SIGINT or SIGTERM so that the step under way can finish; a second one acts as usual.

    Except among `several` processes: their launcher repeats the signal, and ends those that go on for too long.
    """

    def __init__(self, *, several: bool = False) -> None:
        self.signal: int | None = None
        self._several = several
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        """Take the signals over, in the main thread only (elsewhere Python does not allow it)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the previous handlers back."""
        self._restore()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        if not self._several:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
