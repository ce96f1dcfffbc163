"""Run a program, and say how long it was in its loaders: ``meter.py OUT time|digest PROGRAM ...``.

A script of its own, run by Python for torch's loader and by ``headrace run`` for ours. It wraps the
two calls that a loop makes, ``iter(loader)`` and ``next(iterator)``, of whichever loader there is.
"""

import functools
import json
import runpy
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.data

found: dict[str, Any] = {"kind": "", "seconds": 0.0, "batches": 0, "digest": 0}
_inside = False


def timed(
    call: Callable[..., Any], after: Callable[[Any], None] | None = None
) -> Callable[..., Any]:
    """Return a method that adds up the time in it, but not in those it calls of the same kind."""

    @functools.wraps(call)
    def method(self: Any, *arguments: Any) -> Any:
        global _inside
        if _inside:
            return call(self, *arguments)
        _inside = True
        started = time.perf_counter()
        try:
            result = call(self, *arguments)
        finally:
            found["seconds"] += time.perf_counter() - started
            _inside = False
        if after is not None:
            after(result)
        return result

    return method


def count(_: Any) -> None:
    """Count a batch."""
    found["batches"] += 1


def digest(batch: Any) -> None:
    """Count a batch, and have all its values in the sum."""
    count(batch)
    for leaf in leaves(batch):
        found["digest"] = zlib.crc32(leaf.contiguous().numpy().tobytes(), found["digest"])


def leaves(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a batch, in order."""
    if isinstance(value, torch.Tensor):
        yield value.detach()
    elif hasattr(value, "items"):
        for _, part in value.items():
            yield from leaves(part)
    elif hasattr(value, "to_dict"):  # a graph
        yield from leaves(value.to_dict())
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)


def main(out: str, what: str, program: str, *arguments: str) -> None:
    """Run the program with its loaders' calls wrapped, and write what was found."""
    loader: Any = torch.utils.data.DataLoader
    found["kind"] = loader.__module__.partition(".")[0]
    iterator: Any = torch.utils.data.dataloader._BaseDataLoaderIter
    if found["kind"] == "headrace":
        from headrace.iterator import LoaderIterator

        iterator = LoaderIterator
    loader.__iter__ = timed(loader.__iter__)
    iterator.__next__ = timed(iterator.__next__, digest if what == "digest" else count)
    sys.argv[:] = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
