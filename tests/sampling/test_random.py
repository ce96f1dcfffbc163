"""headrace's `RandomSampler`: torch's order up to 2^24 items, a bijection beyond."""

import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import RandomSampler as TorchRandomSampler

from headrace.errors import OptionError
from headrace.sampling.order import index_chunks, is_exact
from headrace.sampling.random import TORCH_ITEMS, RandomSampler, uses_bijection


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


def flat(chunks):
    return [int(i) for chunk in chunks for i in chunk]


options = st.fixed_dictionaries(
    {"replacement": st.booleans(), "num_samples": st.none() | st.integers(1, 400)}
)


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 200), options=options, own=st.booleans(), start=st.integers(0, 400))
def test_order_and_generators_equal_torchs(n, options, own, start):
    results = []
    for kind in (TorchRandomSampler, RandomSampler):
        torch.manual_seed(3)
        drawn_from = generator() if own else None
        sampler = kind(range(n), generator=drawn_from, **options)
        values = list(sampler)
        again = flat(index_chunks(sampler, start))
        seen = torch.get_rng_state().tolist(), own and drawn_from.get_state().tolist()
        results.append((values, again, seen))
    assert results[0] == results[1]


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 200), options=options, start=st.integers(0, 400))
def test_any_position_of_a_bijection_is_reached_directly(n, options, start):
    whole, rest = (
        flat(
            RandomSampler(
                range(n), generator=generator(), method="bijection", **options
            ).index_chunks(at)
        )
        for at in (0, start)
    )
    assert rest == whole[start:]
    assert len(whole) == (options["num_samples"] or n)
    if not options["replacement"]:
        for low in range(0, len(whole), n):
            part = whole[low : low + n]
            assert len(set(part)) == len(part)
    assert all(0 <= i < n for i in whole)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_bijection_draws_one_number_at_its_first_index(replacement, own):
    torch.manual_seed(9)
    drawn_from = generator(9) if own else None
    state = drawn_from.get_state if own else torch.get_rng_state
    sampler = RandomSampler(
        range(100), replacement, generator=drawn_from, method="bijection", num_samples=250
    )
    before = state()
    order = iter(sampler)
    index_chunks(sampler)
    assert torch.equal(state(), before)
    next(order)
    after_one = state()
    list(order)
    assert torch.equal(state(), after_one)
    expected = generator(9)
    torch.empty((), dtype=torch.int64).random_(generator=expected)
    assert torch.equal(after_one, expected.get_state())


def test_each_epoch_and_each_pass_has_an_order_of_its_own():
    sampler = RandomSampler(range(1000), generator=generator(), method="bijection")
    assert list(sampler) != list(sampler)
    twice = RandomSampler(range(1000), num_samples=2000, generator=generator(), method="bijection")
    order = list(twice)
    assert order[:1000] != order[1000:]
    assert sorted(order[:1000]) == sorted(order[1000:])


def test_the_same_seed_gives_the_same_order_in_every_release():
    """Saved states rely on these values: a change of them needs a new version of the state."""
    small = RandomSampler(range(12), generator=generator(1), method="bijection")
    assert list(small) == [0, 9, 11, 8, 3, 6, 10, 1, 2, 5, 7, 4]
    large = RandomSampler(range(10**10), generator=generator(1))
    assert next(large.index_chunks())[:4].tolist() == [
        7969330487,
        4653790147,
        5297166066,
        5432396281,
    ]
    drawn = RandomSampler(range(10**10), replacement=True, generator=generator(1))
    assert next(drawn.index_chunks())[:4].tolist() == [
        2758008024,
        7532178041,
        7645722203,
        4963404301,
    ]


def test_the_method_follows_the_length():
    assert not uses_bijection(TORCH_ITEMS)
    assert uses_bijection(TORCH_ITEMS + 1)
    assert uses_bijection(5, "bijection")
    assert not uses_bijection(10**10, "torch")


def test_torchs_order_is_kept_beyond_the_limit_when_asked(monkeypatch):
    monkeypatch.setattr("headrace.sampling.random.TORCH_ITEMS", 50)
    ours = RandomSampler(range(60), generator=generator(), method="torch")
    assert list(ours) == list(TorchRandomSampler(range(60), generator=generator()))
    auto = RandomSampler(range(60), generator=generator())
    bijection = RandomSampler(range(60), generator=generator(), method="bijection")
    assert list(auto) == list(bijection) != list(ours)


def test_indices_are_plain_integers():
    for method in ("torch", "bijection"):
        assert {type(i) for i in RandomSampler(range(9), method=method)} == {int}
    values = itertools.islice(RandomSampler(range(10**10)), 3)
    assert {type(i) for i in values} == {int}


def test_the_sampler_is_torchs_too_and_can_be_pickled():
    sampler = RandomSampler(range(90), generator=generator(), method="bijection")
    assert isinstance(sampler, TorchRandomSampler)
    assert len(sampler) == sampler.num_samples == 90
    copy = pickle.loads(pickle.dumps(RandomSampler(range(90), method="bijection")))
    assert copy.method == "bijection"


def test_a_method_that_is_none_is_refused_with_the_line_to_write():
    with pytest.raises(OptionError, match=r"got 'fast': write RandomSampler\(dataset, method="):
        RandomSampler(range(3), method="fast")


@pytest.mark.parametrize(
    "arguments", [{"replacement": 1}, {"num_samples": 0}, {"num_samples": 2.5}]
)
def test_other_arguments_fail_as_torchs(arguments):
    with pytest.raises((TypeError, ValueError)) as theirs:
        TorchRandomSampler(range(3), **arguments)
    with pytest.raises(theirs.type) as ours:
        RandomSampler(range(3), **arguments)
    assert str(ours.value) == str(theirs.value)


def test_an_empty_dataset_is_torchs_error():
    with pytest.raises(ValueError, match="num_samples should be a positive integer"):
        RandomSampler([])


def test_a_subclass_that_iterates_otherwise_is_iterated():
    class Other(RandomSampler):
        def __iter__(self):
            return iter([2, 1])

    assert not is_exact(Other(range(9)))
    assert is_exact(RandomSampler(range(9)))


def test_the_default_shuffle_is_torchs_up_to_the_limit():
    torch.manual_seed(2)
    theirs = list(TorchRandomSampler(range(5000)))
    torch.manual_seed(2)
    assert flat(RandomSampler(range(5000)).index_chunks()) == theirs
    assert (
        flat(RandomSampler(range(5000), generator=generator()).index_chunks(4990))
        == list(TorchRandomSampler(range(5000), generator=generator()))[4990:]
    )


@pytest.mark.parametrize("replacement", [False, True])
def test_ten_thousand_million_items_start_at_once_in_little_memory(replacement):
    # NumPy reports its arrays to tracemalloc.
    tracemalloc.start()
    try:
        sampler = RandomSampler(range(10**10), replacement, method="bijection")
        chunks = sampler.index_chunks(7 * 10**9)
        first = next(chunks)
        for _ in range(50):
            next(chunks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(np.unique(first)) > 16_000
    assert peak < 8 * 2**20


def test_a_shuffle_on_another_device_is_left_to_torch():
    try:
        torch.set_default_device("meta")
        assert RandomSampler(range(10)).index_chunks() is None
    finally:
        torch.set_default_device(None)
