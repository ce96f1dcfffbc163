"""What a batch is moved to a device with: everything in it that can be, wherever it lies."""

import collections
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from headrace import DataLoader, TensorDataset, map_batches
from headrace.train import Trainer
from headrace.train.batch import call_model, to_device

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


NOTES = [
    (torch.uint8, "uint8", "b[0].float() / 255"),
    (torch.float64, "float64", "b[0].float()"),
    (torch.float16, "float16", "b[0].float()"),
]


@pytest.mark.parametrize(("dtype", "name", "line"), NOTES)
@pytest.mark.parametrize("where", ["loss_fn", "step", "predict", "map_batches"])
def test_inputs_of_another_type_than_the_parameters_say_what_to_write(where, dtype, name, line):
    model, x = nn.Linear(3, 1), torch.zeros(4, 3, dtype=dtype)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(x, torch.zeros(4, 1)), batch_size=4)
    loss = {"step": lambda m, b: m(b[0]).mean()} if where == "step" else {"loss_fn": nn.MSELoss()}
    trainer = Trainer(model, optimizer=sgd, device="cpu", progress=False, **loss)
    call = {"predict": trainer.predict, "map_batches": lambda b: map_batches(model, b)}
    with pytest.raises(RuntimeError, match="type") as error:
        call.get(where, trainer.fit)(loader)
    note = str(error.value)
    assert f"the inputs are torch.{name}, and the model's parameters torch.float32" in note
    assert f"batch_transform=lambda b: ({line}, b[1]))" in note


@pytest.mark.parametrize("x", [torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.uint8)])
def test_errors_that_are_not_about_types_are_left_alone(x):
    class Fails(nn.Linear):
        def forward(self, x):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError) as error:
        call_model(Fails(2, 1), x)
    assert str(error.value) == "out of memory"


def test_the_parameters_own_type_is_the_one_to_write():
    with pytest.raises(RuntimeError) as error:
        call_model(nn.Linear(2, 1, dtype=torch.bfloat16), {"input": torch.zeros(1, 2)})
    assert "b[0].to(torch.bfloat16)" in str(error.value)
