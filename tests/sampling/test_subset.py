"""`SubsetRandomSampler`: torch's order, from lists, arrays and tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import SubsetRandomSampler as TorchSubsetRandomSampler

from headrace.sampling import subset
from headrace.sampling.order import index_chunks
from headrace.sampling.subset import SubsetRandomSampler

CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "array": lambda x: np.array(x, np.int64),
    "tensor": lambda x: torch.tensor(x, dtype=torch.int64),
    "int16 tensor": lambda x: torch.tensor(x, dtype=torch.int16),
}


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 1000), max_size=40),
    st.sampled_from(sorted(CONTAINERS)),
    st.booleans(),
    st.integers(0, 50),
)
def test_order_is_torchs(indices, container, own, start):
    results = []
    for cls in (TorchSubsetRandomSampler, SubsetRandomSampler):
        torch.manual_seed(5)
        g = torch.Generator().manual_seed(2) if own else None
        values = list(cls(CONTAINERS[container](indices), g))
        results.append((values, torch.get_rng_state(), g.get_state() if own else None))
    (theirs, their_global, their_own), (ours, our_global, our_own) = results
    assert ours == [int(i) for i in theirs]
    assert all(type(i) is int for i in ours)
    assert torch.equal(our_global, their_global)
    assert not own or torch.equal(our_own, their_own)
    torch.manual_seed(5)
    g = torch.Generator().manual_seed(2) if own else None
    chunks = index_chunks(SubsetRandomSampler(CONTAINERS[container](indices), g), start)
    assert [int(i) for c in chunks for i in c] == ours[start:]


def test_order_is_torchs_over_several_pieces(monkeypatch):
    monkeypatch.setattr(subset, "PIECE", 16)
    torch.manual_seed(1)
    theirs = list(TorchSubsetRandomSampler(range(10, 1000)))
    torch.manual_seed(1)
    assert list(SubsetRandomSampler(range(10, 1000))) == theirs


def test_length_and_keys_that_are_no_integers():
    sampler = SubsetRandomSampler(["a", "b", "c"])
    assert len(sampler) == 3
    assert sorted(sampler) == ["a", "b", "c"]
    assert index_chunks(sampler) is None


def test_a_mask_is_refused_with_the_line_to_write():
    with pytest.raises(ValueError, match="nonzero"):
        SubsetRandomSampler(torch.ones(3, 3))
