"""A function or model applied in batches, with results in memory."""

import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.utils.data as torch_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import headrace
from headrace import OptionError, RowMismatchError, map_batches

X = torch.arange(60, dtype=torch.float64).reshape(20, 3)


class Squares(torch_data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return X[index] ** 2


class Squared(torch_data.IterableDataset):
    def __iter__(self):
        return iter(X**2)


class Scores(NamedTuple):
    high: torch.Tensor
    sign: torch.Tensor


@given(
    rows=st.integers(0, 50),
    size=st.integers(1, 60),
    most=st.integers(1, 60),
    kind=st.sampled_from(["array", "tensor", "list"]),
)
@settings(max_examples=60, deadline=None)
def test_results_do_not_depend_on_how_rows_were_cut(rows, size, most, kind):
    """Sizes asked for, and sizes that memory allows."""
    x = torch.arange(rows * 2, dtype=torch.float64).reshape(rows, 2)
    calls = []

    def function(batch):
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        calls.append(len(batch))
        return {"sum": batch.sum(1), "twice": batch * 2}

    data = {"array": x.numpy(), "tensor": x, "list": list(x)}[kind]
    if kind == "list" and rows == 0:
        with pytest.raises(RowMismatchError, match="no row to apply"):
            map_batches(function, data, size)
        return
    found = map_batches(function, data, size)
    assert np.array_equal(found["sum"], x.sum(1).numpy())
    assert np.array_equal(found["twice"], (x * 2).numpy())
    assert type(found["sum"]) is (np.ndarray if kind == "array" else torch.Tensor)
    assert sum(calls) == rows
    assert max(calls) <= min(size, most)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (Squares(), X**2),
        (Squared(), X**2),
        ((row for row in X), X),
        (list(X), X),
        (torch_data.Subset(Squares(), [3, 1, 2]), X[[3, 1, 2]] ** 2),
        (headrace.DataLoader(Squares(), 7), X**2),
        (torch_data.DataLoader(Squares(), 7), X**2),
        (headrace.ArrayDataset(X.numpy()), X),
    ],
)
def test_whatever_has_rows_in_their_order(data, wanted):
    found = map_batches(lambda batch: batch + 1, data)
    assert type(found) is torch.Tensor
    assert torch.equal(found, wanted + 1)


def test_several_columns_in_and_out():
    data = {"x": X.numpy(), "y": np.arange(20)}
    found = map_batches(lambda b: Scores(b["x"].max(1).values, b["y"].sign()), data, 6)
    assert isinstance(found, Scores)
    assert np.array_equal(found.high, X.max(1).values.numpy())
    assert isinstance(found.sign, np.ndarray)
    found = map_batches(lambda b: (b[0] + b[1][:, None], [b[1]]), (X, torch.arange(20)), 6)
    assert torch.equal(found[0], X + torch.arange(20)[:, None])
    assert torch.equal(found[1][0], torch.arange(20))


def test_memory_maps(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    found = map_batches(lambda b: b * 2, np.load(tmp_path / "x.npy", mmap_mode="r"), 6)
    assert np.array_equal(found, X.numpy() * 2)


def test_functions_may_return_arrays():
    found = map_batches(lambda b: b.numpy()[:, ::-1], X, 6)
    assert torch.equal(found, X.flip(1))


def test_workers_and_other_options_of_the_loader():
    def collate(samples):
        return torch.stack(samples) * 10

    found = map_batches(lambda b: b, Squares(), 6, num_workers=2, collate_fn=collate)
    assert torch.equal(found, X**2 * 10)


def test_a_model_is_evaluated_without_gradients_and_left_as_it_was():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.dropout = nn.Linear(3, 2).double(), nn.Dropout()
            self.frozen = nn.BatchNorm1d(2).double().eval()

        def forward(self, x):
            assert not self.training
            assert not torch.is_grad_enabled()
            return self.frozen(self.dropout(self.layer(x)))

        def encode(self, x):
            assert not self.training
            return self.layer(x)

    model = Model().train()
    model.frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = map_batches(model, X, 6)
    assert torch.allclose(found, model.frozen(model.layer(X)).detach())
    assert not found.is_inference()  # it can be trained on
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.allclose(map_batches(model.encode, X, 6), model.layer(X).detach())
    with pytest.raises(ZeroDivisionError):
        map_batches(lambda x: 1 / 0, X)
    model.layer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        map_batches(model, X)
    assert model.training


def test_a_model_is_given_the_inputs_of_a_batch():
    layer = nn.Linear(3, 2).double()
    wanted = layer(X).detach()
    assert torch.allclose(map_batches(layer, torch_data.TensorDataset(X)), wanted)
    assert torch.allclose(map_batches(layer, (X, torch.arange(20))), wanted)
    assert torch.allclose(map_batches(layer, {"x": X, "label": torch.arange(20)}), wanted)


def test_the_random_state_is_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    map_batches(lambda b: b, Squares(), 6)
    map_batches(lambda b: b, X)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_no_rows():
    found = map_batches(lambda b: (b > 0, b[:, 0]), X[:0].numpy())
    assert [(part.shape, part.dtype.name) for part in found] == [
        ((0, 3), "bool"),
        ((0,), "float64"),
    ]
    for data in ([], iter([])):
        with pytest.raises(RowMismatchError, match="no row to apply"):
            map_batches(lambda b: b, data)


def test_automatic_sizes_follow_from_the_rows():
    sizes = []

    def function(batch):
        sizes.append(len(batch))
        return batch[:, 0]

    map_batches(function, np.zeros((5000, 1), np.float32))
    assert sizes[0] == 4096  # the most
    sizes.clear()
    map_batches(function, np.zeros((500, 1024), np.float32))
    assert sizes == [256, 244]  # 1 MiB
    sizes.clear()
    map_batches(function, np.zeros((40, 300_000), np.uint8))
    assert sizes == [32, 8]  # the fewest
    sizes.clear()
    map_batches(function, list(torch.zeros(100, 2)))
    assert sizes == [64, 36]
    sizes.clear()
    map_batches(function, headrace.DataLoader(Squares(), 9))
    assert sizes == [9, 9, 2]  # the loader's own


def test_out_of_memory_halves_batches_and_calm_doubles_them():
    rows = []
    limit = [2]

    def function(batch):
        if len(batch) > limit[0]:
            raise RuntimeError("CUDA error: out of memory")
        rows.append(len(batch))
        return batch

    x = np.arange(1000)
    assert np.array_equal(map_batches(function, x, 8), x)
    assert max(rows) == 2
    rows.clear()
    tried = []

    def recovering(batch):
        tried.append(len(batch))
        limit[0] = 2 if len(tried) < 10 else 8
        return function(batch)

    assert np.array_equal(map_batches(recovering, x, 8), x)
    assert tried[:3] == [8, 4, 2]
    assert tried[-1] == 8  # it has grown again
    first_whole = tried.index(8, 1)
    assert first_whole >= 16  # but not at once


def test_each_out_of_memory_makes_it_more_careful():
    failed = []

    def function(batch):
        if len(batch) > 1:
            failed.append(len(batch))
            raise MemoryError
        return batch

    map_batches(function, np.arange(2000), 2)
    assert len(failed) < 8  # 16, 32, 64, ... calls lie between


def test_one_row_that_does_not_fit():
    def function(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")

    with pytest.raises(MemoryError, match=r"ran out of memory on one row \(OutOfMemoryError: CUDA"):
        map_batches(function, X)


def test_text_goes_along_with_its_rows():
    data = [{"x": torch.tensor(n), "name": f"n{n}"} for n in range(10)]

    def function(batch):
        if len(batch["x"]) > 2:
            raise MemoryError
        return torch.tensor([int(name[1:]) for name in batch["name"]]) - batch["x"]

    assert map_batches(function, data).tolist() == [0] * 10


def test_batches_that_cannot_be_cut():
    batches = headrace.DataLoader(
        [torch.arange(n) for n in (3, 4)], 1, collate_fn=headrace.pack_collate
    )

    def sums(packed):
        return torch.stack([part.sum() for part in packed.unpack()])

    assert map_batches(sums, batches).tolist() == [3, 6]

    def function(packed):
        raise MemoryError

    with pytest.raises(MemoryError, match="a batch that cannot be cut into rows"):
        map_batches(function, batches)


def test_rows_that_change_shape_from_batch_to_batch():
    def function(batch):
        return batch[:, : int(batch[0, 0]) + 1]

    with pytest.raises(
        RowMismatchError, match=r"after 1 rows: output: float64 \[2\], and .* \[1\] before"
    ):
        map_batches(
            function, torch.arange(6.0, dtype=torch.float64).view(3, 2).floor().div(2).floor(), 1
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": True}, "shuffle="),
        ({"sampler": [1, 2]}, "sampler="),
        ({"drop_last": True}, "drop_last="),
        ({"in_order": False, "num_workers": 1}, "in_order="),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "large"}, "'large'"),
        ({"batch_size": True}, "True"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        map_batches(lambda b: b, Squares(), **options)


def test_loaders_that_cannot_be():
    function = torch.neg
    with pytest.raises(OptionError, match="the loader shuffles"):
        map_batches(function, headrace.DataLoader(Squares(), 4, shuffle=True))
    with pytest.raises(OptionError, match="the loader shuffles"):
        map_batches(function, torch_data.DataLoader(Squares(), 4, shuffle=True))
    with pytest.raises(OptionError, match="leaves rows out"):
        map_batches(function, headrace.DataLoader(Squares(), 6, drop_last=True))
    with pytest.raises(OptionError, match="batch_size, num_workers would have to be given to"):
        map_batches(function, headrace.DataLoader(Squares(), 4), 8, num_workers=2)


def test_data_that_cannot_be():
    with pytest.raises(TypeError, match="cannot read rows from a int"):
        map_batches(torch.neg, 3)
    with pytest.raises(TypeError, match=r"np\.load\('x\.npy', mmap_mode='r'\)"):
        map_batches(torch.neg, "x.npy")
    with pytest.raises(TypeError, match="fn is a Tensor, not a function"):
        map_batches(X, torch.neg)
    with pytest.raises(TypeError, match="cannot read rows from a dict"):
        map_batches(torch.neg, {"x": [1, 2]})
    with pytest.raises(OptionError, match="each worker would go through all of a generator"):
        map_batches(torch.neg, (x for x in X), num_workers=2)
    with pytest.raises(ValueError, match=r"one row for each sample"):
        map_batches(torch.neg, (X, X[:3]))
    with pytest.raises(TypeError, match="dtype object"):
        map_batches(torch.neg, np.array([None, 1]))


def test_types_that_arrays_do_not_have():
    with pytest.raises(OptionError, match="output is bfloat16, which an array cannot hold"):
        map_batches(lambda b: b.bfloat16(), X.numpy())
    assert map_batches(lambda b: b.bfloat16(), X).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="an array of type <U1"):
        map_batches(lambda b: np.full(len(b), "a"), X)


def test_progress_is_shown_when_it_takes_long(capsys, monkeypatch):
    from headrace.data import progress

    monkeypatch.setattr(progress, "_SILENT_S", 0.0)
    map_batches(torch.neg, X, 6)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "headrace: applying neg: 20 of 20 rows"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 3.5])
def test_a_device_that_is_not_there_is_an_error_of_ours(device):
    with pytest.raises(OptionError, match=r"Write map_batches\(\.\.\., device='(cpu|cuda:0)'\)"):
        map_batches(nn.Linear(3, 1), X.float(), device=device)
