"""Telling out of memory from other errors, and cutting batches."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from headrace.oom import batch_rows, cut_rows, is_out_of_memory, release_memory, split_rows


class Pair(NamedTuple):
    values: torch.Tensor
    lengths: torch.Tensor


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("out of memory"), KeyError("memory")]
)
def test_other_errors(error):
    assert not is_out_of_memory(error)


def test_memory_really_asked_for():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    release_memory("cpu")


def test_rows_are_those_that_all_tensors_and_arrays_share():
    assert batch_rows({"x": torch.zeros(3, 2), "y": np.zeros(3), "scale": torch.tensor(2.0)}) == 3
    assert batch_rows([torch.zeros(3), torch.zeros(4)]) is None
    assert batch_rows("text") is None


def test_a_cut_keeps_structure_and_takes_text_along():
    batch = {
        "pair": Pair(torch.arange(6).view(3, 2), torch.tensor([1, 2, 2])),
        "array": np.arange(3),
        "names": ["a", "b", "c"],
        "kind": "train",
        "scale": torch.tensor(2.0),
        "words": ["x", "y"],  # not one for each row
    }
    cut = cut_rows(batch, 1, 3)
    assert isinstance(cut["pair"], Pair)
    assert cut["pair"].values.tolist() == [[2, 3], [4, 5]]
    assert cut["pair"].lengths.tolist() == [2, 2]
    assert cut["array"].tolist() == [1, 2]
    assert cut["names"] == ["b", "c"]
    assert (cut["kind"], cut["scale"].item(), cut["words"]) == ("train", 2.0, ["x", "y"])
    assert cut["pair"].values.data_ptr() == batch["pair"].values[1:].data_ptr()


@pytest.mark.parametrize(("rows", "parts"), [(7, 2), (3, 5), (8, 4), (1, 1)])
def test_pieces_are_nearly_even_and_make_up_the_whole(rows, parts):
    pieces = split_rows([torch.arange(rows)], parts)
    sizes = [len(piece[0]) for piece in pieces]
    assert torch.cat([piece[0] for piece in pieces]).tolist() == list(range(rows))
    assert len(sizes) == min(rows, parts)
    assert max(sizes) - min(sizes) <= 1
