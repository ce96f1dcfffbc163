"""Iterable datasets: each worker iterates its own copy."""

import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, get_worker_info

from headrace import DataLoader
from headrace.engine.epoch.same_stream import SameStream
from oracle import LOADERS, assert_same

from .datasets import MANY_WORKERS, Shard, ShardWithLength, as_it_is

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


@settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.none() | st.integers(1, 3),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)
def test_uneven_streams_come_in_torch_s_order(
    lengths: list[int], batch_size: int | None, drop: bool, prefetch: int, persistent: bool
) -> None:
    made = []
    for loader in LOADERS.values():
        options: dict[str, Any] = {"persistent_workers": persistent}
        if batch_size is not None:
            options["drop_last"] = drop
        built = loader(
            Shard(lengths),
            batch_size=batch_size,
            num_workers=len(lengths),
            prefetch_factor=prefetch,
            **options,
        )
        made.append([list(built), list(built)])
        built._iterator = None
    assert_same(made[1], made[0])


def test_out_of_order_nothing_is_lost() -> None:
    lengths = [0, 7, 3, 12]
    batches = list(DataLoader(Shard(lengths), 2, num_workers=4, in_order=False))
    rows = sorted(tuple(row) for batch in batches for row in batch.tolist())
    assert rows == [(w, n) for w in range(4) for n in range(lengths[w])]


@pytest.mark.parametrize("promised", [3, 4, 9])
def test_more_samples_than_promised_are_torch_s_warning(promised: int) -> None:
    said = []
    for loader in LOADERS.values():
        built = loader(ShardWithLength([4, 4], promised), 2, num_workers=2)
        assert len(built) == -(-promised // 2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert len(list(built)) == 4
        said.append([str(w.message).split("datasets.")[-1].split(" object")[0] for w in caught])
        said[-1] += [str(w.message).split("> was")[-1][:60] for w in caught]
    assert said[1] == said[0]


class Same(IterableDataset[Any]):
    """The same stream from every worker."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)


class Split(Same):
    """What the warning tells people to write."""

    def __iter__(self) -> Iterator[Any]:
        samples = iter(self.samples)
        info = get_worker_info()
        if info is not None:
            samples = itertools.islice(samples, info.id, None, info.num_workers)
        return samples


images = [torch.full((3, 40, 40), float(n)) for n in range(6)]


class TestTheSameStreamFromEveryWorker:
    @pytest.mark.parametrize(
        "samples",
        [
            range(12),
            images,
            ["one", "two", "three", "four"],
            [{"x": np.arange(n, n + 3), "name": f"{n}"} for n in range(4)],
            [(torch.tensor(n), n) for n in range(6)],
            [n / 7 for n in range(6)],
        ],
        ids=["numbers", "images", "text", "dicts", "tuples", "floats"],
    )
    def test_is_warned_about_by_the_second_batch(self, samples: Any) -> None:
        iterator = iter(DataLoader(Same(samples), 2, num_workers=2))
        next(iterator)
        with pytest.warns(UserWarning, match="all workers yield the same stream") as caught:
            next(iterator)
        assert len(caught) == 1
        assert "every sample comes 2 times" in str(caught[0].message)
        assert caught[0].filename == __file__

    def test_the_warning_changes_no_batch(self) -> None:
        with pytest.warns(UserWarning, match="all workers yield the same stream"):
            got = list(DataLoader(Same(range(9)), 2, num_workers=2))
        wanted = list(torch.utils.data.DataLoader(Same(range(9)), 2, num_workers=2))
        assert [batch.tolist() for batch in got] == [batch.tolist() for batch in wanted]

    def test_the_line_that_it_shows_is_right(self) -> None:
        with pytest.warns(UserWarning, match="all workers yield the same stream") as caught:
            list(DataLoader(Same(range(9)), 3, num_workers=2))
        lines = str(caught[0].message).split("\n", 1)[1]
        code = f"def split(samples):\n{lines}\n    return samples\n"
        room: dict[str, Any] = {"torch": torch, "itertools": itertools}
        exec(code, room)
        assert list(room["split"](range(5))) == [0, 1, 2, 3, 4]
        batches = list(DataLoader(_Fixed(room["split"]), 2, num_workers=3))
        assert sorted(torch.cat(batches).tolist()) == list(range(9))

    def test_once_a_loader(self) -> None:
        loader = DataLoader(Same(range(8)), 2, num_workers=2)
        with pytest.warns(UserWarning, match="same stream") as caught:
            list(loader), list(loader)
        assert len(caught) == 1

    def test_in_an_epoch_after_one_that_was_left_at_once(self) -> None:
        loader = DataLoader(Same(range(8)), 2, num_workers=2)
        next(iter(loader))
        with pytest.warns(UserWarning, match="same stream"):
            list(loader)

    def test_single_samples_once_they_have_told_something(self) -> None:
        for size in (1, None):
            with pytest.warns(UserWarning, match="same stream"):
                list(DataLoader(Same([5, 5, 5, 6, 7]), size, num_workers=2))

    @pytest.mark.parametrize(
        ("dataset", "workers", "batch_size"),
        [
            (Split(range(12)), 2, 2),
            (Split(images), 3, 1),
            (Same(range(12)), 1, 2),
            (Same(range(12)), 0, 2),
            (Same([torch.zeros(3, 50, 50)] * 40), 2, 2),
            (Same([torch.arange(5)] * 8), 2, 4),
            (Same([1.0] * 50), 2, 4),
            (Same(["a"] * 50), 2, 1),
            (Same([]), 2, 2),
            (Shard([5, 0]), 2, 2),
            (Shard([9, 9, 2]), 3, 4),
        ],
    )
    def test_no_warning_otherwise(self, dataset: Any, workers: int, batch_size: int) -> None:
        list(DataLoader(dataset, batch_size, num_workers=workers))

    def test_no_warning_where_the_samples_are_random(self) -> None:
        class Noise(IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                for _ in range(8):
                    yield torch.rand(3) + random.random()

        list(DataLoader(Noise(), 2, num_workers=2))

    def test_batches_of_any_kind_can_be_compared(self) -> None:
        odd = [
            torch.eye(3).to_sparse(),
            torch.empty(0, 4),
            torch.tensor(3.0),
            torch.ones(2, dtype=torch.bfloat16),
            torch.randn(3, dtype=torch.complex64).conj(),
            np.array([None, "x"], dtype=object),
            np.empty((2, 0)),
            np.float32(3),
            [],
            {},
            object(),
            None,
        ]
        compare = SameStream()
        for _ in range(20):
            for worker in (0, 1, 2):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    compare.leaves(worker, odd, 3)
        assert compare.over


class _Fixed(IterableDataset[Any]):
    def __init__(self, split: Callable[[Any], Any]) -> None:
        self.split = split

    def __iter__(self) -> Iterator[Any]:
        return iter(self.split(range(9)))


class Counting(IterableDataset[Any]):
    """Counts its iterations in its own copy."""

    def __init__(self) -> None:
        self.iterations = 0

    def __iter__(self) -> Iterator[Any]:
        self.iterations += 1
        info = get_worker_info()
        yield (0 if info is None else info.id), self.iterations


@pytest.mark.parametrize("persistent", [False, True])
def test_iter_is_called_again_in_the_same_copy_of_workers_that_persist(persistent: bool) -> None:
    dataset = Counting()
    loader = DataLoader(
        dataset, 1, num_workers=2, collate_fn=as_it_is, persistent_workers=persistent
    )
    epochs = [[batch[0] for batch in loader] for _ in range(3)]
    assert dataset.iterations == 0
    expected = [[(0, n), (1, n)] for n in ((1, 2, 3) if persistent else (1, 1, 1))]
    assert epochs == expected
    loader._iterator = None


def test_an_iterator_that_raises_costs_one_batch() -> None:
    class Stumbles:
        """An iterator, not a generator: it can go on after an exception."""

        count = 0

        def __next__(self) -> int:
            self.count += 1
            if self.count == 3:
                raise KeyError("three")
            if self.count > 6:
                raise StopIteration
            return self.count

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return Stumbles()

    iterator = iter(DataLoader(Stream(), 1, num_workers=1))
    assert [next(iterator).item(), next(iterator).item()] == [1, 2]
    with pytest.raises(KeyError, match="three"):
        next(iterator)
    assert [batch.item() for batch in iterator] == [4, 5, 6]
