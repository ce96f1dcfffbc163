"""A last batch of one foretold, validation that shuffles, a loop that waits for its data."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import SubsetRandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

from headrace import (
    BatchSampler,
    BucketBatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from headrace.errors import TrainingError, TrainingWarning
from headrace.train import Trainer
from headrace.train.guards import Guards
from headrace.train.guards.loaders import check_waiting, single_rows


def data(rows):
    return TensorDataset(torch.rand(rows, 4), torch.zeros(rows, dtype=torch.int64))


def batch_norm():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def first_batch(model, loader, x=None):
    """Run the first batch as the loop does."""
    guards = Guards(model, None, None)
    guards.before_fit(loader)
    model(next(iter(loader))[0] if x is None else x)
    for _ in range(3):
        guards.watch_loss()
    assert not any(module._forward_pre_hooks for module in model.modules())


# ---- a batch of one into BatchNorm


@pytest.mark.parametrize("loader", [DataLoader, TorchLoader])
def test_a_last_batch_of_one_is_foretold(loader):
    with pytest.raises(TrainingError) as caught:
        first_batch(batch_norm(), loader(data(101), batch_size=20))
    assert "BatchNorm ('1')" in str(caught.value)
    assert "(101 = 5 x 20 + 1). Write DataLoader(..., drop_last=True)" in str(caught.value)
    assert "batch_size=21" in str(caught.value)


def test_a_training_that_failed_leaves_nothing_in_the_model():
    def fit(rows, broken=False):
        def loss_fn(outputs, targets):
            return 1 / 0 if broken else outputs.mean()

        trainer = Trainer(model, loss_fn, torch.optim.SGD(model.parameters(), 0.1), progress=False)
        loader = DataLoader(data(rows), batch_size=20)
        trainer.fit(loader)
        trainer.fit(loader)

    # (batch, 2, 2): one sample is enough for this one
    model = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ZeroDivisionError):
        fit(101, broken=True)
    assert not any(module._forward_pre_hooks for module in model.modules())
    fit(101)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_batches_of_one():
    with pytest.raises(TrainingError, match=r"batch_size=1 makes batches of one sample\. Write"):
        first_batch(batch_norm(), DataLoader(data(10)), torch.rand(1, 4))


def test_an_image_of_one_pixel_fails_and_one_of_many_does_not():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    loader = DataLoader(data(41), batch_size=20)
    first_batch(model, loader, torch.rand(20, 3, 8, 8))
    model(torch.rand(1, 3, 8, 8))  # torch agrees
    with pytest.raises(TrainingError, match="BatchNorm"):
        first_batch(model, loader, torch.rand(20, 3, 1, 1))


def test_a_compiled_model_is_judged_by_its_layers():
    compiled = torch.compile(batch_norm(), backend="eager")
    guards = Guards(compiled, None, None)
    with pytest.warns(TrainingWarning, match=r"mostly needs .* 5 x 20 \+ 1"):
        guards.before_fit(DataLoader(data(101), batch_size=20))
    images = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    images.compile(backend="eager")
    Guards(images, None, None).before_fit(DataLoader(data(101), batch_size=20))


def test_an_evaluation_on_the_way_is_let_be():
    model = batch_norm()
    guards = Guards(model, None, None)
    guards.before_fit(DataLoader(data(101), batch_size=20))
    model.eval()
    model(torch.rand(1, 4))
    model.train()
    with pytest.raises(TrainingError):
        model(torch.rand(20, 4))
    guards.after_fit()


class KeepsFrozen(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


def test_right_programs_hear_nothing():
    first_batch(batch_norm(), DataLoader(data(100), batch_size=20))
    first_batch(batch_norm(), DataLoader(data(101), batch_size=20, drop_last=True))
    first_batch(batch_norm(), DataLoader(data(1), batch_size=None), torch.rand(2, 4))
    norms = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GroupNorm(2, 8))
    first_batch(norms, DataLoader(data(101), batch_size=20))
    first_batch(KeepsFrozen(*batch_norm()), DataLoader(data(101), batch_size=20))
    buckets = BucketBatchSampler([1] * 101, batch_size=20)
    first_batch(batch_norm(), DataLoader(data(101), batch_sampler=buckets), torch.rand(2, 4))
    first_batch(batch_norm(), [(torch.rand(4, 4), None)])


def test_looking_for_batch_norm_changes_no_mode():
    model = batch_norm()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    Guards(model, None, None).before_fit(DataLoader(data(101), batch_size=20))
    assert [module.training for module in model.modules()] == modes


class Stream(IterableDataset):
    def __iter__(self):
        yield from data(41)


def test_streams_are_not_foretold():
    first_batch(batch_norm(), DataLoader(Stream(), batch_size=20))


@pytest.mark.filterwarnings("ignore:the epoch gave no batch")
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(1, 40), st.booleans())
def test_what_is_foretold_is_what_comes(rows, batch_size, drop_last):
    loader = DataLoader(data(rows), batch_size=batch_size, drop_last=drop_last)
    sizes = [len(x) for x, _ in loader]
    told = single_rows(loader)
    assert (told is not None) == (1 in sizes)
    if told is not None and batch_size > 1 and rows > 1:
        other = int(told.rpartition("batch_size=")[2])
        assert 1 not in [len(x) for x, _ in DataLoader(data(rows), batch_size=other)]


# ---- validation


def validate(loader):
    guards = Guards(None, None, None)
    guards.before_fit([], loader)


@pytest.mark.parametrize("loader", [DataLoader, TorchLoader])
def test_a_validation_loader_that_shuffles(loader):
    says = r"Write DataLoader\(val_dataset, \.\.\., shuffle=False\)"
    with pytest.warns(TrainingWarning, match=says):
        validate(loader(data(10), batch_size=2, shuffle=True))
    batches = BatchSampler(RandomSampler(range(10)), 2, False)
    with pytest.warns(TrainingWarning, match=says):
        validate(loader(data(10), batch_sampler=batches))
    ranks = DistributedSampler(range(10), num_replicas=2, rank=0)
    with pytest.warns(TrainingWarning, match=says):
        validate(loader(data(10), sampler=ranks))


def test_a_validation_loader_that_draws_with_weights():
    weighted = WeightedRandomSampler([1.0, 2.0], 10)
    with pytest.warns(TrainingWarning, match="with weights"):
        validate(DataLoader(data(2), sampler=weighted))


def test_right_validation_loaders_hear_nothing():
    validate(DataLoader(data(10)))
    validate(DataLoader(data(10), sampler=SequentialSampler(range(10))))
    validate(DataLoader(data(10), sampler=RandomSampler(range(10), num_samples=3)))  # a part
    validate(DataLoader(data(10), sampler=SubsetRandomSampler(range(3))))
    validate(DataLoader(data(10), sampler=DistributedSampler(range(10), 2, 0, shuffle=False)))
    validate([(torch.rand(2, 4), None)])
    validate(DataLoader(Stream(), batch_size=2))


# ---- waiting


def loader_that(waits, workers=0, path="inline"):
    statistics = SimpleNamespace(wait_s=waits, path=path)
    return SimpleNamespace(statistics=lambda: statistics, num_workers=workers)


def test_an_epoch_that_waited_says_how_long_and_what_to_change(monkeypatch):
    monkeypatch.setattr("headrace.train.guards.loaders.available_cores", lambda: 4.0)
    found = check_waiting(loader_that(0), 6.0, 10.0)
    assert found is not None
    assert "waited 6.0 s of 10.0 s (60%)" in found.text
    assert "num_workers=4" in found.text
    assert not found.is_error
    assert "workers for 4 cores already" in check_waiting(loader_that(0, 4), 6.0, 10.0).text
    gathered = check_waiting(loader_that(0, 0, "gather"), 6.0, 10.0)
    assert "larger batch_size" in gathered.text


def test_short_or_rare_waits_are_let_be():
    assert check_waiting(loader_that(0), 1.9, 2.0) is None
    assert check_waiting(loader_that(0), 2.4, 10.0) is None
    assert check_waiting(loader_that(0), 2.6, 10.0) is not None


def test_only_the_epoch_counts_not_what_was_waited_before(monkeypatch):
    monkeypatch.setattr("headrace.train.guards.loaders.WAIT_S", 0.0)
    loader = DataLoader(data(100), batch_size=10)
    list(loader)
    waited = loader.statistics().wait_s
    guards = Guards(None, None, None)
    guards.before_fit(loader)
    guards.after_epoch(loader, max(waited, 1e-9))  # nothing since
    list(loader)
    with pytest.warns(TrainingWarning, match="of the epoch for its batches"):
        guards.after_epoch(loader, 1e-9)


def test_loaders_that_do_not_count_are_let_be():
    guards = Guards(None, None, None)
    guards.before_fit(TorchLoader(data(4)))
    guards.after_epoch(TorchLoader(data(4)), 1e-9)
