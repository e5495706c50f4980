import errno
import os

import numpy as np
import pandas as pd
import pytest
import torch

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.data import iter_table, read_table, write_table

ARRAY = np.random.default_rng(0).normal(size=(1000, 3)) * [1.0, 1e-9, 1e200]
NAMES = ("a", "b b", 'c"')


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".CSV"])
class TestRoundTrip:
    def test_numbers_come_back_exactly(self, tmp_path, suffix):
        array = ARRAY.copy()
        array[0], array[1, 1] = [np.nan, np.inf, -np.inf], 0.1
        write_table(tmp_path / f"t{suffix}", NAMES, array)
        names, back = read_table(tmp_path / f"t{suffix}")
        assert names == NAMES
        np.testing.assert_array_equal(back, array)
        assert os.listdir(tmp_path) == [f"t{suffix}"]

    def test_chunks_equal_the_whole(self, tmp_path, suffix):
        path = tmp_path / f"t{suffix}"
        write_table(path, NAMES, (torch.tensor(ARRAY[first : first + 300]) for first in range(0, 1000, 300)))
        np.testing.assert_array_equal(read_table(path)[1], ARRAY)
        for rows in (1, 7, 400, 1000, 5000):
            chunks = list(iter_table(path, rows))
            assert [len(chunk) for chunk in chunks[:-1]] == [rows] * (len(chunks) - 1)
            np.testing.assert_array_equal(torch.cat([chunk.values for chunk in chunks]), ARRAY)
            assert {chunk.columns for chunk in chunks} == {NAMES}

    def test_no_rows(self, tmp_path, suffix):
        path = tmp_path / f"t{suffix}"
        write_table(path, NAMES, iter([]))
        assert read_table(path)[1].shape == (0, 3)
        (chunk,) = iter_table(path)
        assert (len(chunk), chunk.columns) == (0, NAMES)

    def test_columns_choose_and_order(self, tmp_path, suffix):
        path = tmp_path / f"t{suffix}"
        write_table(path, NAMES, ARRAY)
        names, back = read_table(path, columns=["b b", "a"])
        assert names == ("b b", "a")
        np.testing.assert_array_equal(back, ARRAY[:, [1, 0]])
        with pytest.raises(DataError, match="no column 'z'"):
            read_table(path, columns=["z"])


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("1,2\n3,4\n", ("x0", "x1"), [[1, 2], [3, 4]]),
        ("5\n1\n", ("x0",), [[5], [1]]),
        ("0,1\n5,6\n", ("0", "1"), [[5, 6]]),
        ("\ufeffa,b\r\n0,6\r\n", ("a", "b"), [[0, 6]]),
        ('"a b";c\n1;2\n', ("a b", "c"), [[1, 2]]),
        ("a, b\n1, 2\n", ("a", "b"), [[1, 2]]),
        ("a,b\nTrue,1\nFalse,2", ("a", "b"), [[1, 1], [0, 2]]),
        ("a,b\n1,\nNA,2\n", ("a", "b"), [[1, np.nan], [np.nan, 2]]),
        ("a,b\n" + "1,2\n" * 300_000 + "1.5,2\n", ("a", "b"), [[1, 2]] * 300_000 + [[1.5, 2]]),
    ],
    ids=["bare", "one", "numbered", "bom", "semicolon", "spaces", "bool", "missing", "late fraction"],
)
def test_dialects_of_csv(tmp_path, text, names, rows):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    found, array = read_table(path)
    assert found == names
    np.testing.assert_array_equal(array, rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "first line is empty"),
        ("t.csv", b"a,b\n1,2\n3\n", "a row of 1 fields stands among rows of 2"),
        ("t.csv", b"a,b\n1,2,3\n", "a row of 3 fields"),
        ("t.csv", b"a,city\n1,Bern\n", "column 'city': .*'Bern'"),
        ("t.csv", b"a,b\n" + b"1,2\n" * 300_000 + b"1,oops\n", "column 2 holds 'oops'"),
        ("t.csv", b"day\n2020-01-01\n", "column 'day': .*2020-01-01"),
        ("t.csv", b",a\n0,6\n", "no name.*index"),
        ("t.csv", b"a,a\n0,6\n", "'a' stands more than once"),
        ("t.csv", b"\xff\xfea,b\n0,6\n", "cannot be read"),
        ("t.parquet", b"junk", "cannot be read as .parquet"),
        ("t.npz", b"junk", "not a NumPy .npz"),
        ("t.npy", b"junk", "cannot be read as .npy"),
        ("t.xlsx", b"junk", "suffix '.xlsx' is unknown"),
    ],
)
def test_broken_files_give_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=message):
        list(iter_table(path, 100))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nope.csv: there is no such file"):
        read_table(tmp_path / "nope.csv")


def test_damage_to_binary_files_is_seen(tmp_path):
    pd.DataFrame(ARRAY, columns=list("abc")).to_parquet(tmp_path / "t.parquet")
    np.savez(tmp_path / "t.npz", ARRAY)
    np.save(tmp_path / "t.npy", ARRAY)
    for name in ("t.parquet", "t.npz", "t.npy"):
        raw = (tmp_path / name).read_bytes()
        for size in (1, 10, 100, len(raw) // 2, len(raw) - 1):
            (tmp_path / name).write_bytes(raw[:size])
            with pytest.raises(DataError, match=name):
                read_table(tmp_path / name)


class TestNumpyFiles:
    def test_one_matrix_or_several_columns(self, tmp_path):
        np.savez(tmp_path / "m.npz", ARRAY)
        np.savez_compressed(tmp_path / "c.npz", p=ARRAY[:, 0], q=np.arange(1000))
        np.save(tmp_path / "m.npy", ARRAY[:, :2].astype("f4"))
        assert read_table(tmp_path / "m.npz")[0] == ("x0", "x1", "x2")
        names, array = read_table(tmp_path / "c.npz")
        assert names == ("p", "q")
        np.testing.assert_array_equal(array, np.column_stack([ARRAY[:, 0], np.arange(1000)]))
        assert [len(chunk) for chunk in iter_table(tmp_path / "m.npy", 600)] == [600, 400]
        np.save(tmp_path / "v.npy", np.empty((0, 2)))
        assert read_table(tmp_path / "v.npy")[1].shape == (0, 2)

    def test_what_is_no_table(self, tmp_path):
        np.savez(tmp_path / "mixed.npz", a=np.ones(3), b=np.ones((3, 2)))
        np.savez(tmp_path / "cube.npz", np.ones((2, 2, 2)))
        np.savez(tmp_path / "none.npz")
        for name in ("mixed", "cube", "none"):
            with pytest.raises(DataError, match="came; one array"):
                read_table(tmp_path / f"{name}.npz")

    def test_objects_are_never_unpickled(self, tmp_path):
        canary = tmp_path / "canary"

        class Hostile:
            def __reduce__(self):
                return canary.touch, ()

        np.savez(tmp_path / "t.npz", a=np.array([Hostile()], dtype=object))
        np.save(tmp_path / "t.npy", np.array([Hostile()], dtype=object))
        for name in ("t.npz", "t.npy"):
            with pytest.raises(DataError, match="Python objects"):
                read_table(tmp_path / name)
        assert not canary.exists()


class TestWrite:
    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        path = tmp_path / "t.csv"
        write_table(path, ["a"], ARRAY[:, :1])
        before = path.read_bytes()

        def failing():
            yield ARRAY[:, :1]
            raise KeyError("source")

        with pytest.raises(KeyError, match="source"):
            write_table(path, ["a"], failing())
        with pytest.raises(DataError, match=r"shape \(1000, 3\) came for 1 columns"):
            write_table(path, ["a"], ARRAY)

        def full(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="No space left"):
            write_table(path, ["a"], ARRAY[:5, :1])
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["t.csv"]

    def test_refusals(self, tmp_path):
        with pytest.raises(DataError, match=r"choose one of these suffixes"):
            write_table(tmp_path / "t.txt", ["a"], ARRAY[:, :1])
        with pytest.raises(DataError, match="cannot be written"):
            write_table(tmp_path / "none" / "t.csv", ["a"], ARRAY[:, :1])
        write_table(tmp_path / "t.csv", ["a"], ARRAY[:, :1])
        with pytest.raises(OptionError, match="rows_per_chunk"):
            next(iter_table(tmp_path / "t.csv", 0))
