"""Hugging Face datasets: gathered exactly where that gives what they and the collation give."""

import datetime
import decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import DataLoader
from headrace.data import TableDataset
from headrace.data.gather import find_gatherer
from headrace.data.tables import huggingface
from headrace.errors import NotCollatableError
from headrace.testing import assert_exact_resume
from oracle import assert_programs_agree

N = 60
DRAW = np.random.default_rng(0)
COLUMNS: dict[str, Any] = {
    "i": DRAW.integers(-9, 9, N).astype(np.int16),
    "u": DRAW.integers(0, 9, N).astype(np.uint32),
    "f": DRAW.random(N).astype(np.float32),
    "d": DRAW.random(N),
    "b": DRAW.random(N) < 0.5,
    "l": DRAW.random((N, 3)).tolist(),
    "n": DRAW.integers(0, 99, (N, 2)).tolist(),
}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return (
        Dataset.from_dict(COLUMNS).add_column("label", ["x", "y"] * 30).class_encode_column("label")
    )


VIEWS: dict[str, Any] = {
    "whole": lambda d: d,
    "shuffled": lambda d: d.shuffle(seed=1),
    "selected": lambda d: d.select([5, 3, 59, 3]),
    "a range": lambda d: d.select(range(10, 40)),
    "shuffled twice": lambda d: d.shuffle(seed=1).select(range(20)).shuffle(seed=2),
    "chunks": lambda d: datasets.concatenate_datasets([d.select(range(9)), d.select(range(9, N))]),
}


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
@pytest.mark.parametrize("view", VIEWS)
def test_is_gathered_as_torch_collates_it(data: Dataset, view: str, form: str | None) -> None:
    seen = VIEWS[view](data).with_format(form)
    assert find_gatherer(seen) is not None

    def program(loader: Any) -> Any:
        return list(loader(seen, batch_size=7, shuffle=True))

    assert_programs_agree(program)


def test_columns_of_the_format_only(data: Dataset) -> None:
    seen = data.with_format("torch", columns=["d", "i"])
    gatherer = find_gatherer(seen)
    assert gatherer is not None
    assert list(gatherer.spec) == ["i", "d"]
    assert_programs_agree(lambda loader: list(loader(seen, batch_size=9)))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    form=st.sampled_from([None, "torch", "numpy"]),
    joined=st.booleans(),
)
def test_is_gathered_from_many_chunks(
    lengths: list[int], seed: int, form: str | None, joined: bool
) -> None:
    draw = np.random.default_rng(seed)
    parts = [pa.table({"x": draw.random(n), "l": draw.random((n, 2)).tolist()}) for n in lengths]
    dataset = Dataset(pa.concat_tables(parts)).with_format(form)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "_JOINED_BYTES", 2**30 if joined else -1)
        assert_programs_agree(lambda loader: list(loader(dataset, batch_size=4, shuffle=True)))


def test_from_files(data: Dataset, tmp_path: Path) -> None:
    data.save_to_disk(tmp_path / "saved")
    seen = datasets.load_from_disk(tmp_path / "saved")
    loader = DataLoader(seen, batch_size=10, shuffle=True)
    next(iter(loader))
    assert loader.statistics().path == "gather"
    assert_programs_agree(lambda loader: list(loader(seen, batch_size=10, shuffle=True)))


def test_resumes_exactly(data: Dataset) -> None:
    assert_exact_resume(lambda: DataLoader(data.shuffle(seed=3), batch_size=20, shuffle=True))


DECLINED: dict[str, Any] = {
    "text": lambda d: d.add_column("s", ["t"] * N),
    "missing values": lambda d: d.add_column("m", [None, 1.0] * 30),
    "lists of several lengths": lambda d: d.add_column("r", [[1.0], [2.0, 3.0]] * 30).select(
        [0, 2]
    ),
    "lists without a value": lambda d: d.add_column("r", [[1.0, None]] * N),
    "a transform": lambda d: d.with_transform(lambda batch: {"i": [v + 1 for v in batch["i"]]}),
    "options of the format": lambda d: d.with_format("torch", dtype=torch.float64),
    "all columns": lambda d: d.with_format("torch", columns=["i"], output_all_columns=True),
    "pandas": lambda d: d.with_format("pandas"),
    "dates": lambda d: d.add_column("t", [np.datetime64("2024-01-01", "s")] * N),
    "matrices": lambda d: d.add_column("mm", [[[1.0, 2.0]]] * N),
    "large numbers": lambda d: d.add_column("big", np.full(N, 2**63, np.uint64)),
}


@pytest.mark.parametrize("case", DECLINED)
def test_is_asked_for_samples_where_it_has(data: Dataset, case: str) -> None:
    assert find_gatherer(DECLINED[case](data)) is None


def test_with_text_gives_what_torch_gives(data: Dataset) -> None:
    seen = data.add_column("s", [f"t{i}" for i in range(N)])
    assert_programs_agree(lambda loader: list(loader(seen, batch_size=7, shuffle=True)))


def test_a_subclass_is_asked_for_samples(data: Dataset) -> None:
    class Doubled(Dataset):  # type: ignore[misc]
        def __getitems__(self, keys: list[int]) -> Any:
            return [{"i": 2 * row["i"]} for row in super().__getitems__(keys)]

    assert find_gatherer(Doubled(data.data)) is None


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (datetime.datetime(1970, 1, 1, 0, 0, 1), 10**6),
        (datetime.date(1970, 1, 3), 2),
        (decimal.Decimal("1.5"), 1.5),
    ],
)
def test_dates_and_decimals_are_told_the_line_that_reads_them(value: Any, number: float) -> None:
    table = pa.table({"a": pa.array([value] * 3)})
    dataset = Dataset(table)
    with pytest.raises(NotCollatableError, match=r"write TableDataset\(dataset\)"):
        next(iter(DataLoader(dataset, 3)))
    batch = next(iter(DataLoader(TableDataset(dataset), 3)))
    assert batch["a"].tolist() == [number] * 3
