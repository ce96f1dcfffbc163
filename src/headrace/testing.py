"""Helpers for the tests of your own datasets: do they resume exactly?"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch

from headrace.loader import DataLoader
from headrace.rng import ProcessGenerators
from headrace.tree import map_leaves

MakeLoader: TypeAlias = Callable[[], DataLoader[Any]]

_REFERENCE_SEED = 1234


def assert_exact_resume(
    make_loader: MakeLoader,
    *,
    epochs: int = 2,
    every: int = 1,
    resume_with: MakeLoader | None = None,
) -> None:
    """Check that a loader resumes to the same bit behind every step.

    One loader runs through. Then, for each state that it gave on its way (before the first batch,
    inside the loop behind each step, after each epoch), a fresh loader is given the state, written
    to JSON and read back, and its batches must equal the rest, up to the end of the last epoch. The
    global generators of torch, NumPy and ``random`` are seeded to something else before each
    resume, so that only the state can make orders come out the same; afterwards they are as they
    were before.

    What makes this fail is state that is kept where no loader can see it: a dataset that counts its
    calls, an iterable dataset whose ``state_dict()`` leaves something out, a sampler that draws
    from NumPy's or Python's global generator.

    Args:
        make_loader: a function without arguments that makes a fresh loader, with a fresh dataset.
        epochs: how many epochs are compared; stops are made in all but the last one.
        every: stop behind every so many steps, for datasets that are slow.
        resume_with: makes the loaders that resume, with another number of workers for example.

    Raises:
        AssertionError: a resumed batch differs. It names where the state was taken, the step and
            the key path at which it differs, and both values.
        ValueError: ``epochs`` or ``every`` is below 1.
    """
    if epochs < 1 or every < 1:
        raise ValueError(
            f"epochs={epochs} and every={every} must be at least 1. "
            f"Write assert_exact_resume(make_loader, epochs=2)."
        )
    with _generators_kept():
        _seed_all(_REFERENCE_SEED)
        expected, states = _run_through(make_loader(), epochs, every)
        for number, (place, text) in enumerate(states):
            _seed_all(_REFERENCE_SEED + 1 + number)
            _compare_rest((resume_with or make_loader)(), place, text, expected)


class _Place:
    """Where a state was taken: behind ``step`` batches of ``epoch``, or after its loop."""

    def __init__(self, epoch: int, step: int, after_loop: bool = False) -> None:
        self.epoch = epoch
        self.step = step
        self.after_loop = after_loop

    def __str__(self) -> str:
        if self.after_loop:
            return f"after epoch {self.epoch}"
        return f"behind {self.step} steps of epoch {self.epoch}"


def _run_through(
    loader: DataLoader[Any], epochs: int, every: int
) -> tuple[list[list[Any]], list[tuple[_Place, str]]]:
    """Return the batches of all epochs, and the states on the way."""
    expected: list[list[Any]] = []
    states = [(_Place(0, 0), _as_json(loader, _Place(0, 0)))]
    for epoch in range(epochs):
        stops = epoch < epochs - 1 or epochs == 1
        batches: list[Any] = []
        for step, batch in enumerate(loader, 1):
            batches.append(map_leaves(_copied, batch))
            if stops and step % every == 0:
                states.append((_Place(epoch, step), _as_json(loader, _Place(epoch, step))))
        expected.append(batches)
        if stops:
            place = _Place(epoch, len(batches), after_loop=True)
            states.append((place, _as_json(loader, place)))
    return expected, states


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else copy.deepcopy(leaf)


def _as_json(loader: DataLoader[Any], place: _Place) -> str:
    state = loader.state_dict()
    try:
        text = json.dumps(state)
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"the state taken {place} is not JSON: {error}. Return numbers, text, lists and dicts "
            f"from state_dict()."
        ) from error
    difference = _difference(state, json.loads(text), "state")
    if difference is not None:
        raise AssertionError(
            f"the state taken {place} is not the same once written to JSON and read: {difference}. "
            f"Return numbers, text, lists and dicts with text as keys from state_dict()."
        )
    return text


def _compare_rest(
    loader: DataLoader[Any], place: _Place, text: str, expected: list[list[Any]]
) -> None:
    state = json.loads(text)
    loader.load_state_dict(state)
    difference = _difference(json.loads(text), loader.state_dict(), "state")
    if difference is not None:
        raise AssertionError(f"the state taken {place} is another one once loaded: {difference}")
    first = place.epoch + place.after_loop
    for epoch in range(first, len(expected)):
        start = place.step if epoch == place.epoch and not place.after_loop else 0
        rest = expected[epoch][start:]
        count = start
        for count, batch in enumerate(loader, start + 1):
            if count > start + len(rest):
                break
            difference = _difference(expected[epoch][count - 1], batch, "batch")
            if difference is not None:
                raise AssertionError(
                    f"resumed {place}, step {count - 1} of epoch {epoch} differs at {difference}"
                )
        if count != start + len(rest):
            more = "more than " if count > start + len(rest) else ""
            raise AssertionError(
                f"resumed {place}, epoch {epoch} has {more}{min(count, start + len(rest))} steps, "
                f"without stopping it had {start + len(rest)}"
            )


def _difference(expected: Any, resumed: Any, path: str) -> str | None:  # noqa: PLR0911
    """Return the first key path at which two batches differ, with both values; None if nowhere."""
    if type(expected) is not type(resumed):
        return _two(path, type(expected).__name__, type(resumed).__name__)
    if isinstance(expected, torch.Tensor):
        return _tensor_difference(expected, resumed, path)
    if isinstance(expected, np.ndarray):
        return _array_difference(expected, resumed, path)
    if isinstance(expected, Mapping):
        if list(expected) != list(resumed):
            return _two(f"the keys of {path}", list(expected), list(resumed))
        return _first((f"{path}[{key!r}]", expected[key], resumed[key]) for key in expected)
    if isinstance(expected, (list, tuple)):
        if len(expected) != len(resumed):
            return _two(f"the length of {path}", len(expected), len(resumed))
        pairs = enumerate(zip(expected, resumed, strict=True))
        return _first((f"{path}[{place}]", was, now) for place, (was, now) in pairs)
    return _leaf_difference(expected, resumed, path)


def _first(parts: Iterable[tuple[str, Any, Any]]) -> str | None:
    found = (_difference(expected, resumed, path) for path, expected, resumed in parts)
    return next((difference for difference in found if difference is not None), None)


def _leaf_difference(expected: Any, resumed: Any, path: str) -> str | None:
    if isinstance(expected, float):
        return None if expected.hex() == resumed.hex() else _two(path, expected, resumed)
    compares = any("__eq__" in vars(cls) for cls in type(expected).__mro__[:-1])
    if not compares and hasattr(expected, "__dict__"):
        return _difference(vars(expected), vars(resumed), path)  # a batch class of the user's
    return None if bool(np.all(expected == resumed)) else _two(path, expected, resumed)


def _tensor_difference(expected: torch.Tensor, resumed: torch.Tensor, path: str) -> str | None:
    for what in ("dtype", "layout", "device"):
        was, now = getattr(expected, what), getattr(resumed, what)
        if was != now:
            return _two(f"the {what} of {path}", was, now)
    if expected.is_nested:
        return _difference(expected.unbind(), resumed.unbind(), path)
    if expected.shape != resumed.shape:
        return _two(f"the shape of {path}", expected.shape, resumed.shape)
    shape = tuple(expected.shape)
    return _array_difference(_flat(expected), _flat(resumed), path, shape)


def _flat(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    dense = tensor.detach().cpu().to_dense() if tensor.layout is not torch.strided else tensor
    flat = dense.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    try:
        return np.asarray(flat.numpy())
    except TypeError:  # bfloat16 and what is smaller: NumPy has the bits only
        return np.asarray(flat.view(torch.uint8 if flat.itemsize == 1 else torch.int16).numpy())


def _array_difference(
    expected: np.ndarray[Any, Any],
    resumed: np.ndarray[Any, Any],
    path: str,
    shape: tuple[int, ...] | None = None,
) -> str | None:
    for what in ("dtype", "shape"):
        if getattr(expected, what) != getattr(resumed, what):
            return _two(f"the {what} of {path}", getattr(expected, what), getattr(resumed, what))
    if expected.dtype == object:
        return _difference(expected.tolist(), resumed.tolist(), path)
    if expected.tobytes() == resumed.tobytes():
        return None
    bits = np.dtype((np.void, expected.itemsize))
    flat = [np.ascontiguousarray(array).reshape(-1) for array in (expected, resumed)]
    place = int(np.flatnonzero(flat[0].view(bits) != flat[1].view(bits))[0])
    index = np.unravel_index(place, expected.shape if shape is None else shape)
    where = "".join(f"[{int(i)}]" for i in index)
    return _two(path + where, flat[0][place].item(), flat[1][place].item())


def _two(path: str, expected: Any, resumed: Any) -> str:
    return f"{path}: {expected!r} without stopping, {resumed!r} resumed"


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def _generators_kept() -> Iterator[None]:
    generators = ProcessGenerators()
    saved = generators.save()
    try:
        yield
    finally:
        generators.restore(saved)
