"""Batches without a loader: `stack_batch` and `iter_batches`."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.collate import iter_batches, stack_batch
from headrace.errors import ArrayMismatchError, MissingKeyError, ShapeMismatchError


class Point(NamedTuple):
    x: object
    y: object


def test_stack_keeps_the_structure_and_numpy():
    samples = [
        {
            "a": np.full(3, i, np.float32),
            "t": torch.full((2,), i),
            "n": i,
            "s": str(i),
            "z": np.int16(i),
            "p": Point(np.zeros(2), (i, np.ones(1))),
        }
        for i in range(4)
    ]
    batch = stack_batch(samples)
    assert type(batch["a"]) is np.ndarray
    assert batch["a"].shape == (4, 3)
    assert batch["a"].dtype == np.float32
    assert torch.equal(batch["t"], torch.stack([s["t"] for s in samples]))
    assert torch.equal(batch["n"], torch.arange(4))
    assert list(batch["s"]) == ["0", "1", "2", "3"]
    assert batch["z"].tolist() == [0, 1, 2, 3]
    assert batch["z"].dtype == np.int16
    assert type(batch["p"]) is Point
    assert batch["p"].x.shape == (4, 2)
    assert type(batch["p"].y) is tuple
    assert batch["p"].y[1].shape == (4, 1)


@pytest.mark.parametrize(
    ("samples", "error", "says"),
    [
        ([], ValueError, "no samples"),
        ([np.zeros(2), np.zeros(3)], ShapeMismatchError, r"\(2,\) and sample 1 has \(3,\)"),
        ([torch.zeros(2), torch.zeros(3)], ShapeMismatchError, r"\[2\] at entry 0 and \[3\]"),
        ([{"a": 1}, {"b": 1}], MissingKeyError, "only one of the samples 0 and 1"),
        ([(1,), (1, 2)], ShapeMismatchError, "1 entries and sample 1 has 2"),
    ],
)
def test_stack_says_what_is_wrong(samples, error, says):
    with pytest.raises(error, match=says):
        stack_batch(samples)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 40), st.integers(1, 12), st.booleans(), st.booleans(), st.integers(0, 5))
def test_batches_hold_every_row_once_with_the_columns_together(n, size, shuffle, drop_last, seed):
    arrays = {"x": torch.arange(n), "y": (np.arange(n) * 2.0, torch.arange(n * 3).reshape(n, 3))}
    g = torch.Generator().manual_seed(seed) if shuffle else None
    batches = list(iter_batches(arrays, size, shuffle=shuffle, drop_last=drop_last, generator=g))
    assert len(batches) == (n // size if drop_last else -(-n // size))
    seen = [int(i) for b in batches for i in b["x"]]
    order = list(range(n))
    if shuffle:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    assert seen == order[: n // size * size if drop_last else n]
    for batch in batches:
        assert type(batch["y"][0]) is np.ndarray
        assert batch["y"][0].tolist() == (batch["x"] * 2.0).tolist()
        assert torch.equal(batch["y"][1][:, 0], batch["x"] * 3)


def test_batches_in_order_are_views_and_shuffled_ones_copies(tmp_path):
    tensor = torch.zeros(10)
    next(iter_batches(tensor, 4))[0] = 1
    assert tensor[0] == 1
    next(iter_batches(tensor, 4, shuffle=True)).fill_(5)
    assert tensor.sum() == 1
    np.save(tmp_path / "x.npy", np.arange(10))
    file = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert type(next(iter_batches(file, 4, shuffle=True))) is np.ndarray


def test_nothing_is_drawn_before_the_first_batch():
    before = torch.get_rng_state()
    batches = iter_batches(torch.zeros(5), 2, shuffle=True)
    assert torch.equal(torch.get_rng_state(), before)
    next(batches)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arrays", "options", "error", "says"),
    [
        (torch.zeros(5), {"batch_size": 0}, ValueError, "batch_size must be"),
        (torch.zeros(5), {"batch_size": 2.0}, ValueError, "batch_size must be"),
        (torch.zeros(5), {"generator": torch.Generator()}, ValueError, "without shuffle"),
        ((torch.zeros(5), np.zeros(4)), {}, ArrayMismatchError, r"\[5, 4\]"),
        ([1, 2, 3], {}, TypeError, "got int"),
        (torch.tensor(1), {}, TypeError, "of shape \\(samples, ...\\)"),
        ({}, {}, ArrayMismatchError, r"\[\]"),
    ],
)
def test_iter_batches_says_what_is_wrong_at_the_call(arrays, options, error, says):
    with pytest.raises(error, match=says):
        iter_batches(arrays, **{"batch_size": 2, **options})
