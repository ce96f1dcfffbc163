"""The environment that the examples run in, made once for all test processes."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .environment import clean_variables, make_environment

# A program that is started by torchrun says so in its first lines.
TORCHRUN = re.compile(r"^torchrun (.*) examples/", re.MULTILINE)

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the wheel and its extras."""
    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"):  # below the directory that xdist's processes share
        shared = shared.parent
    return make_environment(shared / "wheel")


@pytest.fixture(scope="session")
def warm(python: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the process that programs are forked from; its group ends with the tests."""
    process = subprocess.Popen(
        [python, Path(__file__).with_name("warm.py")],
        env=clean_variables(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def run(python: Path, warm: subprocess.Popen[str], tmp_path: Path) -> Callable[[Path], Done]:
    """Return a function that runs a program in an empty directory."""

    def run_program(program: Path) -> Done:
        text = program.read_text(encoding="utf-8")
        how = TORCHRUN.search(text)
        # Not where torch's compiler was imported before: beside JAX it prints what it leaks.
        if how or "\nimport jax\n" in text:
            launch = []
            if how:
                launch = ["-m", "torch.distributed.run", "--standalone", *how[1].split()]
            return subprocess.run(
                [python, *launch, program],
                cwd=tmp_path,
                env=clean_variables(),
                capture_output=True,
                text=True,
                check=False,
            )
        assert warm.stdin is not None
        assert warm.stdout is not None
        texts = {name: tmp_path / name for name in ("stdout", "stderr")}
        (tmp_path / "cwd").mkdir()
        request = {"program": program, "cwd": tmp_path / "cwd", **texts}
        warm.stdin.write(json.dumps(request, default=str) + "\n")
        warm.stdin.flush()
        code = int(warm.stdout.readline())
        return Done([str(program)], code, *(path.read_text() for path in texts.values()))

    return run_program
