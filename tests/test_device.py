"""``DataLoader(device=)`` at the loader's face, with "meta" in the place of a real device."""

import copy

import pytest
import torch

import headrace
from headrace import DataLoader, TensorDataset

WAYS = [{}, {"num_workers": 2}, {"num_workers": 2, "backend": "thread"}]


class Shapes(headrace.Dataset):
    """Sample ``n`` has ``n + 1`` elements: a batch on "meta" still says which one it is."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"x": torch.zeros(index + 1), "name": f"{index}"}


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_batches_arrive_in_order_each_once(options):
    loader = DataLoader(Shapes(), batch_size=None, device="meta", **options)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch["x"]) for batch in batches] == list(range(1, 21))
        assert all(batch["x"].device.type == "meta" for batch in batches)
        assert [batch["name"] for batch in batches] == [str(n) for n in range(20)]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_what_is_copied_ahead_does_not_count_as_handed_out(options):
    def make():
        return DataLoader(Shapes(), batch_size=None, device="meta", **options)

    first = make()
    iterator = iter(first)
    for n in range(1, 8):
        assert len(next(iterator)["x"]) == n
        assert first.last_indices() == [n - 1]
    second = make()
    second.load_state_dict(first.state_dict())
    assert [len(batch["x"]) for batch in second] == list(range(8, 21))


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_columns_too(options):
    loader = DataLoader(TensorDataset(torch.zeros(10, 3)), batch_size=4, device="meta", **options)
    assert [(x.shape, x.device.type) for (x,) in loader] == [
        ((4, 3), "meta"),
        ((4, 3), "meta"),
        ((2, 3), "meta"),
    ]


def test_an_exception_comes_in_its_turn_and_the_epoch_goes_on():
    class Broken(Shapes):
        def __getitem__(self, index):
            if index == 3:
                raise OSError("no such file")
            return super().__getitem__(index)

    iterator = iter(DataLoader(Broken(), batch_size=None, device="meta", num_workers=2))
    assert [len(next(iterator)["x"]) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(OSError, match="no such file"):
        next(iterator)
    assert len(next(iterator)["x"]) == 5


def test_persistent_workers_serve_one_epoch_after_the_other():
    loader = DataLoader(
        Shapes(), batch_size=None, device="meta", num_workers=2, persistent_workers=True
    )
    for _ in range(3):
        assert [len(batch["x"]) for batch in loader] == list(range(1, 21))


def test_the_cpu_is_where_they_are():
    x = torch.rand(4, 2)
    [[batch]] = list(DataLoader(TensorDataset(x), batch_size=4, device="cpu"))
    assert torch.equal(batch, x)


def test_a_device_that_is_not_there_is_said_at_construction():
    with pytest.raises(headrace.OptionError, match="device='gpu' is no device"):
        DataLoader(Shapes(), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(headrace.OptionError, match="sees no cuda device"):
            DataLoader(Shapes(), device="cuda")


def test_it_is_an_attribute_and_travels_with_a_copy():
    loader = DataLoader(Shapes(), batch_size=None, device="meta")
    assert loader.device == "meta"
    assert next(iter(copy.copy(loader)))["x"].device.type == "meta"
