"""``headrace profile``: a program runs as it is, in a process of its own, and is watched.

Of its own, so that there is a report whatever becomes of it: an error, a kill, a Ctrl-C, a crash.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.cli.problems import WrongUse, complain, one_line_errors

PROFILE_VALUES = ("--json",)
PROFILE_EXAMPLES = """
Examples:

  [bold]headrace profile train.py --epochs 1[/]

  [bold]headrace profile --json report.json -m my_project.train[/]
"""


def profile(
    program: Annotated[
        list[str] | None,
        typer.Argument(metavar="SCRIPT ARGS...", help="A program, and what it is given."),
    ] = None,
    module: Annotated[
        str | None, typer.Option("-m", "--module", help="A module to run, in a script's place.")
    ] = None,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the report as JSON; - prints it last."),
    ] = None,
) -> int:
    """Run a program, and say what its loaders cost it: the waiting, its cause, the lines.

    Watches every loader that is iterated, torch's and headrace's, in this process and in those of
    the workers. The program, its random numbers and its exit code stay as they are. A program that
    fails, is interrupted or killed leaves a report of what was seen until then.
    """
    with one_line_errors("headrace profile"):
        words = list(program or ())
        if module is None and not words:
            raise WrongUse("give a program to watch: headrace profile train.py")
        if as_json is not None and str(as_json) != "-" and not as_json.absolute().parent.is_dir():
            raise WrongUse(f"--json: there is no directory {str(as_json.absolute().parent)!r}")
        called = ["module", module, *words] if module is not None else ["script", *words]
        with tempfile.TemporaryDirectory(prefix="headrace-profile-") as directory:
            code = _run(
                [sys.executable, *_flags(), "-m", __package__ + ".watched", directory], called
            )
            return _told(directory, called, code, as_json)


def _flags() -> list[str]:
    """Return the interpreter's own options, as this one was given."""
    return list(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]


def _run(command: list[str], called: list[Any]) -> int:
    child = subprocess.Popen([*command, *called])
    with _signals_to(child):
        return child.wait()


@contextmanager
def _signals_to(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let the program have this process's signals; a terminal's Ctrl-C reaches it by itself."""

    def hand_on(number: int, _frame: Any) -> None:
        if number != signal.SIGINT or not _is_in_terminal():
            child.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_in_terminal() -> bool:
    """Say whether this process is in the foreground of a terminal."""
    try:
        with open("/dev/tty", "rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _told(directory: str, called: list[Any], code: int, as_json: Path | None) -> int:
    """Print and write the report; return the program's exit code, as a shell would give it."""
    from headrace.profile import gather, lines, report
    from headrace.profile.log import read

    if any(kind == "impossible" for notes in read(directory) for kind, _ in notes):
        return code
    found = report(gather(directory), [str(word) for word in called[1:]], _ended(code))
    if str(as_json) == "-":
        print(json.dumps(found))
    elif as_json is not None:
        try:
            as_json.write_text(json.dumps(found), encoding="utf-8")
        except OSError as error:
            complain("headrace profile", f"--json: {error}")
            code = code or 1
    print("\n".join(["", *lines(found)]), file=sys.stderr)
    return code if code >= 0 else 128 - code


def _ended(code: int) -> str:
    if code == 0:
        return ""
    if code == 130:
        return "was interrupted"
    if code > 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"
