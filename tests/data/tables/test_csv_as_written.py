"""CSV files as people have them: other notations, encodings and compressions, with right values."""

import bz2
import gzip
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.data import CSVDataset
from headrace.data.tables.csv import reading
from headrace.errors import MissingColumnError, OptionError, SourceError

TEXT = "a,b\n1,2\n3,4\n"
NUMBERS = [[1.0, 2.0], [3.0, 4.0]]


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(data: bytes | str, name: str = "t.csv", **options: Any) -> list[list[float]]:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        rows = CSVDataset(path, **options).features
        again = CSVDataset(path, cache_dir=tmp_path / "cache", **options).features
        np.testing.assert_array_equal(rows, again)
        values: list[list[float]] = rows.tolist()
        return values

    return read


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "zst": zstandard.compress,
    "xz": lzma.compress,
    "two gz": lambda data: gzip.compress(data[:7]) + gzip.compress(data[7:]),
    "two bz2": lambda data: bz2.compress(data[:7]) + bz2.compress(data[7:]),
    "two xz": lambda data: lzma.compress(data[:7]) + bytes(4) + lzma.compress(data[7:]),
}


@pytest.mark.parametrize("name", PACKED)
class TestCompressed:
    def test_is_read_whatever_its_name(self, read: Any, name: str) -> None:
        for file in ("t.csv", "t.csv.x"):
            assert read(PACKED[name](TEXT.encode()), file) == NUMBERS

    def test_and_in_another_encoding(self, read: Any, name: str) -> None:
        data = PACKED[name](TEXT.replace("a", "é").encode("cp1252"))
        assert read(data, encoding="cp1252") == NUMBERS

    def test_an_error_names_the_line_of_its_content(self, read: Any, name: str) -> None:
        with pytest.raises(SourceError, match=r"t.csv \(decompressed\), line 3, column 'b'"):
            read(PACKED[name](b"a,b\n1,2\n3,\n"))

    def test_cut_short(self, read: Any, name: str) -> None:
        with pytest.raises(SourceError, match=r"t.csv (was cut short|is damaged)"):
            read(PACKED[name](TEXT.encode() * 50)[:-5])


class TestEncodings:
    @pytest.mark.parametrize(
        "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"]
    )
    def test_of_unicode_are_found(self, read: Any, encoding: str) -> None:
        text = "a,b,k\n1,2,è\n3,4,漢\n"
        assert read(text.encode(encoding), features=["a", "b"]) == NUMBERS
        assert read(text.encode(encoding), encoding=encoding, features=["a", "b"]) == NUMBERS

    @pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1251", "gb18030", "shift_jis"])
    def test_are_read_by_name(self, tmp_path: Path, encoding: str) -> None:
        word = {"cp1251": "дом", "gb18030": "漢字", "shift_jis": "東京"}.get(encoding, "café")
        path = tmp_path / "t.csv"
        path.write_bytes(f"{word},b\n{word},2\nx,4\n".encode(encoding))
        data = CSVDataset(path, encoding=encoding, has_header=True)
        assert data.feature_names == (word, "b")
        assert data.categories == {word: tuple(sorted((word, "x")))}

    def test_longer_than_a_buffer(self, tmp_path: Path) -> None:
        rows = [f"{i},é{i % 7}" for i in range(60_000)]
        path = tmp_path / "t.csv"
        path.write_bytes(("n,k\n" + "\n".join(rows)).encode("utf-16"))
        data = CSVDataset(path)
        np.testing.assert_array_equal(data.features[:, 0], np.arange(60_000))
        np.testing.assert_array_equal(data.features[:, 1], np.arange(60_000) % 7)

    def test_that_are_not_utf_8_are_shown_in_the_one_to_write(self, read: Any) -> None:
        with pytest.raises(SourceError, match=r"line 2, byte 3: not UTF-8.*cp1252.*'caf\xe9,1'"):
            read("k,b\ncafé,1\n".encode("latin-1"))

    def test_that_do_not_fit(self, read: Any) -> None:
        with pytest.raises(SourceError, match=r"line 1: not ascii|not UTF-8|not utf-16"):
            read(b"a,b\n1,2", encoding="utf-16")
        with pytest.raises(OptionError, match="Write encoding='cp1252'"):
            read(TEXT, encoding="klingon")
        with pytest.raises(OptionError, match="Write encoding='cp1252'"):
            read(TEXT, encoding="base64")


class TestLines:
    @pytest.mark.parametrize(
        ("text", "options"),
        [
            (TEXT + "\n\n\n", {}),
            (TEXT + " \n\t\n", {}),
            (TEXT + "\r\n\r\n", {}),
            ("\n\n" + TEXT, {}),
            (" \n" + TEXT, {}),
            ("a,b\n\n1,2\n\n\n3,4", {}),
            ("\ufeff" + TEXT.replace("\n", "\r\n"), {}),
            ("# made by hand\n" + TEXT, {"comment": "#"}),
            ("# one\n#\n\na,b\n# two\n1,2\n#three\n3,4\n# end", {"comment": "#"}),
            ("// one\na,b\n1,2\n//\n3,4\n", {"comment": "//"}),
            ("a, b\n1, 2\n3, 4\n", {"skipinitialspace": True}),
            ("a, b\n1, 2\n3, 4\n", {"skipinitialspace": True, "features": ["a", "b"]}),
            ("a,b,\n1,2,\n3,4,\n", {}),
            ("a;b\n1;2\n3;4\n", {"separator": None}),
            ("a\tb\n1\t2\n3\t4\n", {"separator": None}),
            ("a|b\n1|2\n3|4\n", {"separator": None}),
            ("a,b\n1,2\n3,4\n", {"separator": None}),
            ("a;b\n1,0;2\n3;4,0\n", {"separator": None, "decimal": ","}),
            ("a;b\n1,0;2,0\n3,0;4,0\n", {"separator": None, "decimal": ","}),
            ("x,1;b\n1,0;2,0\n3,0;4,0\n", {"separator": None, "decimal": ","}),
            ("a b\n1 2\n3 4\n", {"separator": " "}),
            ("  a   b\n 1   2\n 3  4\n", {"separator": " ", "skipinitialspace": True}),
            ('"a","b"\n"1","2"\n"3","4"\n', {}),
            ("a,b\n+1,2.\n3,.4e1\n", {}),
            ("a,b\n1e0,2E+00\n3.,4\n", {}),
            ("a,b\n 1 ,2\t\n3 , 4\n", {}),
            ("1,2\n3,4\n", {"has_header": False}),
            ("1,2\n1,2\n3,4\n", {"has_header": True}),
        ],
    )
    def test_are_rows_by_the_stated_rules(self, read: Any, text: str, options: Any) -> None:
        assert read(text, **options) == NUMBERS

    def test_of_one_column_may_be_missing_in_the_middle_only(self, read: Any) -> None:
        assert read("a\n1\n\n3\n\n\n", missing=-1) == [[1], [-1], [3]]
        with pytest.raises(SourceError, match=r"line 3, column 'a': a value is missing"):
            read("a\n1\n\n3\n")
        assert read("\na\n\n1", missing=-1) == [[-1], [1]]
        assert read('a\n""\n1\n', missing=-1) == [[-1], [1]]

    def test_with_a_comment_within_quotes_are_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        path.write_text('k,b\n"x\n#y\n\nz",2\n#no\nw,4\n')
        data = CSVDataset(path, comment="#")
        assert data.categories["k"] == ("w", "x\n#y\n\nz")
        assert data.features.tolist() == [[1, 2], [0, 4]]

    def test_that_repeat_the_header_are_named(self, read: Any) -> None:
        with pytest.raises(SourceError, match=r"row 3: the names of the columns again"):
            read("a,b\n1,2\n3,4\na,b\n1,2\n")
        with pytest.raises(SourceError, match=r"line 1,502 repeats the names"):
            read("a,b\n" + "1,2\n" * 1_500 + "a,b\n1,2\n")

    @pytest.mark.parametrize("size", [1, 8, 40])
    def test_in_pieces_of_any_size_are_the_same(
        self, read: Any, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = 'n,k\n1,"a,\n\n b"\n2,"say ""x"""\n\n3,5" pipe\n4,c\r\n5,"d"\n'
        whole = read(text, categories=["k"])
        monkeypatch.setattr(reading, "PIECE_BYTES", size)
        assert read(text, categories=["k"]) == whole
        assert [row[0] for row in whole] == [1, 2, 3, 4, 5]


class TestQuotes:
    @pytest.mark.parametrize("field", ['5" pipe', 'pipe 5"', 'a "b" c', 'x""y', '5"'])
    def test_within_a_field_are_read(self, tmp_path: Path, field: str) -> None:
        path = tmp_path / "t.csv"
        rows = [("x", 1), (field, 2), ("y", 3), (field, 4), ("x", 5)]
        path.write_text("k,b\n" + "".join(f"{k},{b}\n" for k, b in rows * 700))
        data = CSVDataset(path)
        codes = data.features[:, 0].astype(int)
        assert [data.categories["k"][code] for code in codes[:5]] == [k for k, _ in rows]
        np.testing.assert_array_equal(data.features[:, 1], [1, 2, 3, 4, 5] * 700)

    @pytest.mark.parametrize("field", ['"5" pipe"', '"open', '"a"b'])
    def test_that_contradict_each_other_are_refused_with_the_line(
        self, read: Any, field: str
    ) -> None:
        for before in (1, 1_500):
            with pytest.raises(SourceError, match=rf"line {before + 2:,}[:,]"):
                read("k,b\n" + "x,1\n" * before + f"{field},2\n" + "y,3\n" * 9)


NOTATIONS: list[tuple[list[str], list[float], dict[str, Any]]] = [
    (["1,5", "-2,25", "3"], [1.5, -2.25, 3], {"decimal": ","}),
    (["1,500", "1,234,567.5", "12"], [1500, 1234567.5, 12], {"thousands": ","}),
    (["12,34,567", "1,00,000"], [1234567, 100000], {"thousands": ","}),
    (
        ["1.234,56", "7,5", "-1.000.000,25"],
        [1234.56, 7.5, -1000000.25],
        {"decimal": ",", "thousands": "."},
    ),
    (
        ["1 000", "2\u00a0500", "3\u202f750,5"],
        [1000, 2500, 3750.5],
        {"decimal": ",", "thousands": " "},
    ),
    (["1'000", "2\u2019500.25", "5"], [1000, 2500.25, 5], {"thousands": "'"}),
    (["1_000", "2"], [1000, 2], {"thousands": "_"}),
    (["10%", "2.5 %", "-3"], [10, 2.5, -3], {"units": "%"}),
    (["$10", "-$2.50", "$ 3", "$-4"], [10, -2.5, 3, -4], {"units": ["$"]}),
    (
        ["€1.000,50", "2 €", "3 EUR"],
        [1000.5, 2, 3],
        {"units": ["€", "EUR"], "decimal": ",", "thousands": "."},
    ),
    (["5 kg", "6kg", "7"], [5, 6, 7], {"units": ["kg"]}),
    (["1,5e3", "inf", "-Infinity"], [1500, np.inf, -np.inf], {"decimal": ","}),
    (["1e3", "-2.5E-1", "+4"], [1000, -0.25, 4], {}),
    (["TRUE", "False", "true"], [1, 0, 1], {}),
    (["no", "yes", "no"], [0, 1, 0], {}),
]


@pytest.mark.parametrize(("fields", "values", "options"), NOTATIONS)
class TestNotations:
    def test_are_read_as_what_they_say(
        self, read: Any, fields: list[str], values: list[float], options: Any
    ) -> None:
        text = "x,n\n" + "".join(f'"{field}",{n}\n' for n, field in enumerate(fields))
        found = read(text, dtype=torch.float64, **options)
        assert found == [[value, n] for n, value in enumerate(values)]

    def test_of_the_target(
        self, tmp_path: Path, fields: list[str], values: list[float], options: Any
    ) -> None:
        path = tmp_path / "t.csv"
        path.write_text("y;n\n" + "".join(f"{field};{n}\n" for n, field in enumerate(fields)))
        options = {**options, "separator": ";", "target_dtype": torch.float64}
        data = CSVDataset(path, target="y", **options)
        assert data.targets is not None
        assert data.targets.tolist() == values

    def test_late_ones_are_an_error_with_the_line_and_what_to_write(
        self, read: Any, fields: list[str], values: list[float], options: Any
    ) -> None:
        if options:
            rows = "1,2\n" * 1_500
            with pytest.raises(SourceError, match=r"line 1,502, column 'x': .* is not a number"):
                read(f'x,n\n{rows}"{fields[0]}",3\n')


class TestANumberInANotation:
    @pytest.mark.parametrize(
        ("field", "options"),
        [
            ("1.5", {"decimal": ","}),
            ("1.23", {"decimal": ",", "thousands": "."}),
            ("12,3", {"thousands": ","}),
            ("5 m", {"units": ["kg"]}),
            ("kg", {"units": ["kg"]}),
        ],
    )
    def test_that_is_none_is_an_error_with_its_line(
        self, read: Any, field: str, options: Any
    ) -> None:
        with pytest.raises(SourceError, match=r"line 1,502, column 'x'"):
            read(
                "x;n\n" + "1;2\n" * 1_500 + f"{field};3\n",
                separator=";",
                **options,
            )

    def test_missing_is_missing(self, read: Any) -> None:
        text = 'x;n\n"1,5";2\n;3\nNA;4\n'
        assert read(text, separator=";", decimal=",", missing=-1) == [[1.5, 2], [-1, 3], [-1, 4]]

    def test_of_64_bits_is_exact(self, read: Any) -> None:
        big = 2**60 + 1
        text = f"x;n\n{big:,};1\n"
        assert read(text, separator=";", thousands=",", dtype=torch.int64) == [[big, 1]]

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(numbers=st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=20))
    def test_is_what_python_wrote(self, tmp_path: Path, numbers: list[int]) -> None:
        path = tmp_path / "t.csv"
        path.write_text("x;n\n" + "".join(f"{n / 100:,.2f};1\n" for n in numbers))
        data = CSVDataset(path, separator=";", thousands=",", dtype=torch.float64, features=["x"])
        assert data.features[:, 0].tolist() == [n / 100 for n in numbers]

    @pytest.mark.parametrize(
        "options",
        [
            {"decimal": ",,"},
            {"decimal": "1"},
            {"thousands": "."},
            {"thousands": ""},
            {"units": ["5"]},
            {"units": [""]},
            {"comment": ""},
            {"null_values": "?"},
            {"separator": "é"},
            {"dates": {"a": "days"}},
            {"dates": ["a"], "categories": ["a"]},
            {"on_doubt": "raise"},
        ],
    )
    def test_options_that_cannot_be(self, read: Any, options: Any) -> None:
        with pytest.raises(OptionError, match=r"Write|Leave"):
            read(TEXT, **options)


DAY = 86_400
DATES: list[tuple[list[str], Any, list[float], str]] = [
    (["1970-01-02", "1969-12-31", "2020-01-31"], ["d"], [1, -1, 18292], "days since 1970-01-01"),
    (["02.01.1970", "31.12.1969"], ["d"], [1, -1], "days since 1970-01-01"),
    (["1/2/1970", "1/31/1970"], ["d"], [1, 30], "days since 1970-01-01"),
    (["2/1/1970", "31/1/1970"], "d", [1, 30], "days since 1970-01-01"),
    (["1/2/1970", "1/3/1970"], {"d": "%m/%d/%Y"}, [1, 2], "days since 1970-01-01"),
    (["1/2/1970", "1/3/1970"], {"d": "%d/%m/%Y"}, [31, 59], "days since 1970-01-01"),
    (["19700102", "19700201"], {"d": "%Y%m%d"}, [1, 31], "days since 1970-01-01"),
    (["1970-01", "1970-02"], ["d"], [0, 31], "days since 1970-01-01"),
    (["2 Jan 1970", "10 Feb 1970"], ["d"], [1, 40], "days since 1970-01-01"),
    (["January 2, 1970", "Feb 1, 1970"], ["d"], [1, 31], "days since 1970-01-01"),
    (
        ["1970-01-01T00:00:10Z", "1970-01-01T02:00:00+01:00"],
        ["d"],
        [10, 3600],
        "seconds since 1970-01-01 00:00 UTC",
    ),
    (
        ["1970-01-01 00:01", "1970-01-02 00:00"],
        ["d"],
        [60, DAY],
        "seconds since 1970-01-01 00:00 UTC",
    ),
    (
        ["1970-01-01 00:00:00.25", "1970-01-01 00:00:01"],
        ["d"],
        [0.25, 1],
        "seconds since 1970-01-01 00:00 UTC",
    ),
    (
        ["1/13/1970 1:30 PM", "1/1/1970 12:00 AM"],
        ["d"],
        [12 * DAY + 48600, 0],
        "seconds since 1970-01-01 00:00 UTC",
    ),
    (["10:30", "00:00:01.5", "26:00:00"], ["d"], [37800, 1.5, 93600], "seconds"),
    (["1:30 PM", "12:00 am"], ["d"], [48600, 0], "seconds"),
    (["10.30", "11.00"], {"d": "%H.%M"}, [37800, 39600], "seconds"),
]


@pytest.mark.parametrize(("fields", "dates", "values", "unit"), DATES)
class TestDates:
    def test_are_numbers_whose_unit_is_said(
        self, tmp_path: Path, fields: list[str], dates: Any, values: list[float], unit: str
    ) -> None:
        path = tmp_path / "t.csv"
        path.write_text("d;n\n" + "".join(f"{field};{n}\n" for n, field in enumerate(fields)))
        data = CSVDataset(path, separator=";", dates=dates)
        assert data.features[:, 0].tolist() == values
        assert data.kinds == {"d": unit, "n": "whole numbers"}
        data = CSVDataset(path, separator=";", dates=dates, target="d", dtype=torch.float64)
        assert data.targets is not None
        assert data.targets.tolist() == values

    def test_that_are_none_are_an_error_with_the_line(
        self, tmp_path: Path, fields: list[str], dates: Any, values: list[float], unit: str
    ) -> None:
        path = tmp_path / "t.csv"
        rows = "".join(f"{field};1\n" for field in fields) * 600
        path.write_text("d;n\n" + rows + "40.40.4040;2\n")
        line = rows.count("\n") + 2
        with pytest.raises(
            SourceError, match=rf"line {line:,}, column 'd': '40.40.4040': it is no"
        ):
            CSVDataset(path, separator=";", dates=dates)

    def test_may_be_missing(
        self, tmp_path: Path, fields: list[str], dates: Any, values: list[float], unit: str
    ) -> None:
        path = tmp_path / "t.csv"
        path.write_text("n;d\n" + "".join(f"1;{field}\n1;\n" for field in fields))
        with pytest.raises(SourceError, match=r"line 3, column 'd': a value is missing"):
            CSVDataset(path, separator=";", dates=dates)
        data = CSVDataset(path, separator=";", dates=dates, missing=-5, features=["d"])
        assert data.features[:, 0].tolist() == [v for value in values for v in (value, -5)]


class TestDatesThatCannotBeTold:
    def test_have_the_day_or_the_month_first(self, read: Any) -> None:
        with pytest.raises(SourceError, match=r"'%d/%m/%Y'\} or \{'d': '%m/%d/%Y'\}"):
            read("d\n1/2/2020\n3/4/2020\n", dates=["d"])

    def test_are_of_several_formats(self, read: Any) -> None:
        with pytest.raises(SourceError, match=r"no one format of dates.*'2020-01-01' and 'x'"):
            read("d\n2020-01-01\nx\n", dates=["d"])

    def test_are_in_no_column(self, read: Any) -> None:
        with pytest.raises(MissingColumnError, match="has no column 'e'"):
            read("d\n2020-01-01\n", dates=["e"])


class TestOtherOptionsAreAnotherEntryOfTheCache:
    @pytest.mark.parametrize(
        ("text", "one", "other"),
        [
            ("a;b\n1,500;2\n", {"thousands": ","}, {"decimal": ","}),
            ("a;b\n5%;2\n", {"units": "%"}, {"on_doubt": "warn"}),
            ("a;b\n1/2/2020;2\n", {"dates": {"a": "%d/%m/%Y"}}, {"dates": {"a": "%m/%d/%Y"}}),
            ("a;b\n#1;2\n3;4\n", {"comment": "#"}, {"categories": ["a"]}),
            ("é;b\n1;2\n3;4\n", {"encoding": "utf-8"}, {"encoding": "cp1252"}),
            ("a;b\n x;2\n y;1\nx;3\n", {"skipinitialspace": True}, {"categories": ["a"]}),
            ("1;2\n3;4\n", {"has_header": False}, {"has_header": True}),
        ],
    )
    @pytest.mark.filterwarnings("ignore::headrace.errors.SourceWarning")
    def test_one_after_the_other(self, tmp_path: Path, text: str, one: Any, other: Any) -> None:
        path = tmp_path / "t.csv"
        path.write_text(text)
        for choice in (one, other, one):
            options = {"separator": ";", **choice}
            kept = CSVDataset(path, cache_dir=tmp_path / "cache", **options)
            fresh = CSVDataset(path, **options)
            np.testing.assert_array_equal(kept.features, fresh.features)
            assert (kept.feature_names, kept.categories) == (fresh.feature_names, fresh.categories)
        assert len([*(tmp_path / "cache").iterdir()]) == 2


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"x": draw.normal(size=500), "k": draw.choice(["a", 'b"c', "d;e"], 500)})
    for number, options in enumerate(
        [
            {"sep": ";", "decimal": ","},
            {"compression": "bz2"},
            {"encoding": "utf-16"},
            {"sep": "\t"},
        ]
    ):
        path = tmp_path / f"{number}.csv"
        frame.to_csv(path, index=False, **options)
        given = {"separator": None, "decimal": options.get("decimal", ".")}
        data = CSVDataset(path, dtype=torch.float64, **given)
        np.testing.assert_array_equal(data.features[:, 0], frame["x"])
        codes = data.features[:, 1].astype(int)
        assert [data.categories["k"][code] for code in codes] == frame["k"].tolist()
