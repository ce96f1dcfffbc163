"""Batches of NumPy arrays: the default collation's, without a tensor; on leases, kept safely."""

import collections
import datetime
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from headrace import (
    CollateError,
    DataLoader,
    MissingKeyError,
    NotCollatableError,
    OptionError,
    ShapeMismatchError,
    TensorDataset,
    default_collate,
    numpy_collate,
)
from headrace.collate.stack import Prestacked
from headrace.engine.lease import Pool
from headrace.memory import lending
from headrace.tree import TORCH_DTYPES
from oracle import assert_same

Point = collections.namedtuple("Point", ["x", "y"])

DTYPES = st.sampled_from(sorted(TORCH_DTYPES, key=str))
# torch makes no tensor of NumPy's larger unsigned numbers.
SCALARS = st.sampled_from([np.bool_, np.uint8, np.int16, np.int64, np.float32, np.float64])
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


def as_arrays(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.numpy()
    if isinstance(tree, dict):
        return {key: as_arrays(value) for key, value in tree.items()}
    if isinstance(tree, Point):
        return Point(*map(as_arrays, tree))
    return [as_arrays(part) for part in tree] if isinstance(tree, list) else tree


@st.composite
def columns(draw: Any, count: int) -> list[Any]:
    """As many samples of one structure."""
    kind = draw(st.sampled_from(["array", "tensor", "int", "float", "bool", "text", *"dlnm"]))
    if kind in ("array", "tensor"):
        dtype, shape = draw(DTYPES), draw(SHAPES)
        rows = [draw(hypothesis_numpy.arrays(dtype, shape)) for _ in range(count)]
        return [torch.from_numpy(row) for row in rows] if kind == "tensor" else rows
    leaf = {
        "int": st.integers(-(2**63), 2**63 - 1),
        "float": st.floats(),
        "bool": st.booleans(),
        "text": st.text(max_size=3),
        "m": st.integers(0, 1).map(draw(SCALARS)),
    }.get(kind)
    if leaf is not None:
        return [draw(leaf) for _ in range(count)]
    inner = [draw(columns(count)) for _ in range(2)]
    rows = list(zip(*inner, strict=True))
    make = {"d": lambda r: dict(zip("ab", r, strict=True)), "l": tuple, "n": lambda r: Point(*r)}
    return [make[kind](row) for row in rows]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4).flatmap(columns))
def test_it_is_the_default_collation_with_arrays(samples):
    ours, wanted = numpy_collate(samples), as_arrays(default_collate(samples))
    assert_same(ours, wanted)
    for our, their in zip(arrays(ours), arrays(wanted), strict=True):
        assert (our.dtype, our.shape) == (their.dtype, their.shape)
        assert our.flags.writeable


def arrays(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, np.ndarray):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if type(tree) is not str else ()
    return [found for part in parts for found in arrays(part)]


def test_what_numpy_has_and_torch_does_not():
    days = [np.datetime64("2026-01-01"), np.datetime64("2026-01-02")]
    assert numpy_collate(days).dtype == "datetime64[D]"
    texts = numpy_collate([np.array(["a", "b"]), np.array(["ccc", "d"])])
    assert texts.tolist() == [["a", "b"], ["ccc", "d"]]
    kind = np.dtype([("x", np.float32), ("n", np.int8)])
    assert numpy_collate([np.zeros(2, kind), np.ones(2, kind)])["n"].tolist() == [[0, 0], [1, 1]]
    assert numpy_collate([np.array([{}]), np.array([None])]).dtype == object
    assert numpy_collate([2**63, 2**63 + 1]).tolist() == [2**63, 2**63 + 1]


def test_types_that_differ_become_what_numpy_has_for_both():
    assert numpy_collate([np.zeros(1, np.int16), np.zeros(1, np.float32)]).dtype == np.float32
    mixed = numpy_collate([np.float32(1.5), torch.tensor(2.0), np.array(3.0, np.float32)])
    assert (mixed.tolist(), mixed.dtype) == ([1.5, 2.0, 3.0], np.float32)


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([np.zeros(2), np.zeros(3)], ShapeMismatchError, r"\[2\] at entry 0 and \[3\] at entry 1"),
        ([{"a": 1}, {"b": 1}], MissingKeyError, "'a' is in sample 0"),
        ([1, None], CollateError, "None makes no batch"),
        ([np.zeros(2), None], CollateError, "None makes no batch"),
        ([1, "a"], CollateError, "int and str make no batch"),
        ([1, [2]], CollateError, "int and list make no batch"),
        ([2**63, 1], NotCollatableError, "no common NumPy type"),
        ([2**70, 1], NotCollatableError, "no common NumPy type"),
        ([torch.zeros(2, dtype=torch.bfloat16)], NotCollatableError, "bfloat16"),
        ([torch.eye(2).to_sparse()], NotCollatableError, "sparse"),
        ([np.ma.masked_less(np.arange(3), 1)], NotCollatableError, "lose its mask"),
        ([datetime.date(2026, 1, 1)], NotCollatableError, "found <class 'datetime.date'>"),
        ([{"x": [np.zeros(1)]}, {"x": [np.zeros(2)]}], ShapeMismatchError, r"x.*0"),
    ],
)
def test_what_makes_no_batch_says_why(samples, error, message):
    with pytest.raises(error, match=message):
        numpy_collate(samples)


def test_large_leaves_are_written_into_leases():
    pool = Pool()
    with lending(pool):
        first = numpy_collate([np.full(50_000, n) for n in range(2)])
        del first
        again = numpy_collate([np.full(50_000, n) for n in range(2)])
    assert pool.created == 1
    assert again[1, -1] == 1


def test_stacked_columns_are_handed_on_without_a_copy():
    rows = torch.rand(3, 4)
    samples = Prestacked(list(zip(rows.unbind(), [1, 2, 3], strict=True)), {0: rows})
    batch = numpy_collate(samples)
    assert batch[0].ctypes.data == rows.data_ptr()
    assert batch[1].tolist() == [1, 2, 3]


class Pictures:
    """Samples that are large enough for leases."""

    def __len__(self):
        return 22

    def __getitem__(self, index):
        return {"image": np.full((64, 64), index, np.float32), "label": index}


def loaded(loader):
    return [(b["image"][:, 0, 0].tolist(), b["label"].tolist()) for b in loader]


@pytest.mark.parametrize(
    "workers",
    [{}, {"num_workers": 2}, {"num_workers": 2, "backend": "thread"}],
    ids=["inline", "processes", "threads"],
)
class TestInALoader:
    def make(self, workers, dataset=None, **options):
        data = Pictures() if dataset is None else dataset
        return DataLoader(data, 4, shuffle=True, collate_fn=numpy_collate, **workers, **options)

    def test_the_order_is_that_of_tensors(self, workers):
        assert loaded(self.make(workers, seed=3)) == loaded(
            DataLoader(Pictures(), 4, shuffle=True, seed=3)
        )

    def test_kept_batches_stay_what_they_are(self, workers):
        loader = self.make(workers, seed=1)
        kept = [batch for _ in range(3) for batch in loader]
        for batch in kept:
            assert type(batch["image"]) is np.ndarray
            wanted = np.broadcast_to(batch["label"][:, None, None], batch["image"].shape)
            np.testing.assert_array_equal(batch["image"], wanted)

    def test_it_resumes_behind_any_batch(self, workers):
        loader, seen, states = self.make(workers, seed=2), [], []
        for batch in loader:
            seen.append(loaded([batch]))
            states.append(loader.state_dict())
        for step, state in enumerate(states, start=1):
            again = self.make(workers, seed=2)
            again.load_state_dict(state)
            assert [loaded([batch]) for batch in again] == seen[step:]

    def test_shards_are_those_of_tensors(self, workers):
        for rank in range(2):
            ours = self.make(workers, seed=4, shard=(rank, 2))
            theirs = DataLoader(Pictures(), 4, shuffle=True, seed=4, shard=(rank, 2))
            assert loaded(ours) == loaded(theirs)

    def test_columns_are_gathered(self, workers):
        x, y = torch.rand(50, 3), torch.arange(50)
        loader = self.make(workers, TensorDataset(x, y), seed=5)
        for a, b in loader:
            assert type(a) is type(b) is np.ndarray
            np.testing.assert_array_equal(a, x.numpy()[b])
        if workers.get("backend") != "thread":
            assert loader.statistics().path.startswith("gather")


def test_workers_buffers_are_used_again():
    loader = DataLoader(Pictures(), 2, num_workers=1, collate_fn=numpy_collate)
    places = set()
    for _ in range(2):
        for batch in loader:
            places.add(batch["image"].ctypes.data)
            del batch
    assert len(places) < 10


def test_columns_without_a_numpy_type_are_named():
    data = TensorDataset(torch.zeros(4, 2, dtype=torch.bfloat16))
    with pytest.raises(NotCollatableError, match="bfloat16"):
        list(DataLoader(data, 2, collate_fn=numpy_collate))


def test_a_device_of_torchs_is_refused():
    with pytest.raises(OptionError, match=r"write jax\.device_put\(batch\)"):
        DataLoader([1, 2], device="cpu", collate_fn=numpy_collate)
