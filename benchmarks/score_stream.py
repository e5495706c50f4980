"""Score a Parquet table larger than memory should need: rows per second, memory of all processes, cores kept busy.

    python -m benchmarks.score_stream                      # 10 million rows; add --rows 300000 1000000 to try it small

The table is the bundled power set drawn with replacement, each value moved by a thousandth of its column's deviation.
The model is the default one, fitted to the bundled set for a minute (--fit-seconds). Each table is scored by a fresh
`rosenblatt score`, whose processes are watched from outside (Linux). Written to benchmarks/results/score_stream.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pa_parquet
import torch

from rosenblatt.data import power, write_table

RESULTS = Path(__file__).resolve().parent / "results" / "score_stream.json"
CHUNK = 100_000
JITTER = 1e-3  # of the standard deviation of a column
MINUTES = 1440.0


def main(arguments: list[str]) -> None:
    """Make the tables, fit, score, and write down what it took."""
    options = parse(arguments)
    folder = Path(tempfile.mkdtemp(prefix="score-stream-", dir=options.folder))
    try:
        run = folder / "run"
        fit = ["fit", "--out", str(run), "--time-limit", str(options.fit_seconds), "--no-plots", "--samples", "0"]
        subprocess.run([sys.executable, "-m", "rosenblatt", *fit], check=True)
        tables = [measure(folder, run, rows, options) for rows in options.rows]
    finally:
        shutil.rmtree(folder)
    result = {
        "command": "python -m benchmarks.score_stream",
        "fit_seconds": options.fit_seconds,
        "tables": tables,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "architecture": platform.machine()},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {RESULTS}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score_stream", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000], help="rows of each table")
    parser.add_argument("--processes", type=int, default=None, help="as in `rosenblatt score`")
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    parser.add_argument("--fit-seconds", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=None, help="where some 100 bytes a row find room for a while")
    return parser.parse_args(arguments)


def power_like(rows: int) -> Iterator[np.ndarray]:
    """Rows of the bundled set, drawn with replacement and moved a little, in chunks."""
    values = power().values.numpy()
    moved = JITTER * values.std(axis=0)
    draw = np.random.default_rng(0)
    for first in range(0, rows, CHUNK):
        count = min(CHUNK, rows - first)
        chunk = values[draw.integers(len(values), size=count)] + moved * draw.normal(size=(count, values.shape[1]))
        chunk[:, -1] %= MINUTES  # the minute of the day has ends
        yield chunk


def measure(folder: Path, run: Path, rows: int, options: argparse.Namespace) -> dict[str, object]:
    """Score one table in a process of its own and watch it."""
    table, out = folder / "table.parquet", folder / "scores.parquet"
    write_table(table, power().columns, power_like(rows))
    words = [sys.executable, "-m", "rosenblatt", "score", str(run), str(table), "--out", str(out)]
    words += ["--dtype", options.dtype]
    if options.processes is not None:
        words += ["--processes", str(options.processes)]
    before, started = cpu_seconds(), time.monotonic()
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        watch = Watch(process.pid)
        said = process.stderr.read().splitlines()
        if process.wait():
            raise SystemExit("\n".join(said))
        watch.stop()
    seconds, cpu = time.monotonic() - started, cpu_seconds() - before
    scores = pa_parquet.ParquetFile(out)
    log_density = np.concatenate([batch.column(0).to_numpy() for batch in scores.iter_batches(columns=["log_density"])])
    if len(log_density) != rows:
        raise SystemExit(f"{len(log_density)} scores came for {rows} rows")
    result = {
        "rows": rows,
        "columns": len(power().columns),
        "table_bytes": table.stat().st_size,
        "dtype": options.dtype,
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "cpu_seconds": cpu,
        "cores_busy": cpu / seconds,
        "workers": watch.workers,
        "peak_memory_bytes": watch.resident,
        "peak_memory_bytes_shared_pages_once": watch.proportional,
        "mean_log_density": float(log_density.mean()),
        "said": said[-1],
    }
    print(json.dumps(result), flush=True)
    table.unlink()
    out.unlink()
    return result


def cpu_seconds() -> float:
    """Processor time of all child processes that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Watch:
    """Looks at a process and its descendants: their memory at the peak, in bytes, and the number of workers.

    `resident` counts pages that processes share (the libraries) once for each and is looked at ten times a second,
    `proportional` counts them once in all; that is costly to ask, so only every other second.
    """

    def __init__(self, pid: int) -> None:
        self.resident = self.proportional = self.workers = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        for number in itertools.count():
            if self._over.wait(0.1):
                return
            tree = descent(self._pid)
            self.resident = max(self.resident, sum(map(resident_bytes, tree)))
            if number % 20 == 19:
                self.proportional = max(self.proportional, sum(map(proportional_bytes, tree)))
                self.workers = max(self.workers, sum("multiprocessing.spawn" in read(pid, "cmdline") for pid in tree))


def read(pid: int, name: str) -> str:
    """A file that the system keeps about a process; empty when the process has gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def descent(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        tasks = [task.name for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
    children = [int(word) for task in tasks for word in read(pid, f"task/{task}/children").split()]
    return [pid, *(below for child in children for below in descent(child))]


def resident_bytes(pid: int) -> int:
    """Memory of a process, shared pages included."""
    words = read(pid, "statm").split()
    return int(words[1]) * resource.getpagesize() if words else 0


def proportional_bytes(pid: int) -> int:
    """Memory of a process, with its share of the pages that it shares."""
    lines = [line.split() for line in read(pid, "smaps_rollup").splitlines() if line.startswith("Pss:")]
    return 1024 * int(lines[0][1]) if lines else 0


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main(sys.argv[1:])
