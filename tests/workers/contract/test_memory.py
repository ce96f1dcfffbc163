"""Batches live on memory that is used again, and nobody may notice."""

import collections
import gc
import io
import os
import random
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, default_collate

from headrace import DataLoader, alloc

from .datasets import MANY_WORKERS, Asked, Numbers

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)
SIZE = 20_000  # elements: 80 KB of float32, a lease each


def mapped() -> int:
    """How many buffers of workers this process has mapped."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:headrace " in line for line in maps)


def varied(index: int) -> dict[str, Any]:
    """A sample of a size of its own, that can be told from all others."""
    rng = np.random.default_rng(index)
    size = int(rng.integers(1, SIZE))
    return {"x": torch.full((size,), float(index)), "y": index, "array": np.full(size, index)}


def as_lists(samples: list[Any]) -> dict[str, Any]:
    return {
        "x": torch.cat([sample["x"] for sample in samples]),
        "y": torch.tensor([sample["y"] for sample in samples]),
        "array": np.concatenate([sample["array"] for sample in samples]),
        "text": "word " * int(samples[0]["y"]) * 20,
    }


def checksum(batch: dict[str, Any]) -> list[int]:
    parts = [batch["x"].numpy(), batch["y"].numpy(), batch["array"], batch["text"].encode()]
    return [zlib.crc32(np.ascontiguousarray(p) if p is not parts[3] else p) for p in parts]


@pytest.mark.parametrize("persistent", [False, True])
def test_values_never_change_while_held(persistent: bool) -> None:
    """Some batches, leaves and slices are kept for a while, then checked."""
    draw = random.Random(5)
    expected = [checksum(as_lists([varied(i), varied(i + 1)])) for i in range(0, 160, 2)]
    loader = DataLoader(
        Asked(160, varied),
        2,
        num_workers=3 if persistent else 2,
        collate_fn=as_lists,
        persistent_workers=persistent,
        multiprocessing_context="fork",
    )
    held: collections.deque[Any] = collections.deque()

    def check(what: tuple[int, str, Any]) -> None:
        number, kind, value = what
        if kind == "batch":
            assert checksum(value) == expected[number]
        elif kind == "slice":
            assert value.unique().tolist() == [2 * number]
        else:
            assert np.unique(value).tolist() == [2 * number, 2 * number + 1]

    for _ in range(3):
        for number, batch in enumerate(loader):
            assert checksum(batch) == expected[number]
            kind = draw.choice(["batch", "slice", "array", "none"])
            if kind == "batch":
                held.append((number, kind, batch))
            elif kind == "slice":
                first = len(varied(2 * number)["x"])
                held.append((number, kind, batch["x"][:first].view(-1, 1)[::3]))
            elif kind == "array":
                held.append((number, kind, batch["array"].reshape(1, -1)[:, :]))
            while len(held) > 12:
                place = draw.randrange(len(held))
                check(held[place])
                del held[place]
    for what in held:
        check(what)
    loader._iterator = None


def buffers(keep: str, batches: int = 60) -> int:
    """How many buffers there are when the loop keeps all of each batch, its labels or nothing."""
    gc.collect()
    before = mapped()
    kept: list[Any] = []
    loader = DataLoader(Numbers(batches, SIZE), num_workers=2, persistent_workers=True)
    for _ in range(2):
        for number, batch in enumerate(loader):
            assert float(batch["large"][0, -1]) == number
            if keep == "all":
                kept.append(batch)
            elif keep == "labels":
                kept.append((batch["index"], batch["small"], batch["text"]))
    made = mapped() - before
    for number, what in enumerate(kept):
        index = what["index"] if keep == "all" else what[0]
        assert index.item() == number % batches
        if keep == "all":
            assert float(what["large"].sum()) == float(number % batches) * SIZE
    loader._iterator = None
    return made


def test_what_is_let_go_is_used_again() -> None:
    assert buffers("none") <= 2 * 2 * (2 + 2), "a few for each worker, whatever the epoch's length"


def test_keeping_the_labels_keeps_no_image() -> None:
    assert buffers("labels") <= 2 * 2 * (2 + 2)


def test_keeping_everything() -> None:
    assert buffers("all") >= 120


def test_descriptors_do_not_pile_up() -> None:
    loader = DataLoader(Numbers(200, SIZE), num_workers=2, persistent_workers=True)
    kept = [next(iter(loader))]
    before = len(os.listdir("/proc/self/fd"))
    kept += list(loader)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(kept) == 201
    loader._iterator = None


def test_memory_goes_from_the_workers_of_one_epoch_to_those_of_the_next() -> None:
    gc.collect()
    before = mapped()
    loader = DataLoader(Numbers(20, SIZE), num_workers=2)
    counts = []
    for _ in range(6):
        for batch in loader:
            del batch
        counts.append(mapped() - before)
    assert counts[-1] <= counts[0] + 4
    del loader
    gc.collect()
    assert mapped() <= before


class Keeps(Dataset[Any]):
    """Keeps every sample it made, and returns it again; says how its memory looks later."""

    def __init__(self) -> None:
        self.made: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        kept = self.made.setdefault(index % 4, torch.full((SIZE,), float(index % 4)))
        for number, tensor in self.made.items():
            assert tensor.eq(number).all(), "what the dataset keeps was written by somebody"
        return kept


class CollateThatKeeps:
    """Keeps its batches, and returns some of them again."""

    def __init__(self, with_alloc: bool) -> None:
        self.with_alloc = with_alloc
        self.made: list[torch.Tensor] = []

    def __call__(self, samples: list[torch.Tensor]) -> torch.Tensor:
        for number, tensor in enumerate(self.made):
            assert tensor.eq(tensor[0, 0]).all(), f"batch {number}"
        value = float(samples[0][0])
        for tensor in self.made:
            if float(tensor[0, 0]) == value:
                return tensor
        if self.with_alloc:
            out = torch.stack(samples, out=alloc((len(samples), SIZE)))
        else:
            out = default_collate(samples)
        self.made.append(out)
        return out


@pytest.mark.parametrize("collate", [None, CollateThatKeeps(True), CollateThatKeeps(False)])
def test_a_worker_that_keeps_its_batches_and_returns_them_again(collate: Any) -> None:
    loader = DataLoader(Keeps(), num_workers=2, collate_fn=collate, persistent_workers=True)
    kept = []
    for _ in range(4):
        for number, batch in enumerate(loader):
            assert batch.eq(number % 4).all()
            if number % 3 == 0:
                kept.append((number, batch))
    for number, batch in kept:
        assert batch.eq(number % 4).all()
    loader._iterator = None


def test_without_batching_a_sample_that_is_returned_again() -> None:
    loader = DataLoader(Keeps(), None, num_workers=1)
    batches = list(loader)
    for number, batch in enumerate(batches):
        assert batch.eq(number % 4).all()
    batches[0] += 100
    assert batches[4].eq(0).all(), "two batches on one memory"


def into_a_lease(samples: list[dict[str, Any]]) -> torch.Tensor:
    out = alloc((len(samples), SIZE))
    for row, sample in zip(out, samples, strict=True):
        row.copy_(sample["large"])
    return out


def test_a_collate_function_of_the_user_s_writes_where_it_will_be_read() -> None:
    gc.collect()
    before = mapped()
    loader = DataLoader(Numbers(60, SIZE), 2, num_workers=1, collate_fn=into_a_lease)
    most = 0
    for number, batch in enumerate(loader):
        assert batch[:, 0].tolist() == [2 * number, 2 * number + 1]
        most = max(most, mapped() - before)
    assert most <= 5, "a copy was made, or memory not used again"


def test_saving_one_batch_saves_no_other() -> None:
    for batch in DataLoader(Numbers(4, SIZE), 2, num_workers=2):
        for leaf in (batch["large"], batch["small"], batch["index"]):
            stream = io.BytesIO()
            torch.save(leaf, stream)
            assert len(stream.getvalue()) < leaf.nbytes + 4096


def test_batches_can_be_trained_on() -> None:
    """In-place changes and gradients of one leaf stay with that leaf."""
    for batch in DataLoader(Numbers(6, SIZE), 2, num_workers=2):
        weight = torch.ones(SIZE, requires_grad=True)
        loss = (batch["large"] * weight).sum()
        batch["small"] += 1
        batch["index"].zero_()
        loss.backward()
        assert weight.grad is not None
        assert torch.equal(weight.grad, batch["large"].sum(0))


class Odd(Dataset[Any]):
    """A batch of many large leaves, as one sample."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [torch.full((5000,), index * 1000 + leaf) for leaf in range(300)]


def test_hundreds_of_large_leaves() -> None:
    for index, batch in enumerate(DataLoader(Odd(), None, num_workers=1)):
        assert [int(leaf[-1]) for leaf in batch] == [index * 1000 + leaf for leaf in range(300)]


def needs_grad(samples: list[Any]) -> torch.Tensor:
    return torch.ones(3, requires_grad=True) * 2


def test_a_batch_that_is_the_result_of_a_computation_is_an_error() -> None:
    iterator = iter(DataLoader(Numbers(3), num_workers=1, collate_fn=needs_grad))
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker process 0"):
        next(iterator)
    with pytest.raises(RuntimeError, match="non-leaf tensor which requires_grad"):
        next(iterator)
