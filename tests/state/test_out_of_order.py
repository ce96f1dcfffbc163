"""``in_order=False``: what has left is not made again, and nothing is left out."""

import json

import pytest
import torch
from torch.utils.data import Dataset

from headrace import DataLoader
from state.loaders import Stateful


class Waiting(Dataset):
    """Sample 0 is made once ``allowed`` is set; the others at once."""

    def __init__(self, n, allowed):
        self.n, self.allowed = n, allowed

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == 0:
            self.allowed.wait()
        return index, torch.rand(())


def make(allowed, **options):
    return DataLoader(
        Waiting(24, allowed), **{"batch_size": 2, "num_workers": 2, "seed": 1, **options}
    )


def pairs(batches):
    return {int(i): float(x) for indices, xs in batches for i, x in zip(indices, xs, strict=True)}


@pytest.mark.parametrize(
    "other",
    [{"num_workers": 2, "in_order": False}, {"num_workers": 2}, {"num_workers": 0}],
)
@pytest.mark.parametrize("stateful", [False, True])
def test_going_on_gives_the_rest_once(other, stateful):
    context = torch.multiprocessing.get_context()
    held, free = context.Event(), context.Event()
    free.set()
    sampler = (lambda: {"sampler": Stateful(24)}) if stateful else dict
    whole = pairs(make(free, **sampler()))
    loader = make(held, in_order=False, **sampler())
    iterator = iter(loader)
    seen = [next(iterator) for _ in range(5)]  # sample 0 is in none of them
    state = json.loads(json.dumps(loader.state_dict()))
    assert 0 not in pairs(seen)
    held.set()
    assert state["ahead"]
    again = make(free, **sampler(), **other)
    again.load_state_dict(state)
    assert again.state_dict() == state
    iterator = iter(again)
    middle = [next(iterator)]
    state = json.loads(json.dumps(again.state_dict()))
    once_more = make(free, **sampler())
    once_more.load_state_dict(state)
    rest = list(once_more)
    assert len(seen) + len(middle) + len(rest) == 12
    assert pairs(seen + middle + rest) == whole
