"""The one walk over nested containers."""

import collections
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from headrace.tree import NUMPY_DTYPES, TORCH_DTYPES, is_namedtuple, leaves, map_leaves, size_bytes


class Point(NamedTuple):
    x: Any
    y: Any


TREE = {"a": (1, [2, Point(3, {"b": 4})]), "c": "text"}


def test_maps_leaves_and_keeps_the_containers() -> None:
    mapped = map_leaves(lambda leaf: leaf * 2, TREE)
    assert mapped == {"a": (2, [4, Point(6, {"b": 8})]), "c": "texttext"}
    assert type(mapped["a"][1][1]) is Point
    ordered = collections.OrderedDict(b=1, a=2)
    assert type(map_leaves(str, ordered)) is collections.OrderedDict
    assert type(map_leaves(str, types.MappingProxyType({"a": 1}))) is types.MappingProxyType


def test_lists_leaves_in_order() -> None:
    assert leaves(TREE) == [1, 2, 3, 4, "text"]
    assert leaves(5) == [5]
    assert leaves({}) == []


def test_knows_named_tuples() -> None:
    assert is_namedtuple(Point(1, 2))
    assert not is_namedtuple((1, 2))
    assert not is_namedtuple([1])


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 4), 48),
        (torch.zeros(3, dtype=torch.bfloat16), 6),
        (np.zeros(3), 24),
        ({"x": torch.zeros(2), "y": [np.zeros(1), "text", b"bytes", 7, None]}, 16),
        (Point(torch.zeros(1), (torch.zeros(1), {})), 8),
        ("text", 0),
        ([], 0),
        (object(), 0),
        (range(10), 0),
    ],
)
def test_measures_the_tensors_and_arrays_of_a_batch(batch: Any, size: int) -> None:
    assert size_bytes(batch) == size


def test_measuring_never_fails() -> None:
    for tensor in (torch.eye(3).to_sparse(), torch.zeros(3, device="meta")):
        assert size_bytes(tensor) >= 0


def test_types_of_numpy_and_torch_name_each_other() -> None:
    assert len(NUMPY_DTYPES) == len(TORCH_DTYPES) == 14
    for ours, theirs in NUMPY_DTYPES.items():
        assert TORCH_DTYPES[theirs] is ours
        assert torch.from_numpy(np.zeros(1, theirs)).dtype is ours
