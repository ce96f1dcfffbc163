"""A function of tensors that works through any length in chunks."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace
from headrace import OptionError, RowMismatchError, batched


class Pair(NamedTuple):
    low: torch.Tensor
    high: torch.Tensor


def recorded(sizes, size, function):
    """The function in batches; the rows of each call go to ``sizes``."""

    @batched(batch_size=size)
    def wrapped(x):
        sizes.append(len(x))
        return function(x)

    return wrapped


@given(rows=st.integers(0, 40), size=st.integers(1, 50), width=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_the_same_as_without_it(rows, size, width):
    x = torch.arange(rows * width, dtype=torch.float64).reshape(rows, width)
    sizes = []
    together = recorded(sizes, size, lambda x: {"sum": x.sum(1), "both": (x * 2, x > 3)})(x)
    assert torch.equal(together["sum"], x.sum(1))
    assert torch.equal(together["both"][0], x * 2)
    assert torch.equal(together["both"][1], x > 3)
    assert sum(sizes) == rows
    assert all(n <= size for n in sizes)
    assert len(sizes) == max(1, -(-rows // size))


def test_all_tensors_are_cut_alike_and_the_rest_is_passed_on():
    seen = []

    @batched(batch_size=2)
    def f(x, batch, scale, *, mode, names=None):
        seen.append((len(x), len(batch["y"]), scale, mode, names))
        return Pair(x + batch["y"], batch["z"][0] * scale)

    x = torch.arange(5)
    found = f(x, {"y": x * 10, "z": (np.arange(5.0), 7)}, 3, mode="sum", names=list("abcde"))
    assert isinstance(found, Pair)
    assert found.low.tolist() == [0, 11, 22, 33, 44]
    assert isinstance(found.high, np.ndarray)
    assert found.high.tolist() == [0, 3, 6, 9, 12]
    assert [s[:4] for s in seen] == [(2, 2, 3, "sum"), (2, 2, 3, "sum"), (1, 1, 3, "sum")]
    assert [s[4] for s in seen] == [["a", "b"], ["c", "d"], ["e"]]  # one text for each row


def test_what_is_named_whole_is_not_cut():
    @batched(batch_size=3, whole="centres")
    def distances(x, centres):
        return torch.cdist(x, centres)

    x, centres = torch.randn(10, 4), torch.randn(10, 4)
    assert torch.allclose(distances(x, centres), torch.cdist(x, centres))
    assert torch.allclose(distances(x, centres=centres[:2]), torch.cdist(x, centres[:2]))


def test_numbers_without_dimensions_are_passed_on():
    @batched(batch_size=2)
    def f(x, scale):
        return x * scale

    assert f(torch.arange(3), torch.tensor(2)).tolist() == [0, 2, 4]


def test_gradients_flow():
    x = torch.randn(7, 3, requires_grad=True)
    f = recorded([], 2, lambda x: x.pow(2).sum(1))
    f(x).sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())


def test_a_method_and_its_signature():
    class Model:
        factor = 3

        @batched(batch_size=2)
        def times(self, x: torch.Tensor, plus: int = 0) -> torch.Tensor:
            """Multiply."""
            return x * self.factor + plus

    assert Model().times(torch.arange(5), plus=1).tolist() == [1, 4, 7, 10, 13]
    assert Model.times.__doc__ == "Multiply."


def test_one_call_where_the_rows_fit():
    x = torch.arange(4)
    given = []
    recorded(given, 4, lambda x: x)(x)
    assert given == [4]


def test_a_generator_goes_on_from_chunk_to_chunk():
    @batched(batch_size=4)
    def noise(x, generator):
        return torch.rand(len(x), generator=generator)

    x = torch.zeros(10)
    whole = torch.cat(
        [torch.rand(n, generator=g) for g in [torch.Generator().manual_seed(1)] for n in (4, 4, 2)]
    )
    assert torch.equal(noise(x, torch.Generator().manual_seed(1)), whole)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None, "auto"])
def test_a_size_that_is_none(size):
    with pytest.raises(OptionError, match="batch_size="):
        batched(batch_size=size)


def test_an_argument_that_is_not_there():
    with pytest.raises(OptionError, match=r"f\(\) has no argument weights. Name some of x, y"):

        @batched(batch_size=2, whole=["weights"])
        def f(x, y):
            return x


def test_different_lengths():
    @batched(batch_size=2)
    def f(x, y):
        return x

    with pytest.raises(RowMismatchError, match=r"x has 3, y has 4.*whole='weights'"):
        f(torch.zeros(3), torch.zeros(4))
    with pytest.raises(RowMismatchError, match="got none"):
        f(1, 2)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.sum(), r"returned shape \(\), which has no rows"),
        (lambda x: x[:1], r"was given 2 rows and returned shape \(1,\)"),
        (lambda x: x.repeat(2), r"was given 2 rows and returned shape \(4,\)"),
        (lambda x: 3, "returned int 3, which has no rows"),
        (lambda x: (), "returned nothing"),
        (lambda x: {"a": x, "b": None}, "returned NoneType None"),
    ],
)
def test_results_that_have_other_rows(function, message):
    with pytest.raises(RowMismatchError, match=message):
        batched(batch_size=2)(function)(torch.arange(4))


def test_it_is_public():
    assert headrace.batched is batched
