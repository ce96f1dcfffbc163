"""Every draw from a generator that others can see happens when torch's loader makes it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.data as td
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data.distributed import DistributedSampler

import headrace
from state.loaders import Lazy, OwnGenerator, Uneven

pytestmark = pytest.mark.filterwarnings("ignore:the epoch gave no batch")
N = 23

DATA: dict[str, Callable[[], Any]] = {
    "columns": lambda: td.TensorDataset(torch.arange(N)),
    "part of columns": lambda: td.Subset(td.TensorDataset(torch.arange(3 * N)), range(N)),
    "list": lambda: list(range(N)),
}

# What is given to a loader; ``g`` is a generator that all loaders of a program draw from, or None.
Given = Callable[[torch.Generator | None], dict[str, Any]]
ORDERS: dict[str, Given] = {
    "in order": lambda g: {},
    "shuffled": lambda g: {"shuffle": True, "generator": g},
    "sampler": lambda g: {"sampler": td.RandomSampler(range(N), generator=g)},
    "with replacement": lambda g: {"sampler": td.RandomSampler(range(N), True, 80, generator=g)},
    "more than once": lambda g: {"sampler": td.RandomSampler(range(N), False, 60, generator=g)},
    "subset": lambda g: {"sampler": td.SubsetRandomSampler(range(0, N, 2), generator=g)},
    "weighted": lambda g: {
        "sampler": td.WeightedRandomSampler([1.0 + i for i in range(N)], N, generator=g)
    },
    "distributed": lambda g: {"sampler": DistributedSampler(range(N), num_replicas=2, rank=1)},
    "bijection": lambda g: {
        "sampler": headrace.RandomSampler(range(N), generator=g, method="bijection")
    },
    "classes": lambda g: {"sampler": headrace.ClassBalancedSampler([0, 1] * 10, generator=g)},
    "asked": lambda g: {"sampler": Lazy(N) if g is None else OwnGenerator(N, g)},
    "batches of strangers": lambda g: {"batch_sampler": Uneven(N)},
    "buckets": lambda g: {
        "batch_sampler": headrace.BucketBatchSampler(list(range(N)), batch_size=4, generator=g)
    },
    "packed": lambda g: {
        "batch_sampler": headrace.PackedBatchSampler([1 + i % 9 for i in range(N)], 12, generator=g)
    },
    "stratified": lambda g: {
        "batch_sampler": headrace.StratifiedBatchSampler([0, 1, 1] * 7, 4, generator=g)
    },
}

plans = st.fixed_dictionaries({
    "data": st.sampled_from(sorted(DATA)),
    "order": st.sampled_from(sorted(ORDERS)),
    "size": st.integers(1, 9),
    "drop_last": st.booleans(),
    "shared": st.booleans(),
    "persistent": st.booleans(),
    "prefetch": st.integers(1, 3),
})  # fmt: skip
steps = st.lists(
    st.tuples(st.sampled_from(["iter", "next", "next", "next", "draw"]), st.integers(0, 1)),
    min_size=2,
    max_size=30,
)


def run(cls: Any, plan: dict[str, Any], workers: int, program: list[tuple[str, int]]) -> list[Any]:
    """Return all that two loaders of ``cls`` and a user, who draws in between, get to see."""
    torch.manual_seed(1)
    shared = torch.Generator().manual_seed(2) if plan["shared"] else None
    loaders = []
    for _ in range(2):
        given = ORDERS[plan["order"]](shared)
        if "batch_sampler" not in given:
            given.update(batch_size=plan["size"], drop_last=plan["drop_last"])
        if workers:
            given.update(persistent_workers=plan["persistent"], prefetch_factor=plan["prefetch"])
        loaders.append(cls(DATA[plan["data"]](), num_workers=workers, **given))
    iterators: list[Any] = [None, None]
    seen: list[Any] = []
    for what, which in program:
        if what == "iter":
            iterators[which] = iter(loaders[which])
        elif what == "next" and iterators[which] is not None:
            batch = next(iterators[which], None)
            seen.append(batch if batch is None else torch.as_tensor(batch[-1]).tolist())
        elif what == "draw":
            seen.append(torch.rand(1, generator=shared if which else None).item())
    return [*seen, torch.rand(1).item(), torch.rand(1, generator=shared).item()]


@settings(max_examples=200, deadline=None)
@given(plans, steps)
def test_in_this_process(plan: dict[str, Any], program: list[tuple[str, int]]) -> None:
    assert run(headrace.DataLoader, plan, 0, program) == run(td.DataLoader, plan, 0, program)


@settings(max_examples=40, deadline=None)
@given(plans, steps, st.integers(1, 2))
def test_with_workers(plan: dict[str, Any], program: list[tuple[str, int]], workers: int) -> None:
    ours = run(headrace.DataLoader, plan, workers, program)
    assert ours == run(td.DataLoader, plan, workers, program)


@pytest.mark.stress
@settings(max_examples=1500, deadline=None)
@given(plans, steps, st.integers(0, 2))
def test_at_length(plan: dict[str, Any], program: list[tuple[str, int]], workers: int) -> None:
    ours = run(headrace.DataLoader, plan, workers, program)
    assert ours == run(td.DataLoader, plan, workers, program)
