"""Chunks of files: any rows of a Parquet file, and the same chunks from every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from rosenblatt.core.errors import DataError
from rosenblatt.data import read_table, write_table
from rosenblatt.data.chunks import ParquetRows, file_chunks, row_chunks

VALUES = np.random.default_rng(0).normal(size=(50_003, 3))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Row groups of unlike sizes, one of them empty, batches across their ends."""
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    with pa_parquet.ParquetWriter(path, pa.schema([(name, pa.float64()) for name in "abc"])) as writer:
        for start, stop in ((0, 7), (7, 7), (7, 20_000), (20_000, 20_001), (20_001, 50_003)):
            writer.write_table(pa.table({name: VALUES[start:stop, i] for i, name in enumerate("abc")}))
    return path


def test_any_rows_in_any_order(table: Path) -> None:
    draw = np.random.default_rng(1)
    with ParquetRows(table, columns=["c", "a"]) as source:
        assert (source.rows, source.columns) == (50_003, ("c", "a"))
        for _ in range(60):
            first = int(draw.integers(0, 50_003))
            count = int(draw.integers(0, min(40_000, 50_003 - first) + 1))
            np.testing.assert_array_equal(source.read(first, count), VALUES[first : first + count][:, [2, 0]])


def test_ascending_calls_decode_nothing_twice(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rosenblatt.data import chunks

    decoded = []
    to_numpy = chunks.to_numpy
    monkeypatch.setattr(chunks, "to_numpy", lambda batch: (decoded.append(batch.num_rows), to_numpy(batch))[1])
    with ParquetRows(table) as source:
        for first in range(0, 50_000, 1000):
            source.read(first, 500)
    assert sum(decoded) <= 50_003


def test_rows_that_are_not_there_are_refused(table: Path, tmp_path: Path) -> None:
    with ParquetRows(table) as source:
        for first, count in ((50_003, 1), (-1, 2), (0, 50_004)):
            with pytest.raises(DataError, match="has 50003"):
                source.read(first, count)
    broken = tmp_path / "t.parquet"
    broken.write_bytes(table.read_bytes()[:-50])
    with pytest.raises(DataError, match="damaged or foreign"):
        ParquetRows(broken)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npy", ".npz"])
def test_every_format_has_the_same_chunks(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    if suffix == ".npy":
        np.save(path, VALUES[:1005])
    elif suffix == ".npz":
        np.savez(path, VALUES[:1005])
    else:
        write_table(path, ("a", "b", "c"), VALUES[:1005])
    names, chunks = file_chunks(path, 100)
    expected = list(row_chunks(1005, 100))
    for chunk, plain in zip(chunks, expected, strict=True):
        assert chunk[:3] == plain[:3]
        assert (chunk.values is None) == (suffix == ".parquet")
        if chunk.values is not None:
            np.testing.assert_array_equal(chunk.values, VALUES[chunk.first : chunk.first + chunk.rows])
    assert len(names) == 3


def test_columns_are_chosen_and_mistakes_are_told_at_once(tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv"):
        path = tmp_path / f"t{suffix}"
        write_table(path, ("a", "b", "c"), VALUES[:10])
        assert file_chunks(path, 4, columns=["c", "a"])[0] == ("c", "a")
        with pytest.raises(DataError, match="'d'"):
            file_chunks(path, 4, columns=["d"])
        with pytest.raises(DataError, match="no such file"):
            file_chunks(tmp_path / f"none{suffix}", 4)
    with pytest.raises(DataError, match="suffix"):
        file_chunks(tmp_path / "t.txt", 4)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for suffix in (".parquet", ".csv"):
        write_table(tmp_path / f"t{suffix}", ("a", "b"), VALUES[:0, :2])
        names, chunks = file_chunks(tmp_path / f"t{suffix}", 4)
        assert names == ("a", "b")
        assert sum(chunk.rows for chunk in chunks) == 0


def test_a_file_put_together_elsewhere_appears_whole(tmp_path: Path) -> None:
    place = tmp_path / "parts"
    place.mkdir()

    def chunks():
        assert (place / "joined").exists()
        yield VALUES[:5]
        assert not (tmp_path / "t.csv").exists()
        yield VALUES[5:9]

    write_table(tmp_path / "t.csv", ("a", "b", "c"), chunks(), unfinished=place / "joined")
    np.testing.assert_array_equal(read_table(tmp_path / "t.csv")[1], VALUES[:9])
    assert not list(place.iterdir())
