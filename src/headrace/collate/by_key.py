"""A collate function for each part of a sample."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headrace.collate.sequences import Collate
from headrace.errors import CollateError, MissingKeyError, NotCollatableError, ShapeMismatchError

Rest = Collate | Literal["drop"] | None


def collate_by_key(
    functions: Mapping[Any, Collate] | Sequence[Collate], rest: Rest = None
) -> Collate:
    """Make a collate function that collates each key of a sample with a function of its own.

    Args:
        functions: for samples that are dicts, a dict of collate functions:
            `{"tokens": pad_collate(), "label": default_collate}`. For samples that are tuples, a
            tuple of them, one for each entry.
        rest: what to do with keys that `functions` does not name: a collate function, "drop", or
            None: they are an error.

    Returns:
        A function of a list of samples. It returns a dict with the keys of `functions` (and the
        rest), or for tuples a list, as the default collation does.

    Raises:
        TypeError: something in `functions` that cannot be called. When called: `MissingKeyError`
            where a key is missing or too many; what the functions raise, with the key added.
    """
    named = isinstance(functions, Mapping)
    items: Iterable[tuple[Hashable, Any]] = (
        functions.items() if isinstance(functions, Mapping) else enumerate(functions)
    )
    for key, function in items:
        if not callable(function):
            raise TypeError(
                f"collate_by_key needs a function for {key!r}, got {function!r}. "
                f"Write default_collate for what only has to be stacked."
            )
    if rest is not None and (not named or not (rest == "drop" or callable(rest))):
        raise TypeError(
            f'rest must be a collate function or "drop", for samples that are dicts, got {rest!r}.'
        )
    if isinstance(functions, Mapping):
        return _ByKey(dict(functions), rest)
    return _ByPlace(tuple(functions))


@dataclass(frozen=True)
class _ByKey:
    functions: dict[Any, Collate]
    rest: Rest

    def __call__(self, batch: Sequence[Any]) -> dict[Any, Any]:
        functions = self.functions
        for position, sample in enumerate(batch):
            if not isinstance(sample, Mapping):
                raise NotCollatableError(
                    f"collate_by_key names keys, but sample {position} of the batch is a "
                    f"{type(sample).__name__}",
                    "Return a dict for every index, or name places: collate_by_key((f, g)).",
                    (position,),
                )
            for key in functions:
                if key not in sample:
                    raise MissingKeyError(
                        f"the key {key!r} is not in sample {position} of the batch, which has "
                        f"{list(sample)}",
                        "Return it for every index, or take it out of collate_by_key({...}).",
                        (position,),
                    )
        if self.rest != "drop":
            functions = {**functions, **self._others(batch)}
        return {key: _collate(key, f, [s[key] for s in batch]) for key, f in functions.items()}

    def _others(self, batch: Sequence[Mapping[Any, Any]]) -> dict[Any, Collate]:
        others: dict[Any, Collate] = {}
        for position, sample in enumerate(batch):
            if len(sample) == len(self.functions) and not others:
                continue
            for key in (k for k in sample if k not in self.functions):
                if not callable(self.rest):
                    raise MissingKeyError(
                        f"collate_by_key names no function for the key {key!r} of sample "
                        f"{position} of the batch",
                        f"Write {{..., {key!r}: default_collate}}, or rest=default_collate for all "
                        f'other keys, or rest="drop".',
                        (position,),
                    )
                others[key] = self.rest
        for position, sample in enumerate(batch if others else ()):
            for key in others:
                if key not in sample:
                    raise MissingKeyError(
                        f"the key {key!r} is in some samples, but not in sample {position} of the "
                        f"batch",
                        f"Return every key for every index: sample.setdefault({key!r}, ...).",
                        (position,),
                    )
        return others


@dataclass(frozen=True)
class _ByPlace:
    functions: tuple[Collate, ...]

    def __call__(self, batch: Sequence[Any]) -> list[Any]:
        for position, sample in enumerate(batch):
            if not isinstance(sample, (tuple, list)) or len(sample) != len(self.functions):
                found = f"{len(sample)} entries" if isinstance(sample, (tuple, list)) else ""
                raise ShapeMismatchError(
                    f"collate_by_key has {len(self.functions)} functions, but sample {position} of "
                    f"the batch has {found or 'no entries: it is a ' + type(sample).__name__}",
                    "Return a tuple with one entry for each function.",
                    (position,),
                )
        columns = zip(*batch, strict=True)
        pairs = zip(self.functions, columns, strict=True)
        return [_collate(place, f, list(column)) for place, (f, column) in enumerate(pairs)]


def _collate(key: Hashable, function: Collate, samples: list[Any]) -> Any:
    try:
        return function(samples)
    except CollateError as error:
        error.path = (key, *error.path)
        raise
    except Exception as error:
        error.add_note(f"headrace: while collating sample[{key!r}]")
        raise
