"""Samples that lie stacked in memory already are a batch without a copy, as long as they are it."""

from typing import Any

import torch
from torch.utils.data import default_collate as torch_default_collate

from headrace import default_collate
from headrace.collate.stack import Prestacked


def prestacked(count: int = 4) -> tuple[Prestacked, torch.Tensor]:
    rows = torch.arange(count * 6).reshape(count, 2, 3)
    samples: list[Any] = [(row, number, f"name {number}") for number, row in enumerate(rows)]
    return Prestacked(samples, {0: rows}), rows


class TestPrestacked:
    def test_is_a_list_of_samples_to_everybody_else(self) -> None:
        samples, rows = prestacked()
        batch = torch_default_collate(samples)
        assert torch.equal(batch[0], rows)
        assert batch[1].tolist() == [0, 1, 2, 3]
        assert batch[2] == tuple(f"name {number}" for number in range(4))

    def test_is_collated_as_a_list_would_be_without_copying(self) -> None:
        samples, rows = prestacked()
        batch = default_collate(samples)
        expected = default_collate(list(samples))
        assert type(batch) is type(expected)
        assert batch[0] is rows
        assert torch.equal(batch[0], expected[0])
        assert torch.equal(batch[1], expected[1])
        assert batch[2] == expected[2]

    def test_that_was_changed_is_collated_as_it_is_now(self) -> None:
        def reverse(samples: Any) -> None:
            samples.reverse()

        def shorten(samples: Any) -> None:
            del samples[1]

        def replace(samples: Any) -> None:
            samples[2] = (torch.zeros(2, 3, dtype=torch.int64), 9, "other")

        for change in (reverse, shorten, replace):
            samples, _ = prestacked()
            change(samples)
            batch = default_collate(samples)
            assert torch.equal(batch[0], torch.stack([sample[0] for sample in samples]))
            assert batch[1].tolist() == [sample[1] for sample in samples]
