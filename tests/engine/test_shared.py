"""Buffers that two processes map: whose turn it is to write, at every moment."""

import gc
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.engine import cargo, forks
from headrace.engine.lease import size_class
from headrace.engine.shared import LEASE_BYTES, Home, Imports, WorkerPool, map_shared

SIZES = (LEASE_BYTES, 20_000, 70_000, 300_000)


class Lending(RuleBasedStateMachine):
    """A worker and a user who send, keep, slice, drop, fork and start again in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Home()
        self.begin()
        self.count = 0
        self.here: list[tuple[int, torch.Tensor]] = []  # what the worker's code keeps
        self.there: list[tuple[int, Any]] = []  # what the user keeps

    def begin(self) -> None:
        self.imports = Imports(self.home, [])
        self.pool = WorkerPool([])

    def cross(self, batch: Any) -> Any:
        data, buffers, kept = cargo.pack(batch, self.pool)
        for key, size, descriptor in self.pool.unsent:
            self.imports.add(key, size, descriptor)
            os.close(descriptor)
        self.pool.unsent.clear()
        arrived = cargo.unpack((data, buffers), self.imports)
        self.imports.forget(self.pool.forgotten)
        self.pool.forgotten.clear()
        del kept
        return arrived

    @rule(size=st.sampled_from(SIZES), keep=st.sampled_from(["", "here", "there", "both"]))
    def make(self, size: int, keep: str) -> None:
        self.count += 1
        made = self.pool.empty((size,), torch.uint8).fill_(self.count % 251)
        arrived = self.cross(made)
        assert bool((arrived == self.count % 251).all())
        if keep in ("here", "both"):
            self.here.append((self.count, made))
        if keep in ("there", "both"):
            self.there.append((self.count, arrived))

    @rule(size=st.sampled_from(SIZES))
    def make_an_array(self, size: int) -> None:
        self.count += 1
        self.there.append((self.count, self.cross(np.full(size, self.count % 251, np.uint8))))

    @precondition(lambda self: self.here)
    @rule(data=st.data(), keep=st.booleans())
    def send_again(self, data: st.DataObject, keep: bool) -> None:
        number, made = data.draw(st.sampled_from(self.here))
        arrived = self.cross([made, made[5:]])
        if keep:
            self.there.append((number, arrived[1]))

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def keep_a_slice_only(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.there) - 1))
        number, held = self.there[place]
        self.there[place] = number, held[len(held) // 2 :]

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def the_user_lets_go(self, data: st.DataObject) -> None:
        del self.there[data.draw(st.integers(0, len(self.there) - 1))]

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def the_worker_lets_go(self, data: st.DataObject) -> None:
        del self.here[data.draw(st.integers(0, len(self.here) - 1))]

    @rule()
    def tell_the_worker(self) -> None:
        free, retired = self.imports.to_return()
        self.pool.came_home(free)
        self.pool.keep_out(retired)

    @rule()
    def the_user_s_process_forks(self) -> None:
        forks.note()

    @rule()
    def the_worker_dies(self) -> None:
        self.here.clear()
        self.imports.bequeath()
        (heirlooms,) = self.home.divide(1)
        held = {part.data_ptr() for _, part in self.there if isinstance(part, torch.Tensor)}
        assert not held & {memory.address for memory in heirlooms}
        self.begin()

    @invariant()
    def nothing_that_is_kept_was_written(self) -> None:
        for number, part in (*self.here, *self.there):
            assert bool((part == number % 251).all())

    def teardown(self) -> None:
        for _, _, descriptor in self.pool.unsent:
            os.close(descriptor)


Lending.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLending = Lending.TestCase


class Pair:
    def __init__(self) -> None:
        self.home = Home()
        self.pool, self.imports = WorkerPool([]), Imports(self.home, [])

    def lend(self, size: int = 100_000) -> tuple[Any, Any]:
        """A buffer in both hands: the worker's token and the user's."""
        mine = self.pool.lend(size)
        for key, size_bytes, descriptor in self.pool.unsent:
            self.imports.add(key, size_bytes, descriptor)
            os.close(descriptor)
        self.pool.unsent.clear()
        memory = self.pool.find(mine.ctypes.data)
        assert memory is not None
        self.pool.send_abroad(memory)
        return mine, self.imports.token(memory.key)

    def tell(self) -> tuple[int, int]:
        free, retired = self.imports.to_return()
        self.pool.came_home(free)
        self.pool.keep_out(retired)
        return len(free), len(retired)


@pytest.mark.parametrize("first", ["worker", "user"])
def test_a_buffer_is_free_when_both_sides_have_let_go(first: str) -> None:
    pair = Pair()
    mine, theirs = pair.lend()
    if first == "worker":
        del mine
        pair.tell()
        other = pair.lend()
        del theirs
    else:
        del theirs
        pair.tell()
        other = pair.lend()
        del mine
    pair.tell()
    assert pair.pool.created == 2
    again = pair.lend()
    assert pair.pool.created == 2
    del other, again


def test_what_one_side_writes_the_other_reads() -> None:
    pair = Pair()
    mine, theirs = pair.lend()
    mine[:] = 7
    assert theirs[:100_000].tolist() == [7] * 100_000


def test_what_was_out_at_a_fork_is_never_lent_again() -> None:
    pair = Pair()
    mine, theirs = pair.lend()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    del mine, theirs
    assert pair.tell() == (0, 1)
    pair.lend()
    assert pair.pool.created == 2
    pair.tell()


def test_what_is_lent_after_a_fork_comes_back() -> None:
    pair = Pair()
    forks.note()
    for _ in range(3):
        pair.lend()
        assert pair.tell() == (1, 0)
    assert pair.pool.created == 1


def test_a_program_that_is_started_is_no_fork_that_could_read() -> None:
    pair = Pair()
    before = pair.home.forks
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert pair.home.forks == before


def test_buffers_go_to_the_next_workers_but_not_what_is_held() -> None:
    pair = Pair()
    first = pair.lend()
    second = pair.lend(200_000)
    del first
    pair.imports.bequeath()
    shares = pair.home.divide(2)
    assert [len(share) for share in shares] == [1, 0]
    second[1][:] = 1
    assert pair.home.divide(1) == [[]], "divided twice"


def test_heirlooms_are_lent_first() -> None:
    pair = Pair()
    pair.lend()
    pair.imports.bequeath()
    (heirlooms,) = pair.home.divide(1)
    address = heirlooms[0].address
    pool = WorkerPool(heirlooms)
    assert pool.lend(100_000).ctypes.data == address
    assert pool.created == 0


def test_buffers_that_are_not_wanted_are_dropped_on_both_sides() -> None:
    gc.collect()
    pair = Pair()
    pair.lend(3_000_000)
    pair.tell()
    before = _mapped()
    for _ in range(200):
        pair.lend()
        pair.tell()
        pair.imports.forget(pair.pool.forgotten)
        pair.pool.forgotten.clear()
    assert _mapped() <= before, "both mappings of the large buffer are gone, one small pair came"
    assert size_class(3_000_000) not in {len(m) for m in pair.imports._memories.values()}


def _mapped() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:headrace " in line for line in maps)


def test_no_name_is_left_in_any_file_system() -> None:
    before = set(os.listdir("/dev/shm"))
    pair = Pair()
    held = pair.lend()
    assert set(os.listdir("/dev/shm")) <= before
    del held


def test_a_map_that_fails_says_how_much_was_wanted() -> None:
    descriptor = os.memfd_create("headrace")
    with pytest.raises(MemoryError, match="cannot map 0 bytes for a batch"):
        map_shared(descriptor, 0)
    os.close(descriptor)
