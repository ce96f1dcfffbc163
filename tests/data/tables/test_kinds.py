"""Columns of every kind that the field writes: what pyarrow's own to_pylist says, as numbers."""

import datetime
import decimal
import pickle
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from data.tables.plain import plain
from headrace import DataLoader
from headrace.data import ParquetDataset, TableDataset
from headrace.errors import ArrayTypeError, SourceError

EPOCH = datetime.datetime(1970, 1, 1)
MICROSECOND = datetime.timedelta(microseconds=1)
PER_UNIT = {"s": 10**6, "ms": 10**3, "us": 1}


def expected(value: Any, kind: pa.DataType) -> Any:
    """What a value that pyarrow made is in a sample."""
    types = pa.types
    if types.is_map(kind):
        return {k: expected(v, kind.item_type) for k, v in value}
    if types.is_struct(kind):
        return {field.name: expected(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [expected(item, kind.value_type) for item in value]
    if types.is_decimal(kind):
        return float(value)
    if types.is_date(kind):
        return (value - EPOCH.date()).days
    if types.is_timestamp(kind):
        return (value.replace(tzinfo=None) - EPOCH) // MICROSECOND // PER_UNIT[kind.unit]
    if types.is_duration(kind):
        return value // MICROSECOND // PER_UNIT[kind.unit]
    if types.is_time(kind):
        since = datetime.datetime.combine(EPOCH, value) - EPOCH
        return since // MICROSECOND // PER_UNIT[kind.unit]
    return value


NOON = datetime.datetime(2024, 2, 29, 12, 0, 1, 250_000)
KINDS: dict[str, pa.Array] = {
    **{
        f"timestamp {unit}": pa.array([NOON.replace(microsecond=0), EPOCH], pa.timestamp(unit))
        for unit in PER_UNIT
    },
    "timestamp with a zone": pa.array([NOON, EPOCH], pa.timestamp("us", "UTC")),
    "date": pa.array([NOON.date(), datetime.date(1950, 1, 1)], pa.date32()),
    "date64": pa.array([NOON.date(), datetime.date(1950, 1, 1)], pa.date64()),
    "time32": pa.array([datetime.time(1, 2, 3), datetime.time()], pa.time32("s")),
    "time64": pa.array([datetime.time(1, 2, 3, 4), datetime.time()], pa.time64("us")),
    "duration": pa.array([datetime.timedelta(1), -datetime.timedelta(0, 2)], pa.duration("ms")),
    "decimal": pa.array([decimal.Decimal("0.10"), decimal.Decimal("-7.25")]),
    "decimal as Spark writes it": pa.array(
        [decimal.Decimal("0.1"), decimal.Decimal("1234567.000001")], pa.decimal128(38, 18)
    ),
    "decimal256": pa.array([decimal.Decimal("0.1"), decimal.Decimal(3)], pa.decimal256(50, 2)),
    "half floats": pa.array([np.float16(0.5), np.float16(-3)], pa.float16()),
    "lists of lists": pa.array([[[1], [2, 3]], [[]]]),
    "lists of texts": pa.array([["x", "é"], []]),
    "lists of dates": pa.array([[NOON.date()], []]),
    "lists of structs": pa.array([[{"a": 1}, {"a": 2}], []]),
    "struct": pa.array([{"x": 1, "y": "z"}, {"x": 2, "y": ""}]),
    "struct in struct": pa.array([{"x": {"y": [1]}}, {"x": {"y": []}}]),
    "map": pa.array([[("a", 1), ("b", 2)], []], pa.map_(pa.string(), pa.int64())),
    "map of numbers to lists": pa.array(
        [[(1, ["a"])], [(2, [])]], pa.map_(pa.int32(), pa.list_(pa.string()))
    ),
    "lists of one length": pa.array([[1.0, 2], [3, 4]], pa.list_(pa.float64(), 2)),
    "lists of lists of one length": pa.array(
        [[[1, 2]], [[3, 4]]], pa.list_(pa.list_(pa.int64(), 2), 1)
    ),
    "texts in lists of one length": pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2)),
    "bytes of one length": pa.array([b"ab", b"cd"], pa.binary(2)),
    "dictionary": pa.array(["a", "b"]).dictionary_encode(),
    "dictionary of numbers": pa.array([5, 7]).dictionary_encode(),
    "lists of dictionaries": pa.array([["a"], ["b", "a"]], pa.list_(pa.dictionary("i1", "str"))),
    "string view": pa.array(["x", "a text of more than twelve"], pa.string_view()),
    "binary view": pa.array([b"x", b"y"], pa.binary_view()),
    "list view": pa.array([[1, 2], [3]], pa.list_view(pa.int64())),
    "lists of string views": pa.array([["x"], []], pa.list_(pa.string_view())),
    "large lists": pa.array([["x"], []], pa.large_list(pa.large_string())),
    "run ends": pa.RunEndEncodedArray.from_arrays([1, 2], ["a", "b"]),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0], pa.int8())),
}
ONLY_IN_MEMORY = ("list view", "run ends")  # which pyarrow writes to no Parquet


@pytest.mark.parametrize("kind", KINDS)
def test_is_what_pyarrow_reads(kind: str, read: Any, request: Any, tmp_path: Path) -> None:
    array = KINDS[kind]
    if kind in ONLY_IN_MEMORY and "table" not in request.node.name:
        pytest.skip("pyarrow does not write it")
    data = read(pa.table({"a": array}))
    if (tmp_path / "t.parquet").exists():  # which has no unit of seconds
        array = pq.read_table(tmp_path / "t.parquet")["a"].combine_chunks()
    stored = array.storage if isinstance(array, pa.ExtensionArray) else array
    wanted = [expected(value, array.type) for value in stored.to_pylist()]
    assert [plain(row["a"]) for row in data] == wanted
    assert [plain(row["a"]) for row in data.__getitems__([1, 0, 1])] == [
        wanted[i] for i in (1, 0, 1)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_makes_batches(workers: int, read: Any) -> None:
    table = pa.table(
        {
            "when": pa.array([1, 2, 3, 4], pa.timestamp("us")),
            "day": pa.array([1, 2, 3, 4], pa.int32()).cast(pa.date32()),
            "price": pa.array([decimal.Decimal(n) / 4 for n in range(4)]),
            "half": pa.array(np.arange(4, dtype=np.float16)),
            "at": [{"x": n, "name": f"n{n}"} for n in range(4)],
            "words": [["a", str(n)] for n in range(4)],
            "box": pa.array([[[n, n]] * 2 for n in range(4)], pa.list_(pa.list_(pa.int64(), 2), 2)),
        }
    )
    data = read(table)
    for number, batch in enumerate(DataLoader(data, 2, num_workers=workers)):
        low = 2 * number
        assert batch["when"].tolist() == [low + 1, low + 2]
        assert batch["when"].dtype == batch["day"].dtype == torch.int64
        assert batch["price"].tolist() == [low / 4, (low + 1) / 4]
        assert batch["half"].dtype == torch.float16
        assert batch["at"] == {
            "x": batch["at"]["x"],
            "name": [f"n{low}", f"n{low + 1}"],
        }
        assert batch["at"]["x"].tolist() == [low, low + 1]
        assert list(map(list, batch["words"])) == [["a", "a"], [str(low), str(low + 1)]]
        assert batch["box"].shape == (2, 2, 2)
    for number in (3, 0):
        again = pickle.loads(pickle.dumps(data))[number]
        assert plain(again) == plain(data[number])


def test_numbers_of_all_kinds_are_gathered(read: Any) -> None:
    table = pa.table(
        {
            "when": pa.array([1, 2, 3], pa.timestamp("us")),
            "day": pa.array([1, 2, 3], pa.int32()).cast(pa.date32()),
            "price": pa.array([decimal.Decimal("0.1")] * 3),
            "box": pa.array([[[1, 2]]] * 3, pa.list_(pa.list_(pa.int64(), 2), 1)),
        }
    )
    loader = DataLoader(read(table), batch_size=2)
    batch = next(iter(loader))
    assert loader.statistics().path == "gather"
    assert (batch["when"].tolist(), batch["price"].tolist()) == ([1, 2], [0.1, 0.1])
    assert batch["box"].shape == (2, 1, 2)


LEAVES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int16(), st.integers(-9, 9)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(max_size=5)),
    (pa.binary(), st.binary(max_size=5)),
    (pa.date32(), st.dates()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.decimal128(12, 3), st.decimals(-(10**8), 10**8, places=3)),
]
Typed = tuple[pa.DataType, st.SearchStrategy[Any]]


def deeper(inner: st.SearchStrategy[Typed]) -> st.SearchStrategy[Typed]:
    def listed(one: Typed) -> st.SearchStrategy[Typed]:
        kind, values = one
        return st.sampled_from(
            [
                (pa.list_(kind), st.lists(values, max_size=3)),
                (pa.large_list(kind), st.lists(values, max_size=3)),
                (pa.list_(kind, 2), st.lists(values, min_size=2, max_size=2)),
                (
                    pa.map_(pa.string(), kind),
                    st.dictionaries(st.text(max_size=3), values, max_size=3).map(
                        lambda found: [*found.items()]
                    ),
                ),
            ]
        )

    def struct(parts: list[Typed]) -> Typed:
        names = [f"f{n}" for n in range(len(parts))]
        fields = {name: values for name, (_, values) in zip(names, parts, strict=True)}
        kind = pa.struct([(name, kind) for name, (kind, _) in zip(names, parts, strict=True)])
        return kind, st.fixed_dictionaries(fields)

    return st.one_of(inner.flatmap(listed), st.lists(inner, min_size=1, max_size=3).map(struct))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), typed=st.recursive(st.sampled_from(LEAVES), deeper, max_leaves=4))
def test_nested_types_are_what_pyarrow_reads(data: st.DataObject, typed: Typed, read: Any) -> None:
    kind, values = typed
    rows = data.draw(st.lists(values, min_size=1, max_size=6))
    array = pa.array(rows, kind)
    start = data.draw(st.integers(0, len(rows) - 1))
    table = pa.table({"a": pa.chunked_array([array, array.slice(start)])})
    wanted = [expected(value, kind) for value in table["a"].to_pylist()]
    try:
        found = read(table)
    except pa.ArrowException:
        assume(False)
    indices = data.draw(st.lists(st.integers(0, len(table) - 1), max_size=5))
    assert [plain(row["a"]) for row in found] == wanted
    assert [plain(row["a"]) for row in found.__getitems__(indices)] == [wanted[i] for i in indices]


MISSING: dict[str, tuple[pa.Array, str, Any]] = {
    "timestamp": (pa.array([1, None], pa.timestamp("us")), "'a': a value", -1),
    "date": (pa.array([1, None], pa.int32()).cast(pa.date32()), "'a': a value", -1),
    "decimal": (pa.array([decimal.Decimal(1), None]), "'a': a value", -1.0),
    "half float": (pa.array([np.float16(1), None], pa.float16()), "'a': a value", -1.0),
    "null": (pa.nulls(2), "'a': a value", -1.0),
    "string view": (pa.array(["a", None], pa.string_view()), "'a': a value", ""),
    "dictionary": (pa.array(["a", None]).dictionary_encode(), "'a': a value", ""),
    "bytes of one length": (pa.array([b"a", None], pa.binary(1)), "'a': a value", b""),
    "lists of texts": (pa.array([["a"], ["b", None]]), r"'a\[\]': a value of its", ["b", ""]),
    "list of lists": (pa.array([[[1]], [[2], None]]), r"'a\[\]': a value of its", [[2], []]),
    "in a list of lists": (
        pa.array([[[1], [1]], [[2, None]]]),
        r"'a\[\]': a value of its",
        [[2, -1]],
    ),
    "a list": (pa.array([["a"], None]), "'a': a value", []),
    "a struct": (pa.array([{"x": 1}, None]), "'a.x': a value", {"x": -1}),
    "in a struct": (pa.array([{"x": 1}, {"x": None}]), "'a.x': a value", {"x": -1}),
    "a map": (
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        "'a': a value",
        {},
    ),
    "in a map": (
        pa.array([[("k", 1)], [("k", None)]], pa.map_(pa.string(), pa.int64())),
        r"'a\[\].value': a value of its",
        {"k": -1},
    ),
    "in a list of one length": (
        pa.array([[1, 2], [3, None]], pa.list_(pa.int64(), 2)),
        "'a': a value of its",
        [3, -1],
    ),
}


@pytest.mark.parametrize("kind", MISSING)
def test_what_is_missing_is_named_or_replaced(kind: str, read: Any) -> None:
    array, text, replaced = MISSING[kind]
    table = pa.table({"a": pa.chunked_array([array.slice(0, 1), array])})
    whole = r"row 1" if array.null_count == 2 else r"row 2"
    whole = "row 0" if kind == "null" else whole
    with pytest.raises(SourceError, match=rf"{whole}, column {text} .*is missing.*missing=0"):
        _ = list(read(table))
    assert plain(read(table, missing=-1)[2]["a"]) == replaced


def test_a_missing_list_of_a_fixed_size_has_no_number_to_stand_for_it() -> None:
    table = pa.table({"a": pa.array([[1, 2], None], pa.list_(pa.int64(), 2))})
    with pytest.raises(SourceError, match=r"row 1, column 'a': a value is missing"):
        TableDataset(table)
    with pytest.raises(SourceError, match=r"row 1, .* no number can stand for"):
        TableDataset(table, missing=0)


class TestDecimals:
    @settings(max_examples=150, deadline=None)
    @given(
        value=st.decimals(allow_nan=False, allow_infinity=False, places=9).filter(
            lambda value: len(value.as_tuple().digits) <= 38
        )
    )
    def test_are_the_nearest_float_or_an_error(self, value: decimal.Decimal) -> None:
        table = pa.table({"a": pa.array([value], pa.decimal128(38, 9))})
        if decimal.Decimal(repr(float(value))) == value:
            assert TableDataset(table)[0]["a"] == float(value)
        else:
            with pytest.raises(SourceError, match=r"row 0, column 'a': the decimal .* more digits"):
                TableDataset(table)

    def test_with_more_digits_than_a_float_are_named(self, read: Any) -> None:
        ids = [decimal.Decimal(1), decimal.Decimal(2**53 + 1), None]
        table = pa.table({"id": pa.array(ids, pa.decimal128(20, 0))})
        with pytest.raises(SourceError, match=r"row 1, .*'id': the decimal 9007199254740993"):
            _ = read(table, missing=0)[1]


class TestTypesWithoutAPlainMeaning:
    def test_are_refused(self, tmp_path: Path) -> None:
        table = pa.table({"x": [1], "a": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
        with pytest.raises(ArrayTypeError, match=r"column 'a': month_day.*columns="):
            TableDataset(table)
        assert TableDataset(table, ["x"])[0] == {"x": 1}
        keyed = pa.table(
            {"a": pa.array([[({"k": 1}, 2)]], pa.map_(pa.struct([("k", "i4")]), "i4"))}
        )
        with pytest.raises(ArrayTypeError, match=r"column 'a': keys of type struct"):
            TableDataset(keyed)

    def test_a_key_that_comes_twice_is_named(self, read: Any) -> None:
        pairs = [[("k", 1)], [("k", 1), ("k", 2)]]
        table = pa.table({"a": pa.array(pairs, pa.map_(pa.string(), pa.int64()))})
        with pytest.raises(SourceError, match=r"row 1, column 'a': a key comes twice"):
            _ = read(table)[1]

    def test_fields_of_one_name_are_named(self) -> None:
        twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
        with pytest.raises(SourceError, match="two of its fields have one name: 'x', 'x'"):
            TableDataset(pa.table({"a": twice}))


class TestExtensions:
    def test_are_read_as_what_they_store(self) -> None:
        number = uuid.UUID(int=5)
        table = pa.table({"a": pa.array([number.bytes], pa.uuid())})
        assert TableDataset(table)[0]["a"] == number.bytes

    def test_tensors_of_one_shape_are_arrays(self, read: Any) -> None:
        values = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
        table = pa.table({"a": pa.FixedShapeTensorArray.from_numpy_ndarray(values)})
        data = read(table)
        assert np.array_equal(data[3]["a"], values[3])
        assert next(iter(DataLoader(data, 4)))["a"].shape == (4, 2, 3)

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
    def test_tensors_stored_in_another_order_are_turned_back(
        self, order: tuple[int, ...], read: Any
    ) -> None:
        kind = pa.fixed_shape_tensor(pa.int64(), [2, 3, 4], permutation=list(order))
        stored = pa.array([list(range(24))], pa.list_(pa.int64(), 24))
        table = pa.table({"a": pa.ExtensionArray.from_storage(kind, stored)})
        expected = np.arange(24).reshape(2, 3, 4).transpose(order)
        data = read(table)
        assert np.array_equal(data[0]["a"], expected)
        assert next(iter(DataLoader(data)))["a"].shape == (1, *expected.shape)


def test_files_that_encode_one_type_in_several_ways_are_read_together(tmp_path: Path) -> None:
    plainly = pa.array(["a", "b"])
    ways = (plainly, plainly.dictionary_encode(), plainly.cast(pa.large_string()))
    for number, array in enumerate(ways):
        pq.write_table(pa.table({"s": array}), tmp_path / f"{number}.parquet")
    assert [row["s"] for row in ParquetDataset(tmp_path)] == ["a", "b"] * 3


def test_what_dates_and_times_count_is_said(tmp_path: Path) -> None:
    names = ("timestamp ms", "timestamp with a zone", "date", "time64", "duration", "decimal")
    table = pa.table({name: KINDS[name] for name in names})
    pq.write_table(table, tmp_path / "t.parquet")
    assert ParquetDataset(tmp_path / "t.parquet").units == {
        "timestamp ms": "ms since 1970-01-01",
        "timestamp with a zone": "us since 1970-01-01 UTC",
        "date": "days since 1970-01-01",
        "time64": "us since midnight",
        "duration": "ms",
    }
