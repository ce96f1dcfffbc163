"""Sliding windows: the right steps, no copy, and the same whether asked or gathered."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from headrace import DataLoader, default_collate
from headrace.data.arrays import ArrayDataset
from headrace.data.gather import find_gatherer
from headrace.data.gatherer import Gatherer
from headrace.data.windows import SlidingWindows
from headrace.errors import ArrayMismatchError, TruncatedFileError
from headrace.tree import leaves

T = 40


class Steps(Dataset):
    """A dataset that cannot be gathered."""

    def __len__(self):
        return T

    def __getitem__(self, t):
        return {"x": torch.arange(2) + 10 * t, "y": float(t)}


def reversed_rows():
    return np.arange(T * 2, dtype=np.float32).reshape(T, 2)[::-1]


def read_only():
    array = np.arange(T * 2, dtype=np.uint16).reshape(T, 2)
    array.flags.writeable = False
    return array


SERIES = {
    "tensor": lambda: torch.arange(T * 3.0).reshape(T, 3),
    "bfloat16": lambda: torch.arange(T * 3).reshape(T, 3).to(torch.bfloat16),
    "array": lambda: np.arange(T, dtype=np.int16),
    "complex": lambda: np.arange(T) * 1j,
    "bool": lambda: torch.arange(T) % 3 == 0,
    "strided": lambda: torch.arange(T * 8.0).reshape(T, 8)[:, ::2],
    "transposed": lambda: torch.arange(T * 3.0).reshape(3, T).T,
    "every second": lambda: np.arange(2 * T, dtype=np.float64)[::2],
    "reversed": reversed_rows,
    "read-only": read_only,
    "tuple": lambda: (torch.arange(T * 3.0).reshape(T, 3), np.arange(T)),
    "dict": lambda: {"x": torch.arange(T * 6.0).reshape(T, 2, 3), "y": np.arange(T, dtype=np.int8)},
    "TensorDataset": lambda: TensorDataset(torch.arange(T * 2.0).reshape(T, 2), torch.arange(T)),
    "ArrayDataset": lambda: ArrayDataset({"a": np.arange(T, dtype=np.float32)}),
    "Subset": lambda: Subset(
        TensorDataset(torch.arange(2.0 * T), torch.arange(2 * T)), range(5, T + 5)
    ),
    "ConcatDataset": lambda: ConcatDataset(
        [TensorDataset(torch.arange(10.0)), TensorDataset(torch.arange(10.0, float(T)))]
    ),
    "Dataset": Steps,
    "list": lambda: list(range(T)),
}


def steps_of(series, places):
    """What a window is, written down naively."""
    if isinstance(series, dict):
        return {k: steps_of(v, places) for k, v in series.items()}
    if isinstance(series, tuple):
        return [steps_of(v, places) for v in series]
    if isinstance(series, (torch.Tensor, np.ndarray)):
        return torch.stack(
            [
                torch.as_tensor(np.array(series[t]))
                if isinstance(series, np.ndarray)
                else series[t]
                for t in places
            ]
        )
    return default_collate([series[t] for t in places])


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(SERIES)),
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
)
def test_windows_asked_gathered_and_written_down_are_the_same(
    name, length, stride, horizon, random
):
    series = SERIES[name]()
    windows = SlidingWindows(series, length, stride, horizon)
    assert len(windows) == len(range(0, T - length - horizon + 1, stride))
    indices = [random.randrange(len(windows)) for _ in range(5)]
    asked = default_collate([windows[i] for i in indices])
    starts = [i * stride for i in indices]
    past = default_collate([steps_of(series, range(s, s + length)) for s in starts])
    expected = past
    if horizon:
        ends = [s + length for s in starts]
        expected = [past, default_collate([steps_of(series, range(e, e + horizon)) for e in ends])]
    assert_same(asked, expected)
    gatherer = find_gatherer(windows)
    if name in ("Dataset", "list", "reversed"):
        assert gatherer is None
        return
    assert isinstance(gatherer, Gatherer)
    assert len(gatherer) == len(windows)
    specs = leaves(gatherer.spec)
    out = [np.empty((5, *leaf.shape), leaf.carrier) for leaf in specs]
    for dtype in (np.intp, np.int32):
        gatherer.gather(np.array(indices, dtype), out)
        for array, leaf, tensor in zip(out, specs, leaves(expected), strict=True):
            assert leaf.dtype == tensor.dtype
            assert torch.equal(torch.from_numpy(array).view(leaf.dtype), tensor)


@pytest.mark.parametrize("name", sorted(SERIES))
def test_a_loader_shows_the_windows(name):
    windows = SlidingWindows(SERIES[name](), 6, 2, 1)
    batches = list(DataLoader(windows, batch_size=4))
    expected = [
        default_collate([windows[i] for i in range(a, min(a + 4, len(windows)))])
        for a in range(0, len(windows), 4)
    ]
    assert_same(batches, expected)


def test_a_window_is_a_view():
    series = torch.zeros(100, 2)
    windows = SlidingWindows(series, 10, horizon=2)
    past, future = windows[3]
    series[5] = 7
    series[14] = 8
    assert past[2].tolist() == [7, 7]
    assert future[1].tolist() == [8, 8]
    assert past.untyped_storage().data_ptr() == series.untyped_storage().data_ptr()
    array = np.zeros(50)
    assert np.shares_memory(SlidingWindows(array, 5)[7], array)


def test_a_change_of_the_series_is_seen_by_the_next_batch():
    series = torch.arange(2000.0)
    loader = DataLoader(SlidingWindows(series, 5), batch_size=10)
    iterator = iter(loader)
    next(iterator)
    series.add_(1000)
    assert next(iterator)[0].tolist() == [1010, 1011, 1012, 1013, 1014]


def test_a_subclass_that_changes_the_samples_is_asked():
    class Scaled(SlidingWindows):
        def __getitem__(self, index):
            return 2 * super().__getitem__(index)

    windows = Scaled(torch.arange(20.0), 5)
    assert find_gatherer(windows) is None
    assert next(iter(DataLoader(windows, batch_size=2)))[0].tolist() == [0, 2, 4, 6, 8]


def test_negative_indices_count_from_the_end_and_others_are_refused():
    windows = SlidingWindows(torch.arange(20), 5)
    assert windows[-1].tolist() == [15, 16, 17, 18, 19]
    for index in (16, -17):
        with pytest.raises(IndexError, match=f"window {index}"):
            windows[index]


def test_a_truncated_file_is_an_error(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(10_000.0))
    windows = SlidingWindows(ArrayDataset.from_npy(path), 10)
    assert windows[5][0] == 5
    gatherer = find_gatherer(windows)
    with open(path, "r+b") as file:
        file.truncate(4096)
    with pytest.raises(TruncatedFileError):
        windows[9000]
    with pytest.raises(TruncatedFileError):
        gatherer.gather(np.array([9000]), [np.empty((1, 10))])


def test_a_memory_map_is_not_read_as_a_whole(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(1000.0))
    windows = SlidingWindows(ArrayDataset.from_npy(path), 10)
    gatherer = find_gatherer(windows)
    assert all(
        view.untyped_storage().data_ptr() == windows._arrays.ctypes.data for view in gatherer._views
    )


@pytest.mark.parametrize(
    ("steps", "options", "error", "says"),
    [
        (torch.arange(5), {"length": 6}, ValueError, "needs 6 steps .* has 5"),
        (torch.arange(5), {"length": 4, "horizon": 2}, ValueError, "Write length=3"),
        (torch.arange(5), {"length": 0}, ValueError, "length must be an integer of 1"),
        (torch.arange(5), {"length": 2, "stride": 0}, ValueError, "stride must be"),
        (torch.arange(5), {"length": 2, "horizon": -1}, ValueError, "horizon must be"),
        (torch.arange(5), {"length": 2.0}, ValueError, "length must be"),
        ((torch.arange(5), torch.arange(6)), {"length": 2}, ArrayMismatchError, r"\[5, 6\]"),
        ([np.arange(5), np.arange(5)], {"length": 2}, TypeError, "tuple\\(arrays\\)"),
        (("a", "b"), {"length": 2}, TypeError, "found str"),
        (iter([1, 2]), {"length": 2}, TypeError, "map-style dataset"),
    ],
)
def test_bad_options_say_what_is_wrong(steps, options, error, says):
    with pytest.raises(error, match=says):
        SlidingWindows(steps, **options)
