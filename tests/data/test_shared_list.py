"""SharedList: a list in every way that reading shows, in memory that processes share."""

import copy
import gc
import math
import multiprocessing
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset

from headrace import DataLoader, SharedList
from headrace.errors import SampleIndexError

INT64 = st.integers(-(2**63), 2**63 - 1)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=())),
    st.binary(),
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=6,
)
LISTS = st.one_of(
    st.lists(INT64),
    st.lists(st.integers()),
    st.lists(st.floats(allow_nan=False)),
    st.lists(st.booleans()),
    st.lists(st.text(st.characters(exclude_categories=()))),
    st.lists(st.binary()),
    st.lists(NESTED),
)
ANY_INDEX = st.integers(-30, 30)


def types(elements: Any) -> list[type]:
    return [type(element) for element in elements]


class TestIsTheList:
    @settings(max_examples=150, deadline=None)
    @given(LISTS)
    def test_in_values_and_types(self, elements: list[Any]) -> None:
        shared = SharedList(elements)
        assert list(shared) == elements
        assert types(shared) == types(elements)
        assert shared == elements
        assert list(reversed(shared)) == elements[::-1]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(INT64, max_size=20), ANY_INDEX)
    def test_in_indices(self, elements: list[int], index: int) -> None:
        shared = SharedList(elements)
        if -len(elements) <= index < len(elements):
            assert shared[index] == elements[index]
            assert shared[np.int64(index)] == elements[index]
        else:
            with pytest.raises(IndexError):
                shared[index]

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.text(), max_size=20),
        st.lists(st.slices(20) | st.builds(slice, ANY_INDEX, ANY_INDEX), min_size=1, max_size=3),
    )
    def test_in_slices_of_slices(self, elements: list[str], cuts: list[slice]) -> None:
        shared = SharedList(elements)
        for cut in cuts:
            shared, elements = shared[cut], elements[cut]
            assert shared == elements
            assert len(shared) == len(elements)

    @settings(max_examples=50, deadline=None)
    @given(LISTS)
    def test_when_it_is_pickled(self, elements: list[Any]) -> None:
        shared = pickle.loads(pickle.dumps(SharedList(elements)))
        assert shared == elements
        assert types(shared) == types(elements)

    @pytest.mark.parametrize("change_at", [1, 255, 256, 257, 600])
    def test_when_the_kind_changes_late(self, change_at: int) -> None:
        elements = [*range(change_at), "text", None, *range(300)]
        shared = SharedList(iter(elements))
        assert shared == elements
        assert types(shared) == types(elements)

    def test_when_integers_outgrow_64_bits_late(self) -> None:
        elements = [*range(1_000), 2**63, -(2**80)]
        assert SharedList(elements) == elements

    def test_in_membership_index_and_count(self) -> None:
        shared = SharedList(["b", "a", "b"])
        assert "a" in shared
        assert "c" not in shared
        assert shared.index("b", 1) == 2
        assert shared.count("b") == 2
        with pytest.raises(ValueError):
            shared.index("c")

    def test_in_having_no_hash(self) -> None:
        with pytest.raises(TypeError, match="unhashable"):
            hash(SharedList([1]))

    def test_in_what_it_equals(self) -> None:
        assert SharedList([1, 2]) == SharedList([1, 2])
        assert SharedList([1, 2]) != SharedList([1, 3])
        assert SharedList([1, 2]) != [1, 2, 3]
        assert SharedList([1, 2]) != (1, 2)
        assert SharedList("ab") == ["a", "b"]

    def test_is_a_sequence_that_nothing_writes_to(self) -> None:
        shared: Any = SharedList([1, 2])
        assert isinstance(shared, Sequence)
        with pytest.raises(TypeError):
            shared[0] = 3
        with pytest.raises(TypeError):
            del shared[0]


class TestElements:
    @pytest.mark.parametrize(
        "elements",
        [
            [Path("/a/b.jpg"), Path("c")],
            [os.fsdecode(b"/a/\xff.jpg"), "\ud800"],
            [np.int64(3), np.int64(-4)],
            [np.float32(1.5), np.float32(2)],
            [np.bool_(True), np.bool_(False)],
            [np.complex64(1j)],
            [np.datetime64("2020-01-01T00:00", "s"), np.datetime64("2021-01-01", "s")],
            [np.datetime64("2020-01-01", "s"), np.datetime64("2021-01-01", "D")],
            [np.str_("ab"), np.str_("abcde")],
            [np.int64(3), np.int32(4)],
            [("path", 3), ("other", 4)],
            [frozenset({1}), 1 + 2j, range(3)],
        ],
        ids=str,
    )
    def test_come_back_as_they_were(self, elements: list[Any]) -> None:
        shared = SharedList(elements)
        assert list(shared) == elements
        assert types(shared) == types(elements)
        for mine, theirs in zip(shared, elements, strict=True):
            if isinstance(theirs, np.generic):
                assert mine.dtype == theirs.dtype

    def test_not_a_number_too(self) -> None:
        assert math.isnan(SharedList([1.0, math.nan])[1])

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.arange(6.0).reshape(2, 3),
            torch.arange(6.0).reshape(2, 3).t(),
            torch.tensor(5),
            torch.empty(0, 4, dtype=torch.int16),
            torch.ones(3, dtype=torch.bfloat16),
            torch.ones(3, dtype=torch.complex64).conj(),
            torch.tensor([True, False]),
            torch.ones(2, requires_grad=True),
            torch.eye(3).to_sparse(),
        ],
        ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}-{tensor.layout}",
    )
    def test_tensors(self, tensor: torch.Tensor) -> None:
        for stored in (SharedList([tensor])[0], SharedList([("x", {"t": tensor})])[0][1]["t"]):
            assert stored.dtype == tensor.dtype
            assert stored.layout == tensor.layout
            assert stored.requires_grad == tensor.requires_grad
            assert torch.equal(stored.to_dense(), tensor.to_dense())

    def test_small_tensors_take_little(self) -> None:
        shared = SharedList([torch.ones(4) for _ in range(100)])
        assert shared.size_bytes < 100 * 200

    def test_arrays_are_new_and_may_be_written_to(self) -> None:
        shared = SharedList([np.zeros(3), np.ones((2, 2))])
        shared[0][:] = 7
        assert (shared[0] == 0).all()
        assert shared[1].flags.owndata or shared[1].flags.writeable

    def test_texts_take_their_bytes_and_eight(self) -> None:
        texts = [f"image_{i:07d}.jpg" for i in range(10_000)]
        size = SharedList(texts).size_bytes
        assert size <= sum(map(len, texts)) + 8 * (len(texts) + 2)

    def test_that_cannot_be_stored_are_named(self) -> None:
        with pytest.raises((pickle.PicklingError, AttributeError)) as caught:
            SharedList([1, 2, lambda: 3])
        assert "Element 2 of the SharedList, of type function" in caught.value.__notes__[0]

    def test_an_error_of_the_generator_is_the_generators(self) -> None:
        def broken() -> Any:
            yield 1
            raise OSError("disk gone")

        with pytest.raises(OSError, match="disk gone"):
            SharedList(broken())


class TestWhatItSays:
    def test_outside(self) -> None:
        with pytest.raises(SampleIndexError, match=r"index 3 is outside of a SharedList of 3"):
            SharedList([1, 2, 3])[3]

    @pytest.mark.parametrize("index", ["a", 1.0, None, [0]])
    def test_no_index(self, index: Any) -> None:
        with pytest.raises(TypeError, match="indexed by an integer or a slice"):
            SharedList([1])[index]

    def test_repr(self) -> None:
        assert repr(SharedList(["a", "b"])) == "SharedList(['a', 'b'], 2 elements, 32 bytes)"
        assert repr(SharedList(range(2_000))).startswith("SharedList([0, 1, 2, ...], 2,000 elem")
        assert repr(SharedList()) == "SharedList([], 0 elements, 8 bytes)"


class TestBuffer:
    def test_is_shared_by_slices_and_copies(self) -> None:
        shared = SharedList(range(1_000))
        assert shared[10:20]._buffer is shared._buffer
        assert copy.copy(shared) is shared
        assert copy.deepcopy(shared) is shared

    def test_outlives_the_list_while_a_slice_lives(self) -> None:
        part = SharedList(["a", "b", "c"])[1:]
        gc.collect()
        assert list(part) == ["b", "c"]

    def test_leaves_no_descriptor(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        lists = [SharedList([i, "x", i]) for i in range(20)]
        assert len(os.listdir("/proc/self/fd")) > before
        del lists
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_pickled_slice_holds_its_elements_only(self) -> None:
        shared = SharedList([bytes(1_000) for _ in range(1_000)])
        assert len(pickle.dumps(shared[:2])) < 5_000


class Lengths(Dataset[Any]):
    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        buffer = self.texts._buffer  # type: ignore[attr-defined]
        return len(self.texts[index]), os.fstat(buffer.descriptor).st_ino, os.getpid()


@pytest.mark.parametrize(
    ("loader", "method"),
    [
        (DataLoader, "fork"),
        (TorchDataLoader, "fork"),
        (DataLoader, "spawn"),
    ],
    ids=["headrace-fork", "torch-fork", "headrace-spawn"],
)
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd")
def test_workers_map_the_very_buffer(loader: Any, method: str) -> None:
    """With every start method: the file that they read is the parent's, no copy of it."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    texts = SharedList("x" * i for i in range(50))[10:]
    batches = loader(Lengths(texts), batch_size=10, num_workers=1, multiprocessing_context=method)
    lengths, inodes, pids = (torch.cat(column).tolist() for column in zip(*batches, strict=True))
    assert lengths == list(range(10, 50))
    assert set(inodes) == {os.fstat(texts._buffer.descriptor).st_ino}
    assert os.getpid() not in pids
