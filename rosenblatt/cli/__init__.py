"""The command line `rosenblatt`: fit, score, sample, quantiles, forecast, plot, audit, info, models, and
compress, decompress for images.

Every failure is one sentence on standard error and exit code 2; `--debug` adds the traceback. `audit` exits
with 1 when a check fails, an interrupted `fit` with 130 (Ctrl-C) or 143 (SIGTERM).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any

from rosenblatt._version import __version__
from rosenblatt.core.errors import OptionError, RosenblattError

# Command: module that holds `run`, and what it does. Modules are imported on use, so that help is quick.
COMMANDS = {
    "fit": ("rosenblatt.cli.fit", "fit a density to a table or to images (the bundled one by default)"),
    "score": ("rosenblatt.cli.score", "log-density and p-values of the rows of a table"),
    "sample": ("rosenblatt.cli.sample", "draw new rows"),
    "quantiles": ("rosenblatt.cli.quantiles", "quantiles of targets given rows"),
    "forecast": ("rosenblatt.cli.forecast", "learn from a table with a time column, and forecast"),
    "compress": ("rosenblatt.cli.archive", "images into a file as long as their likelihood says"),
    "decompress": ("rosenblatt.cli.archive", "images out of such a file, bit for bit"),
    "plot": ("rosenblatt.cli.inspect", "data against samples, calibration and training, as PNG"),
    "audit": ("rosenblatt.cli.inspect", "check that the numbers of a run can be believed"),
    "info": ("rosenblatt.cli.inspect", "what a run folder holds"),
    "models": ("rosenblatt.cli.inspect", "every model, in one line, with its citation"),
}
FAILED = 2
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is without the program's name."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with _sigterm_as_exit(), _plain_warnings():
            code = _dispatch(words)
            sys.stdout.flush()
            return code
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            traceback.print_exc()
        return _explain(error)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else FAILED
    if words[0] in ("-V", "--version"):
        print(f"rosenblatt {__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise OptionError(
            f"there is no command '{words[0]}'; the commands are {', '.join(COMMANDS)}, see rosenblatt --help."
        )
    if words[0] != "fit" and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        raise OptionError(f"torchrun: starts several processes, '{words[0]}' is made for one; start it by itself.")
    command: int = import_module(COMMANDS[words[0]][0]).run(words[0], words[1:])
    return command


def _usage() -> str:
    lines = [f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: rosenblatt COMMAND [OPTIONS]",
            "",
            "Exact probability densities learned from tables: fit, score, sample, plot, audit.",
            "",
            *lines,
            "",
            "rosenblatt COMMAND --help lists the options of a command; --debug shows tracebacks.",
            "Start with: rosenblatt fit --out run",
        ]
    )


def _explain(error: BaseException) -> int:
    """Say in one sentence on standard error what went wrong, and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    code = FAILED
    if isinstance(error, KeyboardInterrupt):
        code, sentence = INTERRUPTED, "interrupted; nothing half-written was left behind."
    elif isinstance(error, BrokenPipeError):
        _drop_stdout()
        sentence = "the reader of the output closed it before everything was written."
    elif isinstance(error, RosenblattError):
        sentence = str(error)
    elif isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        sentence = f"{place}{error.strerror or error}; check path, rights and free space."
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        sentence = "the memory of this machine is not enough; use a smaller model or fewer rows."
    else:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        sentence = f"unexpected error ({what[:300]}); run again with --debug and report it."
    _say(sentence)
    return code


def _say(sentence: str) -> None:
    with suppress(OSError, ValueError):
        print(f"rosenblatt: {' '.join(sentence.split())}", file=sys.stderr)


def _drop_stdout() -> None:
    """Python flushes standard output once more at exit and would complain a second time."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings as sentences, without the line of code that raised them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C does, so that unfinished files are removed."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
