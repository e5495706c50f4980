"""Chunks of a job done by several processes, one thread each, and handed back in order.

Workers get chunks by number over a pipe and leave their results as parts in a folder. They end when the main process
does, however that ends.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.resource_tracker
import os
import queue
import signal
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import NamedTuple, Protocol

import torch

from rosenblatt.cli.parts import Floats, Parts
from rosenblatt.core.errors import RosenblattError
from rosenblatt.data.chunks import Chunk

CHUNKS_PER_WORKER = 2  # one at work and one waiting
AHEAD = 8  # chunks per worker that may be done before the one that is next in order

Compute = Callable[[Chunk], Floats]


class Job(Protocol):
    """What to do with chunks; sent to each worker once, so it holds paths and options, no arrays."""

    def start(self) -> Compute:
        """Load what is needed and return the function of a chunk."""


class Failure(NamedTuple):
    """An exception on its way from a worker to the main process."""

    kind: str
    text: str
    number: int | None
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Pack an exception."""
        kinds = {"ours": RosenblattError, "memory": MemoryError, "system": OSError}
        kind = next((name for name, base in kinds.items() if isinstance(error, base)), "other")
        text = str(error) if kind == "ours" else f"{type(error).__name__}: {error}"
        return cls(kind, text, getattr(error, "errno", None), traceback.format_exc())

    def error(self) -> Exception:
        """The exception to raise in the main process, the worker's traceback as a note."""
        if self.kind == "ours":
            error: Exception = RosenblattError(self.text)
        elif self.kind == "memory" or "can't allocate memory" in self.text:
            error = MemoryError(self.text)
        elif self.kind == "system":
            error = OSError(self.number, os.strerror(self.number) if self.number else self.text)
        else:
            error = RuntimeError(self.text)
        error.add_note(f"In a worker process:\n{self.trace}")
        return error


def in_order(
    job: Job, compute: Compute, chunks: Iterator[Chunk], *, parts: Parts | None, processes: int
) -> Generator[Floats]:
    """The results of `chunks`, in order: those that `parts` has, and the others as they are done.

    With one process it is this one that works, by `compute`, which must be what `job.start` returns; several need
    `parts`. The results are the same, bit for bit. Raises the first error in the order of the chunks, and
    `RosenblattError` when a worker is killed.
    """
    if processes == 1 or parts is None:
        yield from _alone(compute, chunks, parts)
        return
    with _Workers(job, parts, processes) as workers:
        order: deque[Chunk] = deque()
        while True:
            while workers.want_more(len(order)) and (chunk := next(chunks, None)) is not None:
                if not parts.has(chunk):
                    workers.give(chunk)
                order.append(chunk._replace(values=None))
            if not order:
                return
            if workers.owe(order[0]):
                workers.wait()
            else:
                yield parts.take(order.popleft())


def _alone(compute: Compute, chunks: Iterator[Chunk], parts: Parts | None) -> Iterator[Floats]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker, so that the results are the same
    try:
        for chunk in chunks:
            if parts is not None and parts.has(chunk):
                yield parts.take(chunk)
                continue
            array = compute(chunk)
            if parts is not None and parts.keep:
                parts.write(chunk, array)
            yield array
    finally:
        torch.set_num_threads(threads)


class _Workers:
    """The running processes, and which chunks each of them has."""

    def __init__(self, job: Job, parts: Parts, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
        self._given: dict[Connection, set[int]] = {}
        self._ready: set[Connection] = set()
        self._failures: dict[int, Failure] = {}
        with _interrupts_held_back():  # a worker that is still importing would answer Ctrl-C by a traceback
            for _ in range(processes):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(job, parts, theirs), daemon=True)
                process.start()
                theirs.close()
                self._processes[ours], self._given[ours] = process, set()

    def __enter__(self) -> _Workers:
        try:
            while not self._ready:
                self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes; chunks under way are lost, finished ones are not."""
        for process in self._processes.values():
            process.terminate()
        for connection, process in self._processes.items():
            process.join()
            connection.close()

    def want_more(self, waiting: int) -> bool:
        """Whether to hand out another chunk while `waiting` chunks are not handed back."""
        room = any(len(self._given[worker]) < CHUNKS_PER_WORKER for worker in self._ready)
        return room and waiting < AHEAD * len(self._processes) and not self._failures

    def give(self, chunk: Chunk) -> None:
        """Hand a chunk to the worker that has the fewest."""
        worker = min(self._ready, key=lambda one: len(self._given[one]))
        self._given[worker].add(chunk.number)
        try:
            worker.send(chunk)
        except OSError:
            raise self._death(worker) from None

    def owe(self, chunk: Chunk) -> bool:
        """Whether a chunk that was handed out is not done yet; raises what it failed with."""
        if chunk.number in self._failures:
            raise self._failures[chunk.number].error()
        return any(chunk.number in given for given in self._given.values())

    def wait(self) -> None:
        """Take in what the workers have to say next."""
        for worker in wait(list(self._processes)):
            assert isinstance(worker, Connection)
            try:
                number, failure = worker.recv()
            except (EOFError, OSError):
                raise self._death(worker) from None
            if number is None:
                if failure is not None:
                    raise failure.error()
                self._ready.add(worker)
            else:
                self._given[worker].discard(number)
                if failure is not None:
                    self._failures[number] = failure

    def _death(self, worker: Connection) -> RosenblattError:
        process = self._processes[worker]
        process.join()
        code = process.exitcode or 0
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        memory = ", as the system does when memory runs out" if code == -9 else ""
        return RosenblattError(f"a worker process {how}{memory}; run the command again, with fewer --processes.")


def _work(job: Job, parts: Parts, connection: Connection) -> None:
    """Be a worker: say when the job is loaded, then do chunk after chunk until the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which ends this one
    warnings.simplefilter("ignore")  # the main process loads the same model and says the same
    torch.set_num_threads(1)
    chunks: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, chunks), daemon=True).start()
    failure = None
    try:
        compute = job.start()
    except Exception as error:
        failure = Failure.of(error)
    _send(connection, (None, failure))
    while failure is None:
        chunk = chunks.get()
        problem = None
        try:
            parts.write(chunk, compute(chunk))
        except Exception as error:
            problem = Failure.of(error)
        _send(connection, (chunk.number, problem))


def _receive(connection: Connection, chunks: queue.SimpleQueue[Chunk]) -> None:
    """Take chunks off the pipe while others are computed, so that the main process never waits to send."""
    try:
        while True:
            chunks.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # the main process is gone


def _send(connection: Connection, message: tuple[int | None, Failure | None]) -> None:
    try:
        connection.send(message)
    except OSError:
        os._exit(0)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    multiprocessing.resource_tracker.ensure_running()  # it would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
