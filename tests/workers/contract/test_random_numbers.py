"""Random numbers in workers: a new stream for each batch, whoever makes it."""

import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

import headrace
from headrace import DataLoader
from oracle import LOADERS, assert_same, seed_everything

from .datasets import MANY_WORKERS, Asked, Drawn, as_it_is, drawn

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


def batches(**options: Any) -> list[torch.Tensor]:
    seed_everything(3)
    return list(DataLoader(Drawn(12), batch_size=2, **options))


ALONE = batches()


def seed_worker(worker_id: int) -> None:
    """The recipe of PyTorch's documentation."""
    worker_seed = torch.initial_seed() % 2**32
    np.random.seed(worker_seed)
    random.seed(worker_seed)


def seed_worker_from_info(worker_id: int) -> None:
    info = get_worker_info()
    assert info is not None
    np.random.seed(info.seed % 2**32)


def draw_some(worker_id: int) -> None:
    np.random.rand(5000), random.gauss(0, 1), torch.rand(9)


def recipe_then_draw(worker_id: int) -> None:
    seed_worker(worker_id)
    draw_some(worker_id)


def nothing(worker_id: int) -> None:
    pass


@pytest.mark.parametrize(
    "init_fn", [nothing, seed_worker, seed_worker_from_info, draw_some, recipe_then_draw]
)
def test_what_changes_nothing(init_fn: Any) -> None:
    assert_same(batches(num_workers=2, worker_init_fn=init_fn), ALONE)


def seed_numpy(worker_id: int) -> None:
    np.random.seed(1000 + worker_id)


def seed_python(worker_id: int) -> None:
    random.seed(worker_id)


def seed_torch(worker_id: int) -> None:
    torch.manual_seed(99 + worker_id)


OWN = {"NumPy": (seed_numpy, 3), "random": (seed_python, 1), "torch": (seed_torch, 5)}


@pytest.mark.parametrize("name", OWN)
def test_a_generator_that_worker_init_fn_seeds_is_the_user_s_from_then_on(name: str) -> None:
    init_fn, column = OWN[name]
    with pytest.warns(UserWarning, match=f"worker_init_fn seeded {name} in the workers") as caught:
        made = batches(num_workers=2, worker_init_fn=init_fn, persistent_workers=False)
    assert len(caught) == 1
    assert "leave the seeding out" in str(caught[0].message)
    others = [n for n in range(7) if n not in (column, column + 1)]
    for batch, alone in zip(made, ALONE, strict=True):
        assert torch.equal(batch[:, others], alone[:, others]), "another generator changed"
    seed_everything(3)
    theirs = list(LOADERS["torch"](Drawn(12), 2, num_workers=2, worker_init_fn=init_fn))
    for batch, their in zip(made, theirs, strict=True):
        assert torch.equal(batch[:, [column, column + 1]], their[:, [column, column + 1]])


def test_the_warning_comes_once_for_workers_that_persist() -> None:
    loader = DataLoader(Drawn(8), num_workers=2, worker_init_fn=seed_numpy, persistent_workers=True)
    with pytest.warns(UserWarning, match="worker_init_fn seeded") as caught:
        list(loader), list(loader), list(loader)
    assert len(caught) == 1


def test_epochs_of_persistent_workers_differ_and_are_the_same_again() -> None:
    def three_epochs(workers: int) -> list[Any]:
        seed_everything(4)
        loader = DataLoader(Drawn(6), 2, num_workers=workers, persistent_workers=True)
        return [torch.cat(list(loader))[:, 1:] for _ in range(3)]

    first, second, third = three_epochs(2)
    assert not (first == second).any()
    assert not (second == third).any()
    assert_same(three_epochs(1), [first, second, third])


def test_rng_torch_keeps_what_worker_init_fn_did_without_a_word() -> None:
    options = {"num_workers": 2, "worker_init_fn": seed_numpy}
    seed_everything(3)
    theirs = list(LOADERS["torch"](Drawn(12), 2, **options))
    assert_same(batches(rng="torch", **options), theirs)


def seeds(index: int) -> tuple[int, ...]:
    info = get_worker_info()
    assert info is not None
    return info.id, info.seed, torch.initial_seed()


@pytest.mark.parametrize("rng", ["task", "torch"])
def test_initial_seed_is_the_worker_s_seed(rng: Any) -> None:
    torch.manual_seed(11)
    base_seed = int(torch.empty((), dtype=torch.int64).random_().item())
    torch.manual_seed(11)
    loader = DataLoader(
        Asked(6, seeds), num_workers=3, collate_fn=as_it_is, rng=rng, worker_init_fn=_check_seed
    )
    for ((worker, seed, initial),) in loader:
        assert seed == initial == base_seed + worker


def _check_seed(worker_id: int) -> None:
    info = get_worker_info()
    assert info is not None
    assert info.id == worker_id
    assert torch.initial_seed() == info.seed


def test_generators_of_torch_at_the_start_of_worker_init_fn() -> None:
    """What is drawn there is what torch's workers draw."""
    seen = []
    for loader in LOADERS.values():
        seed_everything(8)
        seen.append(list(loader(_Remembers(), 1, num_workers=2, worker_init_fn=_remember)))
    assert_same(seen[1], seen[0])


class _Remembers(torch.utils.data.Dataset[Any]):
    numbers: tuple[float, ...] = ()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.numbers


def _remember(worker_id: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.numbers = drawn(worker_id)  # type: ignore[attr-defined]


def test_the_user_s_generators_are_left_alone_while_batches_are_made() -> None:
    seed_everything(2)
    loader = DataLoader(Drawn(8), num_workers=2)
    iterator = iter(loader)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(iterator)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_manual_seed_in_a_worker_stays_there() -> None:
    def reseed(index: int) -> int:
        torch.manual_seed(0)
        return index

    torch.manual_seed(6)
    iterator = iter(DataLoader(Asked(4, reseed), num_workers=1))
    expected = torch.get_rng_state()
    list(iterator)
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_stream_draws_from_the_generators_of_its_batch() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            start = random.random()
            for index in range(6):
                yield torch.tensor([start, *drawn(index)])

    made = []
    for workers in (0, 1):
        seed_everything(9)
        made.append(list(headrace.DataLoader(Stream(), 2, num_workers=workers)))
    assert_same(*made)


def test_no_warning_about_another_library_s_draws() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches(num_workers=1, worker_init_fn=recipe_then_draw)
