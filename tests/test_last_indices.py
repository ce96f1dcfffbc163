"""``loader.last_indices()``: which samples the batch in hand was made of."""

from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler

import headrace
from headrace import DataLoader, TensorDataset


class Own(headrace.Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, index):
        return [torch.tensor(index)]


DATASETS = {"columns": TensorDataset(torch.arange(50)), "samples": Own()}
WAYS: list[dict[str, Any]] = [
    {},
    {"num_workers": 2},
    {"num_workers": 2, "backend": "thread"},
    {"num_workers": 2, "in_order": False},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("kind", DATASETS)
def test_are_those_of_each_batch(kind, options):
    loader = DataLoader(DATASETS[kind], batch_size=4, shuffle=True, **options)
    assert loader.last_indices() is None
    for _ in range(2):
        for [batch] in loader:
            assert loader.last_indices() == batch.tolist()
    assert loader.last_indices() is None


@pytest.mark.parametrize("kind", DATASETS)
def test_of_a_custom_batch_sampler(kind):
    class Mine(BatchSampler):
        pass

    sampler = Mine(SequentialSampler(range(50)), 7, False)
    loader = DataLoader(DATASETS[kind], batch_sampler=sampler)
    for [batch] in loader:
        assert loader.last_indices() == batch.tolist()


def test_columns_that_change_in_the_loop_are_gathered_again_under_the_same_indices():
    x = torch.arange(40)
    loader = DataLoader(TensorDataset(x), batch_size=4, shuffle=True)
    for n, [batch] in enumerate(loader):
        assert loader.last_indices() == (batch % 100).tolist()
        if n == 3:
            x += 100


def test_is_that_of_the_batch_handed_out_after_others_that_were_not():
    class Holes(Own):
        def __getitem__(self, index):
            if index in {1, 4, 5}:
                raise OSError("broken")
            return index

    def collate(samples):
        if 6 in samples:
            raise ArithmeticError("mine")
        return samples

    loader = DataLoader(
        Holes(), batch_size=2, sampler=range(8), collate_fn=collate, on_error="skip"
    )
    iterator = iter(loader)
    assert [next(iterator), next(iterator)] == [[0], [2, 3]]
    with pytest.raises(ArithmeticError):
        next(iterator)
    assert loader.last_indices() == [2, 3]


def test_none_for_a_stream():
    class Stream(headrace.IterableDataset):
        def __iter__(self):
            return iter(range(4))

    loader = DataLoader(Stream())
    for _ in loader:
        assert loader.last_indices() is None
