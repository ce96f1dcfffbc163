"""Exceptions of user code reach the loop with their type and traceback, and iteration goes on."""

import json
import sys
import traceback
import types
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, Sampler

from headrace import DataLoader
from headrace.errors import DatasetStoppedError, WorkerDiedError
from workers.failure.user_code import Numbers, Stream, indices_of, sample


class TwoArgumentsError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)


class KeywordOnlyError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(code)


class UnpicklableError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.function = lambda: None


class SilentError(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


class MessageError(Exception):
    """Has torch's special case: a class attribute called message."""

    message = "a message"


def raising(error: Callable[[], BaseException], at: int = 5) -> Callable[[int], None]:
    def before(index: int) -> None:
        if index == at:
            raise error()

    return before


def loop(dataset: Any, **options: Any) -> tuple[list[list[int]], list[BaseException]]:
    """Batches and errors of an epoch that goes on after each error."""
    iterator = iter(DataLoader(dataset, 2, num_workers=2, backend="process", **options))
    got: list[list[int]] = []
    errors: list[BaseException] = []
    while True:
        try:
            got += indices_of([next(iterator)])
        except StopIteration:
            return got, errors
        except WorkerDiedError:
            raise
        except Exception as error:
            errors.append(error)


KEPT = {
    "ValueError": lambda: ValueError("bad value"),
    "KeyError": lambda: KeyError("a key"),
    "MemoryError": lambda: MemoryError("full"),
    "UnpicklableError": lambda: UnpicklableError("has a function"),
    "SilentError": SilentError,
    "RecursionError": lambda: RecursionError("too deep"),
    "EOFError": lambda: EOFError("short file"),
    "BrokenPipeError": lambda: BrokenPipeError("the user's own pipe"),
    "ConnectionResetError": lambda: ConnectionResetError("the user's own socket"),
    "BlockingIOError": lambda: BlockingIOError("the user's own"),
}


@pytest.mark.parametrize("name", KEPT)
def test_an_exception_keeps_its_type_and_traceback_and_iteration_goes_on(name: str) -> None:
    got, [error] = loop(Numbers(12, raising(KEPT[name])))
    assert type(error).__name__ == name
    assert got == [[0, 1], [2, 3], [6, 7], [8, 9], [10, 11]]
    text = error.args[0]
    assert f"Caught {name} in DataLoader worker process 0." in text
    assert "Original Traceback (most recent call last):" in text
    assert "test_exception.py" in text
    assert "dataset index 5" in "".join(error.__notes__)


def local_class() -> BaseException:
    class MyLocalError(ValueError):
        pass

    return MyLocalError("of a class without an address")


def of_a_module_of_the_worker() -> BaseException:
    module = types.ModuleType("only_the_worker_has_it")
    sys.modules[module.__name__] = module
    exec("class TheirError(Exception): pass", vars(module))
    return module.TheirError("x")  # type: ignore[no-any-return]


REBUILT = {
    "TheirError": of_a_module_of_the_worker,
    "TwoArgumentsError": lambda: TwoArgumentsError(7, "seven"),
    "KeywordOnlyError": lambda: KeywordOnlyError(code=7),
    "MyLocalError": local_class,
    "JSONDecodeError": lambda: json.JSONDecodeError("no json", "{", 1),
    "HTTPError": lambda: urllib.error.HTTPError("http://x", 404, "gone", None, None),  # type: ignore[arg-type]
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    "MessageError": lambda: MessageError("x"),
}


@pytest.mark.parametrize("name", REBUILT)
def test_an_exception_that_cannot_be_rebuilt_is_a_runtime_error_with_its_story(name: str) -> None:
    got, [error] = loop(Numbers(12, raising(REBUILT[name])))
    assert type(error) is RuntimeError
    assert got == [[0, 1], [2, 3], [6, 7], [8, 9], [10, 11]]
    assert f"Caught {name} in" in str(error) or f"{name}: " in str(error)
    assert "Original" in str(error)
    assert "test_exception.py" in str(error)


def test_every_batch_may_fail() -> None:
    def fails(index: int) -> None:
        raise ValueError(f"number {index}")

    got, errors = loop(Numbers(8, fails))
    assert not got
    assert [e.args[0].count(f"number {2 * i}") > 0 for i, e in enumerate(errors)] == [True] * 4


def test_notes_of_the_user_arrive_once_each() -> None:
    def noted() -> BaseException:
        error = ValueError("bad")
        error.add_note("look at the file")
        return error

    _, [error] = loop(Numbers(8, raising(noted)))
    assert error.__notes__.count("look at the file") == 1
    shown = "".join(traceback.format_exception(error))
    assert shown.count("look at the file") == 1
    assert shown.count("headrace: while fetching dataset index 5") == 1


def test_notes_that_are_no_strings_do_no_harm() -> None:
    def noted() -> BaseException:
        error = ValueError("bad")
        error.__notes__ = [lambda: 0]  # type: ignore[list-item]
        return error

    _, [error] = loop(Numbers(8, raising(noted)))
    assert "Caught ValueError" in str(error)


def test_the_cause_is_in_the_text() -> None:
    def caused() -> BaseException:
        try:
            raise OSError("the cause")
        except OSError as cause:
            error = ValueError("the effect")
            error.__cause__ = cause
            return error

    _, [error] = loop(Numbers(8, raising(caused)))
    assert "the cause" in str(error)


def test_a_stop_iteration_is_an_error() -> None:
    got, [error] = loop(Numbers(8, raising(StopIteration)))
    assert isinstance(error, DatasetStoppedError)
    assert got == [[0, 1], [2, 3], [6, 7]]


@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exception_that_ends_a_process_ends_the_worker(
    leaving: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = Numbers(8, raising(leaving))
    with pytest.raises(WorkerDiedError, match=r"exited unexpectedly.*\[4, 5\]"):
        loop_until_dead(dataset)
    assert leaving is SystemExit or leaving.__name__ in capfd.readouterr().err


def loop_until_dead(dataset: Any) -> None:
    list(DataLoader(dataset, 2, num_workers=2, worker_restarts=1))


def test_an_exception_in_collate() -> None:
    def collate(samples: list[torch.Tensor]) -> torch.Tensor:
        if samples[0][0] == 4:
            raise LookupError("in collate")
        return torch.stack(samples)

    got, [error] = loop(Numbers(8), collate_fn=collate)
    assert type(error) is LookupError
    assert got == [[0, 1], [2, 3], [6, 7]]
    assert "[4, 5]" in "".join(error.__notes__)


def test_shapes_that_do_not_stack() -> None:
    class Ragged(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.zeros(3 if index == 3 else 2)

    iterator = iter(DataLoader(Ragged(), 2, num_workers=1))
    next(iterator)
    with pytest.raises(RuntimeError, match=r"2 and 3.*3.*2|\[2\].*\[3\]|\(2,\).*\(3,\)"):
        next(iterator)


class Unsized(Numbers):
    def __len__(self) -> int:
        raise LookupError("in __len__")


def test_an_exception_in_len() -> None:
    with pytest.raises(LookupError, match="in __len__"):
        list(DataLoader(Unsized(8), 2, num_workers=2))
    with pytest.raises(LookupError, match="in __len__"):
        list(DataLoader(Unsized(8), 2, num_workers=2, shuffle=True))


class Failing(Sampler[int]):
    def __init__(self, where: str) -> None:
        self.where = where

    def __iter__(self) -> Iterator[int]:
        if self.where == "iter":
            raise LookupError("in the sampler")
        return self._indices()

    def _indices(self) -> Iterator[int]:
        yield from range(5)
        raise LookupError("in the sampler")

    def __len__(self) -> int:
        return 8


def test_an_exception_in_the_sampler_leaves_in_its_turn() -> None:
    got, [error] = loop(Numbers(8), sampler=Failing("next"))
    assert type(error) is LookupError
    assert "Caught" not in str(error)  # it was raised in this process
    assert got == [[0, 1], [2, 3]]


def test_an_exception_at_the_start_of_the_sampler() -> None:
    with pytest.raises(LookupError, match="in the sampler"):
        loop_of(Failing("iter"))


def loop_of(sampler: Any) -> None:
    for _ in DataLoader(Numbers(8), 2, num_workers=2, sampler=sampler):
        pass


@pytest.mark.parametrize("dataset", [Numbers(8), Stream(8)], ids=["map", "iterable"])
def test_an_exception_in_worker_init_fn_surfaces_at_the_first_batch(dataset: Any) -> None:
    def init(worker: int) -> None:
        raise LookupError(f"in init {worker}")

    iterator = iter(DataLoader(dataset, 2, num_workers=2, worker_init_fn=init))
    with pytest.raises(LookupError, match="Caught LookupError in DataLoader worker process 0"):
        next(iterator)


def test_an_exception_in_one_of_the_workers_inits() -> None:
    def init(worker: int) -> None:
        if worker == 1:
            raise LookupError("in init")

    got, errors = loop(Numbers(8), worker_init_fn=init)
    assert got == [[0, 1], [4, 5]]
    assert [type(e) for e in errors] == [LookupError, LookupError]


@pytest.mark.parametrize("where", ["iter", "next"])
def test_an_exception_in_an_iterable_dataset(where: str) -> None:
    class FailingStream(Stream):
        def __iter__(self) -> Iterator[torch.Tensor]:
            if where == "iter":
                raise LookupError("in the stream")
            return self._samples()

        def _samples(self) -> Iterator[torch.Tensor]:
            yield sample(0)
            yield sample(1)
            raise LookupError("in the stream")

    iterator = iter(DataLoader(FailingStream(8), 2, num_workers=1))
    if where == "next":
        assert indices_of([next(iterator)]) == [[0, 1]]
    with pytest.raises(LookupError, match="in the stream"):
        next(iterator)


class Reborn:
    """A batch that cannot be put together again."""

    def __reduce__(self) -> Any:
        return _fail, ()


def _fail() -> None:
    raise LookupError("cannot be rebuilt")


def test_a_batch_that_cannot_be_rebuilt_is_an_error_and_iteration_goes_on() -> None:
    def collate(samples: list[torch.Tensor]) -> Any:
        return Reborn() if samples[0][0] == 2 else torch.stack(samples)

    got, [error] = loop(Numbers(8), collate_fn=collate)
    assert type(error) is LookupError
    assert got == [[0, 1], [4, 5], [6, 7]]


def test_a_batch_that_cannot_be_pickled_is_an_error_and_iteration_goes_on() -> None:
    def collate(samples: list[torch.Tensor]) -> Any:
        return (lambda: 0) if samples[0][0] == 2 else torch.stack(samples)

    got, [error] = loop(Numbers(8), collate_fn=collate)
    assert "pickle" in str(error)
    assert "lambda" in str(error)
    assert got == [[0, 1], [4, 5], [6, 7]]


def test_persistent_workers_go_on_after_an_epoch_with_an_error() -> None:
    dataset = Numbers(8, raising(lambda: ValueError("bad")))
    loader = DataLoader(dataset, 2, num_workers=2, persistent_workers=True)
    for _ in range(3):
        got = []
        with pytest.raises(ValueError, match="bad"):
            for batch in loader:
                got += indices_of([batch])
        assert got == [[0, 1], [2, 3]]
