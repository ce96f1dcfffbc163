"""What an epoch needs of a loader's samplers: their generators, their states, their seeds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import BatchSampler, DistributedSampler, Sampler, SequentialSampler

from headrace.engine.order.foreign import ForeignGenerator, Generator, is_foreign
from headrace.engine.order.streams import knows_its_place
from headrace.errors import StateError
from headrace.rng import mix
from headrace.sampling.order import is_exact
from headrace.sampling.planned import is_planned

_DRAW_NOTHING = (SequentialSampler, DistributedSampler)
_FEW = 100  # samplers that one goes through; longer lists hold indices


def generators_of(
    index_sampler: Any, own: torch.Generator | None, seed: int | None
) -> list[Generator]:
    """Return the generators that a loader draws from: its own or torch's, and its samplers'.

    A sampler's are those that it holds, whatever it calls them, and those of the samplers that it
    holds in turn: accelerate's and users' own go through another one. Orders that follow from a
    seed leave torch's alone (:func:`with_seed`): it is the program's, and no state puts it back.
    """
    default = torch.default_generator
    generators: list[Generator] = [default if own is None else own]
    found: list[Generator] = []
    for sampler, held in _held_in(index_sampler, {}).values():
        from_torchs = not isinstance(sampler, _DRAW_NOTHING) and type(sampler) is not BatchSampler
        of_torchs = any(isinstance(one, torch.Generator) for one in held)
        found += held if of_torchs or not from_torchs else [*held, default]
    drawn_from = dict.fromkeys(generators + found)
    if seed is not None:
        drawn_from.pop(default, None)
    return list(drawn_from)


_Held: TypeAlias = dict[int, tuple[Any, list[Generator]]]


def _held_in(sampler: Any, seen: _Held) -> _Held:
    """Return a sampler and those inside it, each once, with the generators that each holds."""
    held: list[Generator] = []
    seen[id(sampler)] = sampler, held
    inside = [getattr(sampler, name, None) for name in ("sampler", "batch_sampler")]
    if type(sampler) is not BatchSampler:
        for value in _attributes(sampler):
            if isinstance(value, torch.Generator):
                held.append(value)
            elif is_foreign(value):
                held.append(ForeignGenerator(value))
            elif isinstance(value, Sampler):
                inside.append(value)
    for inner in inside:
        if inner is not None and id(inner) not in seen:
            _held_in(inner, seen)
    return seen


def _attributes(sampler: Any) -> list[Any]:
    """Return what a sampler holds: its attributes, and the items of lists, tuples and dicts."""
    found: list[Any] = [getattr(sampler, "generator", None)]
    for value in getattr(sampler, "__dict__", {}).values():
        if isinstance(value, dict):
            found += value.values()
        elif isinstance(value, (list, tuple)) and len(value) <= _FEW:
            found += value
        else:
            found.append(value)
    return found


def order_sampler(index_sampler: Any) -> Any:
    """Return what a plain batch sampler cuts into batches, or the sampler itself."""
    return index_sampler.sampler if type(index_sampler) is BatchSampler else index_sampler


def batch_size_of(batch_sampler: Any) -> int | None:
    """Return the batch size of a plain batch sampler; None for any other."""
    return batch_sampler.batch_size if type(batch_sampler) is BatchSampler else None


def stateful(index_sampler: Any) -> Any:
    """Return the sampler that can say where it stands: the batch sampler, or the one inside."""
    for sampler in (index_sampler, getattr(index_sampler, "sampler", None)):
        if knows_its_place(sampler):
            return sampler
    return None


def with_seed(index_sampler: Any, seed: int) -> Any:
    """Return a sampler like this one, whose order follows from ``seed``."""
    if type(index_sampler) is BatchSampler:  # others may draw from generators themselves
        copied = copy.copy(index_sampler)
        copied.sampler = with_seed(index_sampler.sampler, seed)
        return copied
    if is_exact(index_sampler) or is_planned(index_sampler):
        copied = copy.copy(index_sampler)
        if hasattr(copied, "generator"):
            copied.generator = torch.Generator().manual_seed(seed)
        return copied
    return _Seeded(index_sampler, seed)


class _Seeded:
    """Iterates over a custom sampler while torch's generators stand where the seed puts them.

    It may draw from torch's default generator, or from those that it and the samplers inside it
    hold; the first is put back after each index, so that nobody else sees what was drawn.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self._sampler = sampler
        self._seed = seed

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        default = torch.default_generator
        held = [one for _, several in _held_in(self._sampler, {}).values() for one in several]
        for number, generator in enumerate(dict.fromkeys(held)):
            if generator is not default:
                generator.manual_seed(mix(number, state=self._seed) if number else self._seed)
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


def load_sampler(sampler: Any, state: Any) -> None:
    """Give a sampler a state that it once gave.

    Raises:
        StateError: it does not take it.
    """
    try:
        sampler.load_state_dict(copy.deepcopy(state))
    except Exception as error:
        raise StateError(
            f"the sampler, a {type(sampler).__name__}, does not take what the state says of it "
            f"({type(error).__name__}: {error}). Give the loader the sampler that the state was "
            f"taken with, or begin a new epoch without load_state_dict()."
        ) from error


def load_at_end(index_sampler: Any, state: Any, generators: Sequence[Generator]) -> None:
    """Load a sampler with its state from the end of an epoch, so that it begins another one.

    For some samplers that state means a new epoch, for others that nothing is left. Which it is
    shows when it is asked; then all is put back.
    """
    sampler = stateful(index_sampler)
    load_sampler(sampler, state)
    everyones: list[Generator] = [torch.default_generator]
    before = [(one, one.get_state()) for one in dict.fromkeys(everyones + list(generators))]
    nothing = object()
    try:
        left = next(iter(index_sampler), nothing)
    finally:
        for generator, generator_state in before:
            generator.set_state(generator_state)
    if left is not nothing:
        load_sampler(sampler, state)
