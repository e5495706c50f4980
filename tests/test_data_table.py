import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy import stats

from rosenblatt.core.errors import DataError, OptionError
from rosenblatt.core.types import Support
from rosenblatt.data import Table, grid_step


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(rows, features, seed=0):
    return torch.randn(rows, features, generator=generator(seed), dtype=torch.float64)


def named(*columns, rows=200, weight=None):
    """A table of continuous columns a, b, ... with the given ones at the end."""
    extra = [torch.as_tensor(column, dtype=torch.float64) for column in columns]
    rows = len(extra[0]) if extra else rows
    values = torch.column_stack([normal(rows, 2), *extra])
    return Table(values, tuple("abcdefgh"[: values.shape[1]]), weight)


class TestFromAny:
    def test_every_kind_of_source_gives_the_same_numbers(self, tmp_path):
        array = np.column_stack([np.arange(5.0), np.linspace(0, 1, 5)])
        frame = pd.DataFrame(array, columns=["a", "b"])
        frame.to_csv(tmp_path / "t.csv", index=False)
        frame.set_index([[7, 8, 9, 11, 10]]).to_parquet(tmp_path / "t.parquet")
        np.savez(tmp_path / "t.npz", a=array[:, 0], b=array[:, 1])
        expected = Table.from_any(array, columns=("a", "b")).digest()
        sources = [
            frame,
            pl.from_pandas(frame),
            pa.Table.from_pandas(frame),
            {"a": array[:, 0], "b": list(array[:, 1])},
            np.array([tuple(row) for row in array], dtype=[("a", "f8"), ("b", "f8")]),
            tmp_path / "t.csv",
            str(tmp_path / "t.parquet"),
            tmp_path / "t.npz",
            Table(torch.tensor(array), ("a", "b")),
        ]
        assert [Table.from_any(source).digest() for source in sources] == [expected] * len(sources)

    @pytest.mark.parametrize(
        "source",
        [
            np.arange(6).reshape(3, 2),
            np.arange(6.0)[::-1].reshape(3, 2)[::-1, ::-1],
            np.arange(6, dtype=">f4").reshape(3, 2),
            torch.arange(6).reshape(3, 2),
            torch.arange(6.0).reshape(3, 2).to(torch.bfloat16).requires_grad_(),
            [[0, 1], [2, 3], [4, 5]],
        ],
    )
    def test_arrays_get_names_and_the_dtype_asked_for(self, source):
        table = Table.from_any(source, dtype=torch.float32)
        assert table.columns == ("x0", "x1")
        assert table.values.dtype == torch.float32
        assert table.values.tolist() == [[0, 1], [2, 3], [4, 5]]
        assert not table.values.requires_grad

    def test_missing_and_boolean_values(self):
        frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int8"), "b": [True, False]})
        values = Table.from_any(frame).values
        assert values[:, 1].tolist() == [1.0, 0.0]
        assert values[0, 0] == 1.0
        assert math.isnan(values[1, 0])
        masked = np.ma.masked_array([1.0, 2.0], mask=[False, True])
        assert math.isnan(Table.from_any(masked).values[1, 0])

    def test_source_is_neither_shared_nor_changed(self):
        array = np.zeros((3, 2))
        array.flags.writeable = False
        table = Table.from_any(array)
        table.values[0, 0] = 5.0
        assert array[0, 0] == 0.0

    def test_columns_choose_and_order(self):
        frame = pd.DataFrame({"a": [1.0, 2.0], "t": ["x", "y"], "b": [3.0, 4.0]})
        table = Table.from_any(frame, columns=["b", "a"])
        assert table.columns == ("b", "a")
        assert table.values.tolist() == [[3.0, 1.0], [4.0, 2.0]]
        with pytest.raises(DataError, match=r"no column 'z'; the columns are 'a', 't', 'b'"):
            Table.from_any(frame, columns=["z"])

    def test_weight_by_name_is_no_feature(self):
        frame = pd.DataFrame({"a": [1.0, 2.0], "w": [0.0, 4.0]})
        for columns in (None, ["a"], ["a", "w"]):
            table = Table.from_any(frame, columns=columns, weight="w")
            assert table.columns == ("a",)
            assert table.weight.tolist() == [0.0, 4.0]
        assert Table.from_any(frame, weight=frame["w"]).columns == ("a", "w")

    @pytest.mark.parametrize("weight", [[1.0], [1.0, -1.0], [1.0, math.nan], [0.0, 0.0], [[1, 2], [1, 2]]])
    def test_bad_weight(self, weight):
        with pytest.raises(DataError, match="weight"):
            Table.from_any(np.eye(2), weight=weight)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (pd.DataFrame({"city": ["Bern", "Rome"]}), r"column 'city': .*'Bern'"),
            (pl.DataFrame({"city": ["Bern", "Rome"]}), r"column 'city': .*'Bern'"),
            ({"city": ["Bern", "Rome"]}, r"column 'city': .*'Bern'"),
            (pd.DataFrame({"day": pd.date_range("2020", periods=2)}), r"column 'day': .*2020"),
            (np.array([["a"]]), r"table: .*'a'"),
            (np.array([1 + 2j]), "complex"),
            (np.zeros((2, 2, 2)), r"\(2, 2, 2\)"),
            ([[1, 2], [3]], "unequal length"),
            ({"a": [1, 2], "b": [1]}, "column 'b'"),
            (pd.DataFrame([[1, 2]], columns=["a", "a"]), "'a'"),
            (pl.LazyFrame({"a": [1]}), "collect"),
            (None, "numbers were expected"),
        ],
    )
    def test_what_is_not_a_table_of_numbers(self, source, message):
        with pytest.raises(DataError, match=message) as caught:
            Table.from_any(source)
        assert "\n" not in str(caught.value)

    def test_wrong_names_and_dtype(self):
        with pytest.raises(DataError, match="1 names came for 2"):
            Table.from_any(np.eye(2), columns=["a"])
        with pytest.raises(DataError, match="more than once"):
            Table(torch.eye(2), ("a", "a"))
        with pytest.raises(DataError, match="int64"):
            Table(torch.ones(2, 1, dtype=torch.int64), ("a",))
        with pytest.raises(OptionError, match="int32"):
            Table.from_any(np.eye(2), dtype=torch.int32)


class TestRows:
    def test_split_is_disjoint_complete_and_seeded(self):
        table = Table(torch.arange(101.0)[:, None], ("a",), torch.arange(101.0))
        parts = table.split([0.5, 0.3, 0.2], generator())
        assert [len(part) for part in parts] == [50, 31, 20]
        joined = torch.cat([part.values[:, 0] for part in parts])
        assert sorted(joined.tolist()) == list(range(101))
        assert joined.tolist() != list(range(101))
        assert all(torch.equal(part.values[:, 0], part.weight) for part in parts)
        again = table.split([0.5, 0.3, 0.2], generator())
        other = table.split([0.5, 0.3, 0.2], generator(1))
        assert all(torch.equal(a.values, b.values) for a, b in zip(parts, again, strict=True))
        assert not torch.equal(parts[0].values, other[0].values)

    @pytest.mark.parametrize("fractions", [[], [0.5, 0.4], [1.1, -0.1], [0.0, 1.0], [math.nan, 1.0]])
    def test_split_refuses_fractions(self, fractions):
        with pytest.raises(OptionError, match="fractions"):
            named().split(fractions, generator())

    def test_split_refuses_an_empty_part(self):
        with pytest.raises(DataError, match="too few"):
            named(rows=3).split([0.95, 0.05], generator())

    def test_batches_cover_every_row_once_and_resume_exactly(self):
        table = Table(torch.arange(103.0)[:, None], ("a",), torch.arange(103.0))
        whole = list(table.batches(10, generator()))
        assert [len(batch.x) for batch in whole] == [10] * 10 + [3]
        assert sorted(torch.cat([batch.x for batch in whole]).flatten().tolist()) == list(range(103))
        assert all(torch.equal(batch.x[:, 0], batch.weight) for batch in whole)
        for start in (0, 1, 7, 10, 11, 50):
            rest = list(table.batches(10, generator(), start=start))
            assert len(rest) == max(0, 11 - start)
            assert all(torch.equal(a.x, b.x) for a, b in zip(rest, whole[start:], strict=True))

    def test_batches_draw_once_a_pass_from_the_given_generator_only(self):
        table = named()
        state = torch.random.get_rng_state()
        ours = generator()
        first, second = table.batches(50, ours), table.batches(50, ours)
        assert not torch.equal(next(first).x, next(second).x)
        assert torch.equal(state, torch.random.get_rng_state())

    def test_batch_sizes_are_checked(self):
        for size, start in ((0, 0), (5, -1)):
            with pytest.raises(OptionError, match="size"):
                named().batches(size, generator(), start)
        with pytest.raises(OptionError, match="size"):
            next(named().ordered_batches(0))

    def test_ordered_batches_and_rows(self):
        table = Table(torch.arange(7.0)[:, None], ("a",))
        assert [batch.x.flatten().tolist() for batch in table.ordered_batches(3)] == [
            [0, 1, 2],
            [3, 4, 5],
            [6],
        ]
        assert table.rows().x is table.values
        assert table.rows(3).x.flatten().tolist() == [0, 2, 4]
        assert len(table.rows(99).x) == 7
        with pytest.raises(OptionError, match="limit"):
            table.rows(0)

    def test_to_casts_values_and_weight(self):
        table = named(weight=torch.ones(200)).to(torch.float32)
        batch = next(table.batches(5, generator()))
        assert batch.x.dtype == batch.weight.dtype == torch.float32

    def test_select_and_align(self):
        table = named(rows=5)
        assert table.align(("a", "b")) is table
        assert torch.equal(table.select(["b"]).values, table.values[:, 1:])
        with pytest.raises(DataError, match=r"lacks 'c'.*has 'a', which"):
            table.align(("b", "c"))
        with pytest.raises(DataError, match=r"'b' came besides"):
            table.align(("a",))
        with pytest.raises(DataError, match=r"order 'a', 'b' came, the model has 'b', 'a'"):
            table.align(("b", "a"))
        with pytest.raises(DataError, match="no column 'z'"):
            table.select(["z"])

    def test_digest_sees_names_values_shape_dtype_and_weight(self):
        values = torch.arange(4.0).reshape(2, 2)
        tables = [
            Table(values, ("a", "b")),
            Table(values, ("a", "c")),
            Table(values.T, ("a", "b")),
            Table(values.double(), ("a", "b")),
            Table(values, ("a", "b"), torch.ones(2)),
            Table(values.reshape(1, 4), tuple("abcd")),
        ]
        assert len({table.digest() for table in tables}) == len(tables)
        assert tables[2].digest() == Table(values.T.contiguous(), ("a", "b")).digest()


class TestLocationScale:
    def test_equals_numpy_over_several_chunks(self):
        values = normal(150_000, 3) * torch.tensor([1.0, 1e-5, 1e5]) + torch.tensor([0.0, 3.0, -1e6])
        mean, scale = Table(values, tuple("abc")).location_scale()
        np.testing.assert_allclose(mean, values.numpy().mean(axis=0), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(scale, values.numpy().std(axis=0), rtol=1e-10)

    def test_float32_values_are_summed_in_float64(self):
        values = (normal(100_000, 1) + 1000).float()
        mean, scale = Table(values, ("a",)).location_scale()
        assert mean.dtype == scale.dtype == torch.float64
        np.testing.assert_allclose(scale, values.double().numpy().std(axis=0), rtol=1e-10)

    def test_whole_weights_equal_repeated_rows(self):
        values, weight = normal(50, 2), torch.arange(50) % 4
        weighted = Table(values, ("a", "b"), weight).location_scale()
        repeated = Table(values.repeat_interleave(weight, dim=0), ("a", "b")).location_scale()
        torch.testing.assert_close(weighted, repeated, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("size", [1e-200, 1e200])
    def test_no_overflow(self, size):
        values = normal(100, 1)
        _, scale = Table(values * size, ("a",)).location_scale()
        assert float(scale) / size == pytest.approx(float(values.std(correction=0)), rel=1e-12)

    def test_constant_column_is_refused_also_where_only_weights_make_it_so(self):
        with pytest.raises(DataError, match=r"'c': every value is 3, .*drop"):
            named(torch.full((9,), 3.0)).location_scale()
        with pytest.raises(DataError, match="'c'"):
            named([1.0, 1.0, 2.0], weight=torch.tensor([1.0, 1.0, 0.0])).location_scale()


class TestCheck:
    def test_a_clean_table_has_no_warnings(self):
        assert named(rows=2000).check() == []
        assert named(rows=2).check() == []
        # 300,000 float32 numbers have ties by chance, which is no grid
        uniform = torch.rand(300_000, 1, generator=generator())
        assert Table(torch.column_stack([uniform, normal(300_000, 1).float()]), ("a", "b")).check() == []

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (Table(torch.empty(0, 2), ("a", "b")), "no rows"),
            (Table(torch.ones(1, 2), ("a", "b")), "one row"),
            (Table(torch.empty(5, 0), ()), "no numeric column"),
            (named(torch.full((9,), 2.5)), r"'c': every value is 2.5"),
            (named(torch.full((9,), math.nan)), "9 values .* row 0, column 'c'"),
            (named([1.0, 2.0, math.inf]), "1 values .* row 2, column 'c'"),
            (named(2 * normal(200, 2)[:, 0].float()), "'a' and 'c' are perfectly correlated"),
            (named(normal(200, 2)[:, 0]), "'a' and 'c' are copies"),
            (named(5.0 - 3.0 * normal(200, 2)[:, 1]), r"'b' and 'c' are perfectly correlated \(r = -1"),
            (named(normal(200, 2).sum(dim=1) + 7), r"'a', 'b', 'c' add up to a constant"),
        ],
    )
    def test_what_has_no_density(self, table, message):
        with pytest.raises(DataError, match=message) as caught:
            table.check()
        assert "\n" not in str(caught.value)

    def test_strong_but_not_perfect_correlation_is_fine(self):
        values = normal(500, 2)
        values[:, 1] = values[:, 0] + 1e-4 * values[:, 1]
        assert Table(values, ("a", "b")).check() == []

    def test_support(self):
        table = Table(torch.rand(50, 1, generator=generator()), ("a",))
        assert table.check(support={"a": Support(0.0, 1.0)}) == []
        table.values[3] = -0.5
        with pytest.raises(DataError, match=r"'a': 1 values lie outside .*\[0, 1\].* -0.5 in row 3"):
            table.check(support={"a": Support(0.0, 1.0)})
        with pytest.raises(DataError, match="no column 'z'"):
            table.check(support={"z": Support(0.0, 1.0)})

    @pytest.mark.parametrize(
        ("column", "words"),
        [
            (torch.arange(1000) % 24, ["24 distinct", "step 1", "dequantise={'c': 1}"]),
            ((normal(1000, 1)[:, 0] * 100).round() / 100, ["step 0.01", "dequantise={'c': 0.01}"]),
            (torch.arange(1000) * 0.5 + 3, ["1000 distinct", "step 0.5"]),
            (torch.tensor([math.pi, math.e, 1.0] * 50), ["3 distinct", "dequantise"]),
            (
                torch.where(normal(1000, 1, 5)[:, 0] > 1.6, 0.0, normal(1000, 1, 6)[:, 0]),
                ["single value 0", "%"],
            ),
        ],
    )
    def test_discrete_columns_are_warned_of(self, column, words):
        warnings = named(column).check()
        assert len(warnings) == 1
        assert warnings[0].startswith("column 'c': ")
        assert all(word in warnings[0] for word in words)

    def test_extreme_outlier_is_warned_of(self):
        column = normal(500, 1, 3)[:, 0]
        column[17] = 1e12
        (warning,) = named(column).check()
        assert "column 'c': row 17 holds 1e+12" in warning
        column[17] = 1e4
        assert named(column).check() == []


class TestDequantise:
    def test_noise_is_uniform_on_the_cell_of_named_columns_only(self):
        table = named(torch.arange(20_000) % 12 * 0.5)
        state = torch.random.get_rng_state()
        spread = table.dequantise({"c": 0.5}, generator())
        assert torch.equal(state, torch.random.get_rng_state())
        noise = (spread.values - table.values)[:, 2] / 0.5
        assert float(noise.min()) >= 0.0
        assert float(noise.max()) < 1.0 + 1e-12
        assert stats.kstest(noise.numpy(), stats.uniform.cdf).pvalue > 1e-6
        assert torch.equal(spread.values[:, :2], table.values[:, :2])
        assert torch.equal(spread.values, table.dequantise({"c": 0.5}, generator()).values)
        assert spread.check() == []

    def test_refusals(self):
        with pytest.raises(DataError, match="no column 'z'"):
            named().dequantise({"z": 1.0}, generator())
        for step in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(OptionError, match="step"):
                named().dequantise({"a": step}, generator())

    @pytest.mark.parametrize(
        ("values", "step"),
        [
            ([0, 2, 5], 1.0),
            ([10, 16, 22, 31], 3.0),
            ([240.12, 238.97, 251.3, 240.13], 0.01),
            ([0.1, 0.3, 0.4, 1000.0], 0.1),
            ([0, 1], 1.0),
            ([5, 5, 5], None),
            ([], None),
            ([1.0, math.nan], None),
            ([1.0, math.pi, math.e, 7.3], None),
        ],
    )
    def test_grid_step(self, values, step):
        found = grid_step(torch.tensor(values, dtype=torch.float64))
        assert found == (None if step is None else pytest.approx(step, rel=1e-12))

    def test_grid_step_of_continuous_float32_and_standardised_columns(self):
        assert grid_step(normal(5000, 1)) is None
        assert grid_step(normal(5000, 1).float()) is None
        volts = (torch.randint(22_000, 25_500, (5000,), generator=generator()) / 100).float()
        assert grid_step(volts) == pytest.approx(0.01, rel=1e-12)
        minutes = torch.randint(1440, (5000,), generator=generator()).double()
        assert grid_step((minutes - 718.5) / 416.8) == pytest.approx(1 / 416.8, rel=1e-9)
        table = named(minutes)
        assert table.grid_step("c") == 1.0
        assert table.grid_step("a") is None
