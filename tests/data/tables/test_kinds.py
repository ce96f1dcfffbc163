"""Columns of every kind that the field writes: what pyarrow's own to_pylist says, as numbers."""

import datetime
import decimal
import io
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import feather

from headrace import DataLoader
from headrace.data import ImageDecoder, ParquetDataset, TableDataset
from headrace.errors import ArrayTypeError, OptionError, SourceError, SourceWarning

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


def plain(value: Any) -> Any:
    """A sample's value without NumPy."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value


def from_parquet(table: pa.Table, tmp: Path, **options: Any) -> Any:
    pq.write_table(table, tmp / "t.parquet", row_group_size=2)
    return ParquetDataset(tmp / "t.parquet", **options)


WAYS: dict[str, Callable[..., Any]] = {
    "table": lambda table, tmp, **options: TableDataset(table, **options),
    "in memory": from_parquet,
    "in a cache": lambda table, tmp, **options: from_parquet(
        table, tmp, cache_dir=tmp / "cache", **options
    ),
    "row groups": lambda table, tmp, **options: from_parquet(
        table, tmp, cache_dir=False, groups_in_memory=9, **options
    ),
}


@pytest.fixture(params=WAYS)
def read(request: Any, tmp_path: Path) -> Any:
    return lambda table, **options: WAYS[request.param](table, tmp_path, **options)


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


def png(number: int, size: tuple[int, int] = (6, 4), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number, 0, 0)).save(file, kind)
    return file.getvalue()


class TestImages:
    @pytest.fixture
    def table(self) -> pa.Table:
        rows = [{"bytes": png(n), "path": f"{n}.png"} for n in range(5)]
        pages = [[{"bytes": png(9), "path": None}] * n for n in range(5)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        return pa.table({"image": rows, "pages": pa.array(pages, pa.list_(kind)), "y": range(5)})

    @pytest.mark.parametrize("workers", [0, 2])
    def test_in_structs_are_decoded(self, table: pa.Table, workers: int, read: Any) -> None:
        data = read(table.select(["image", "y"]))
        for batch in DataLoader(data, 2, num_workers=workers):
            assert batch["image"].shape[1:] == (3, 4, 6)
            assert batch["image"].dtype == torch.uint8
            assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["y"])

    def test_in_lists_are_decoded(self, table: pa.Table, read: Any) -> None:
        pages = read(table)[3]["pages"]
        assert [page.shape for page in pages] == [(3, 4, 6)] * 3

    def test_are_read_by_a_decoder_of_ones_own(self, table: pa.Table, read: Any) -> None:
        data = read(table, images=ImageDecoder(size=(2, 3), decode="pil"))
        assert data[1]["image"].size == (3, 2)

    def test_are_structs_when_asked_for(self, table: pa.Table, read: Any) -> None:
        row = read(table, images=False)[2]
        assert row["image"] == {"bytes": png(2), "path": "2.png"}
        assert row["pages"] == [{"bytes": png(9), "path": ""}] * 2
        with pytest.raises(OptionError, match=r"images=ImageDecoder\(size=224\)"):
            read(table, images=True)

    def test_of_more_than_8_bits_follow_the_same_rules(self, read: Any) -> None:
        deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
        file = io.BytesIO()
        Image.fromarray(deep).save(file, "PNG")
        table = pa.table({"a": [{"bytes": file.getvalue(), "path": "x"}]})
        with pytest.raises(SourceError, match=r'images=ImageDecoder\(deep="keep"\)'):
            _ = read(table)[0]
        kept = read(table, images=ImageDecoder(deep="keep"))[0]["a"]
        assert np.array_equal(kept[0].numpy(), deep)

    def test_that_cannot_be_decoded_are_named(self, read: Any) -> None:
        rows = [{"bytes": png(0), "path": ""}, {"bytes": png(0)[:20], "path": ""}]
        with pytest.raises(SourceError, match=r"a, image 1 cannot be decoded"):
            _ = read(pa.table({"a": rows}))[1]

    def test_that_are_elsewhere_are_named(self, read: Any) -> None:
        rows = [{"bytes": png(0), "path": ""}, {"bytes": None, "path": "x/1.png"}]
        with pytest.raises(SourceError, match=r"row 1, .*only its path 'x/1.png'.*images=False"):
            _ = read(pa.table({"a": rows}))[1]

    def test_that_are_missing_are_named(self, read: Any) -> None:
        table = pa.table({"a": [{"bytes": png(0), "path": ""}, None]})
        for missing in ("error", 0):
            with pytest.raises(SourceError, match=r"row 1, .*'a': the image is missing.*images="):
                _ = read(table, missing=missing)[1]
        assert read(table, images=False, missing=0)[1]["a"] == {"bytes": b"", "path": ""}

    @pytest.mark.parametrize("sound", [b"RIFF\0\0\0\0WAVEfmt ", b"fLaC", b"ID3", b"OggS", b""])
    def test_sounds_are_structs(self, sound: bytes, read: Any) -> None:
        table = pa.table({"audio": [{"bytes": sound, "path": "x.wav"}] * 3})
        assert read(table)[0]["audio"] == {"bytes": sound, "path": "x.wav"}

    @pytest.mark.parametrize(
        "kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"]
    )
    def test_are_known_by_their_bytes(self, kind: str) -> None:
        table = pa.table({"a": [{"bytes": png(7, kind=kind), "path": None}] * 2})
        table = table.set_column(
            0, "a", table["a"].cast(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        )
        assert TableDataset(table)[1]["a"].shape == (3, 4, 6)

    def test_of_hugging_face_datasets_go_by_the_same_rules(self, tmp_path: Path) -> None:
        pictures = [Image.new("RGB", (6, 4), (n, 0, 0)) for n in range(6)]
        features = datasets.Features({"image": datasets.Image(), "y": datasets.Value("int64")})
        dataset = datasets.Dataset.from_dict({"image": pictures, "y": range(6)}, features)
        dataset.to_parquet(tmp_path / "t.parquet")
        shuffled = dataset.select([4, 2])
        for data, rows in (
            (TableDataset(dataset), range(6)),
            (TableDataset(shuffled), [4, 2]),
            (ParquetDataset(tmp_path / "t.parquet"), range(6)),
        ):
            assert [row["y"] for row in data] == list(rows)
            assert [int(row["image"][0, 0, 0]) for row in data] == list(rows)


class TestFrames:
    def test_of_pandas_have_dates_and_decimals(self) -> None:
        when = pd.to_datetime(["2024-01-01", "1970-01-02"])
        frame = pd.DataFrame({"t": when, "c": pd.Categorical(["a", "b"])})
        frame["d"] = [decimal.Decimal("0.1"), decimal.Decimal("2")]
        row = TableDataset(frame)[1]
        assert row["t"] == pa.Array.from_pandas(frame["t"]).cast(pa.int64())[1].as_py()
        assert (row["c"], row["d"]) == ("b", 2.0)
        frame.loc[0, "t"] = pd.NaT
        with pytest.raises(SourceError, match="row 0, column 't': a value is missing"):
            TableDataset(frame)

    def test_of_polars_have_dates_structs_and_lists(self) -> None:
        frame = pl.DataFrame(
            {
                "day": [datetime.date(1970, 1, 3)],
                "at": [{"x": 1, "y": "z"}],
                "words": [["a", "b"]],
                "kind": pl.Series(["k"], dtype=pl.Categorical),
                "price": pl.Series([decimal.Decimal("0.1")], dtype=pl.Decimal(10, 2)),
                "pair": pl.Series([[1, 2]], dtype=pl.Array(pl.Int64, 2)),
                "long": pl.Series([datetime.timedelta(seconds=1)], dtype=pl.Duration("ms")),
            }
        )
        assert plain(TableDataset(frame)[0]) == {
            "day": 2,
            "at": {"x": 1, "y": "z"},
            "words": ["a", "b"],
            "kind": "k",
            "price": 0.1,
            "pair": [1, 2],
            "long": 1000,
        }


class TestPartitions:
    @pytest.fixture
    def table(self) -> pa.Table:
        return pa.table(
            {"v": range(6), "year": [2020, 2021] * 3, "town": ["Bern", "São Paulo", "a/b"] * 2}
        )

    @pytest.fixture(params=["in memory", "in a cache", "row groups"])
    def options(self, request: Any, tmp_path: Path) -> dict[str, Any]:
        known: dict[str, dict[str, Any]] = {
            "in a cache": {"cache_dir": tmp_path / "cache"},
            "row groups": {"cache_dir": False, "groups_in_memory": 9},
        }
        return known.get(request.param, {})

    def test_are_columns(self, table: pa.Table, options: Any, tmp_path: Path) -> None:
        pq.write_to_dataset(table, tmp_path / "t", partition_cols=["year", "town"])
        data = ParquetDataset(tmp_path / "t", **options)
        assert data.column_names == ("v", "year", "town")
        found = sorted((plain(row) for row in data), key=lambda row: row["v"])
        assert found == table.to_pylist()
        batch = next(iter(DataLoader(data, 6)))
        assert batch["year"].dtype == torch.int64
        only = ParquetDataset(tmp_path / "t", ["year"], **options)
        loader = DataLoader(only, 6)
        assert sorted(next(iter(loader))["year"].tolist()) == [2020] * 3 + [2021] * 3
        assert loader.statistics().path == "gather"
        assert pickle.loads(pickle.dumps(data))[5] == data[5]

    def test_without_a_value_are_missing(self, options: Any, tmp_path: Path) -> None:
        table = pa.table({"v": [1, 2], "k": [None, 7]})
        pq.write_to_dataset(table, tmp_path / "t", partition_cols=["k"])
        with pytest.raises(SourceError, match="column 'k': a value is missing"):
            _ = list(ParquetDataset(tmp_path / "t", **options))
        data = ParquetDataset(tmp_path / "t", missing=-1, **options)
        assert sorted(int(row["k"]) for row in data) == [-1, 7]

    @pytest.mark.parametrize(
        ("values", "kind"),
        [(["01", "12"], int), (["1", "x"], str), (["1.5", "2"], str), (["2024-01-01"], str)],
    )
    def test_are_numbers_where_all_are(self, values: list[str], kind: type, tmp_path: Path) -> None:
        for value in values:
            (tmp_path / f"k={value}").mkdir()
            pq.write_table(pa.table({"v": [1]}), tmp_path / f"k={value}" / "a.parquet")
        found = [plain(row["k"]) for row in ParquetDataset(tmp_path)]
        assert found == [kind(value) for value in sorted(values)]

    def test_that_differ_are_an_error(self, tmp_path: Path) -> None:
        for name in ("k=1", "other"):
            (tmp_path / name).mkdir()
            pq.write_table(pa.table({"v": [1]}), tmp_path / name / "a.parquet")
        with pytest.raises(SourceError, match=r"hold the columns none, those of .* 'k'"):
            ParquetDataset(tmp_path)

    def test_that_the_files_have_too_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "v=1").mkdir()
        path = tmp_path / "v=1" / "a.parquet"
        pq.write_table(pa.table({"v": [3]}), path)
        with pytest.raises(SourceError, match=r"has a column 'v', and so have.*as a list"):
            ParquetDataset(tmp_path)
        assert ParquetDataset([path])[0] == {"v": 3}


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


class TestWhatIsNoTable:
    def test_but_close_to_one_is_told_the_line(self) -> None:
        table = pa.table({"a": [1]})
        for value, line in (
            (pl.LazyFrame({"a": [1]}), "frame.collect()"),
            (table.to_batches()[0], "from_batches([batch])"),
            (table.to_reader(), "reader.read_all()"),
            (pd.Series([1]), "series.to_frame()"),
            ({"a": [1]}, "pyarrow.table(columns)"),
            (3, "pyarrow.table({'x': ...})"),
        ):
            with pytest.raises(ArrayTypeError) as caught:
                TableDataset(value)
            assert line in str(caught.value)

    def test_a_sparse_column_is_told_the_line(self) -> None:
        frame = pd.DataFrame({"a": pd.arrays.SparseArray([0, 0, 1])})
        with pytest.raises(ArrayTypeError, match=r"'a': it is sparse.*sparse.to_dense"):
            TableDataset(frame)

    def test_another_file_is_known_for_what_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").write_text("a,b\n1,2\n" * 9)
        with pytest.raises(SourceError, match=r"looks like text: write CSVDataset"):
            ParquetDataset(tmp_path / "x.parquet")
        feather.write_feather(pa.table({"a": [1]}), str(tmp_path / "y.parquet"))
        with pytest.raises(SourceError, match=r"Arrow file: write TableDataset"):
            ParquetDataset(tmp_path / "y.parquet")


def test_the_index_that_pandas_writes_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"v": [1, 2]}, index=[5, 6]).to_parquet(path)
    with pytest.warns(SourceWarning, match=r"'__index_level_0__' is the index.*columns=\['v'\]"):
        assert ParquetDataset(path)[0] == {"v": 1, "__index_level_0__": 5}
    assert ParquetDataset(path, ["v"])[0] == {"v": 1}
    pd.DataFrame({"v": [1, 2]}, index=[5, 6]).to_parquet(path, index=False)
    assert ParquetDataset(path)[0] == {"v": 1}
