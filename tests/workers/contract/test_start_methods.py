"""fork, spawn and forkserver: the same batches, and what travels to a worker travels once.

Starting an interpreter that imports torch takes seconds, so each test asks much of one loader.
"""

import multiprocessing
import os
import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from headrace import DataLoader
from oracle import assert_same, seed_everything

from .datasets import Drawn, Numbers

OTHERS = ("spawn", "forkserver")


class Everything(Dataset[Any]):
    """Counts how often it was pickled; its samples are of many kinds."""

    pickled = 0

    def __init__(self) -> None:
        self.table = torch.arange(60_000.0).reshape(12, 5000)

    def __getstate__(self) -> dict[str, Any]:
        Everything.pickled += 1
        return vars(self)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        return {
            "worker": -1 if info is None else info.id,
            "large": self.table[index],
            "random": torch.rand(3),
            "text": [str(index), None],
        }


def collate(samples: list[Any]) -> Any:
    table = torch.stack([sample["large"] for sample in samples])
    return {
        "worker": [sample["worker"] for sample in samples],
        "large": table,
        "random": torch.stack([sample["random"] for sample in samples]),
        "text": [sample["text"] for sample in samples],
        "nested": torch.nested.nested_tensor([row[:n] for n, row in enumerate(table, 3)]),
        "sparse": torch.eye(4).to_sparse(),
        "pid": os.getpid(),
    }


@pytest.mark.usefixtures("patient")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize("method", ["fork", *OTHERS])
@pytest.mark.parametrize("given", ["a string", "a context"])
def test_the_same_batches(method: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.engine.epoch.window.SLOW_S", 60)  # the first task imports much
    if method != "fork" and given == "a context":
        context: Any = multiprocessing.get_context(method)
    else:
        context = method
    seed_everything(1)
    alone = list(DataLoader(Everything(), 3, True, collate_fn=collate))
    seed_everything(1)
    Everything.pickled = 0
    loader = DataLoader(
        Everything(),
        3,
        True,
        num_workers=2,
        collate_fn=collate,
        multiprocessing_context=context,
        persistent_workers=True,
    )
    for epoch in range(2):
        batches = list(loader)
        assert len(batches) == 4
        assert Everything.pickled == (0 if method == "fork" else 2), "once a worker"
        for number, (batch, expected) in enumerate(zip(batches, alone, strict=True)):
            assert batch["worker"] == [number % 2] * 3
            assert batch["pid"] != os.getpid()
            for n, (row, part) in enumerate(zip(batch["large"], batch["nested"], strict=True), 3):
                assert torch.equal(part, row[:n])
            assert torch.equal(batch["sparse"].to_dense(), torch.eye(4))
            if epoch == 0:
                for key in ("large", "random", "text"):
                    assert_same(batch[key], expected[key])
    workers = loader._iterator._workers
    loader._iterator = None
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == 0


def test_what_is_kept_survives_the_workers_of_spawn() -> None:
    """Their memory is mapped here, and stays when they are gone."""
    kept = []
    loader = DataLoader(Numbers(6), num_workers=1, multiprocessing_context="spawn")
    for batch in loader:
        kept.append(batch["large"])
    for number, large in enumerate(kept):
        assert torch.equal(large, torch.full((1, 5000), float(number)))


class Unpicklable:
    def __init__(self) -> None:
        self.handle = lambda: None

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dataset", {"dataset": Unpicklable()}),
        ("collate_fn", {"collate_fn": lambda samples: samples}),
        ("worker_init_fn", {"worker_init_fn": lambda worker: None}),
    ],
)
def test_what_cannot_be_pickled_is_named(name: str, options: Any) -> None:
    options = {"dataset": Numbers(3), **options}
    loader = DataLoader(**options, num_workers=1, multiprocessing_context="spawn")
    with (
        pytest.warns(UserWarning, match=f"Got pickle error when.* {name} "),
        pytest.raises((pickle.PicklingError, AttributeError, TypeError)) as caught,
    ):
        iter(loader)
    assert any("multiprocessing_context='fork'" in note for note in caught.value.__notes__)
    with pytest.warns(UserWarning, match="Got pickle error"), pytest.raises(Exception):  # noqa: B017
        iter(loader)


def test_a_loader_can_be_pickled_and_its_copy_works() -> None:
    loader = DataLoader(Drawn(6), 2, num_workers=1)
    list(loader)
    copy = pickle.loads(pickle.dumps(loader))
    seed_everything(0)
    expected = list(loader)
    seed_everything(0)
    assert_same(list(copy), expected)
    with pytest.raises(NotImplementedError, match="cannot be pickled"):
        pickle.dumps(iter(loader))
