"""What a batch is moved to a device with: everything in it that can be, wherever it lies."""

import collections
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from headrace.train.batch import to_device

META = torch.device("meta")
X = torch.zeros(2)


class Pair(NamedTuple):
    inputs: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Record:
    inputs: torch.Tensor
    name: str


@pytest.mark.parametrize(
    ("batch", "tensors_of"),
    [
        (X, lambda b: [b]),
        ((X, X), list),
        ([X, [X]], lambda b: [b[0], *b[1]]),
        ({"x": X, "y": (X,)}, lambda b: [b["x"], *b["y"]]),
        (collections.OrderedDict(x=X), lambda b: [b["x"]]),
        (Pair(X, X), lambda b: [b.inputs, b.targets]),
        (Record(X, "one"), lambda b: [b.inputs]),
        ((Record(X, "one"), X), lambda b: [b[0].inputs, b[1]]),
        (pack_sequence([X]), lambda b: [b.data]),
    ],
)
def test_all_tensors_of_a_batch_are_moved_and_its_types_stay(batch, tensors_of):
    moved = to_device(batch, META)
    assert type(moved) is type(batch)
    assert [tensor.device for tensor in tensors_of(moved)] == [META] * len(tensors_of(batch))
    assert all(tensor.device.type == "cpu" for tensor in tensors_of(batch))


def test_what_is_there_already_or_cannot_be_moved_stays_as_it_is():
    batch = ({"x": X, "name": "one"}, 3, None)
    moved = to_device(batch, torch.device("cpu"))
    assert moved[0] is batch[0]
    assert moved == batch
