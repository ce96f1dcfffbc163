"""Mapped and filtered datasets and streams: samples, gathering, workers, states, errors."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from headrace import ArrayDataset, DataLoader
from headrace.data import (
    ChainDataset,
    FilteredDataset,
    FilteredStream,
    MappedDataset,
    MappedStream,
    StreamSource,
    random_split,
)
from headrace.testing import assert_exact_resume


def doubled(x: Any) -> Any:
    return x * 2


def is_even(x: Any) -> bool:
    return bool(x % 2 == 0)


class Asked(Dataset[int]):
    """Notes what it is asked for, one by one or many at once."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.one: list[int] = []
        self.many: list[list[int]] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        self.one.append(index)
        return index * 10

    def __getitems__(self, indices: list[int]) -> list[int]:
        self.many.append(list(indices))
        return [index * 10 for index in indices]


class Drawing(Dataset[float]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> float:
        return float(torch.rand(()) + np.random.rand())


class Counting(StreamSource):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        return CountingIterator(self.n)


class CountingIterator:
    def __init__(self, n: int) -> None:
        self.n, self.place = n, 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> int:
        if self.place == self.n:
            raise StopIteration
        self.place += 1
        return self.place - 1

    def state_dict(self) -> Any:
        return {"place": self.place}

    def load_state_dict(self, state: Any) -> None:
        self.place = state["place"]


class WithItsOwnState(Counting):
    """Keeps its place itself, and can be divided."""

    place = 0

    def __iter__(self) -> Any:
        while self.place < self.n:
            self.place += 1
            yield self.place - 1
        self.place = 0

    def state_dict(self) -> Any:
        return {"place": self.place}

    def load_state_dict(self, state: Any) -> None:
        self.place = state["place"]

    def shard(self, index: int, count: int) -> Any:
        return Counting(self.n - index if count == 2 else self.n)


class TestMapped:
    def test_samples_are_those_of_the_function(self) -> None:
        data = ArrayDataset(np.arange(5)).map(doubled)
        assert [data[i] for i in range(5)] == [0, 2, 4, 6, 8]
        assert len(data) == 5
        assert data[-1] == 8

    def test_asks_for_many_at_once_where_the_dataset_can(self) -> None:
        asked = Asked(6)
        batches = list(DataLoader(MappedDataset(asked, doubled), batch_size=3))
        assert torch.cat(batches).tolist() == [0, 20, 40, 60, 80, 100]
        assert asked.many == [[0, 1, 2], [3, 4, 5]]
        assert asked.one == []

    def test_over_any_dataset_of_torch(self) -> None:
        whole = ConcatDataset([TensorDataset(torch.arange(3)), TensorDataset(torch.arange(3))])
        data = MappedDataset(whole, lambda row: int(row[0]))
        assert [data[i] for i in range(6)] == [0, 1, 2, 0, 1, 2]

    def test_is_asked_in_workers_with_a_lambda(self) -> None:
        data = ArrayDataset(np.arange(8)).map(lambda x: x + 1)
        batches = list(DataLoader(data, batch_size=4, num_workers=2))
        assert torch.cat(batches).tolist() == list(range(1, 9))

    def test_composes(self) -> None:
        data = ArrayDataset(np.arange(12)).filter(is_even).map(doubled).filter(lambda x: x > 4)
        assert [data[i] for i in range(len(data))] == [8, 12, 16, 20]
        parts = random_split(data, [2, 2], torch.Generator().manual_seed(0))
        assert sorted(x for part in parts for x in part) == [8, 12, 16, 20]
        assert "filter(is_even).map(doubled)" in repr(data)

    def test_an_exception_of_the_function_names_it_and_the_index(self) -> None:
        data = ArrayDataset(np.arange(5)).map(lambda x: [1, 2][x])
        for ask in (lambda: data[4], lambda: data.__getitems__([0, 1, 4])):
            with pytest.raises(IndexError) as caught:
                ask()
            assert "lambda>, called with the sample at index 4" in caught.value.__notes__[0]

    def test_an_exception_in_a_worker_keeps_the_note(self) -> None:
        data = ArrayDataset(np.arange(5)).map(lambda x: [1, 2][x])
        with pytest.raises(IndexError) as caught:
            list(DataLoader(data, batch_size=5, num_workers=1))
        assert any("the sample at index 2" in note for note in caught.value.__notes__)

    def test_a_lambda_that_cannot_be_pickled_is_named(self) -> None:
        data = ArrayDataset(np.arange(5)).map(lambda x: x)
        loader = DataLoader(data, num_workers=1, multiprocessing_context="spawn")
        with pytest.warns(UserWarning, match=r"map\(.*lambda>\).*top level of a module"):  # noqa: SIM117
            with pytest.raises((pickle.PicklingError, AttributeError)):
                list(loader)


class TestFiltered:
    def test_samples_are_those_that_the_function_picks_in_order(self) -> None:
        data = FilteredDataset(list(range(9)), is_even)  # type: ignore[arg-type]
        assert [data[i] for i in range(len(data))] == [0, 2, 4, 6, 8]
        assert data[-1] == 8
        assert data.indices.tolist() == [0, 2, 4, 6, 8]
        assert data.indices.dtype == np.int64

    def test_the_pass_is_made_once_and_when_it_is_needed(self) -> None:
        asked = Asked(6)
        data = FilteredDataset(asked, lambda x: x > 20)
        assert asked.one == []
        assert len(data) == 3
        assert len(data) == 3
        assert asked.one == [0, 1, 2, 3, 4, 5]

    def test_the_indices_go_to_workers_with_the_dataset(self) -> None:
        data = FilteredDataset(ArrayDataset(np.arange(1_000)), is_even)
        small = len(pickle.dumps(data))
        len(data)
        again = pickle.loads(pickle.dumps(data))
        assert len(pickle.dumps(data)) - small > 500 * 8
        assert again._indices.tolist() == data.indices.tolist()

    def test_gathers_where_the_dataset_does(self) -> None:
        data = ArrayDataset(np.arange(100), np.arange(100) * 2).filter(lambda row: row[0] % 7 == 0)
        loader = DataLoader(data, batch_size=4)
        batches = list(loader)
        assert loader.statistics().path == "gather"
        assert torch.cat([x for x, _ in batches]).tolist() == list(range(0, 100, 7))
        assert torch.cat([y for _, y in batches]).tolist() == list(range(0, 200, 14))

    def test_asks_for_many_at_once_where_the_dataset_can(self) -> None:
        asked = Asked(6)
        data = FilteredDataset(asked, lambda x: x > 20)
        assert data.__getitems__([0, 2]) == [30, 50]
        assert asked.many == [[3, 5]]

    def test_random_samples_are_picked_alike_each_time_and_the_generators_put_back(self) -> None:
        torch.manual_seed(3)
        np.random.seed(3)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
        found = FilteredDataset(Drawing(), lambda x: x > 1).indices
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index,union-attr]
        torch.manual_seed(4)
        again = FilteredDataset(Drawing(), lambda x: x > 1).indices
        assert 0 < len(found) < 64
        assert found.tolist() == again.tolist()

    @pytest.mark.parametrize("index", [5, -6])
    def test_an_index_out_of_range_says_how_many_there_are(self, index: int) -> None:
        data = FilteredDataset(list(range(9)), is_even)  # type: ignore[arg-type]
        with pytest.raises(IndexError, match=r"keeps 5 samples.*0 to 4"):
            data[index]

    def test_that_keeps_nothing_is_empty(self) -> None:
        assert len(ArrayDataset(np.arange(4)).filter(lambda x: False)) == 0

    def test_an_exception_of_the_function_names_the_index(self) -> None:
        data = ArrayDataset(np.arange(5)).filter(lambda x: [1, 2][x])
        with pytest.raises(IndexError) as caught:
            len(data)
        assert "the sample at index 2" in caught.value.__notes__[0]

    def test_of_an_array_is_a_subset_of_it(self) -> None:
        data = ArrayDataset(np.arange(20))
        kept = data.filter(is_even)
        same = Subset(data, kept.indices.tolist())
        torch.manual_seed(0)
        one = list(DataLoader(kept, batch_size=3, shuffle=True))
        torch.manual_seed(0)
        assert [b.tolist() for b in one] == [
            b.tolist() for b in DataLoader(same, batch_size=3, shuffle=True)
        ]


class TestStreams:
    def test_are_mapped_and_filtered_as_they_stream(self) -> None:
        stream = Counting(6).map(doubled).filter(lambda x: x % 4 == 0).map(doubled)
        assert list(stream) == [0, 8, 16]
        assert list(stream) == [0, 8, 16]
        assert list(ChainDataset([stream, stream])) == [0, 8, 16, 0, 8, 16]

    def test_of_any_iterable_dataset(self) -> None:
        class Three(IterableDataset[int]):
            def __iter__(self) -> Any:
                return iter([1, 2, 3])

        assert list(MappedStream(Three(), doubled)) == [2, 4, 6]
        assert not hasattr(MappedStream(Three(), doubled), "state_dict")
        assert not hasattr(FilteredStream(Three(), is_even), "shard")

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("kind", [Counting, WithItsOwnState])
    def test_resume_where_what_is_under_them_does(self, kind: Any, workers: int) -> None:
        def make() -> Any:
            stream = kind(14).map(doubled).filter(lambda x: x % 3)
            return DataLoader(stream, batch_size=4, num_workers=workers)

        assert_exact_resume(make)

    def test_are_divided_with_what_is_under_them(self) -> None:
        part = WithItsOwnState(6).filter(is_even).map(doubled).shard(1, 2)
        assert list(part) == [0, 4, 8]
        assert isinstance(part, MappedStream)

    def test_pickle(self) -> None:
        stream = pickle.loads(pickle.dumps(Counting(4).map(doubled)))
        assert list(stream) == [0, 2, 4, 6]

    def test_an_exception_of_the_function_names_the_place(self) -> None:
        with pytest.raises(IndexError) as caught:
            list(Counting(6).filter(lambda x: x < 4).map(lambda x: [1, 2][x]))
        assert "sample 2 since the stream was begun" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ArrayDataset(np.arange(3)).map(3), "fn must be a function"),
        (lambda: MappedDataset(Counting(3), doubled), r"is iterable. Write MappedStream"),
        (lambda: FilteredDataset(Counting(3), doubled), r"FilteredStream\(dataset, fn\)"),
        (lambda: MappedStream(ArrayDataset(np.arange(3)), doubled), "map-style.*MappedDataset"),
        (lambda: FilteredDataset(object(), doubled), "needs __getitem__ and __len__"),
    ],
)
def test_what_cannot_be_composed_says_what_to_write(make: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        make()
