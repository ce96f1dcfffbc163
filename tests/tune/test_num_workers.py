"""Which workers: a sweep over fresh copies of a loader."""

import random

import numpy as np
import pytest
import torch
import torch.utils.data as torch_data

from headrace import DataLoader, OptionError, RandomSampler
from headrace.tune import WorkersRow, find_num_workers
from headrace.tune import num_workers as room
from headrace.tune.clone import cloned


class Numbers(torch_data.Dataset):
    def __deepcopy__(self, memo):
        raise AssertionError("the dataset is copied")

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return torch.tensor([index, torch.randint(100, ()).item()])


class Stream(torch_data.IterableDataset):
    def __iter__(self):
        return iter(range(60))


def values(loader):
    return [batch.tolist() for batch in loader]


LOADERS = {
    "in order": lambda data: DataLoader(data, 8),
    "shuffled": lambda data: DataLoader(
        data, 8, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "seed": lambda data: DataLoader(data, 8, shuffle=True, seed=4, drop_last=True),
    "sampler": lambda data: DataLoader(
        data, 8, sampler=RandomSampler(data, generator=torch.Generator().manual_seed(1))
    ),
    "batch sampler": lambda data: DataLoader(
        data, batch_sampler=torch_data.BatchSampler(torch_data.SequentialSampler(data), 7, True)
    ),
    "single": lambda data: DataLoader(data, None),
    "shard": lambda data: DataLoader(data, 8, shuffle=True, seed=1, shard=(1, 2)),
    "transform": lambda data: DataLoader(
        data, 8, batch_transform=torch.neg, collate_fn=torch.stack
    ),
    "workers": lambda data: DataLoader(
        data,
        8,
        num_workers=1,
        prefetch_factor=3,
        persistent_workers=True,
        timeout=30,
        multiprocessing_context="fork",
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_copy_gives_the_same_batches(name):
    data = Numbers()
    torch.manual_seed(0)
    wanted = values(LOADERS[name](data))
    for backend, workers in (("inline", 0), ("process", 2)):
        loader = LOADERS[name](data)
        torch.manual_seed(0)
        copy = cloned(loader, backend, workers)
        assert (copy.backend, copy.num_workers) == (backend, workers)
        assert copy.dataset is data
        assert values(copy) == wanted


def test_a_copy_in_threads_has_the_same_indices():
    for name in ("shuffled", "batch sampler", "workers"):
        wanted = [[s[0] for s in batch] for batch in values(LOADERS[name](Numbers()))]
        copy = cloned(LOADERS[name](Numbers()), "thread", 2)
        assert [[s[0] for s in batch] for batch in values(copy)] == wanted


def test_a_copy_of_a_stream():
    loader = DataLoader(Stream(), 8, drop_last=True, seed=1)
    assert values(cloned(loader, "inline", 0)) == values(loader)
    assert len(values(cloned(loader, "process", 1))) == 7


def test_options_stay():
    loader = LOADERS["workers"](Numbers())
    copy = cloned(loader, "process", 2)
    assert (copy.prefetch_factor, copy.persistent_workers, copy.timeout) == (3, True, 30)
    assert copy.multiprocessing_context.get_start_method() == "fork"


@pytest.fixture
def quick(monkeypatch):
    """Two cores; a sweep that does not wait."""
    monkeypatch.setattr(room, "available_cores", lambda: 2.5)

    def find(loader, step=None, **options):
        return find_num_workers(loader, step, **{"max_batches": 4, "show": False, **options})

    return find


def test_all_settings_within_the_cores(quick):
    steps = []
    report = quick(LOADERS["shuffled"](Numbers()), steps.append)
    assert [(r.backend, r.num_workers) for r in report.rows] == [
        ("inline", 0),
        ("thread", 1),
        ("process", 1),
        ("thread", 2),
        ("process", 2),
    ]
    assert len(steps) == 5 * 3  # the last batch of each ends the measurement
    for row in report.rows:
        assert row.note == ""
        assert min(row.first_batch_s, row.samples_per_s, row.epoch_s) > 0
        assert 0 <= row.waiting <= 1
    assert "loading alone" not in report.why
    loader = DataLoader(Numbers(), 8, **report.options)
    assert len(values(loader)) == 8
    assert [r.num_workers for r in quick(LOADERS["in order"](Numbers()), max_workers=0).rows] == [0]
    fewer = quick(LOADERS["in order"](Numbers()), max_workers=1)
    assert max(r.num_workers for r in fewer.rows) == 1


def test_the_loader_and_the_random_state_stay_as_they_are(quick):
    def order_after(search):
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(5)
        data = Numbers()
        loader = DataLoader(
            data, 8, sampler=RandomSampler(data, generator=generator), generator=generator
        )
        if search:
            quick(loader)
        return values(loader), torch.get_rng_state().tolist(), generator.get_state().tolist()

    np_state, state = np.random.get_state()[1].copy(), random.getstate()
    assert order_after(True) == order_after(False)
    assert np.array_equal(np.random.get_state()[1], np_state)
    assert random.getstate() == state


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_what_cannot_be_loaded_in_some_way_is_noted(quick):
    class Unpicklable(Numbers):
        def __reduce__(self):
            raise TypeError("cannot pickle this")

    loader = DataLoader(Unpicklable(), 8, num_workers=1, multiprocessing_context="spawn")
    report = quick(loader)
    notes = {(r.backend, r.num_workers): r.note for r in report.rows}
    assert notes["inline", 0] == notes["thread", 1] == ""
    assert "cannot pickle this" in notes["process", 1]
    assert "cannot pickle this" in str(report)
    assert report.best.backend != "process"


def test_an_error_that_every_way_has(quick):
    class Broken(Numbers):
        def __getitem__(self, index):
            raise KeyError("label")

    with pytest.raises(KeyError, match="label"):
        quick(DataLoader(Broken(), 8))
    with pytest.raises(OptionError, match="no batches"):
        quick(DataLoader([], 8))


def test_one_batch_and_streams(quick):
    report = quick(DataLoader(Numbers(), 60))
    assert {r.note for r in report.rows} == {"one batch only"}
    assert report.best.epoch_s == report.best.first_batch_s
    report = quick(DataLoader(Stream(), 8))
    assert report.rows[0].epoch_s is None
    assert report.rows[0].samples_per_s > 0


def test_without_a_step_waiting_says_nothing(quick):
    report = quick(LOADERS["in order"](Numbers()))
    assert [row.waiting for row in report.rows] == [None] * 5
    assert "loading alone: with step=" in report.why
    assert "waits" not in report.why.replace("training waits", "")


def rows(*figures):
    kinds = [("inline", 0), ("thread", 1), ("process", 1), ("thread", 2), ("process", 2)]
    return tuple(
        WorkersRow(*kind, first_batch_s=0.1, samples_per_s=100 / f, waiting=0.5, epoch_s=f)
        if f
        else WorkersRow(*kind, note="TypeError: no")
        for kind, f in zip(kinds, figures, strict=True)
    )


@pytest.mark.parametrize(
    ("epochs", "best", "why"),
    [
        ((10, 10, 9.8, 9.9, 9.7), ("inline", 0), "Take inline: workers bring less than 5 %."),
        (
            (10, 10, 10, 5.1, 5),
            ("thread", 2),
            "Take 2 worker threads: 1.96 times as fast as inline.",
        ),
        ((10, 9, 5.2, 5.1, 5), ("process", 1), "Take 1 worker process: 1.92 times"),
        ((10, None, 7, None, 4), ("process", 2), "Take 2 worker processes: 2.5 times"),
    ],
)
def test_the_choice(epochs, best, why):
    report = room._judged(rows(*epochs))
    assert (report.best.backend, report.best.num_workers) == best
    assert report.why.startswith(why)
    assert report.why.endswith(f"Write num_workers={best[1]}, backend={best[0]!r}.")
    assert report.options == {"num_workers": best[1], "backend": best[0]}


def test_the_table(quick, capsys):
    report = quick(DataLoader(Numbers(), 8), show=True)
    assert capsys.readouterr().out == f"{report}\n"
    lines = str(report).splitlines()
    assert len(lines) == 7
    assert lines[1].split()[:2] == ["inline", "0"]


def test_other_loaders_and_limits():
    with pytest.raises(TypeError, match="from headrace import DataLoader"):
        find_num_workers(torch_data.DataLoader([1]))
    with pytest.raises(OptionError, match="measure nothing"):
        find_num_workers(DataLoader([1]), seconds=0)
