"""CSV files: what becomes of each kind of column, and what each kind of bad file is told."""

import csv
import gzip
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.forked import exit_code_of
from data.tables.functions import first_feature
from headrace import DataLoader
from headrace.data import CSVDataset
from headrace.errors import (
    MissingColumnError,
    OptionError,
    SampleIndexError,
    SourceChangedError,
    SourceError,
)
from headrace.testing import assert_exact_resume
from oracle import assert_programs_agree


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(data: bytes | str, name: str = "table.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write


@pytest.fixture
def iris(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(150, 3)), columns=["a", "b", "c"])
    frame["kind"] = draw.choice(["setosa", "virginica", "versicolor"], 150)
    path = tmp_path / "iris.csv"
    frame.to_csv(path, index=False)
    return path


class TestSamples:
    def test_are_features_and_target(self, write: Any) -> None:
        data = CSVDataset(write("a,y,b\n1,cat,2.5\n3,ant,4\n"), target="y")
        x, y = data[0]
        assert torch.equal(x, torch.tensor([1.0, 2.5]))
        assert torch.equal(y, torch.tensor(1))
        assert data.feature_names == ("a", "b")
        assert data.target_name == "y"
        assert data.classes == ("ant", "cat")
        assert data.categories == {"y": ("ant", "cat")}
        assert len(data) == 2

    def test_are_features_alone_without_a_target(self, write: Any) -> None:
        data = CSVDataset(write("a,b\n1,2\n3,4\n"))
        assert torch.equal(data[-1], torch.tensor([3.0, 4.0]))
        assert data.classes is None
        assert data.targets is None

    def test_have_the_features_asked_for_in_that_order(self, write: Any) -> None:
        data = CSVDataset(write("a,b,c\n1,2,3\n"), features=["c", "a"])
        assert data[0].tolist() == [3.0, 1.0]

    @pytest.mark.parametrize(
        ("values", "options", "dtype", "expected"),
        [
            ("3,-4", {}, torch.int64, [3, -4]),
            ("0.5,1", {}, torch.float32, [0.5, 1.0]),
            ("0.5,1", {"dtype": torch.float64}, torch.float64, [0.5, 1.0]),
            ("true,False", {}, torch.int64, [1, 0]),
            ("b,a", {}, torch.int64, [1, 0]),
            ("3,4", {"target_dtype": torch.float32}, torch.float32, [3.0, 4.0]),
            ("3,4", {"categories": ["y"]}, torch.int64, [0, 1]),
        ],
    )
    def test_have_a_target_of_the_stated_type(
        self, write: Any, values: str, options: Any, dtype: Any, expected: Any
    ) -> None:
        first, second = values.split(",")
        data = CSVDataset(write(f"x,y\n1,{first}\n2,{second}\n"), target="y", **options)
        targets = torch.stack([y for _, y in data])
        assert targets.dtype == dtype
        assert targets.tolist() == expected

    def test_outside_are_an_error(self, write: Any) -> None:
        data = CSVDataset(write("a\n1\n2\n"))
        with pytest.raises(SampleIndexError, match="2 samples"):
            data[2]
        with pytest.raises(TypeError, match="indexed by integers"):
            data["a"]  # type: ignore[index]

    def test_of_whole_numbers_are_exact(self, write: Any) -> None:
        large = 2**53 + 1
        data = CSVDataset(write(f"a,b\n{large},-1\n,2\n"), dtype=torch.int64, missing=-9)
        assert torch.stack(list(data)).tolist() == [[large, -1], [-9, 2]]

    def test_of_several_files_come_one_behind_the_other(self, write: Any) -> None:
        paths = [write("a,y\n1,b\n", "1.csv"), write("y,a\nc,2\na,3\n", "2.csv")]
        data = CSVDataset(paths, features=["a"], target="y")
        assert [x.item() for x, _ in data] == [1.0, 2.0, 3.0]
        assert [data.classes[y] for _, y in data] == ["b", "c", "a"]  # type: ignore[index]


class TestCategories:
    def test_are_sorted_and_cover_the_whole_file(self, write: Any, tmp_path: Path) -> None:
        names = [f"n{i % 700:03}" for i in range(3_000, 0, -1)]
        path = write("name,x\n" + "".join(f"{name},1\n" for name in names))
        for options in ({}, {"cache_dir": tmp_path / "cache"}):
            data = CSVDataset(path, **options)
            assert data.categories["name"] == tuple(sorted(set(names)))
            codes = data.features[:, 0].astype(int)
            assert [data.categories["name"][code] for code in codes] == names

    def test_of_one_file_are_used_for_another(self, write: Any) -> None:
        train = CSVDataset(write("k,y\nx,1\nb,2\n", "train.csv"), target="y")
        test = CSVDataset(write("k\nx\nx\n", "test.csv"), categories=train.categories)
        assert test.features.tolist() == [[1.0], [1.0]]

    def test_that_are_not_among_those_given_are_an_error(self, write: Any) -> None:
        with pytest.raises(SourceError, match=r"line 3, column 'k': 'q' is none of.*'b', 'x'"):
            CSVDataset(write("k\nx\nq\n"), categories={"k": ("b", "x")})

    def test_mixed_with_numbers_have_to_be_declared(self, write: Any) -> None:
        path = write("zip,b\n12,1\n9A,2\n")
        with pytest.raises(SourceError, match=r"column 'zip' has numbers and text.*categories="):
            CSVDataset(path)
        assert CSVDataset(path, categories=["zip"]).categories == {"zip": ("12", "9A")}


class TestMissingValues:
    @pytest.mark.parametrize("text", ["", "NA", "nan", "NAN", "null"])
    def test_are_an_error_that_names_the_line(self, write: Any, text: str) -> None:
        with pytest.raises(SourceError, match=r"table.csv, line 3, column 'b': a value is missing"):
            CSVDataset(write(f"a,b\n1,2\n3,{text}\n5,6\n"))

    @pytest.mark.parametrize("text", ["", "NA", "nan", "NAN", "null"])
    def test_are_replaced(self, write: Any, text: str) -> None:
        data = CSVDataset(write(f"a,b\n1,2\n{text},4\n5,{text}\n"), missing=-7.5)
        assert data.features.tolist() == [[1, 2], [-7.5, 4], [5, -7.5]]

    def test_may_stay_nan(self, write: Any) -> None:
        data = CSVDataset(write("a,b\n1,\n"), missing=float("nan"))
        assert np.isnan(data.features[0, 1])

    def test_among_categories_have_code_minus_one(self, write: Any) -> None:
        data = CSVDataset(write("k,x\nz,1\n,2\na,3\n"), missing=9)
        assert data.features.tolist() == [[1, 1], [-1, 2], [0, 3]]

    def test_of_the_target_are_an_error(self, write: Any) -> None:
        with pytest.raises(SourceError, match="line 3, column 'y': the target is missing"):
            CSVDataset(write("a,y\n1,2\n3,\n"), target="y", missing=0)

    def test_are_what_null_values_says(self, write: Any) -> None:
        data = CSVDataset(write("a,b\n?,2\n3,4\n"), null_values=["?"], missing=0)
        assert data.features.tolist() == [[0, 2], [3, 4]]


LATE = "1,2\n" * 1_500  # behind the rows that decide what a column is

BAD = [
    ("empty", b"", {}, "table.csv is an empty file"),
    ("nothing but a line end", b"\n\n", {}, "table.csv is empty"),
    ("header only", b"a,b\n", {}, "has no rows"),
    ("short row", b"a,b\n1,2\n3\n", {}, r"line 3 has 1 fields, but there are 2 columns"),
    ("short row, filled", f"a,b\n{LATE}3\n", {"missing": 0}, r"line 1,502 has 1 fields"),
    ("short row, not asked for", f"a,b\n{LATE}3\n", {"features": ["a"]}, r"line 1,502 has 1"),
    ("long row", b"a,b\n1,2,3\n", {}, r"line 2 has 3 fields, but there are 2 columns"),
    ("long row, late", f"a,b\n{LATE}1,2,3\n", {}, r"line 1,502 has 3 fields"),
    ("long row at the end", f"a,b\n{LATE}1,2,", {}, r"line 1,502 has 3 fields"),
    ("a line of spaces and a short row", f"a,b\n{LATE} \n1\n", {"missing": 0}, r"line 1,503 has 1"),
    ("text for a number", f"a,b\n{LATE}x,2\n", {}, r"line 1,502, column 'a': 'x' is not a number"),
    ("no whole number", f"a,b\n{LATE}1.5,2\n", {"target": "a"}, r"'1.5'.*target_dtype="),
    ("too large", f"a,b\n{LATE}{2**64},2\n", {"target": "a"}, r"line 1,502.*64 bits"),
    ("spaces behind, late", f"a,b\n{LATE}3 ,2\n", {}, r"line 1,502.*spaces behind"),
    ("not UTF-8", b"a,b\n1,caf\xe9\n", {}, r"line 2, byte 5: not UTF-8.*cp1252.*'1,café'"),
    ("not UTF-8, late", f"a,b\n{LATE}".encode() + b"\xff,1\n", {}, r"line 1,502, byte 0: not UTF"),
    ("not UTF-8 in the header", b"a,\xe9\n1,2\n", {}, r"line 1, byte 2: not UTF-8"),
    ("gzip, and bad", gzip.compress(b"a,b\n1,x\n1,2"), {}, r"\(decompressed\), column 'b' has num"),
    ("gzip, cut short", gzip.compress(b"a,b\n1,2\n" * 99)[:-9], {}, r"cut short"),
    ("zstd, cut short", zstandard.compress(b"a,b\n1,2\n" * 99)[:-9], {}, r"cut short"),
    ("another separator", b"a;b\n1;2\n", {"target": "b"}, r"It has: 'a;b'. Write separator=';'"),
    (
        "two columns of one name",
        b"a,b,a\n1,2,3\n",
        {},
        r"line 1: two columns are called 'a'.*1 and 3",
    ),
    ("quotes that stay open", b'a,b\n1,"x\n2,y\n', {}, r"line 2: unexpected end of data"),
    ("quotes that stay open, late", f'a,b\n{LATE}1,"x\n2,y\n', {}, r"line 1,502"),
    ("line ends of old Macs", b"a,b\r1,2\r", {}, "line feed"),
    ("only a target", b"y\n1\n", {"target": "y"}, "no columns but the target"),
]


class TestBadFiles:
    @pytest.mark.parametrize(
        ("data", "options", "says"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
    )
    def test_are_an_error_that_says_where(
        self, write: Any, tmp_path: Path, data: Any, options: Any, says: str
    ) -> None:
        path = write(data)
        cache = tmp_path / "cache"
        for cached in ({}, {"cache_dir": cache}):
            with pytest.raises((SourceError, MissingColumnError), match=says):
                CSVDataset(path, **options, **cached)
        assert not list(cache.glob("*"))

    @pytest.mark.parametrize("asked", [{"target": "z"}, {"features": ["a", "z"]}])
    def test_without_a_column_name_those_there_are(self, write: Any, asked: Any) -> None:
        with pytest.raises(MissingColumnError, match=r"has no column 'z'. It has: 'a', 'b'"):
            CSVDataset(write("a,b\n1,2\n"), **asked)

    def test_one_of_several_is_named(self, write: Any) -> None:
        good, bad = write("a,b\n1,2\n", "good.csv"), write("a,b\n1,x\n", "bad.csv")
        with pytest.raises(SourceError, match=r"bad.csv, line 2, column 'b'"):
            CSVDataset([good, bad])
        with pytest.raises(MissingColumnError, match=r"bad.csv has no column 'b'"):
            CSVDataset([good, write("a,c\n1,2\n", "bad.csv")])
        with pytest.raises(SourceError, match=r"bad.csv has other columns"):
            CSVDataset([good, write("a,b,c\n1,2,3\n", "bad.csv")])

    def test_that_do_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nowhere.csv"):
            CSVDataset(tmp_path / "nowhere.csv")

    @pytest.mark.parametrize(
        "options",
        [
            {"dtype": torch.float16},
            {"missing": "skip"},
            {"missing": None},
            {"missing": 0.5, "dtype": torch.int64},
            {"separator": ", "},
            {"features": []},
            {"features": ["a", "a"]},
        ],
    )
    def test_options_that_cannot_be(self, write: Any, options: Any) -> None:
        with pytest.raises(OptionError):
            CSVDataset(write("a,b\n1,2\n"), **options)

    def test_changed_while_it_is_read(self, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from headrace.data.tables.csv import dataset as module

        path = write("a,b\n1,2\n")
        convert = module.convert

        def slowly(*arguments: Any) -> Any:
            made = convert(*arguments)
            with open(path, "a", encoding="ascii") as file:
                file.write("3,4\n")
            return made

        monkeypatch.setattr(module, "convert", slowly)
        with pytest.raises(SourceChangedError, match=r"table.csv changed while it was read"):
            CSVDataset(path)


class TestRoundTrips:
    def test_through_pandas(self, iris: Path) -> None:
        frame = pd.read_csv(iris)
        data = CSVDataset(iris, target="kind")
        expected = frame[["a", "b", "c"]].to_numpy().astype(np.float32)
        np.testing.assert_allclose(data.features, expected, rtol=1e-6)
        codes = frame["kind"].astype("category")
        assert data.classes == tuple(codes.cat.categories)
        np.testing.assert_array_equal(data.targets, codes.cat.codes)

    def test_through_polars(self, tmp_path: Path) -> None:
        draw = np.random.default_rng(1)
        frame = pl.DataFrame({"x": draw.normal(size=99), "n": draw.integers(-9, 9, 99)})
        frame.write_csv(tmp_path / "p.csv", separator=";")
        data = CSVDataset(tmp_path / "p.csv", target="n", dtype=torch.float64, separator=";")
        np.testing.assert_array_equal(data.features[:, 0], frame["x"].to_numpy())
        np.testing.assert_array_equal(data.targets, frame["n"].to_numpy())

    def test_without_a_header(self, write: Any) -> None:
        data = CSVDataset(write("1,2\n3,4\n"), has_header=False, target="column_2")
        assert data.features.tolist() == [[1.0], [3.0]]
        assert data.targets is not None
        assert data.targets.tolist() == [2, 4]

    def test_with_marks_and_spaces_of_other_programs(self, write: Any) -> None:
        data = CSVDataset(write(b"\xef\xbb\xbfa,b\r\n 1,2 \r\n3, 4.5\r\n"))
        assert data.feature_names == ("a", "b")
        assert data.features.tolist() == [[1.0, 2.0], [3.0, 4.5]]


NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False).map(repr), st.integers(-(10**6), 10**6).map(str)
)
TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\x00", exclude_categories=["Cs"]), min_size=1
).filter(lambda text: "\ufeff" not in text)
ROWS = st.lists(st.tuples(NUMBERS | st.just(""), TEXTS), min_size=1, max_size=30)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class TestConversion:
    @QUICK
    @given(rows=ROWS)
    def test_keeps_every_field(self, write: Any, rows: list[tuple[str, str]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("x", "k"), *rows])
        data = CSVDataset(write(text.getvalue()), null_values=[""], categories=["k"], missing=-3)
        expected = [np.float32(number or -3) for number, _ in rows]
        np.testing.assert_array_equal(data.features[:, 0], np.array(expected, np.float32))
        codes = data.features[:, 1].astype(int)
        assert [data.categories["k"][code] for code in codes] == [name for _, name in rows]

    @QUICK
    @given(
        body=st.lists(
            st.sampled_from(["1", "2.5", "x", ",", ",", "\n", "\n", '"', " ", "\r\n", "é", "\x00"])
        ).map("".join),
        flip=st.none() | st.tuples(st.integers(0, 200), st.integers(0, 255)),
    )
    def test_of_any_bytes_is_an_error_or_every_row(
        self, write: Any, body: str, flip: tuple[int, int] | None
    ) -> None:
        data = bytearray(f"a,b\n{body}".encode())
        if flip is not None:
            data[flip[0] % len(data)] = flip[1]
        try:
            found = CSVDataset(write(bytes(data)), missing=-1, categories=["b"], on_doubt="ignore")
        except (SourceError, MissingColumnError):
            return
        text = io.StringIO(bytes(data).decode("utf-8-sig"), newline="")
        rows = [r for r in csv.reader(text, strict=True) if len(r) > 1 or "".join(r).strip()]
        assert len(found) == len(rows) - 1

    @QUICK
    @given(rows=st.integers(1, 40), batch=st.integers(1, 9), target=st.booleans())
    def test_gathers_what_the_default_collation_makes(
        self, write: Any, rows: int, batch: int, target: bool
    ) -> None:
        path = write("a,b,k\n" + "".join(f"{i},{i / 7},{'pqr'[i % 3]}\n" for i in range(rows)))

        def program(loader: Any) -> Any:
            data = CSVDataset(path, target="k" if target else None)
            return list(loader(data, batch_size=batch, shuffle=True))

        assert_programs_agree(program)


class TestInALoader:
    def test_is_gathered(self, iris: Path) -> None:
        loader = DataLoader(CSVDataset(iris, target="kind"), batch_size=10, shuffle=True)
        x, y = next(iter(loader))
        assert (x.shape, y.shape, y.dtype) == ((10, 3), (10,), torch.int64)
        assert loader.statistics().path == "gather"

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_is_read_by_workers(self, iris: Path, tmp_path: Path, method: str) -> None:
        data = CSVDataset(iris, target="kind", cache_dir=tmp_path / "cache").map(first_feature)
        loader = DataLoader(data, batch_size=50, num_workers=1, multiprocessing_context=method)
        expected = torch.from_numpy(np.array(CSVDataset(iris, target="kind").features[:, 0]))
        assert torch.equal(torch.cat(list(loader)), expected)

    def test_opened_in_a_forked_worker_does_not_wait_for_ever(
        self, iris: Path, tmp_path: Path
    ) -> None:
        """The threads of polars, which read CSV files, stay behind in a fork."""
        CSVDataset(iris, cache_dir=tmp_path)

        def open_it() -> None:
            with pytest.raises(SourceError, match=r"iris.csv cannot be read here.*forkserver"):
                CSVDataset(iris)
            assert len(CSVDataset(iris, cache_dir=tmp_path)) == 150

        assert exit_code_of(open_it) == 0

    def test_resumes_exactly(self, iris: Path) -> None:
        assert_exact_resume(
            lambda: DataLoader(CSVDataset(iris, target="kind"), batch_size=40, shuffle=True)
        )

    def test_is_pickled_without_its_data(self, iris: Path, tmp_path: Path) -> None:
        for options in ({}, {"cache_dir": tmp_path / "cache"}):
            data = CSVDataset(iris, target="kind", **options)
            text = pickle.dumps(data)
            assert len(text) < 2_000
            again = pickle.loads(text)
            assert again.classes == data.classes
            np.testing.assert_array_equal(again.features, data.features)

    def test_pickled_does_not_become_another_one(self, iris: Path, tmp_path: Path) -> None:
        kept = pickle.dumps(CSVDataset(iris, target="kind", cache_dir=tmp_path / "cache"))
        text = pickle.dumps(CSVDataset(iris, target="kind"))
        os.utime(iris, ns=(1, 1))
        with pytest.raises(SourceChangedError, match=r"iris.csv changed"):
            pickle.loads(text)
        assert len(pickle.loads(kept)) == 150  # from the cache, which is of the file as it was
