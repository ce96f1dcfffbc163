"""What shows that ranks have the same data: never an error of its own, whatever the data is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from headrace import ArrayDataset, SubsetRandomSampler
from headrace.engine.order.alike import likeness_of, order_checksum

SIX = torch.arange(1.0, 7)
ODD_COLUMNS = {
    "quantized": lambda: torch.quantize_per_tensor(SIX, 0.1, 0, torch.quint8),
    "by channel": lambda: torch.quantize_per_channel(
        torch.ones(6, 2), torch.ones(2), torch.zeros(2), 1, torch.qint8
    ),
    "complex": lambda: torch.complex(SIX, SIX),
    "half complex": lambda: torch.ones(6, dtype=torch.complex32),
    "conjugated": lambda: torch.complex(SIX, SIX).conj(),
    "negated": lambda: torch.complex(SIX, SIX).conj().imag,
    "meta": lambda: torch.ones(6, device="meta"),
    "no rows": lambda: torch.ones(0, 3),
    "empty rows": lambda: torch.ones(5, 0),
    "sparse": lambda: torch.eye(6).to_sparse(),
    "compressed": lambda: torch.eye(6).to_sparse_csr(),
    "mkldnn": lambda: torch.eye(6).to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.ones(2), torch.ones(3)], layout=torch.jagged
    ),
    "with a gradient": lambda: torch.ones(6, requires_grad=True),
    "parameter": lambda: torch.nn.Parameter(torch.ones(6)),
    "expanded": lambda: torch.ones(1).expand(6),
    "not finite": lambda: torch.tensor([float("nan"), float("inf"), -float("inf")]),
}
DTYPES = sorted({d for d in vars(torch).values() if isinstance(d, torch.dtype)}, key=str)
FEW = {"i": [2, 1, 0], "n": [], "big": [2**70], "huge": [10**5000], "ragged": [(1, 2), 3]}
FEW |= {"texts": ["a", "\udc80"], "floats": [1.0], "array": np.array([1, 0])}
FEW |= {"objects": np.array([1, "a"], object), "tensor": torch.arange(3), "other": {1, 2}}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_an_odd_column_is_no_error(name):
    dataset = TensorDataset(ODD_COLUMNS[name]())
    assert likeness_of(dataset) == likeness_of(dataset)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_dtype_is_an_error(dtype):
    likeness_of(TensorDataset(torch.empty(6, dtype=dtype)))


@pytest.mark.parametrize("name", FEW)
def test_any_indices_of_a_subset_are_no_error(name):
    one = likeness_of(Subset(range(9), FEW[name]))
    assert one == likeness_of(Subset(range(9), FEW[name]))
    assert one != likeness_of(Subset(range(9), [5, 6, 7]))
    assert one != likeness_of(Subset(range(8), FEW[name]))


@pytest.mark.parametrize(
    "dataset",
    [None, [], iter([1]), [10**5000], ["\udc80"], (), np.array(3.0), torch.tensor(3.0), "text"],
)
def test_anything_is_no_error(dataset):
    likeness_of(dataset)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.float16, np.complex64, np.bool_])
def test_other_rows_of_an_array_are_other_data(dtype):
    first, other = np.zeros((9, 2), dtype), np.ones((9, 2), dtype)
    assert likeness_of(ArrayDataset(first)) == likeness_of(ArrayDataset(first.copy()))
    assert likeness_of(ArrayDataset(first)) != likeness_of(ArrayDataset(other))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=200), st.randoms())
def test_indices_show_a_change_at_either_end(indices, random):
    within = [range(3), StackDataset(a=indices, b=indices)] if indices else [range(3)]
    dataset = ConcatDataset(within)
    assert likeness_of(dataset) == likeness_of(ConcatDataset(list(within)))
    if indices:
        other = list(indices)
        other[random.choice([0, -1])] ^= 1
        assert likeness_of(Subset(indices, indices)) != likeness_of(Subset(indices, other))


class Odd:
    """A sequence that NumPy sees no numbers in, and whose text names its place in memory."""

    def __len__(self):
        return 3


def test_where_an_object_lies_in_memory_is_no_difference():
    assert order_checksum(SubsetRandomSampler([Odd()])) == order_checksum(
        SubsetRandomSampler([Odd()])
    )
