"""Batches on a device. The device here is a fake that copies late, as a device does.

It reads host memory by its address, when the link gets to it, and keeps nothing alive: a lease that
is used again too early shows as wrong values.
"""

import ctypes
import os
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import Dataset, TensorDataset

from headrace import DataLoader
from headrace.engine.ahead.pinning import CudaPages, target_device
from headrace.engine.ahead.transfer import Transfer
from headrace.engine.lease import Memory, Pool, memory_at
from headrace.errors import OptionError

META = torch.device("meta")
WIDTH = 32 << 10  # of int32: 128 KiB, on a lease
GARBAGE = -77


class FakeEvent:
    def __init__(self, lane: "FakeLane") -> None:
        self.lane = lane
        self.happened = False

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        self.lane.waits += not self.happened
        if self.lane.interrupt:
            self.lane.interrupt = False
            raise KeyboardInterrupt
        self.lane.run_until(self)


class FakeLane:
    """A link that is as slow as the test wants, and a user's stream that waits for events."""

    device = META

    def __init__(self) -> None:
        self.link: deque[Callable[[], None]] = deque()
        self.awaited: deque[FakeEvent] = deque()  # by the user's stream
        self.known: list[torch.Tensor] = []  # the allocator knows who uses them
        self.inside = False
        self.waits = 0
        self.copies = 0
        self.fail_at: set[int] = set()
        self.interrupt = False

    @contextmanager
    def _stream(self) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def stream(self) -> AbstractContextManager[object]:
        return self._stream()

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self.inside, "a copy outside of the side stream"
        self.copies += 1
        if self.copies in self.fail_at:
            raise torch.OutOfMemoryError("fake")
        target = torch.full_like(tensor, GARBAGE)
        address, size = tensor.data_ptr(), tensor.nbytes
        self.link.append(lambda: ctypes.memmove(target.data_ptr(), address, size) and None)
        return target

    def event(self) -> FakeEvent:
        event = FakeEvent(self)
        self.link.append(lambda: setattr(event, "happened", True))
        return event

    def hand_over(self, event: FakeEvent, tensors: list[torch.Tensor]) -> None:  # type: ignore[override]
        self.awaited.append(event)
        self.known += tensors

    # What time does

    def run(self, operations: int) -> None:
        for _ in range(min(operations, len(self.link))):
            self.link.popleft()()

    def run_until(self, event: FakeEvent) -> None:
        while not event.happened:
            self.link.popleft()()

    def run_users_stream(self) -> None:
        while self.awaited:
            self.run_until(self.awaited.popleft())


class Source:
    """Batches on leases; some are ready before they are asked for."""

    def __init__(self, total: int, ready: int = 1, broken: frozenset[int] = frozenset()) -> None:
        self.pool = Pool()
        self.total, self.broken = total, broken
        self.made = 0
        self.position = 0
        self.ahead = ready
        self.ready: deque[Any] = deque()

    def _make(self) -> Any:
        number = self.made
        self.made += 1
        if number in self.broken:
            return ValueError(number)
        batch = [self.pool.empty((WIDTH,), torch.int32), torch.tensor([number]), f"name {number}"]
        batch[0].fill_(number)
        return batch

    def __iter__(self) -> "Source":
        return self

    def __next__(self) -> Any:
        if not self.ready and self.made == self.total:
            raise StopIteration
        batch = self.ready.popleft() if self.ready else self._make()
        self.position += 1
        while len(self.ready) < self.ahead and self.made < self.total:
            self.ready.append(self._make())
        if isinstance(batch, ValueError):
            raise batch
        return batch

    def peek(self) -> Any:
        if not self.ready or isinstance(self.ready[0], ValueError):
            return None
        return self.ready[0]

    def all_back(self) -> bool:
        pool = self.pool
        pool._sort_returned()
        return sum(map(len, pool._free.values())) == pool.created


def transfer(source: Source, lane: FakeLane) -> Transfer:
    return Transfer(source, META, source.peek, lane)


def check(batch: Any, number: int) -> None:
    image, label, name = batch
    assert image.eq(number).all(), f"batch {number} holds {image.unique().tolist()}"
    assert label.tolist() == [number]
    assert name == f"name {number}"


class TestOrderOfThings:
    @settings(max_examples=150, deadline=None)
    @given(
        total=st.integers(0, 12),
        ready=st.integers(0, 3),
        broken=st.frozensets(st.integers(0, 11), max_size=3),
        speeds=st.lists(st.integers(0, 6), min_size=12, max_size=12),
        lag=st.integers(0, 4),
    )
    def test_values_are_right_however_slow_the_link(
        self, total: int, ready: int, broken: frozenset[int], speeds: list[int], lag: int
    ) -> None:
        """The user reads a batch when their stream gets there, ``lag`` batches later."""
        source, lane = Source(total, ready, broken), FakeLane()
        batches = transfer(source, lane)
        unread: deque[tuple[int, Any]] = deque()
        for number in range(total):
            lane.run(speeds[number])
            if number in broken:
                with pytest.raises(ValueError, match=f"^{number}$"):
                    next(batches)
            else:
                unread.append((number, next(batches)))
            assert source.position == number + 1, "looking ahead moved the position"
            if len(unread) > lag:
                lane.run_users_stream()
                late_number, late = unread.popleft()
                check(late, late_number)
        with pytest.raises(StopIteration):
            next(batches)
        assert not lane.link, "the end of the epoch left copies under way"
        assert source.all_back()
        for late_number, late in unread:
            check(late, late_number)

    def test_leases_are_used_again(self) -> None:
        source, lane = Source(50), FakeLane()
        for number, batch in enumerate(transfer(source, lane)):
            lane.run_users_stream()
            check(batch, number)
        assert source.pool.created <= 4

    def test_the_copy_of_the_next_batch_is_under_way_when_one_is_handed_over(self) -> None:
        source, lane = Source(3), FakeLane()
        batches = transfer(source, lane)
        next(batches)
        assert lane.copies == 4, "two leaves of two batches"
        next(batches)
        assert lane.copies == 6, "a batch that was copied ahead is not copied again"
        assert lane.waits == 1, "the third copy waits for the first"

    def test_nothing_waits_for_a_link_that_keeps_up(self) -> None:
        source, lane = Source(10), FakeLane()
        for _ in transfer(source, lane):
            lane.run(100)
        assert lane.waits == 0

    def test_a_loop_ahead_of_the_link_does_not_pile_up_batches(self) -> None:
        source, lane = Source(40), FakeLane()
        kept = list(transfer(source, lane))
        assert source.pool.created <= 4
        lane.run_users_stream()
        for number, batch in enumerate(kept):
            check(batch, number)

    def test_the_users_stream_waits_for_the_batch_only(self) -> None:
        lane = FakeLane()
        batches = transfer(Source(3), lane)
        batch = next(batches)
        lane.run_users_stream()
        check(batch, 0)
        assert lane.link, "it waited for the copy ahead too"
        assert [id(t) for t in lane.known] == [id(t) for t in batch[:2]]

    def test_without_a_peek_it_copies_when_due(self) -> None:
        lane = FakeLane()
        for number, batch in enumerate(transfer(Source(5, ready=0), lane)):
            assert lane.copies == 2 * (number + 1)
            lane.run_users_stream()
            check(batch, number)

    def test_a_batch_that_was_not_the_next_after_all_is_copied_when_due(self) -> None:
        source, lane = Source(4), FakeLane()
        other = [torch.zeros(2), torch.zeros(1), "no"]
        batches = Transfer(source, META, lambda: other, lane)
        for number, batch in enumerate(batches):
            lane.run_users_stream()
            check(batch, number)


class TestEnds:
    def test_an_exception_passes_and_the_batch_ahead_is_kept(self) -> None:
        source, lane = Source(5, broken=frozenset({1})), FakeLane()
        batches = transfer(source, lane)
        next(batches)
        with pytest.raises(ValueError):
            next(batches)
        for number in (2, 3, 4):
            batch = next(batches)
            lane.run_users_stream()
            check(batch, number)

    def test_a_copy_ahead_that_fails_raises_when_it_is_due(self) -> None:
        source, lane = Source(3), FakeLane()
        lane.fail_at = {4, 6}  # the second leaf of batch 1, ahead; again when due
        batches = transfer(source, lane)
        check_later = next(batches)
        with pytest.raises(torch.OutOfMemoryError):
            next(batches)
        third = next(batches)
        lane.run_users_stream()
        check(check_later, 0)
        check(third, 2)
        assert source.position == 3

    def test_a_copy_that_failed_half_way_holds_its_lease(self) -> None:
        source, lane = Source(2, ready=0), FakeLane()
        lane.fail_at = {2}
        batches = transfer(source, lane)
        with pytest.raises(torch.OutOfMemoryError):
            next(batches)
        assert not source.all_back()
        batches.close()
        assert source.all_back()

    @pytest.mark.parametrize("how", ["close", "delete"])
    def test_leaving_waits_for_the_copies_before_it_returns_the_leases(self, how: str) -> None:
        source, lane = Source(5), FakeLane()
        batches = transfer(source, lane)
        batch = next(batches)
        if how == "close":
            batches.close()
            batches.close()
        else:
            del batches
        assert not lane.link
        source.ready.clear()
        assert source.all_back()
        check(batch, 0)

    def test_a_forked_child_leaves_the_device_alone(self) -> None:
        lane = FakeLane()
        batches = transfer(Source(5), lane)
        next(batches)
        batches._pid = -1  # as it is in a child
        del batches
        assert lane.waits == 0

    def test_an_interrupted_wait_costs_no_batch(self) -> None:
        source, lane = Source(5), FakeLane()
        batches = transfer(source, lane)
        next(batches)
        lane.interrupt = True  # Ctrl-C, while the link is slow
        with pytest.raises(KeyboardInterrupt):
            next(batches)
        assert source.position == 1
        batch = next(batches)
        lane.run_users_stream()
        check(batch, 1)

    def test_over_the_leases_of_worker_processes(self) -> None:
        lane = FakeLane()
        loader: DataLoader[Any] = DataLoader(Rows(), batch_size=4, num_workers=2)
        for _ in range(2):
            batches = Transfer(iter(loader), META, lambda: None, lane)
            kept: deque[tuple[int, Any]] = deque()
            for number, batch in enumerate(batches):
                kept.append((number, batch))
                if len(kept) > 2:
                    lane.run(1)
                    lane.run_users_stream()
                    which, images = kept.popleft()
                    rows = [4 * which + i for i in range(4)]
                    assert images[:, 0].tolist() == images[:, -1].tolist() == rows


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_s_state_does_not_count_what_was_copied_ahead(workers: int) -> None:
    def loader(**options: Any) -> DataLoader[Any]:
        return DataLoader(Rows(), batch_size=4, shuffle=True, seed=3, **options)

    plain, other = loader(), loader(device="meta", num_workers=workers)
    for _, batch in zip(plain, other, strict=True):
        assert batch.device == META
        assert other.state_dict() == plain.state_dict()
    assert other.state_dict() == plain.state_dict()


def test_batches_of_columns_arrive_too() -> None:
    loader: Any = DataLoader(TensorDataset(torch.ones(100, 8), torch.ones(100)), 10, device="meta")
    assert [[t.device for t in batch] for batch in loader] == [[META, META]] * 10


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((WIDTH,), index, dtype=torch.int32)


Point = namedtuple("Point", "x y")


@dataclass(frozen=True)
class Frozen:
    image: torch.Tensor
    name: str


class Tokens(UserDict[str, Any]):
    """Like a tokenizer's batch: a mapping with a method of its own, and more than its keys."""

    encodings = "kept"

    def to(self, device: Any) -> Any:
        raise AssertionError("its tensors can be copied ahead")


class Graph:
    """An object that moves itself."""

    def __init__(self, where: str = "cpu") -> None:
        self.where = where

    def to(self, device: torch.device) -> "Graph":
        return Graph(device.type)


def arrive(batch: Any) -> Any:
    (arrived,) = Transfer(iter([batch]), META, lambda: None)
    return arrived


def is_on(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.device == META


class TestWhatIsMoved:
    def test_tensors_in_containers(self) -> None:
        t = torch.ones(2)
        batch = {"a": [t, (t, "s")], "p": Point(t, 3), "o": OrderedDict(k=t)}
        arrived = arrive(batch)
        assert is_on(arrived["a"][0])
        assert is_on(arrived["a"][1][0])
        assert arrived["a"][1][1] == "s"
        assert type(arrived["p"]) is Point
        assert is_on(arrived["p"].x)
        assert type(arrived["o"]) is OrderedDict
        assert is_on(arrived["o"]["k"])
        assert batch["a"][0] is t, "the host batch was changed"  # type: ignore[index]

    def test_mappings_keep_what_they_are(self) -> None:
        given = defaultdict(list, x=torch.ones(1))
        arrived = arrive(given)
        assert type(arrived) is defaultdict
        assert arrived.default_factory is list
        assert is_on(arrived["x"])
        tokens = Tokens(ids=torch.ones(1))
        tokens.encodings = "mine"
        arrived = arrive(tokens)
        assert type(arrived) is Tokens
        assert arrived.encodings == "mine"
        assert is_on(arrived["ids"])
        assert not is_on(tokens["ids"])

    def test_dataclasses_even_frozen_ones(self) -> None:
        given = Frozen(torch.ones(2), "n")
        arrived = arrive([given])[0]
        assert type(arrived) is Frozen
        assert is_on(arrived.image)
        assert arrived.name == "n"
        assert not is_on(given.image)

    def test_objects_that_move_themselves(self) -> None:
        graph = Graph()
        arrived = arrive({"graph": graph, "x": torch.ones(1)})
        assert arrived["graph"].where == "meta"
        assert is_on(arrived["x"])
        assert graph.where == "cpu"

    def test_packed_sequences_by_their_own_rules(self) -> None:
        packed = pack_sequence([torch.ones(3), torch.ones(2)])
        arrived = arrive((packed, 1))[0]
        assert isinstance(arrived, PackedSequence)
        assert is_on(arrived.data)
        assert arrived.batch_sizes.device.type == "cpu"

    def test_tensors_that_no_stream_can_be_told_of_move_on_the_users_stream(self) -> None:
        jagged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
        lane = FakeLane()
        batch = [jagged, torch.eye(3).to_sparse()]
        (arrived,) = Transfer(iter([batch]), META, lambda: None, lane)
        assert lane.copies == 0
        assert [tensor.device for tensor in arrived] == [META, META]

    def test_what_is_there_already_stays(self) -> None:
        there = torch.empty(3, device=META)
        assert arrive([there, torch.ones(1)])[0] is there

    @pytest.mark.parametrize(
        "batch", ["text", b"bytes", 3, None, ["a", "b"], range(3), {"a": (1, [2])}], ids=str
    )
    def test_what_holds_no_tensor_is_handed_over_as_it_is(self, batch: Any) -> None:
        assert arrive(batch) is batch

    def test_shapes_types_and_strides_stay(self) -> None:
        image = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
        arrived = arrive(image)
        assert arrived.stride() == image.stride()
        assert arrive(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


class FakeCudart:
    """Notes what is page-locked; locks at most ``room`` buffers."""

    def __init__(self, room: int = 1_000) -> None:
        self.room = room
        self.locked: dict[int, int] = {}
        self.calls = 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.calls += 1
        if len(self.locked) >= self.room:
            return 2
        assert address not in self.locked, "locked twice"
        assert address % os.sysconf("SC_PAGE_SIZE") == size % os.sysconf("SC_PAGE_SIZE") == 0
        self.locked[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        ctypes.string_at(address, 1)  # it is still mapped
        del self.locked[address]
        return 0


class TestPageLocks:
    def test_a_lease_is_locked_once_whatever_part_of_it_is_copied(self) -> None:
        cudart, pool = FakeCudart(), Pool()
        pages = CudaPages(cudart)
        for _ in range(5):
            tensor = pool.empty((WIDTH,), torch.int32)
            assert pages.lock_under(tensor)
            assert pages.lock_under(tensor[100:])
            del tensor
        assert cudart.calls == 1
        assert len(cudart.locked) == 1

    def test_it_is_unlocked_before_it_is_unmapped(self) -> None:
        cudart, pool = FakeCudart(), Pool()
        pages = CudaPages(cudart)
        tensor = pool.empty((WIDTH,), torch.int32)
        pages.lock_under(tensor)
        del pool
        assert cudart.locked, "the tensor still needs it"
        del tensor
        assert not cudart.locked

    def test_leases_of_workers_are_locked_too(self) -> None:
        pages = CudaPages(FakeCudart())
        batches = iter(DataLoader(Rows(), batch_size=4, num_workers=1))
        assert pages.lock_under(next(batches))

    def test_memory_that_is_no_lease_is_left_alone(self) -> None:
        cudart = FakeCudart()
        assert not CudaPages(cudart).lock_under(torch.ones(1 << 20))
        assert cudart.calls == 0

    def test_where_no_more_can_be_locked_it_is_not_tried_again(self) -> None:
        cudart, pool = FakeCudart(room=1), Pool()
        pages = CudaPages(cudart)
        held = [pool.empty((WIDTH,), torch.int32) for _ in range(4)]
        assert [pages.lock_under(t) for t in held] == [True, False, False, False]
        assert cudart.calls == 2

    def test_private_pages_are_locked_anew_after_a_fork(self) -> None:
        cudart, pool = FakeCudart(), Pool()
        pages = CudaPages(cudart)
        tensor = pool.empty((WIDTH,), torch.int32)
        pages.lock_under(tensor)
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert pages.lock_under(tensor)
        assert cudart.calls == 2
        assert len(cudart.locked) == 1

    def test_a_child_unlocks_nothing(self) -> None:
        cudart, pool = FakeCudart(), Pool()
        tensor = [pool.empty((WIDTH,), torch.int32)]
        CudaPages(cudart).lock_under(tensor[0])
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            del pool
            tensor.clear()
            os.write(write, str(len(cudart.locked)).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 10) == b"1"
        os.close(read)
        os.close(write)

    def test_buffers_are_found_by_any_address_in_them(self) -> None:
        memory = Memory.private(1 << 16)
        address = memory.address
        assert memory_at(address) is memory
        assert memory_at(address + (1 << 16) - 1) is memory
        assert memory_at(address + (1 << 16)) is not memory
        del memory
        assert memory_at(address) is None


class TestDevices:
    @pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
    def test_the_cpu_is_no_device_to_copy_to(self, device: Any) -> None:
        assert target_device(device) is None

    def test_meta_is_one(self) -> None:
        assert target_device("meta") == META

    @pytest.mark.parametrize("device", ["gpu", "cuda:x", "", 1.5])
    def test_what_is_no_device_is_refused(self, device: Any) -> None:
        with pytest.raises(OptionError, match=r"is no device: .*Write DataLoader\(..., device="):
            target_device(device)

    @pytest.mark.parametrize("device", ["cuda", "cuda:3", torch.device("xpu"), "hpu"])
    def test_what_is_not_here_is_refused(
        self, device: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without = SimpleNamespace(device_count=lambda: 0)
        monkeypatch.setattr(torch, "get_device_module", lambda device: without)
        with pytest.raises(OptionError, match=r"is not here: .* Write DataLoader\(..., device="):
            target_device(device)

    def test_a_number_too_high_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        two = SimpleNamespace(device_count=lambda: 2)
        monkeypatch.setattr(torch, "get_device_module", lambda device: two)
        assert target_device("cuda:1") == torch.device("cuda", 1)
        assert target_device("cuda") == torch.device("cuda")
        with pytest.raises(OptionError, match=r"torch sees cuda:0 to cuda:1. .*device='cuda:0'"):
            target_device("cuda:2")
