"""A state of one order never goes on in another without a word."""

import copy
import json
import random
import warnings

import numpy as np
import pytest
import torch
import torch.utils.data as td
from torch.utils.data.distributed import DistributedSampler

import headrace
from headrace import DataLoader
from headrace.errors import StateError
from state.loaders import Augmented, plain, seed_all

N = 24


def own():
    return torch.Generator().manual_seed(1)


def distributed(epoch=0, rank=0, **options):
    sampler = DistributedSampler(range(N), **{"num_replicas": 2, "rank": rank, **options})
    sampler.set_epoch(epoch)
    return {"sampler": sampler}


def drawn(**options):
    return {"sampler": td.RandomSampler(range(N), generator=own(), **options)}


def buckets(lengths=range(N), **options):
    given = {"batch_size": 4, "generator": own() if options.get("shuffle", True) else None}
    return {"batch_sampler": headrace.BucketBatchSampler(list(lengths), **{**given, **options})}


def packed(lengths=range(1, N + 1), tokens=30, **options):
    sampler = headrace.PackedBatchSampler(list(lengths), tokens, generator=own(), **options)
    return {"batch_sampler": sampler}


def weighted(weights, n=N, replacement=True):
    return {"sampler": td.WeightedRandomSampler(weights, n, replacement, generator=own())}


def subset(indices):
    return {"sampler": td.SubsetRandomSampler(indices, generator=own())}


def stratified(labels, size=4):
    return {"batch_sampler": headrace.StratifiedBatchSampler(labels, size, generator=own())}


def balanced(labels):
    return {"sampler": headrace.ClassBalancedSampler(labels, N, generator=own())}


class Shuffled(td.Sampler):
    """A stranger's sampler: its order follows from an attribute that nobody knows of."""

    def __init__(self, salt, n=N):
        self.salt, self.n = salt, n

    def __len__(self):
        return self.n

    def __iter__(self):
        return iter(np.random.default_rng(self.salt).permutation(self.n).tolist())


# One order, another one, and what the error names: the field and both values.
OTHERS = {
    "seed": (lambda: distributed(seed=0), lambda: distributed(seed=5), r"sampler.seed 0.*has 5"),
    "replicas": (
        distributed,
        lambda: distributed(num_replicas=3),
        r"num_replicas 2.*has 3.*DistributedSampler\(\.\.\., num_replicas=2\)",
    ),
    "shuffle": (distributed, lambda: distributed(shuffle=False), "shuffle True"),
    "distributed drop_last": (
        distributed,
        lambda: distributed(drop_last=True),
        "sampler.drop_last False.*True",
    ),
    "drop_last": (dict, lambda: {"drop_last": True}, "batch_sampler.drop_last False.*True"),
    "replacement": (drawn, lambda: drawn(replacement=True), "replacement False.*True"),
    "num_samples": (
        lambda: drawn(num_samples=50),
        lambda: drawn(num_samples=60),
        "num_samples 50.*60",
    ),
    "method": (
        lambda: {"sampler": headrace.RandomSampler(range(N), method="torch", generator=own())},
        lambda: {"sampler": headrace.RandomSampler(range(N), method="bijection", generator=own())},
        "method 'torch'.*'bijection'",
    ),
    "weights": (
        lambda: weighted([1.0] * N),
        lambda: weighted([1.0] * 12 + [9.0] * 12),
        "sampler.weights '24 values.*same weights=",
    ),
    "weighted replacement": (
        lambda: weighted([1.0] * N),
        lambda: weighted([1.0] * N, N, False),
        "replacement True.*False",
    ),
    "indices": (lambda: subset([1, 2, 3, 4, 5]), lambda: subset([1, 2, 3, 4, 6]), "indices '5"),
    "lengths": (buckets, lambda: buckets(range(1, N + 1)), "sampler.lengths"),
    "bounds": (
        lambda: buckets(max_tokens=60),
        lambda: buckets(max_tokens=61),
        "max_tokens 60.*has 61.*BucketBatchSampler",
    ),
    "spread": (lambda: buckets(spread=0.1), lambda: buckets(spread=0.5), "spread 0.1.*0.5"),
    "row of tokens": (packed, lambda: packed(tokens=31), "max_tokens 30.*31"),
    "labels": (lambda: stratified([0, 1] * 12), lambda: stratified([0, 1, 1] * 8), "labels"),
    "batch size": (
        lambda: stratified([0, 1] * 12),
        lambda: stratified([0, 1] * 12, 6),
        "batch_size 4.*6",
    ),
    "balanced labels": (lambda: balanced([0, 1] * 12), lambda: balanced([0, 1, 1] * 8), "labels"),
    "a stranger's": (
        lambda: {"sampler": Shuffled(1)},
        lambda: {"sampler": Shuffled(2)},
        "Shuffled gives other indices",
    ),
}


def make(given, **options):
    if "batch_sampler" not in given:
        given = {"batch_size": 2, **given}
    return DataLoader(range(N), **given, **options)


def stopped(loader, steps=2):
    """The state behind some steps, as JSON carries it, and the batches behind it."""
    batches = iter(loader)
    for _ in range(steps):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    return state, [plain(batch) for batch in batches]


@pytest.mark.parametrize("name", OTHERS)
def test_another_order_is_refused_and_named(name):
    one, other, message = OTHERS[name]
    state, rest = stopped(make(one()))
    again = make(one())
    again.load_state_dict(state)
    assert [plain(batch) for batch in again] == rest
    with pytest.raises(StateError, match=message):
        loader = make(other())
        loader.load_state_dict(state)
        next(iter(loader))


def test_the_same_weights_and_indices_in_another_container_are_the_same():
    state, rest = stopped(make(subset([3, 1, 4, 1, 5, 9])))
    for indices in (torch.tensor([3, 1, 4, 1, 5, 9]), np.array([3, 1, 4, 1, 5, 9], np.int32)):
        again = make(subset(indices))
        again.load_state_dict(state)
        assert [plain(batch) for batch in again] == rest


def test_the_rank_may_differ():
    state, _ = stopped(make(distributed(rank=0)))
    _, rest = stopped(make(distributed(rank=1)))
    again = make(distributed(rank=1))
    again.load_state_dict(state)
    assert [plain(batch) for batch in again] == rest


@pytest.mark.parametrize("where", ["inside", "between"])
def test_an_epoch_that_was_forgotten_is_restored(where):
    loader = make(distributed(epoch=3))
    state, rest = stopped(loader)
    if where == "between":
        state, rest = loader.state_dict(), [plain(batch) for batch in loader]
    again = make(distributed())
    again.load_state_dict(state)
    assert [plain(batch) for batch in again] == rest


def test_an_epoch_set_after_loading_is_set_back_aloud():
    state, rest = stopped(make(distributed(epoch=3)))
    again = make(distributed())
    again.load_state_dict(state)
    again.sampler.set_epoch(0)  # as Fabric does at each iter()
    with pytest.warns(UserWarning, match=r"set_epoch\(0\).*state in epoch 3"):
        got = [plain(batch) for batch in again]
    assert got == rest


def epochs(loader, numbers):
    """Return the batches of epochs, of which somebody counts the numbers."""
    seen = []
    for number in numbers:
        loader.sampler.set_epoch(number)
        seen.append([plain(batch) for batch in loader])
    return seen


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("status", ["running", "finished"])
@pytest.mark.parametrize("count", ["of its own", "put right", "right"])
def test_a_count_that_begins_anew_behind_a_state_goes_on_from_there(workers, status, count):
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    whole = epochs(make(distributed(), **options), range(6))
    loader = make(distributed(), **options)
    if status == "running":
        epochs(loader, [0, 1])
        loader.sampler.set_epoch(2)
        state, whole[2] = stopped(loader)
    else:
        epochs(loader, [0, 1])
        state = loader.state_dict()
    counts = {"of its own": range(4), "put right": [0, 3, 4, 5], "right": range(2, 6)}[count]
    again = make(distributed(), **options)
    again.load_state_dict(state)
    if count == "right":
        found = epochs(again, counts)
    else:
        with pytest.warns(UserWarning, match=r"set_epoch\(0\).*this is .*epoch 2") as said:
            found = epochs(again, counts)
        assert len(said) == 1
    assert found == whole[2:]


def test_a_count_is_forgotten_with_the_next_state():
    whole = epochs(make(distributed()), range(4))
    loader = make(distributed())
    states = []
    for number in range(3):
        loader.sampler.set_epoch(number)
        states.append(stopped(loader)[0])
    loader.load_state_dict(states[2])
    with pytest.warns(UserWarning, match="epoch 2"):
        epochs(loader, [0])
    loader.load_state_dict(states[0])
    assert epochs(loader, range(3))[1:] == whole[1:3]


def test_an_epoch_set_in_the_loop_is_not_that_of_the_order():
    loader = make(distributed(epoch=3))
    batches = iter(loader)
    next(batches)
    loader.sampler.set_epoch(4)
    state, rest = loader.state_dict(), [plain(batch) for batch in batches]
    again = make(distributed())
    again.load_state_dict(state)
    assert [plain(batch) for batch in again] == rest


class FromNumpy(Shuffled):
    """Draws from NumPy's and Python's global generators, each index when it is due."""

    def __init__(self):
        super().__init__(0)

    def __iter__(self):
        for _ in range(self.n):
            yield int(np.random.randint(self.n - 5)) + random.randrange(5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_on_numpys_and_pythons_generators_resumes(workers):
    seed_all(3)
    loader = make({"sampler": FromNumpy()}, num_workers=workers)
    list(loader)
    state, rest = stopped(loader)
    following = [plain(batch) for batch in loader]
    seed_all(4)
    again = make({"sampler": FromNumpy()}, num_workers=workers)
    again.load_state_dict(state)
    assert [plain(batch) for batch in again] == rest
    if workers == 0:  # what was drawn ahead at the time of the state is past
        assert [plain(batch) for batch in again] == following


def test_a_sampler_whose_generator_others_used_is_not_trusted():
    seed_all(3)
    loader = make({"sampler": FromNumpy()})
    batches = iter(loader)
    next(batches)
    np.random.rand()
    next(batches)
    state = loader.state_dict()
    again = make({"sampler": FromNumpy()})
    again.load_state_dict(state)
    with pytest.raises(StateError, match="draws from a generator that others draw from"):
        next(iter(again))


@pytest.mark.parametrize("first", [True, False])
def test_with_a_seed_the_next_epoch_does_not_depend_on_workers_that_persist(first):
    def noisy(persistent):
        return DataLoader(
            Augmented(12), 3, True, seed=5, num_workers=1, persistent_workers=persistent
        )

    loader = noisy(first)
    list(loader)
    state, rest = stopped(loader)
    following = [plain(batch) for batch in loader]
    again = noisy(not first)
    again.load_state_dict(state)
    assert [plain(batch) for batch in again] == rest
    assert [plain(batch) for batch in again] == following


def test_states_stay_small_and_carry_no_arrays():
    state, _ = stopped(DataLoader(range(10**5), 4, sampler=td.WeightedRandomSampler(
        torch.rand(10**5), 10**5)))  # fmt: skip
    assert len(json.dumps(state)) < 12_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy.deepcopy(state) == state
