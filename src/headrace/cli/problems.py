"""What a command says when it cannot go on: one line on stderr and an exit code.

A traceback is for our mistakes. A user's mistake is a :class:`WrongUse` (exit code 2), something
that went wrong outside, such as a full disk, a :class:`CannotGoOn` (exit code 1).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import typer


class CannotGoOn(Exception):
    """The command was right and could not be finished; the message is one line."""

    exit_code = 1


class WrongUse(CannotGoOn):
    """The command cannot be done as it was asked for; the message is one line."""

    exit_code = 2


def need(extra: str, *modules: str) -> None:
    """Raise :class:`WrongUse` that names the extra when one of its ``modules`` is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        names = " and ".join(missing)
        verb = "is" if len(missing) == 1 else "are"
        raise WrongUse(f'{names} {verb} not installed; pip install "headrace[{extra}]"')


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """Turn the expected endings of ``command`` into one line on stderr and an exit code."""
    try:
        yield
    except CannotGoOn as problem:
        complain(command, str(problem))
        raise typer.Exit(problem.exit_code) from None
    except KeyboardInterrupt:
        complain(command, "interrupted")
        raise typer.Exit(130) from None


def complain(command: str, message: str) -> None:
    """Print ``message`` to stderr as one line that starts with the command."""
    print(f"{command}: {' '.join(message.split())}", file=sys.stderr)
