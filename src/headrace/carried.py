"""Options that only our loader knows, carried along by what every library copies.

A library that builds a loader anew from the parts of one (accelerate's ``prepare``, ray's
``prepare_data_loader``) takes the dataset, the collate function and torch's own options; ours would
be gone, and nobody would be told. So where a loader has options of ours, its ``collate_fn`` carries
them. A loader of ours that is given it takes them up; under torch's loader, which can only call it,
it applies the transform of the batch, so that the data stay the same, and says what is lost.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from headrace.notices import warn_user

_Init = TypeVar("_Init", bound=Callable[..., None])

_COLLATE = 6  # its place among torch's arguments


class Carrier:
    """A collate function with the options of the loader that it belongs to.

    Attributes:
        collate: the function itself.
        options: by name, those that differ from their defaults.
    """

    def __init__(self, collate: Callable[[Any], Any], options: dict[str, Any]) -> None:
        self.collate = collate
        self.options = options
        self._said = False
        functools.update_wrapper(self, collate, updated=())

    def __call__(self, samples: Any) -> Any:
        """Make a batch as the loader would, where it is not ours that asks."""
        if not self._said:
            self._said = True
            warn_of_lost(self.options)
        batch = self.collate(samples)
        transform = self.options.get("batch_transform")
        return batch if transform is None else transform(batch)

    def __getattr__(self, name: str) -> Any:
        if name in ("collate", "options") or name.startswith("__"):  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.collate, name)


def alone(collate: Any) -> Any:
    """Return a collate function without the options that it may carry."""
    return collate.collate if isinstance(collate, Carrier) else collate


def takes_up(init: _Init) -> _Init:
    """Have a loader's constructor take up the options that its collate function carries.

    What is given beside it counts more; who makes the batches needs the workers that are given.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        carrier = kwargs.get("collate_fn", args[_COLLATE] if len(args) > _COLLATE else None)
        if not isinstance(carrier, Carrier):
            init(self, *args, **kwargs)
            return
        bound = signature.bind(self, *args, **kwargs)
        given: dict[str, Any] = bound.arguments
        given["collate_fn"] = carrier.collate
        options = dict(carrier.options)
        if not given.get("num_workers") and "num_workers" not in options:
            options.pop("backend", None)
        for name, value in options.items():
            if not given.get(name):
                given[name] = value
        init(*bound.args, **bound.kwargs)

    return cast("_Init", __init__)


def warn_of_lost(options: dict[str, Any]) -> None:
    """Say that torch's loader stands where one of ours was, and what it cannot do."""
    lost = [name for name in options if name != "batch_transform"]
    if lost:
        names = ", ".join(f"{name}=" for name in lost)
        warn_user(
            f"a library has built torch's own loader from this one, which knows no {names}: they "
            f"are lost. Write headrace.install() before the library is given the loader, and it "
            f"builds headrace's."
        )
