"""``headrace run``: a program as Python would run it, with headrace's loader in torch's place."""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CodeType, ModuleType
from typing import Any

from headrace.cli.problems import CannotGoOn
from headrace.install import install


@dataclass(frozen=True)
class Program:
    """A script (a file, or a directory or archive with a ``__main__``) or module to run.

    Attributes:
        name: its path, or the module's name.
        is_module: which of them.
        arguments: what it finds in ``sys.argv[1:]``.
        options: what each loader that it builds gets.
        verbose: print all that was replaced.
        installs: put headrace's loader in torch's place; else the program has what it asks for.
    """

    name: str
    is_module: bool
    arguments: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    verbose: bool = False
    installs: bool = True

    def run(self) -> int:
        """Run it; return its exit code. What it raises to leave (SystemExit) passes through."""
        # A module of its own, as Python makes one: what the program pickles, or starts as another
        # process, is looked for there.
        main = ModuleType("__main__")
        prepare = _prepare_module if self.is_module else _prepare_script
        begin = prepare(self.name, main)
        sys.argv[1:] = self.arguments
        sys.modules["__main__"] = main
        if self.installs:
            install(verbose=self.verbose, **self.options)
        try:
            begin()
        except SystemExit:
            raise
        except BaseException as error:
            _report(error)
            return 130 if isinstance(error, KeyboardInterrupt) else 1
        return 0


def _prepare_script(path: str, main: ModuleType) -> Callable[[], object]:
    if not os.path.exists(path):
        raise CannotGoOn(f"there is no file {path!r}; to run a module, write -m {path}")
    sys.argv[0] = path
    if os.path.isdir(path) or not _is_source(path):
        return lambda: runpy.run_path(path, run_name="__main__")  # puts it onto sys.path itself
    _first_on_path(os.path.dirname(os.path.realpath(path)))
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    _fill(main, __file__=path, __loader__=loader, __package__=None, __spec__=None, __cached__=None)
    code = loader.source_to_code(loader.get_data(path), path)
    return lambda: _execute(code, main)


def _is_source(path: str) -> bool:
    """Say whether a file is no archive, and not compiled: Python runs those too."""
    with open(path, "rb") as file:
        start = file.read(4)
    return start[:2] != b"PK" and start != importlib.util.MAGIC_NUMBER


def _prepare_module(name: str, main: ModuleType) -> Callable[[], object]:
    _first_on_path(os.getcwd())
    sys.argv[0] = "-m"
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ImportError:
        spec = None
    if spec is None or spec.loader is None:
        raise CannotGoOn(f"there is no module {name!r} to run, or it has no __main__")
    code = spec.loader.get_code(spec.name)  # type: ignore[attr-defined]
    sys.argv[0] = spec.origin or name
    _fill(
        main,
        __file__=spec.origin,
        __loader__=spec.loader,
        __package__=spec.parent,
        __spec__=spec,
        __cached__=spec.cached,
    )
    return lambda: _execute(code, main)


def _fill(main: ModuleType, **values: Any) -> None:
    vars(main).update(values, __builtins__=builtins)


def _execute(code: CodeType, main: ModuleType) -> None:
    exec(code, vars(main))


def _first_on_path(directory: str) -> None:
    """Put a directory where Python puts the script's: in the place of the command's own."""
    if not sys.flags.safe_path:
        sys.path[0:1] = [directory]


def _report(error: BaseException) -> None:
    """Show an error as Python does, from the program's first line on."""
    ours = (__file__, runpy.run_path.__code__.co_filename)
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in ours:
        frames = frames.tb_next
    sys.excepthook(type(error), error.with_traceback(frames), frames)


def split(arguments: Sequence[str], value_options: Sequence[str]) -> list[str]:
    """Return a command line with ``--`` before what is the program's own.

    That is all behind the script, or behind the name of a module (``-m name``).

    Args:
        arguments: those behind ``headrace run``.
        value_options: options of the command that take a value.
    """
    position = 0
    while position < len(arguments):
        word = arguments[position]
        if word in ("-m", "--module"):
            return [*arguments[: position + 2], "--", *arguments[position + 2 :]]
        if word == "--":
            return list(arguments)
        if not word.startswith("-"):
            return [*arguments[:position], "--", *arguments[position:]]
        position += 2 if word in value_options else 1
    return list(arguments)
