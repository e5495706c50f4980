"""Scores and samples of any number of rows: in several processes, killed and taken up again, always the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import COLUMNS, PLAIN, one_sentence, rows, write
from stream_jobs import Squares, misbehave

from rosenblatt.cli import main, sampling, scoring
from rosenblatt.cli.parts import Parts, parts_for
from rosenblatt.cli.workers import Failure, in_order
from rosenblatt.core.errors import DataError, RosenblattError
from rosenblatt.data import read_table
from rosenblatt.data.chunks import Chunk, row_chunks

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("fitted")
    assert main(["fit", write(folder / "rows.csv"), "--out", str(folder / "run"), *PLAIN]) == 0
    return str(folder / "run")


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks small in this process, which tells the others where they begin and end."""
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 100)


def squares(parts: Parts | None, job: Squares, processes: int = 2, chunks: Iterator[Chunk] | None = None) -> list:
    chunks = row_chunks(95, 10) if chunks is None else chunks
    return list(in_order(job, job.compute, chunks, parts=parts, processes=processes))


@pytest.mark.parametrize(("processes", "keep"), [(1, True), (1, False), (3, True), (2, False)])
def test_results_come_in_order_and_parts_are_used_again(tmp_path: Path, processes: int, keep: bool) -> None:
    parts = Parts(tmp_path, keep=keep)
    ready = np.full((10, 1), -1.0)
    parts.write(Chunk(4, 40, 10), ready)
    found = np.concatenate(squares(parts, Squares(what="uneven"), processes))[:, 0]
    expected = np.arange(95.0) ** 2
    expected[40:50] = -1.0
    np.testing.assert_array_equal(found, expected)
    assert parts.earlier_rows == 10
    assert parts.done() == (10 if keep else 0)


def test_no_chunks_give_no_results(tmp_path: Path) -> None:
    assert squares(Parts(tmp_path, keep=True), Squares(), 2, iter(())) == []


@pytest.mark.parametrize("what", ["ours", "killed", "start"])
def test_what_a_worker_meets_is_raised_here(tmp_path: Path, what: str) -> None:
    parts, seen = Parts(tmp_path, keep=True), []
    job = Squares(at=5, what=what)
    said = {"ours": "row 50 is bad; drop it.", "killed": r"SIGKILL.*memory runs out.*fewer", "start": "cannot start"}
    with pytest.raises(RosenblattError, match=said[what]):
        seen.extend(in_order(job, job.compute, row_chunks(95, 10), parts=parts, processes=2))
    if what == "ours":
        assert len(seen) == 5  # all before it, however far the other worker was


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("ours", RosenblattError, "row 50 is bad"),
        ("inverse", RosenblattError, "1 rows are lost"),
        ("system", OSError, "No space left"),
        ("memory", MemoryError, "MemoryError"),
        ("bug", RuntimeError, "KeyError: 'gone'"),
    ],
)
def test_exceptions_survive_the_way_between_processes(what: str, kind: type[Exception], said: str) -> None:
    ours, theirs = multiprocessing.Pipe()
    try:
        misbehave(what, Chunk(5, 50, 10))
    except Exception as error:
        theirs.send(Failure.of(error))
    with pytest.raises(kind, match=said) as raised:
        raise ours.recv().error()
    assert "misbehave" in raised.value.__notes__[0]


def test_parts_of_another_job_are_dropped_and_foreign_files_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, chunk = tmp_path / "scores.csv", Chunk(0, 0, 2)

    def interrupted(facts: dict[str, object], expected: bool) -> None:
        with pytest.raises(KeyboardInterrupt), parts_for(out, lambda: facts) as parts:  # noqa: PT012
            assert parts.has(chunk) is expected
            assert not parts.has(Chunk(0, 0, 3))
            parts.write(chunk, np.zeros((2, 1)))
            raise KeyboardInterrupt

    interrupted({"model": 1}, False)
    assert f"kept in {out}.parts; the same command" in capsys.readouterr().err
    interrupted({"model": 1}, True)
    assert "are taken up" in capsys.readouterr().err
    interrupted({"model": 2}, False)
    assert "another model, table or option" in capsys.readouterr().err
    part = tmp_path / "scores.csv.parts" / "part-00000000.npy"
    part.write_bytes(part.read_bytes()[:-9])
    leftovers = [part.with_name(name) for name in ("part-00000001.npy.tmp-99", "joined")]
    for path in leftovers:
        path.write_bytes(b"cut short by a kill")
    interrupted({"model": 2}, False)
    assert not any(path.exists() for path in leftovers)
    with parts_for(out, lambda: {"model": 2}) as parts, pytest.raises(DataError, match="another process"):  # noqa: SIM117
        with parts_for(out, lambda: {"model": 2}):
            pass
    assert parts.unfinished is not None
    assert not parts.folder.exists()
    parts.folder.mkdir()
    (parts.folder / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"), parts_for(out, dict):
        pass
    assert (parts.folder / "thesis.txt").exists()
    with pytest.raises(DataError, match="cannot be written"), parts_for(tmp_path / "none" / "x.csv", dict):
        pass


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_scores_do_not_depend_on_processes(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, grid = str(tmp_path / "run"), ["--dequantise", "price=0.1"]
    assert main(["fit", write(tmp_path / "rows.csv"), "--out", run, *PLAIN, *grid]) == 0
    table = write(tmp_path / f"t{suffix}", rows(1050, seed=3))
    outputs = []
    for processes in ("1", "2"):
        out = tmp_path / f"{processes}.parquet"
        words = ["--processes", processes, "--out", str(out), "--dequantise", "--dtype", "float32"]
        assert main(["score", run, table, *words]) == 0
        assert "scored 1,050 rows" in capsys.readouterr().err
        assert not Path(f"{out}.parts").exists()
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]
    spread = read_table(tmp_path / "1.parquet")[1]
    assert len(np.unique(spread[:, 3])) > 1000


@pytest.mark.usefixtures("many")
def test_float32_scores_are_those_of_float64_to_rounding(tmp_path: Path, run: str) -> None:
    table = write(tmp_path / "t.parquet", rows(300, seed=3))
    for dtype in ("float64", "float32"):
        assert main(["score", run, table, "--dtype", dtype, "--out", str(tmp_path / f"{dtype}.parquet")]) == 0
    exact, quick = (read_table(tmp_path / f"{dtype}.parquet")[1] for dtype in ("float64", "float32"))
    np.testing.assert_allclose(quick, exact, atol=1e-3)
    assert not np.array_equal(quick, exact)


@pytest.mark.usefixtures("many")
def test_the_first_bad_row_of_the_file_is_named(tmp_path: Path, run: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = rows(1000, seed=3)
    values[870, 1] = values[333, 0] = np.nan
    table, out = write(tmp_path / "t.parquet", values), tmp_path / "scores.parquet"
    words = ["score", run, table, "--processes", "2", "--out", str(out)]
    assert main(words) == 2
    complaints = capsys.readouterr().err.splitlines()
    assert "row 333" in one_sentence(complaints[-1])
    assert "'length'" in complaints[-1]
    assert "kept in" in complaints[0]
    assert not out.exists()
    assert main([*words[:4], "1", *words[5:], "--keep-bad-rows"]) == 0
    said = capsys.readouterr().err
    assert "are taken up" in said
    assert "2 of them without a score" in said
    assert sorted(np.flatnonzero(np.isnan(read_table(out)[1][:, 0]))) == [333, 870]


@pytest.mark.usefixtures("many")
def test_standard_output_is_in_order_too(
    tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    table, out = write(tmp_path / "t.csv", rows(1050, seed=3)), tmp_path / "scores.csv"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert main(["score", run, table, "--processes", "1", "--out", str(out)]) == 0
    capfdbinary.readouterr()
    assert main(["score", run, table, "--processes", "2"]) == 0
    assert capfdbinary.readouterr().out == out.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv", "t.csv"]


def test_samples_do_not_depend_on_processes(tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count, processes in (("one", 45_000, "1"), ("two", 45_000, "2"), ("few", 12_000, "1")):
        words = ["sample", run, "-n", str(count), "--processes", processes, "--out", str(tmp_path / f"{name}.parquet")]
        assert main(words) == 0
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    one, few = (read_table(tmp_path / f"{name}.parquet")[1] for name in ("one", "few"))
    assert one.shape == (45_000, 3)
    assert np.array_equal(one[:12_000], few)
    assert len(np.unique(one, axis=0)) == 45_000  # no chunk repeats another
    assert sampling.CHUNK_ROWS == 10_000


@pytest.mark.parametrize("command", ["score", "sample"])
def test_processes_are_checked(tmp_path: Path, run: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = [write(tmp_path / "t.csv")] if command == "score" else []
    capsys.readouterr()
    assert main([command, run, *table, "--processes", "0"]) == 2
    assert "--processes: 0 came" in capsys.readouterr().err.splitlines()[-1]


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet waited for does not."""
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def streaming(words: list[str], out: Path) -> Iterator[subprocess.Popen[str]]:
    """A command with small chunks in a process group of its own, handed over when two parts are done."""
    program = [sys.executable, str(ROOT / "tests" / "stream_jobs.py"), *words, "--out", str(out), "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        program, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while len(list(Path(f"{out}.parts").glob("part-*.npy"))) < 2:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.002)
            yield process
        finally:
            process.kill()


@POSIX
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_stopped_command_leaves_no_process_and_goes_on(
    tmp_path: Path, run: str, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write(tmp_path / "t.parquet", rows(60_000, seed=3))
    out, whole = tmp_path / "scores.parquet", tmp_path / "whole.parquet"
    with streaming(["score", run, table], out) as process:
        workers = children(process.pid)
        assert len(workers) >= 2
        if how == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.kill()
        said = process.stderr.read()
        assert process.wait(60) == (130 if how == "SIGINT" else -signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, workers))
    assert "Traceback" not in said
    assert ("the same command goes on there" in said) == (how == "SIGINT")
    assert not out.exists()
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 500)
    for path in (out, whole):
        capsys.readouterr()
        assert main(["score", run, table, "--out", str(path), "--processes", "1"]) == 0
        said = capsys.readouterr().err
        assert ("are taken up" in said) == ("by an earlier call" in said) == (path == out)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.parquet", "t.parquet", "whole.parquet"]


def test_columns_of_samples_are_those_of_the_table(tmp_path: Path, run: str) -> None:
    assert main(["sample", run, "-n", "0", "--out", str(tmp_path / "none.csv")]) == 0
    assert read_table(tmp_path / "none.csv")[0] == COLUMNS
