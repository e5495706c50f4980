"""Training on several devices: one process for each, which together take the steps that one would take.

Every process holds all rows and the whole model. Of each batch it computes its share; losses are divided by the size of
the whole batch and gradients are added up, so that a step is that of one process on the whole batch but for rounding.
What a step draws at random (dropout, noise) differs, for every process has a stream of its own, and so do layers that
look at the rows beside a row (batch normalisation), which see those of their own process. The first process alone
writes checkpoints, metrics and logs, and decides when time is up.

Processes are started by PyTorch's own launcher, here two of them, on two GPUs where there are GPUs:

    torchrun --nproc-per-node 2 -m rosenblatt fit table.parquet --out run

and in Python by a script that torchrun starts the same way:

    with joined() as processes:
        run = RunFolder.create("run", {}) if processes.first else None
        Fitter(config, runtime=LocalRuntime(processes=processes)).fit(model, data, run=run)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from rosenblatt.core.errors import OptionError, ProcessLost
from rosenblatt.core.types import Batch

TIMEOUT = 600.0  # seconds: longer than any process computes between two words with the others


class Processes:
    """This process alone: nobody to share with.

    `rank` is its number, from 0, `count` how many there are, `place` its number on its own machine.

    >>> alone = Processes()
    >>> alone.first, alone.largest([3.0, 1.0])
    (True, [3.0, 1.0])
    """

    rank, count, place = 0, 1, 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device that this process computes on where `name` was asked for; "auto" is CUDA where there is one."""
        return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name

    def share(self, batch: Batch) -> Batch:
        """The rows of `batch` that fall to this process, perhaps none; every row falls to one process."""
        return batch

    def add_up(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all processes, which is the same everywhere to the bit."""
        return tensor

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over all processes."""
        return list(values)

    def of_first(self, data: bytes) -> bytes:
        """What the first process called this with."""
        return data

    def of_each(self, tensor: Tensor) -> list[Tensor]:
        """What each process called this with: CPU tensors of one shape and dtype."""
        return [tensor]


class JoinedProcesses(Processes):
    """All processes of torch's default group; raises `ProcessLost` when another one fails or does not answer."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.place = int(os.environ.get("LOCAL_RANK", self.rank))

    def device(self, name: str) -> str:
        """One GPU each for "cuda", or "auto" where there are GPUs; raises `OptionError` for one GPU by its number."""
        name = super().device(name)
        if name.startswith("cuda:"):
            raise OptionError(
                f"device: '{name}' came for {self.count} processes; use \"cuda\", which gives each its own."
            )
        return f"cuda:{self.place}" if name == "cuda" else name

    def share(self, batch: Batch) -> Batch:
        """A stretch of the batch, as long as the others' or one row apart."""
        rows = len(batch.x)
        own = slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)
        return Batch._make(None if part is None else part[own] for part in batch)

    def add_up(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all processes."""
        with self._answering():
            dist.all_reduce(tensor)
        return tensor

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over all processes."""
        found = torch.tensor(list(values), dtype=torch.float64)
        with self._answering():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found.tolist()

    def of_first(self, data: bytes) -> bytes:
        """What the first process called this with."""
        size = torch.tensor([len(data)])
        with self._answering():
            dist.broadcast(size, src=0)
            whole = bytearray(data) if self.first else bytearray(int(size))
            sent = torch.frombuffer(whole, dtype=torch.uint8)
            dist.broadcast(sent, src=0)
        return bytes(whole)

    def of_each(self, tensor: Tensor) -> list[Tensor]:
        """What each process called this with."""
        found = [torch.empty_like(tensor) for _ in range(self.count)]
        with self._answering():
            dist.all_gather(found, tensor)
        return found

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ProcessLost(
                f"process {self.rank} of {self.count} (from 0) lost the others: one failed, which says why itself, or "
                f"did not answer in time ({' '.join(str(error).split())[:120]}); resume from the last checkpoint."
            ) from error


def launched() -> bool:
    """Whether torchrun started this process with others, or torch's process group says so already."""
    if not dist.is_available():
        return False
    return dist.is_initialized() or (dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1)


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[Processes]:
    """Join the processes that torchrun started; a process that was started by hand stays alone.

    A process that waits for another for more than `timeout` seconds raises `ProcessLost`. A process group that the
    caller has made is used and left as it is.

    >>> with joined() as processes:
    ...     processes.count
    1
    """
    if not launched():
        yield Processes()
        return
    made = not dist.is_initialized()
    if made:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    processes = JoinedProcesses()
    try:
        # Without this, page-locked memory would take a bit of the first GPU for every process.
        with torch.cuda.device(processes.place if processes.place < torch.cuda.device_count() else -1):
            yield processes
    finally:
        if made:
            dist.destroy_process_group()
