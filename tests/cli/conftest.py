"""Running the command line, in this process and as a command of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

COMMAND = [sys.executable, "-m", "headrace.cli"]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def headrace(capsys):
    """Run a command line in this process: quick, for all that ends before any work is done."""
    from headrace.cli.app import run

    def call(*arguments: str) -> Outcome:
        code = run(list(arguments))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def headrace_command(tmp_path):
    """Run a command line as users do: a process of its own, here with ``tmp_path`` as its cwd."""

    def call(*arguments: str, python: list[str] | None = None) -> Outcome:
        done = subprocess.run(
            [*(python or COMMAND), *arguments],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call
