"""Samplers that go through others, or call their generators what they like: exact all the same."""

import copy
import json
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler

from headrace import DataLoader
from headrace.errors import StateError
from state.loaders import plain

N = 24


def seeded(number=1):
    return torch.Generator().manual_seed(number)


class Share(BatchSampler):
    """Every second batch of another batch sampler: what accelerate puts around one."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner) // 2

    def __iter__(self):
        for number, batch in enumerate(self.inner):
            if number % 2 == 0:
                yield batch


class Chained(Sampler):
    """One sampler after the other."""

    def __init__(self, *samplers):
        self.parts = list(samplers)

    def __len__(self):
        return sum(map(len, self.parts))

    def __iter__(self):
        for part in self.parts:
            yield from part


class ByName(Sampler):
    """The same, by name."""

    def __init__(self, *samplers):
        self.named = dict(enumerate(samplers))

    def __len__(self):
        return sum(map(len, self.named.values()))

    def __iter__(self):
        for part in self.named.values():
            yield from part


class Rng(Sampler):
    """A generator under another name."""

    def __init__(self):
        self.rng = seeded(5)

    def __len__(self):
        return N

    def __iter__(self):
        return iter(torch.randperm(N, generator=self.rng).tolist())


class Own(Sampler):
    """Shuffles by a generator of its own, which goes on from epoch to epoch."""

    def __init__(self, generator):
        self.generator = generator

    def __len__(self):
        return N

    def __iter__(self):
        order = list(range(N))
        self.generator.shuffle(order)
        return iter(order)


def numpys(kind):
    return np.random.Generator(kind(5))


class OrderOfBatches(BatchSampler):
    """Shuffles another's batches by torch's default generator."""

    def __iter__(self):
        batches = list(super().__iter__())
        for number in torch.randperm(len(batches)).tolist():
            yield batches[number]


def drawn(generator):
    return RandomSampler(range(N), generator=generator)


FOREIGN = {
    "random": lambda: random.Random(5),
    "RandomState": lambda: np.random.RandomState(5),
    **{
        kind.__name__: partial(numpys, kind)
        for kind in (
            np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox,
            np.random.SFC64,
        )
    },
}  # fmt: skip

WITHIN = {
    **{
        f"of its own, {name}": lambda make=make: {"sampler": Own(make()), "batch_size": 5}
        for name, make in FOREIGN.items()
    },
    "of its own, inside": lambda: {
        "batch_sampler": Share(BatchSampler(Own(random.Random(5)), 3, False))
    },
    "a batch sampler in another": lambda: {
        "batch_sampler": Share(BatchSampler(drawn(seeded()), 3, False))
    },
    "three deep": lambda: {"batch_sampler": Share(Share(BatchSampler(drawn(seeded()), 2, False)))},
    "several": lambda: {"sampler": Chained(drawn(seeded(1)), drawn(seeded(2))), "batch_size": 5},
    "several by name": lambda: {
        "sampler": ByName(drawn(seeded(1)), drawn(seeded(2))),
        "batch_size": 5,
    },
    "one of several draws from torch's": lambda: {
        "sampler": Chained(drawn(seeded()), drawn(None)),
        "batch_size": 5,
    },
    "another name": lambda: {"sampler": Rng(), "batch_size": 5},
    "another name, inside": lambda: {"batch_sampler": Share(BatchSampler(Rng(), 3, False))},
    "around a sampler that draws nothing": lambda: {
        "batch_sampler": OrderOfBatches(SequentialSampler(range(N)), 3, False)
    },
}


def batches(loader):
    return [plain(batch) for batch in loader]


SOME = ["a batch sampler in another", "several", "of its own, random"]
WAYS = [
    *((name, False, 0) for name in WITHIN),
    *((name, True, 0) for name in SOME),
    *((name, False, 2) for name in SOME),
]


@pytest.mark.parametrize(("name", "own", "workers"), WAYS)
def test_later_epochs_go_on_behind_any_step(name, own, workers):
    def make(seed):
        torch.manual_seed(seed)
        options = {"generator": seeded(9)} if own else {}
        return DataLoader(range(N), num_workers=workers, **WITHIN[name](), **options)

    loader = make(1)
    batches(loader)
    iterator, states, seen = iter(loader), [], []
    for batch in iterator:
        seen.append(plain(batch))
        states.append(json.loads(json.dumps(loader.state_dict())))
    for step in (1, len(states) - 1):
        again = make(2)
        again.load_state_dict(states[step - 1])
        assert batches(again) == seen[step:], step


@pytest.mark.parametrize("name", [name for name in WITHIN if name.startswith("of its own")])
def test_the_epoch_behind_a_finished_one_goes_on_from_its_generators(name):
    loader = DataLoader(range(N), **WITHIN[name]())
    batches(loader)
    state = json.loads(json.dumps(loader.state_dict()))
    again = DataLoader(range(N), **WITHIN[name]())
    again.load_state_dict(state)
    assert [batches(again), batches(again)] == [batches(loader), batches(loader)]


@pytest.mark.parametrize("held", [np.random.mtrand._rand, random._inst])
def test_the_global_generators_are_not_a_sampler_s(held):
    """sklearn's check_random_state(None) is NumPy's global one."""

    loader = DataLoader(range(N), sampler=Own(held), seed=3)
    stands = copy.deepcopy(held)  # a seed is none of theirs: the program goes on drawing from them
    wanted = list(range(N))
    stands.shuffle(wanted)
    assert batches(loader) == [[number] for number in wanted]
    assert held.random() == stands.random()
    assert loader._generators() == []


def test_a_state_of_another_kind_of_generator_is_refused():
    loader = DataLoader(range(N), sampler=Own(random.Random(5)))
    state = loader.state_dict()
    other = DataLoader(range(N), sampler=Own(np.random.default_rng(5)))
    with pytest.raises(StateError, match=r"it is of a Random, and the sampler has a Generator"):
        other.load_state_dict(state)
    with pytest.raises(StateError, match="a generator cannot be read"):
        DataLoader(range(N), sampler=drawn(seeded())).load_state_dict(state)


@pytest.mark.parametrize("name", WITHIN)
def test_a_seed_is_what_the_order_follows_from(name):
    def make(seed):
        return DataLoader(range(N), seed=seed, **WITHIN[name]())

    torch.manual_seed(1)
    one = make(3)
    torch.manual_seed(2)
    other = make(3)
    epochs = [batches(one), batches(one)]
    assert [batches(other), batches(other)] == epochs
    assert epochs[0] != epochs[1]
    assert batches(make(4)) != epochs[0]
