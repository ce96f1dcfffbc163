"""CSV files that are not what they look like: said with column, two values, the line to write."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from headrace.data import CSVDataset
from headrace.errors import MissingColumnError, SourceError, SourceWarning

ROWS = range(1, 40)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def column(fields: list[str]) -> str:
    """Return a file whose column x has these fields, again and again."""
    many = [fields[n % len(fields)] for n in range(60)]
    return "x;n\n" + "".join(f"{field};{n * 7 % 5}\n" for n, field in enumerate(many))


LOOKS = {
    "decimal comma": ([f"{i},5" for i in ROWS], "'1,5' and '2,5'", "decimal=','"),
    "thousands": ([f"{i},500" for i in ROWS], "'1,500'", "thousands=','"),
    "both, German": (["1.234,56", "7,5"], "'1.234,56'", "decimal=',', thousands='.'"),
    "thousands of Germans": (["1.234.567", "1.234"], "1.234.567", "thousands='.'"),
    "spaces": (["1 000", "2 500", "5"], "'1 000'", "thousands=' '"),
    "no-break spaces": (["1\u00a0000", "2\u00a0500"], "1", "thousands=' '"),
    "narrow spaces": (["1\u202f000,5", "2"], "000,5", "decimal=',', thousands=' '"),
    "apostrophes": (["1'000", "2'500"], "1'000", 'thousands="\'"'),
    "underscores": (["1_000", "2_500"], "'1_000'", "thousands='_'"),
    "with what is missing": (["1,5", "2,5", "3,5", "-"], "'1,5'", "'-' is none.*null_values="),
    "percent": ([f"{i}%" for i in ROWS], "'1%' and '2%'", r"units=\['%'\]"),
    "percent, German": (["12,5 %", "3 %"], "'12,5 %'", r"units=\['%'\], decimal=','"),
    "dollars": ([f"${i}" for i in ROWS], "'$1' and '$2'", r"units=\['\$'\]"),
    "euros": (["5 €", "6 €"], "'5 €' and '6 €'", r"units=\['€'\]"),
    "codes": (["EUR 5", "USD 6"], "'EUR 5' and 'USD 6'", r"units=\['EUR', 'USD'\]"),
    "minus before": (["-$5", "$6"], r"'-$5' and '$6'", r"units=\['\$'\]"),
    "base 16": ([f"0x{i:x}" for i in ROWS], "'0x1' and '0x2'", r"int\(text, 16\)"),
    "minus of Unicode": (["-5", "\u22125", "7"], "\u22125", "normalize"),
    "digits of Arabic": (["٣", "٤"], "'٣' and '٤'", "normalize"),
    "wide digits": (["\uff11\uff12", "\uff17"], "\uff11", "normalize"),
    "brackets": (["(5)", "3", "7"], r"'(5)'", r"-float\(text.strip"),
    "minus behind": (["5-", "6"], "'5-'", r"-float\(text\[:-1\]\)"),
    "Fortran": (["1d5", "2d-3"], "'1d5' and '2d-3'", "replace"),
    "complex numbers": (["1+2j", "0.5-1e3j", "3"], r"'1+2j' and '0.5-1e3j'", r"abs\(complex"),
    "complex, in brackets": (["(1+2i)", "(3-1i)"], r"'(1+2i)' and '(3-1i)'", r"abs\(complex"),
    "weeks": (["2024-W05", "2024W06"], "'2024-W05' and '2024W06'", "fromisocalendar"),
    "days of weeks": (["2024-W05-1", "2024-W06-7"], "'2024-W05-1'", "fromisocalendar"),
    "names of months": (["Jan 2024", "February 2024"], "'Jan 2024'", r"pandas.Timestamp\(text\)"),
    "dates": ([f"2020-01-{i % 28 + 1:02}" for i in ROWS], "'2020-01-02'", r"dates=\['x'\]"),
    "dates, German": (["31.12.2020", "1.1.2021"], "'31.12.2020'", r"dates=\['x'\]"),
    "dates, either": (["1/2/2020", "3/4/2020"], "'1/2/2020'", r"%d/%m/%Y.*%m/%d/%Y"),
    "dates of words": (["3 Jan 2020", "4 Feb 2020"], "'3 Jan 2020'", r"dates=\['x'\]"),
    "dates and times": (["2020-01-01T10:00:00Z"], "'2020-01-01T10:00:00Z'", r"dates=\['x'\]"),
    "months": (["2020-01", "2020-12"], "'2020-01' and '2020-12'", r"dates=\['x'\]"),
    "durations": (["1 days 02:00:00", "2 days"], "'1 days 02:00:00'", r"pandas.Timedelta\(text\)"),
    "times": (["10:30", "11:00"], "'10:30' and '11:00'", r"dates=\['x'\]"),
    "times of 12 hours": (["1:30 PM", "11:00 AM"], "'1:30 PM'", r"dates=\['x'\]"),
    "dates of two formats": (["2020-01-01", "1/1/2020"], "'2020-01-01'", "the one format"),
    "numbers and text": (["1", "2", "z"], "'1' and 'z'", r"null_values=\['', 'z'\]"),
    "question marks": (["1", "?", "3"], "'1' and '?'", r"null_values=\['', '\?'\]"),
    "dashes": (["1.5", "-", "3"], "'1.5' and '-'", r"null_values=\['', '-'\]"),
}


@pytest.mark.parametrize("name", LOOKS)
class TestTextThatLooksLikeNumbers:
    def test_is_an_error_that_names_column_values_and_line(self, write: Any, name: str) -> None:
        fields, values, line = LOOKS[name]
        path = write(column(fields))
        says = rf"t\.csv, column 'x' has .*{re.escape(values)}.*Write .*{line}"
        with pytest.raises(SourceError, match=says):
            CSVDataset(path, separator=";")
        with pytest.raises(SourceError, match=says):
            CSVDataset(path, separator=";", target="x")

    def test_may_be_categories_if_it_is_said(self, write: Any, name: str) -> None:
        fields, _, _ = LOOKS[name]
        path = write(column(fields))
        data = CSVDataset(path, separator=";", categories=["x"])
        assert data.categories["x"] == tuple(sorted(set(fields)))
        assert CSVDataset(path, separator=";", features=["n"]).feature_names == ("n",)
        with pytest.warns(SourceWarning, match="column 'x'"):
            data = CSVDataset(path, separator=";", on_doubt="warn")
        assert data.kinds["x"] == "categories"
        assert data.doubts[0].column == "x"
        assert data.doubts[0].sure
        again = CSVDataset(path, separator=";", on_doubt="ignore")
        np.testing.assert_array_equal(again.features, data.features)

    def test_is_found_behind_the_first_rows(self, write: Any, name: str) -> None:
        """Those that decide what a column is; here it is text by then."""
        fields = LOOKS[name][0]
        many = ["a", "b"] * 600 + fields * 3
        path = write("x;n\n" + "".join(f"{f};1\n" for f in many))
        if len(set(fields)) > 2 and name not in ("numbers and text", "question marks", "dashes"):
            with pytest.raises(SourceError, match=r"column 'x' has .*Write"):
                CSVDataset(path, separator=";")


PLAUSIBLE = {
    "letters": ["a", "b", "c"],
    "ranges": ["18-25", "26-35", "65+"],
    "yes and no": ["yes", "no"],
    "places": ["1st", "2nd", "3rd", "4th"],
    "codes": ["C85", "C86", "B12"],
    "quarters": ["Q1", "Q2", "Q3"],
    "versions": ["1.2.3", "1.2.10"],
    "days": ["Mon", "Tue"],
    "months": ["Jan", "Feb"],
    "sizes": ["S", "M", "XL"],
    "addresses": ["10.0.0.1", "10.0.0.2"],
    "hours": ["open 10", "open 12"],
    "percentages of ranges": ["10-20%", "20-30%"],
    "signs": ["+", "-"],
    "telephones": ["555-1234", "555-2222"],
}


@pytest.mark.parametrize("name", PLAUSIBLE)
def test_categories_that_are_plausible_are_silent(write: Any, name: str) -> None:
    data = CSVDataset(write(column(PLAUSIBLE[name])), separator=";")
    assert data.doubts == ()
    assert data.categories["x"] == tuple(sorted(PLAUSIBLE[name]))


DOUBTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "names": (
        "name,b\n" + "".join(f"person {i},{i % 3}\n" for i in range(500)),
        {},
        r"column 'name' has 500 different texts in 500 rows.*'person 0' and 'person 1'.*features=",
    ),
    "names of a few rows": (
        "name,b\n" + "".join(f"{c}x,{i % 3}\n" for i, c in enumerate("abcdefghijkl")),
        {},
        r"'name' has 12 different texts in 12 rows",
    ),
    "many names, some twice": (
        "name,b\n" + "".join(f"n{i % 2000},{i % 3}\n" for i in range(9_000)),
        {},
        r"'name' has 2,000 different texts in 9,000 rows",
    ),
    "units": (column(["5 kg", "6 kg"]), {"separator": ";"}, r"'x' has.*units=\['kg'\]"),
    "degrees": (column(["12°", "13°"]), {"separator": ";", "on_doubt": "warn"}, r"units=\['°'\]"),
    "limits": (column(["<5", "<10"]), {"separator": ";"}, r"units=\['<'\]"),
    "fractions": (column(["1/2", "1/4"]), {"separator": ";"}, "fractions, as '1/2' and '1/4'"),
    "quarters": (column(["2024Q1", "2024-Q2"]), {"separator": ";"}, r"quarters.*Period\(text\)"),
    "quarters, first": (
        column(["Q1 2024", "Q2-2024"]),
        {"separator": ";"},
        r"quarters.*text\[-4:\]",
    ),
    "lists": (column(["[1, 2]", "[3]"]), {"separator": ";"}, r"lists, as '\[1, 2\]'.*json"),
    "two cases": (column(["Yes", "yes", "No"]), {"separator": ";"}, "'Yes' and 'yes'"),
    "spaces": (column(["Yes", "Yes ", "No"]), {"separator": ";"}, "'Yes' and 'Yes '"),
    "spaces behind separators": ("a, k\n1, x\n2, y\n", {}, r"' k'.*skipinitialspace=True"),
    "spaces in front of texts": ("a,k\n1, x\n2, y\n", {}, r"'k': spaces.*skipinitialspace=True"),
    "long ids": (
        "id,b\n" + "".join(f"{2**24 + i},{i % 3}\n" for i in ROWS),
        {"features": ["id", "b"]},
        r"column 'id' has.*16777217 becomes 16777216.*dtype=torch.float64.*categories=\['id'\]",
    ),
    "long ids, late": (
        "n,b\n" + "1,2\n" * 1_500 + f"{2**24 + 1},3\n",
        {},
        r"column 'n' has.*16777217 becomes 16777216.*dtype=torch.float64",
    ),
    "ids of 17 digits": (
        f"n,b\n{2**53 + 1},1\n5,2\n",
        {"dtype": torch.float64},
        r"column 'n' has whole numbers with more digits than float64.*dtype=torch.int64",
    ),
    "dates as numbers": (
        "n,b\n20200131,1\n20200201,2\n",
        {},
        r"'n' has.*dates=\{'n': '%Y%m%d'\}",
    ),
    "seconds since 1970": (
        "n,b\n" + "".join(f"1580000000.{i},1\n" for i in range(100, 150)),
        {},
        r"column 'n': '1580000000.1\d\d' and '1580000000.1\d\d' are one number in float32.*float64",
    ),
    "times as seconds": (
        "n,b\n2020-01-01 10:00:01,1\n2020-01-01 10:00:02,2\n",
        {"dates": ["n"]},
        r"column 'n' has.*1577872801 becomes 1577872768.*dtype=torch.float64",
    ),
    "zeros behind a space": (
        "n,b\n 007,1\n 012,2\n",
        {},
        r"column 'n' has zeros in front, as ' 007'",
    ),
    "zeros in front": (
        "zip,b\n01234,1\n02139,2\n10001,3\n",
        {},
        r"column 'zip' has zeros in front, as '01234' and '02139'.*categories=\['zip'\]",
    ),
    "007": ("agent,b\n007,1\n008,2\n", {}, r"'agent' has zeros in front, as '007' and '008'"),
    "ids": (
        "user_id,b\n" + "".join(f"{100 - i},{i % 3}\n" for i in ROWS),
        {},
        r"'user_id' has a number of its own in each row, as '99' and '98'.*features=\['b'\]",
    ),
    "pandas' index": (
        pd.DataFrame({"a": [5, 6], "y": [0, 1]}).to_csv(),
        {"target": "y"},
        r"column 1 has no name.*'0' and '1'.*features=\['a'\].*index=False",
    ),
    "pandas' index, twice": ("Unnamed: 0,a\n0,5\n1,6\n", {}, r"column 'Unnamed: 0' has no name"),
    "pandas' index of text": (",a\nx,5\ny,6\n", {}, r"column 1 has no name"),
    "years as names": ("2019,2020,2021\n1,2,3\n4,5,6\n", {}, r"line 1 has numbers.*'2019' and"),
    "no header, counting": ("1,2\n3,4\n", {}, r"line 1 has numbers.*has_header=False"),
}


@pytest.mark.parametrize("name", DOUBTS)
class TestWhatIsDoubted:
    def test_is_a_warning_at_the_users_line(self, write: Any, name: str) -> None:
        text, options, says = DOUBTS[name]
        path = write(text)
        with pytest.warns(SourceWarning, match=says) as said:
            CSVDataset(path, **options)
        assert {Path(warning.filename).name for warning in said} == {Path(__file__).name}

    def test_is_said_at_each_start(self, write: Any, tmp_path: Path, name: str) -> None:
        text, options, says = DOUBTS[name]
        path = write(text)
        for _ in range(2):
            with pytest.warns(SourceWarning, match=says):
                data = CSVDataset(path, cache_dir=tmp_path / "cache", **options)
            assert any(re.search(says, doubt.text) for doubt in data.doubts)
        CSVDataset(path, **{**options, "on_doubt": "ignore"})


def test_numbers_that_are_exact_are_silent(write: Any) -> None:
    text = "n,z,m\n" + "".join(f"{2**24},{i:02},{(2**24) * 3 + 2**10 * i}\n" for i in ROWS)
    data = CSVDataset(write(text))
    assert data.doubts == ()
    assert data.features[0].tolist() == [2**24, 1, 2**24 * 3 + 2**10]
    ids = "id,b\n" + "".join(f"{10**15 + i},{i % 3}\n" for i in ROWS)
    found = CSVDataset(write(ids), dtype=torch.float64, features=["id"])
    assert found.features[:, 0].tolist() == [10**15 + i for i in ROWS]
    rows = CSVDataset(write(f"n\n{2**62 + 1}\n"), dtype=torch.int64)
    assert rows.features.tolist() == [[2**62 + 1]]


def test_a_name_that_is_a_value_too_is_a_name_beside_numbers(write: Any) -> None:
    assert CSVDataset(write("a,b\na,1\nb,2\n")).feature_names == ("a", "b")


def test_random_numbers_are_silent(write: Any) -> None:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"a": draw.normal(size=3_000), "b": draw.integers(0, 10**6, 3_000)})
    frame["t"] = np.arange(3_000)
    assert CSVDataset(write(frame.to_csv(index=False))).doubts == ()


ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "semicolons": ("a;b\n1;2\n", {}, r"has one column, 'a;b'. Write separator=';'"),
    "tabs": ("a\tb\n1\t2\n", {}, r"one column, 'a\\tb'. Write separator='\\t'"),
    "bars": ("a|b\n1|2\n", {}, r"Write separator='\|'"),
    "commas": ("a,b\n1,2\n", {"separator": ";"}, r"one column, 'a,b'. Write separator=','"),
    "spaces": ("a b\n1 2\n3 4\n", {}, r"Write separator=' ', skipinitialspace=True"),
    "semicolons and decimal commas": ("a;b\n1,5;2,5\n3;4\n", {}, r"Write separator=';'"),
    "semicolons without a header": ("1;2\n3;4\n", {"has_header": False}, r"separator=';'"),
    "decimal commas and semicolons": (
        "a;b\n1,5;2,5\n3;4\n",
        {"separator": None},
        r"column 'a' has .*decimal=','",
    ),
    "no separator": (
        "a;b\n1,2,3\n4\t5\n",
        {"separator": None},
        r"no separator of.*Write separator=",
    ),
    "no header": ("5.1,3.5,setosa\n4.9,3.0,setosa\n", {}, r"line 1 has numbers.*'5.1' and '3.5'"),
    "no header, some text": ("x,3.5\ny,3.0\n", {}, r"line 1 has numbers.*'3.5'.*has_header=False"),
    "no header, negative": ("-1,7\n-2,8\n", {}, r"'-1' and '7'.*has_header=True if they are names"),
    "no header, twice the same": ("1,1\n2,3\n", {}, r"called '1'.*write has_header=False"),
    "no header, missing": ("1,,\n2,3,4\n", {}, r"called ''.*write has_header=False"),
    "no header, texts": ("m,yes\nf,no\nm,no\n", {}, r"the name 'm', which is also a value"),
    "no header, dates": ("2020-01-01,5.5\n2020-01-02,5.7\n", {}, r"line 1 has numbers.*'5.5'"),
    "a header that is taken for a row": (
        "a,b\n1,2\n3,4\n",
        {"has_header": False},
        r"text above numbers, as 'a' above '1'.*has_header=True",
    ),
    "the header again": ("a,b\n1,2\na,b\n3,4\n", {}, r"row 2: the names of the columns again"),
    "JSON": ('{"a": 1}\n{"a": 2}\n', {}, "JSON.*JSONLines"),
    "an array": ('[{"a": 1, "b": 2}]', {}, "JSON.*json.load"),
    "a page": ("<!DOCTYPE html>\n<html>\n", {}, "HTML page"),
    "git lfs": ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", {}, "git lfs pull"),
    "rows that end in separators": ("a,b\n1,2,\n3,4,\n", {}, r"line 2 has 3 fields.*ends in ','"),
    "quotes behind spaces": (
        'a,b\n1, "x, y"\n',
        {},
        r"line 2 has 3 fields.*skipinitialspace=True",
    ),
    "a value in a column without a name": (
        "a,b,\n" + "1,2,\n" * 1_500 + "1,2,3\n",
        {},
        r"line 1,502, column '': '3': it has no name",
    ),
    "a short row beside a column without a name": (
        "a,b,\n" + "1,2,\n" * 1_500 + "1\n",
        {"missing": 0},
        r"line 1,502 has 1 fields",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_meant_is_an_error(write: Any, name: str) -> None:
    text, options, says = ERRORS[name]
    with pytest.raises((SourceError, MissingColumnError), match=says):
        CSVDataset(write(text), **options)


@pytest.mark.parametrize(
    ("text", "target", "says"),
    [
        ("a;b\n1;2\n", "b", r"Write separator=';'"),
        ("a, b\n1, 2\n", "b", r"' b' has spaces: write skipinitialspace=True"),
        ("a,Price\n1,2\n", "price", r"Write 'Price'"),
        ("1,2\n3,4\n", "column_2", r"write has_header=False"),
    ],
)
def test_a_column_that_is_not_there_may_be_another(
    write: Any, text: str, target: str, says: str
) -> None:
    with pytest.raises(MissingColumnError, match=says):
        CSVDataset(write(text), target=target)


def test_a_missing_value_says_how_to_fill_what_is_learnt(write: Any) -> None:
    path = write("a,b\n" + "".join(f"{i},{i * 2}\n" for i in range(9)) + ",4\n")
    with pytest.raises(SourceError, match=r"line 11.*learnt from the training split.*nanmean\(0\)"):
        CSVDataset(path)
    data = CSVDataset(path, missing=float("nan"))
    mean = torch.from_numpy(data.features[[0, 4, 8, 9]]).nanmean(0)  # as the error says
    x = torch.stack([data[9], data[1]])
    assert torch.where(x.isnan(), mean, x).tolist() == [[4, 4], [1, 2]]


def test_of_options_that_say_what_is_meant_nothing_is_doubted(write: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CSVDataset(write("1,2\n3,4\n"), has_header=True)
        CSVDataset(write("1,2\n3,4\n"), has_header=False)
        CSVDataset(write(",a\n0,5\n1,6\n"), features=["", "a"])
        CSVDataset(write("name\n" + "".join(f"p{i}\n" for i in ROWS)), categories=["name"])
        CSVDataset(write("a,b\n007,1\n"), categories=["a"])
