"""Whatever the dataset: with workers the batches are torch's, and those of no workers at all."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils.data as torch_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headrace
from oracle import LOADERS, ORDERS, Plan, assert_same, generator_states, seed_everything
from property.test_same_as_torch import Samples, Stream, trees

from .datasets import MANY_WORKERS, Drawn, Numbers

pytestmark = [
    pytest.mark.filterwarnings(MANY_WORKERS),
    pytest.mark.filterwarnings("ignore:the epoch gave no batch"),
]
few = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
plans = st.builds(
    Plan,
    order=st.sampled_from(ORDERS),
    batch_size=st.integers(1, 7),
    drop_last=st.booleans(),
    generator_seed=st.none() | st.integers(0, 2**40),
    order_seed=st.integers(0, 1000),
)


def epochs(
    name: str, plan: Plan, dataset: Any, seed: int, count: int = 2, **options: Any
) -> tuple[list[Any], list[Any]]:
    """The batches of some epochs, and the generators of the user's process after each."""
    seed_everything(seed)
    generator = plan.generator()

    def build(*args: Any, **kwargs: Any) -> Any:
        return LOADERS[name](*args, **kwargs, **options)

    loader = plan.build(build, dataset, generator)
    batches, states = [], []
    for _ in range(count):
        batches.append(list(loader))
        states.append(generator_states(generator))
    if name == "headrace":
        wanted = "process" if options["num_workers"] else "inline"
        assert loader.statistics().path == wanted
    loader._iterator = None
    return batches, states


@few
@given(trees, st.integers(1, 14), plans, st.integers(0, 2**60), st.integers(1, 3), st.booleans())
def test_batches_and_generators(
    tree: Any, n: int, plan: Plan, seed: int, workers: int, persistent: bool
) -> None:
    options = {"num_workers": workers, "persistent_workers": persistent}
    ours, our_states = epochs("headrace", plan, Samples(tree, n), seed, **options)
    theirs, their_states = epochs("torch", plan, Samples(tree, n), seed, **options)
    assert_same(ours, theirs)
    assert our_states == their_states, "the generators of the user's process differ"


@few
@given(
    trees,
    st.integers(0, 9),
    st.none() | st.integers(1, 4),
    st.booleans(),
    st.integers(1, 3),
)
@pytest.mark.filterwarnings("ignore:all workers yield the same")
def test_streams(tree: Any, n: int, batch_size: int | None, drop: bool, workers: int) -> None:
    plan = Plan("sequential", batch_size, drop and batch_size is not None)
    class_ = type("WithLength", (Stream,), {"__len__": lambda self: 10**6})
    ours, states = epochs("headrace", plan, class_(tree, n), 0, num_workers=workers)
    theirs, their_states = epochs("torch", plan, class_(tree, n), 0, num_workers=workers)
    assert_same(ours, theirs)
    assert states == their_states


@few
@given(plans, st.integers(1, 20), st.integers(0, 2**60), st.sampled_from([2, 8]), st.booleans())
def test_random_samples_do_not_depend_on_the_number_of_workers(
    plan: Plan, n: int, seed: int, workers: int, persistent: bool
) -> None:
    alone, _ = epochs("headrace", plan, Drawn(n), seed, num_workers=0)
    with_workers = epochs("headrace", plan, Drawn(n), seed, num_workers=workers)[0]
    assert_same(with_workers, alone)
    if persistent:  # the base seed is drawn once, as in torch: the first epoch is the same
        stay = epochs(
            "headrace", plan, Drawn(n), seed, num_workers=workers, persistent_workers=True
        )
        one = epochs("headrace", plan, Drawn(n), seed, num_workers=1, persistent_workers=True)
        assert_same(stay[0], one[0])
        assert_same(stay[0][0], alone[0])


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("persistent", [False, True])
def test_torch_s_own_random_streams_on_request(workers: int, persistent: bool) -> None:
    plan = Plan("shuffle", 3)
    options = {"num_workers": workers, "persistent_workers": persistent}
    ours = epochs("headrace", plan, Drawn(20), 5, rng="torch", **options)
    theirs = epochs("torch", plan, Drawn(20), 5, **options)
    assert_same(ours[0], theirs[0])
    assert ours[1] == theirs[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_without_batching(workers: int) -> None:
    for dataset, sampler in ((range(100, 110), None), (Numbers(10), [3, 1, 7])):
        made = [
            list(loader(dataset, batch_size=None, sampler=sampler, num_workers=workers))
            for loader in LOADERS.values()
        ]
        assert_same(*made)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_empty_dataset(workers: int) -> None:
    assert list(headrace.DataLoader(Numbers(0), num_workers=workers)) == []


def test_a_large_task() -> None:
    """40,000 indices are more than a socket or a pipe holds."""
    plan = Plan("shuffle", 40_000)
    ours = epochs("headrace", plan, _Range(100_000), 0, 1, num_workers=2)
    theirs = epochs("torch", plan, _Range(100_000), 0, 1, num_workers=2)
    assert_same(ours[0], theirs[0])


def test_many_large_tasks_and_large_results() -> None:
    """Both sides write more than fits: neither may wait for the other."""
    loader = headrace.DataLoader(
        _Range(2_000_000),
        batch_size=40_000,
        num_workers=2,
        prefetch_factor=8,
        collate_fn=_many_pieces,
        backend="process",
    )
    seen = 0
    for batch in loader:
        assert [len(piece) for piece in batch] == [100] * 400
        assert batch[0][0] == seen
        seen += 40_000
    assert seen == 2_000_000


def _many_pieces(samples: list[int]) -> list[torch.Tensor]:
    tensor = torch.tensor(samples)
    return [piece.clone() for piece in tensor.split(100)]


class _Range(torch_data.Dataset[int]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices


@pytest.mark.parametrize("workers", [0, 2])
def test_pin_memory_without_an_accelerator_warns_like_torch(workers: int) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    said = []
    for loader in LOADERS.values():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            batches = list(loader(Numbers(6), 2, num_workers=workers, pin_memory=True))
        assert len(batches) == 3
        assert not batches[0]["large"].is_pinned()
        said.append({str(w.message) for w in caught})
    assert said[1] == said[0]


@contextlib.contextmanager
def _iterators(*loaders: Any) -> Iterator[list[Any]]:
    yield [iter(loader) for loader in loaders]


def test_iterators_side_by_side() -> None:
    """Two epochs of one loader at once, and two loaders: each has its own workers."""
    loader = headrace.DataLoader(Numbers(12), batch_size=2, num_workers=2)
    other = headrace.DataLoader(Numbers(12), batch_size=2, num_workers=1)
    with _iterators(loader, loader, other) as iterators:
        for first, second, third in zip(*iterators, strict=True):
            assert_same(first, second)
            assert_same(first, third)
