"""Index batches: cut from chunks of any size, drawn when torch would draw them."""

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from headrace.engine.order.order import Order, Tasks, whole_batches

moderate = settings(max_examples=60, deadline=None, derandomize=True)


class Chunks:
    """Pieces of ``range(n)`` that note when they were asked for."""

    def __init__(self, sizes: list[int]) -> None:
        ends = np.cumsum([0, *sizes])
        self.pieces = [np.arange(a, b) for a, b in pairwise(ends)]
        self.asked = 0

    def __iter__(self) -> Iterator[Any]:
        for piece in self.pieces:
            self.asked += 1
            yield piece


class TestWholeBatches:
    @moderate
    @given(st.lists(st.integers(1, 20), max_size=8), st.integers(1, 9), st.booleans())
    def test_are_the_order_in_pieces_of_whole_batches(
        self, sizes: list[int], batch_size: int, drop_last: bool
    ) -> None:
        total = sum(sizes)
        pieces = list(whole_batches(iter(Chunks(sizes)), batch_size, drop_last))
        kept = total // batch_size * batch_size if drop_last else total
        assert [i for piece in pieces for i in piece.tolist()] == list(range(kept))
        assert all(len(piece) % batch_size == 0 for piece in pieces[:-1])
        assert all(len(piece) for piece in pieces)

    @moderate
    @given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 9))
    def test_ask_for_no_chunk_before_a_batch_needs_it(
        self, sizes: list[int], batch_size: int
    ) -> None:
        chunks = Chunks(sizes)
        seen = 0
        for piece in whole_batches(iter(chunks), batch_size, False):
            seen += len(piece)
            needed = int(np.searchsorted(np.cumsum(sizes), seen)) + 1
            if seen < sum(sizes):
                assert chunks.asked == needed


class TestOrder:
    @moderate
    @given(st.integers(1, 200), st.integers(1, 9), st.booleans(), st.integers(0, 99))
    def test_is_what_the_batch_sampler_yields(
        self, n: int, batch_size: int, drop_last: bool, seed: int
    ) -> None:
        def build() -> BatchSampler:
            generator = torch.Generator().manual_seed(seed)
            sampler = RandomSampler(range(n), num_samples=2 * n, generator=generator)
            return BatchSampler(sampler, batch_size, drop_last)

        order = Order(build(), True)
        assert order.pieces is not None
        assert list(order) == list(build())

    def test_without_batching_is_what_the_sampler_yields(self) -> None:
        order = list(Order(SequentialSampler(range(5)), False))
        assert order == [0, 1, 2, 3, 4]
        assert {type(i) for i in order} == {int}

    def test_of_anything_else_is_the_thing_itself(self) -> None:
        batches = [[1, 2], (3,), torch.tensor([4])]
        order = Order(batches, True)
        assert order.pieces is None
        assert all(a is b for a, b in zip(order, batches, strict=True))

    def test_asks_a_custom_sampler_for_its_iterator_once_and_at_once(self) -> None:
        asked: list[str] = []

        class Sampler:
            def __iter__(self) -> Iterator[int]:
                asked.append("iter")
                return iter([1, 2, 3])

        order = Order(Sampler(), False)
        assert asked == ["iter"]
        assert list(order) == [1, 2, 3]
        assert asked == ["iter"]

    @pytest.mark.parametrize("private", [True, False])
    def test_draws_with_the_first_batch_and_not_before(self, private: bool) -> None:
        generator = None if private else torch.Generator().manual_seed(1)
        sampler = BatchSampler(RandomSampler(range(50), generator=generator), 4, False)
        watched = torch.default_generator if private else generator
        before = watched.get_state()
        batches = iter(Order(sampler, True))
        assert torch.equal(watched.get_state(), before)
        next(batches)
        assert not torch.equal(watched.get_state(), before)


class TestTasks:
    def test_are_numbered_and_seeded_by_their_step(self) -> None:
        one, other = (list(Tasks(iter([[1], [2], [3]]), 7, 2)) for _ in range(2))
        assert [(t.epoch, t.step, t.indices) for t in one] == [(2, i, [i + 1]) for i in range(3)]
        assert one == other
        assert len({t.seed for t in one}) == 3
        assert [t.seed for t in one] != [t.seed for t in Tasks(iter([[1]] * 3), 7, 3)]
        assert [t.seed for t in one] != [t.seed for t in Tasks(iter([[1]] * 3), 8, 2)]

    def test_are_made_one_at_a_time(self) -> None:
        asked = iter(range(100))
        list(islice(Tasks(asked, 0, 0), 3))
        assert next(asked) == 3

    def test_keep_their_numbers_after_a_sampler_raised(self) -> None:
        class Stumbling:
            def __init__(self) -> None:
                self.at = 0

            def __next__(self) -> int:
                self.at += 1
                if self.at == 2:
                    raise OSError
                return self.at

        tasks = Tasks(Stumbling(), 0, 0)  # type: ignore[arg-type]
        assert next(tasks).step == 0
        with pytest.raises(OSError):
            next(tasks)
        assert next(tasks).indices == 3
