"""Loaders that a library builds anew from the parts of one: options of ours are kept, or missed."""

import pickle
import warnings

import pytest
import torch
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import TensorDataset

from headrace import DataLoader, default_collate

DATA = TensorDataset(torch.arange(8.0))
# What accelerate, ray and others copy.
COPIED = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)


def plus_one(batch):
    return [batch[0] + 1]


def rebuilt(loader, kind):
    """Build a loader of a kind from another's parts, as those libraries do."""
    options = {name: getattr(loader, name) for name in COPIED}
    return kind(loader.dataset, batch_sampler=loader.batch_sampler, **options)


def values(loader):
    return [batch[0].tolist() for batch in loader]


def test_ours_takes_them_up():
    loader = DataLoader(
        DATA,
        4,
        shuffle=True,
        seed=3,
        on_error="skip",
        max_errors=2,
        batch_transform=plus_one,
        num_workers=1,
        backend="thread",
    )
    wanted = values(loader)
    again = rebuilt(loader, DataLoader)
    assert (again.seed, again.on_error, again.max_errors) == (3, "skip", 2)
    assert (again.backend, again.batch_transform) == ("thread", plus_one)
    assert values(again) == wanted
    assert values(rebuilt(again, DataLoader)) == wanted


def test_what_is_given_counts_more():
    loader = DataLoader(DATA, seed=3, batch_transform=plus_one)
    again = DataLoader(DATA, collate_fn=loader.collate_fn, seed=4)
    assert (again.seed, again.batch_transform) == (4, plus_one)


def test_threads_are_not_asked_for_where_there_are_none():
    loader = DataLoader(DATA, num_workers=2, backend="thread")
    assert DataLoader(DATA, collate_fn=loader.collate_fn).backend == "auto"


def test_measured_workers_are_measured_again():
    loader = DataLoader(DATA, num_workers="auto")
    again = rebuilt(loader, DataLoader)
    list(again)
    assert again.statistics().why


def test_under_torchs_loader_the_data_stay_the_same():
    loader = DataLoader(DATA, 4, batch_transform=plus_one)
    assert values(rebuilt(loader, TorchLoader)) == values(loader) == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_under_torchs_loader_what_is_lost_is_said_once():
    loader = rebuilt(DataLoader(DATA, 4, seed=3, on_error="skip"), TorchLoader)
    with pytest.warns(UserWarning, match=r"knows no seed=, on_error=: .* headrace.install\(\)"):
        first = next(iter(loader))
    assert first[0].tolist() == [0, 1, 2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader)


def test_without_options_the_function_is_the_users_own():
    assert DataLoader(DATA, collate_fn=list).collate_fn is list
    assert DataLoader(DATA).collate_fn is TorchLoader(DATA).collate_fn


def test_a_carrier_is_like_its_function_and_can_be_pickled():
    class Padder:
        pad_value = 7

        def __call__(self, samples):
            return samples

    loader = DataLoader(DATA, collate_fn=Padder(), seed=1)
    assert loader.collate_fn.pad_value == 7
    loader = pickle.loads(pickle.dumps(DataLoader(DATA, collate_fn=default_collate, seed=1)))
    assert loader.collate_fn.__name__ == "default_collate"
    assert loader.seed == 1
    assert len(values(loader)) == 8


def test_a_library_that_asks_is_told_before_it_builds():
    loader = DataLoader(DATA, seed=3)
    with pytest.warns(UserWarning, match="knows no seed="):
        assert not getattr(loader, "_is_accelerate_prepared", False)
