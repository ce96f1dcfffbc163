"""What an epoch needs of a loader's samplers: their generators, their states, their seeds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import BatchSampler, DistributedSampler, SequentialSampler

from headrace.sampling.order import is_exact
from headrace.sampling.planned import is_planned

_DRAW_NOTHING = (SequentialSampler, DistributedSampler)


def generators_of(index_sampler: Any, own: torch.Generator | None) -> list[torch.Generator]:
    """Return the generators that a loader draws from: its own or torch's, and its sampler's."""
    default = torch.default_generator
    generators = [default if own is None else own]
    samplers = [getattr(index_sampler, "sampler", index_sampler)]
    if type(index_sampler) is not BatchSampler:
        samplers.insert(0, index_sampler)
    drawn_from = [getattr(sampler, "generator", None) for sampler in samplers]
    found = [g for g in drawn_from if isinstance(g, torch.Generator)]
    if not found and not isinstance(samplers[-1], _DRAW_NOTHING):
        found = [default]
    return generators + [g for g in dict.fromkeys(found) if g is not generators[0]]


def order_sampler(index_sampler: Any) -> Any:
    """Return what a plain batch sampler cuts into batches, or the sampler itself."""
    return index_sampler.sampler if type(index_sampler) is BatchSampler else index_sampler


def batch_size_of(batch_sampler: Any) -> int | None:
    """Return the batch size of a plain batch sampler; None for any other."""
    return batch_sampler.batch_size if type(batch_sampler) is BatchSampler else None


def stateful(index_sampler: Any) -> Any:
    """Return the sampler that can say where it stands: the batch sampler, or the one inside."""
    for sampler in (index_sampler, getattr(index_sampler, "sampler", None)):
        if hasattr(sampler, "state_dict") and hasattr(sampler, "load_state_dict"):
            return sampler
    return None


def with_seed(index_sampler: Any, seed: int) -> Any:
    """Return a sampler like this one, whose order follows from ``seed``."""
    inner = getattr(index_sampler, "sampler", None)
    if inner is not None:
        copied = copy.copy(index_sampler)
        copied.sampler = with_seed(inner, seed)
        return copied
    if is_exact(index_sampler) or is_planned(index_sampler):
        copied = copy.copy(index_sampler)
        if hasattr(copied, "generator"):
            copied.generator = torch.Generator().manual_seed(seed)
        return copied
    return _Seeded(index_sampler, seed)


class _Seeded:
    """Iterates over a custom sampler while torch's generators stand where the seed puts them.

    It may draw from torch's default generator or from one of its own; the first is put back after
    each index, so that nobody else sees what was drawn.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self._sampler = sampler
        self._seed = seed

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        default = torch.default_generator
        generator = getattr(self._sampler, "generator", None)
        if isinstance(generator, torch.Generator) and generator is not default:
            generator.manual_seed(self._seed)
        ours = torch.Generator().manual_seed(self._seed).get_state()
        indices: Iterator[Any] | None = None
        while True:
            theirs = default.get_state()
            try:
                default.set_state(ours)
                if indices is None:
                    indices = iter(self._sampler)
                index = next(indices)
                ours = default.get_state()
            except StopIteration:
                return
            finally:
                default.set_state(theirs)
            yield index


def load_at_end(index_sampler: Any, state: Any, generators: Sequence[torch.Generator]) -> None:
    """Load a sampler with its state from the end of an epoch, so that it begins another one.

    For some samplers that state means a new epoch, for others that nothing is left. Which it is
    shows when it is asked; then all is put back.
    """
    sampler = stateful(index_sampler)
    sampler.load_state_dict(copy.deepcopy(state))
    before = [generator.get_state() for generator in generators]
    nothing = object()
    try:
        left = next(iter(index_sampler), nothing)
    finally:
        for generator, generator_state in zip(generators, before, strict=True):
            generator.set_state(generator_state)
    if left is not nothing:
        sampler.load_state_dict(copy.deepcopy(state))
