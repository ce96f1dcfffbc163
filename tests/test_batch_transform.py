"""A function of the batch: run where the batch is made, on random numbers of the step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from headrace import DataLoader, Dataset, TensorDataset
from headrace.testing import assert_exact_resume

COLUMNS = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40))


class Samples(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(index)]), index


def add_noise(batch: list[Tensor]) -> list[Tensor]:
    values, labels = batch
    return [values + torch.rand(()), labels]


def noise_of(batches: list[Any]) -> list[float]:
    """Return the one random number of each batch."""
    return [float((values[:, 0] - labels)[0]) for values, labels in batches]


def epoch(dataset: Any, num_workers: int, **options: Any) -> list[Any]:
    torch.manual_seed(3)
    loader = DataLoader(
        dataset, 8, shuffle=True, num_workers=num_workers, batch_transform=add_noise, **options
    )
    return list(loader)


@pytest.mark.parametrize("dataset", [COLUMNS, Samples()], ids=["columns", "samples"])
def test_every_batch_has_its_own_random_numbers_whoever_makes_it(dataset: Any) -> None:
    inline = epoch(dataset, 0)
    assert len(set(noise_of(inline))) == 5
    for num_workers in (1, 2):
        for ours, theirs in zip(inline, epoch(dataset, num_workers), strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("dataset", [COLUMNS, Samples()], ids=["columns", "samples"])
def test_it_gets_the_batch_that_there_would_be_without_it(dataset: Any) -> None:
    torch.manual_seed(3)
    plain = list(DataLoader(dataset, 8, shuffle=True))
    for (values, labels), (changed, same) in zip(plain, epoch(dataset, 0), strict=True):
        assert torch.equal(labels, same)
        assert torch.allclose(changed - values, (changed - values)[0])


def test_the_models_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    batches = iter(DataLoader(COLUMNS, 8, batch_transform=add_noise))
    before = torch.get_rng_state()
    next(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_resumes_exactly() -> None:
    assert_exact_resume(lambda: DataLoader(COLUMNS, 8, shuffle=True, batch_transform=add_noise))


def test_what_it_raises_reaches_the_loop() -> None:
    def refuse(batch: Any) -> Any:
        raise LookupError(f"no augmentation for {len(batch)} leaves")

    for num_workers in (0, 1):
        loader = DataLoader(COLUMNS, 8, num_workers=num_workers, batch_transform=refuse)
        with pytest.raises(LookupError, match="for 2 leaves"):
            next(iter(loader))
