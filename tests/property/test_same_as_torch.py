"""Whatever the data and the options: the batches of torch, in its order, of its types."""

import collections
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)

import headrace
from oracle import ORDERS, Plan, assert_plan_agrees

pytestmark = pytest.mark.filterwarnings("ignore:the epoch gave no batch")
moderate = settings(max_examples=60, deadline=None, derandomize=True)

TENSOR_DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16),
    *(torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn),
)
ARRAY_DTYPES = (
    *(np.bool_, np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64),
    *(np.float16, np.float32, np.float64, np.complex64, np.complex128),
)
# torch makes no batch of NumPy scalars of this type ("an integer is required").
NUMBER_DTYPES = tuple(dtype for dtype in ARRAY_DTYPES if dtype is not np.uint64)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
plans = st.builds(
    Plan,
    order=st.sampled_from(ORDERS),
    batch_size=st.integers(1, 7),
    drop_last=st.booleans(),
    generator_seed=st.none() | st.integers(0, 2**40),
    order_seed=st.integers(0, 1000),
)
unbatched = st.builds(
    Plan,
    order=st.sampled_from([order for order in ORDERS if order != "batches"]),
    batch_size=st.none(),
    generator_seed=st.none() | st.integers(0, 2**40),
    order_seed=st.integers(0, 1000),
)
seeds = st.integers(0, 2**60)


class Point(NamedTuple):
    x: Any
    y: Any


class Leaf(NamedTuple):
    kind: str
    dtype: Any = None
    shape: tuple[int, ...] = ()

    def at(self, index: int) -> Any:
        count = int(np.prod(self.shape))
        numbers = np.asarray(np.arange(count).reshape(self.shape) * 3 + index * 7)
        match self.kind:
            case "tensor":
                return torch.from_numpy(numbers).to(self.dtype)
            case "array":
                return numbers.astype(self.dtype)
            case "number":
                return self.dtype(index % 2 if self.dtype is np.bool_ else index)
            case "int":
                return index
            case "float":
                return index / 3
            case "bool":
                return index % 2 == 0
            case "bytes":
                return str(index).encode()
        return f"sample {index}"


leaf_kinds = (
    st.tuples(st.just("tensor"), st.sampled_from(TENSOR_DTYPES), shapes)
    | st.tuples(st.just("array"), st.sampled_from(ARRAY_DTYPES), shapes)
    | st.tuples(st.just("number"), st.sampled_from(NUMBER_DTYPES))
    | st.tuples(st.sampled_from(["int", "float", "bool", "str", "bytes"]))
).map(lambda parts: Leaf(*parts))
trees = st.recursive(
    leaf_kinds,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(collections.OrderedDict)
        | st.tuples(inner, inner).map(Point._make)
    ),
    max_leaves=6,
)


def sample(tree: Any, index: int) -> Any:
    if isinstance(tree, Leaf):
        return tree.at(index)
    if isinstance(tree, Point):
        return Point(*(sample(part, index) for part in tree))
    if isinstance(tree, dict):
        return type(tree)((key, sample(part, index)) for key, part in tree.items())
    return type(tree)(sample(part, index) for part in tree)


class Samples(Dataset[Any]):
    def __init__(self, tree: Any, n: int) -> None:
        self.tree, self.n = tree, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return sample(self.tree, int(index) % self.n)


class ManySamples(Samples):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]


class Stream(IterableDataset[Any]):
    def __init__(self, tree: Any, n: int) -> None:
        self.tree, self.n = tree, n

    def __iter__(self) -> Iterator[Any]:
        return (sample(self.tree, i) for i in range(self.n))


@moderate
@given(trees, st.integers(1, 12), plans, seeds, st.booleans())
def test_samples_of_any_structure(tree: Any, n: int, plan: Plan, seed: int, at_once: bool) -> None:
    cls = ManySamples if at_once else Samples
    assert assert_plan_agrees(plan, lambda: cls(tree, n), seed) == "inline"


@moderate
@given(trees, st.integers(1, 6), unbatched, seeds)
def test_samples_without_batching(tree: Any, n: int, plan: Plan, seed: int) -> None:
    assert_plan_agrees(plan, lambda: Samples(tree, n), seed)


@moderate
@given(trees, st.integers(0, 12), st.none() | st.integers(1, 5), st.booleans(), seeds)
def test_streams(tree: Any, n: int, batch_size: int | None, drop_last: bool, seed: int) -> None:
    class WithLength(Stream):
        def __len__(self) -> int:
            return self.n

    plan = Plan("sequential", batch_size, drop_last and batch_size is not None)
    assert_plan_agrees(plan, lambda: WithLength(tree, n), seed)


columns = st.lists(
    st.tuples(
        st.sampled_from(TENSOR_DTYPES), shapes, st.sampled_from(["plain", "strided", "view"])
    ),
    min_size=1,
    max_size=3,
)


def tensors(spec: list[Any], n: int, first: int = 0) -> TensorDataset:
    made = []
    for dtype, shape, memory in spec:
        flat = torch.arange(first, first + n * int(np.prod(shape))).reshape(n, *shape)
        tensor = (flat * 5).to(dtype)
        if memory == "strided":
            tensor = tensor.repeat_interleave(2, 0)[::2]
        elif memory == "view":
            tensor = torch.cat([tensor, tensor])[n // 2 : n // 2 + n].clone()[:]
        made.append(tensor)
    return TensorDataset(*made)


@st.composite
def columnar(draw: Any) -> Any:
    """A function that builds a columnar dataset, wrapped in torch's wrappers up to twice."""
    spec, n = draw(columns), draw(st.integers(1, 12))

    def build() -> Any:
        return tensors(spec, n)

    for _ in range(draw(st.integers(0, 2))):
        inner, kind = build, draw(st.sampled_from(["subset", "concat", "stack", "named", "split"]))
        size = len(inner())
        picked = draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=9))

        def build(inner: Any = inner, kind: str = kind, picked: list[int] = picked) -> Any:
            match kind:
                case "subset":
                    return Subset(inner(), picked)
                case "concat":
                    return ConcatDataset([inner(), Subset(inner(), picked), inner()])
                case "stack":
                    return StackDataset(inner(), inner())
                case "named":
                    return StackDataset(b=inner(), a=inner())
            whole = inner()
            lengths = [len(whole) // 3, len(whole) - len(whole) // 3]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Length of split")
                return random_split(whole, lengths, torch.Generator().manual_seed(5))[1]

    return build


@settings(moderate, max_examples=150)
@given(columnar(), plans, seeds)
def test_columns_under_any_wrappers(build: Any, plan: Plan, seed: int) -> None:
    assert assert_plan_agrees(plan, build, seed) == "gather"


@moderate
@given(columnar(), unbatched, seeds)
def test_columns_without_batching(build: Any, plan: Plan, seed: int) -> None:
    if isinstance(build(), StackDataset) and plan.order == "tensor":
        return  # a StackDataset of Subsets takes no tensor for an index, in torch either
    assert_plan_agrees(plan, build, seed)


@moderate
@given(
    st.lists(st.tuples(st.sampled_from(NUMBER_DTYPES), shapes), min_size=1, max_size=3),
    st.sampled_from(["one", "tuple", "dict"]),
    st.sampled_from("CF"),
    st.integers(1, 9),
    plans,
    seeds,
)
def test_arrays(spec: list[Any], nesting: str, memory: Any, n: int, plan: Plan, seed: int) -> None:
    def build() -> Any:
        arrays = [
            np.asarray(
                (np.arange(n * int(np.prod(shape))).reshape(n, *shape) * 3).astype(dtype),
                order=memory,
            )
            for dtype, shape in spec
        ]
        if nesting == "one":
            return headrace.ArrayDataset(arrays[0])
        named = dict(zip("abc", arrays, strict=False))
        return headrace.ArrayDataset(named if nesting == "dict" else tuple(arrays))

    assert assert_plan_agrees(plan, build, seed) == "gather"


@moderate
@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=2), seeds)
def test_blocks_that_are_cut_at_any_place(parts: list[tuple[int, bool]], seed: int) -> None:
    """Rows so wide that a block holds few batches, and epochs end in the middle of one."""
    for n, shuffle in parts:
        plan = Plan("shuffle" if shuffle else "sequential", 1 + n % 5)
        assert_plan_agrees(
            plan, lambda n=n: TensorDataset(torch.arange(n * 9_000.0).reshape(n, -1)), seed, 1
        )
