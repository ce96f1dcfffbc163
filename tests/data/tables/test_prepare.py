"""What `prepare_columns` learns of the training rows, and makes of any others."""

import datetime
import json
import math
from contextlib import nullcontext

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from headrace import MissingColumnError, SourceError, Subset
from headrace.data import CSVDataset, PreparedColumns, TableDataset, prepare_columns
from headrace.errors import ArrayMismatchError, ArrayTypeError, OptionError, SourceWarning

PEOPLE = {
    "id": [str(n) for n in range(100, 120)],
    "name": [f"Mr {n}" for n in range(20)],
    "age": [str(20 + n) if n % 5 else "" for n in range(20)],
    "price": [f"1.{n:03d},5" for n in range(20)],
    "city": ["Rome", "São Paulo", "New York", " Rome "] * 5,
    "day": [f"{n + 1:02d}.03.2024" for n in range(20)],
    "share": [f"{n} %" for n in range(20)],
    "odd": [str(n) if n != 3 else "n.a." for n in range(20)],
    "same": ["x"] * 20,
}


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_columns_as_people_have_them():
    prepared = prepare_columns(PEOPLE)
    assert prepared.column_names == ("age", "price", "city", "day", "share", "odd")
    assert set(prepared.left_out) == {"id", "name", "same"}
    assert prepared.categories == {"city": ("New York", "Rome", "São Paulo")}
    assert "'n.a.'" in prepared.notes["odd"]
    numbers, codes = prepared(PEOPLE)
    assert numbers.dtype == torch.float32
    assert numbers.shape == (20, prepared.width)
    assert codes[:4].tolist() == [[2], [3], [1], [2]]
    assert numbers.isfinite().all()
    ages = [float(a) for a in PEOPLE["age"] if a]
    assert numbers[1, 0].item() == pytest.approx((21 - np.mean(ages)) / np.std(ages))
    assert numbers[0, 0].item() == pytest.approx((np.median(ages) - np.mean(ages)) / np.std(ages))
    assert numbers[:6, 1].tolist() == [1, 0, 0, 0, 0, 1]  # which were missing


@given(
    st.lists(
        st.floats(-1e300, 1e300, allow_nan=False, allow_subnormal=False), min_size=3, max_size=40
    ).filter(lambda values: len(set(values)) > 1)
)
@settings(max_examples=60, deadline=None)
def test_numbers_are_scaled_as_scikit_learn_scales_them(values):
    numbers, _ = prepare_columns({"x": values}, ["x"])({"x": values})
    assert numbers.isfinite().all()
    largest = max(map(abs, values))
    column = np.array(values)[:, None] / largest
    wanted = StandardScaler().fit_transform(column)[:, 0]
    if column.std() > 1e-9:
        np.testing.assert_allclose(numbers[:, 0].numpy(), wanted, rtol=1e-4, atol=1e-4)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_what_other_rows_hold_changes_nothing(data):
    """The column that leaks: whatever stands in validation and test rows, nothing is learnt."""
    values = st.one_of(
        st.none(), st.floats(), st.sampled_from(["a", "b", "1,5", "2024-01-01", "?", "è"])
    )
    train = [1.0, 2.0, None, 4.0, 2.0, 8.0]
    texts = ["a", "b", "a", "b", None, "c"]
    rest = data.draw(st.lists(st.tuples(st.floats(), values), min_size=1, max_size=8))
    table = {
        "number": train + [number for number, _ in rest],
        "text": texts + [None if v is None else str(v) for _, v in rest],
    }
    part = Subset(TableDataset(pa.table(table), missing=float("nan")), range(6))
    alone = prepare_columns({"number": train, "text": texts})
    assert prepare_columns(part).to_json() == alone.to_json()
    infinite = any(math.isinf(number) for number, _ in rest)
    said = pytest.warns(SourceWarning, match=r"as -?inf: they") if infinite else nullcontext()
    with said:
        numbers, codes = alone(table)
    assert numbers.isfinite().all()
    assert codes.min() >= 0
    assert codes.max() < alone.category_sizes[0]
    assert same((numbers[:6], codes[:6]), alone({"number": train, "text": texts}))


def test_a_category_that_training_has_not_seen_has_a_place():
    prepared = prepare_columns({"city": ["Rome", "Rome", "Oslo", "Oslo", "once"]})
    assert prepared.category_sizes == (3,)
    _, codes = prepared({"city": ["Oslo", "Paris", None, "once"]})
    assert codes[:, 0].tolist() == [1, 0, 0, 0]


def test_a_missing_category_is_one_where_training_has_it():
    prepared = prepare_columns({"city": ["Rome", "Rome", "", "Oslo", "Oslo", None]})
    _, codes = prepared({"city": ["Oslo", "Paris", "NA"]})
    assert codes[:, 0].tolist() == [1, 0, 3]


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["1,5", "2,25", "1000,125"], 1.5),
        (["1.234,5", "2.345,5", "3,5"], 1234.5),
        (["1 234,5", "2 345,5", "3,5"], 1234.5),
        (["$1,234.50", "$2,000.00", "$3.10"], 1234.5),
        (["10 %", "20 %", "30 %"], 10.0),
        (["1e3", "2e3", "1e4"], 1000.0),
    ],
)
def test_numbers_in_the_notations_of_people(texts, value):
    known = prepare_columns({"x": texts})
    plain = json.loads(known.to_json())["columns"][0]
    assert plain["kind"] == "number"
    same_numbers, _ = known({"x": [value]})
    first, _ = known({"x": texts[:1]})
    assert torch.equal(first, same_numbers)


def test_decimal_says_what_could_be_either():
    texts = ["1,500", "2,500", "999"]
    assert json.loads(prepare_columns({"x": texts}).to_json())["columns"][0]["decimal"] == ","
    dots = json.loads(prepare_columns({"x": texts}, decimal=".").to_json())["columns"][0]
    assert (dots["decimal"], dots["thousands"]) == (".", ",")
    with pytest.raises(OptionError, match=r"decimal='\.'"):
        prepare_columns({"x": texts}, decimal=";")


def test_dates_are_a_time_and_points_of_circles():
    days = [datetime.datetime(2023, 1, 1) + datetime.timedelta(days=n) for n in range(400)]
    for column in (days, [day.strftime("%Y-%m-%d") for day in days]):
        prepared = prepare_columns({"day": column})
        numbers, _ = prepared({"day": column})
        assert numbers.shape == (400, 5)  # the time, the year, the week
        week = numbers[:, 3:]
        assert torch.allclose(week[0], week[7], atol=1e-4)
        assert not torch.allclose(week[0], week[3], atol=1e-1)
        missing, _ = prepared({"day": [None]})
        assert missing.tolist() == [[0, 0, 0, 0, 0]]


def test_a_day_or_a_month_is_noted_and_can_be_said():
    texts = ["01/02/2024", "03/04/2024", "05/06/2024"]
    assert "%d/%m/%Y" in prepare_columns({"day": texts}).notes["day"]
    said = prepare_columns({"day": texts}, dates={"day": "%m/%d/%Y"})
    assert said.notes == {}
    assert json.loads(said.to_json())["columns"][0]["format"] == "%m/%d/%Y"


def frames():
    frame = pd.DataFrame(
        {
            "a": [1, 2, None, 4],
            "b": ["x", "y", None, "x"],
            "c": pd.to_datetime(["2020-01-01", "2020-05-01", None, "2020-06-01"]),
            "d": [True, False, True, False],
        }
    )
    return [frame, pl.from_pandas(frame), pa.Table.from_pandas(frame), frame.to_dict("list")]


def test_all_kinds_of_tables_are_the_same():
    pandas, *others = frames()
    prepared = prepare_columns(pandas)
    assert prepared.width == 2 + 6 + 1
    for other in others:
        assert prepare_columns(other).to_json() == prepared.to_json()
        assert same(prepared(other), prepared(pandas))


def test_a_part_of_a_csv_dataset(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,city,y\n1,Rome,0\n2,Oslo,1\n3,Rome,0\n99,Bern,1\n")
    part = Subset(CSVDataset(path, target="y"), [0, 1, 2])
    prepared = prepare_columns(part)
    assert prepared.column_names == ("x", "city")
    assert prepared.categories == {"city": ("Oslo", "Rome")}
    assert prepared({"x": [2], "city": ["Bern"]})[0].tolist() == [[0.0]]


def test_saved_and_loaded_it_is_the_same(tmp_path):
    prepared = prepare_columns(PEOPLE)
    prepared.save(tmp_path / "columns.json")
    loaded = PreparedColumns.load(tmp_path / "columns.json")
    assert loaded.to_json() == prepared.to_json()
    assert same(loaded(PEOPLE), prepared(PEOPLE))
    (tmp_path / "columns.json").write_text("{}")
    with pytest.raises(SourceError, match=r"prepare_columns\(train\)\.save"):
        PreparedColumns.load(tmp_path / "columns.json")


def test_texts_among_numbers_are_missing_and_told():
    prepared = prepare_columns({"x": ["1", "2", "3"]})
    with pytest.warns(SourceWarning, match=r"'x' .* 1 of 2 values are none, as 'many'"):
        numbers, _ = prepared({"x": ["many", "2"]})
    assert numbers.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(
    ("table", "error", "text"),
    [
        ({}, SourceError, "nothing to learn"),
        ({"x": []}, SourceError, "nothing to learn"),
        ({"x": [None, None]}, SourceError, "'x' is nothing is there|nothing is there"),
        ({"x": [1, 2], "y": [1]}, ArrayMismatchError, "one value for each row"),
        ({"x": [[1], [2]]}, ArrayTypeError, "type list"),
        (3, ArrayTypeError, "int is no table"),
    ],
)
def test_what_is_no_table(table, error, text):
    with pytest.raises(error, match=text):
        prepare_columns(table)


def test_a_column_that_is_not_there():
    with pytest.raises(MissingColumnError, match="'z'"):
        prepare_columns({"x": [1, 2]}, ["z"])
    with pytest.raises(MissingColumnError, match="'x'"):
        prepare_columns({"x": [1, 2]})({"y": [1]})


def test_columns_that_are_named_are_used_whatever_they_look_like():
    ids = {"id": list(range(20)), "zip": [1010 + n % 3 for n in range(20)]}
    assert prepare_columns(ids).column_names == ("zip",)
    assert prepare_columns(ids, ["id"]).column_names == ("id",)
    prepared = prepare_columns(ids, categories="zip")
    assert prepared.categories == {"zip": ("1010", "1011", "1012")}
