"""An environment as a user would have it: the wheel, what its extras bring, and nothing else."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = "demo,train,tables,images,remote,bench,tokens"
BESIDE = ("jax",)  # what an example is about, and headrace does not need


def make_environment(directory: Path) -> Path:
    """Build and install the wheel under `directory`, once for all test processes; return Python.

    Libraries come in the versions that run the tests, so that uv finds them in its cache and
    links them: an environment with torch then takes a second or two and no disk.
    """
    directory.mkdir(exist_ok=True)
    python = directory / "env" / "bin" / "python"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "ready").exists():
            _install(directory, python)
            (directory / "ready").touch()
    return python


def _install(directory: Path, python: Path) -> None:
    _uv("build", "--wheel", "--out-dir", directory / "dist", ROOT)
    (wheel,) = (directory / "dist").glob("*.whl")
    _uv("venv", "--python", sys.executable, directory / "env")
    versions = directory / "versions.txt"
    versions.write_text(_uv("pip", "freeze", "--exclude-editable", "--python", sys.executable))
    install = ["pip", "install", "--python", python, "--constraints", versions]
    install += ["--link-mode", _link_mode(directory), f"{wheel}[{EXTRAS}]", *BESIDE]
    try:
        _uv(*install, "--offline")
    except subprocess.CalledProcessError:
        _uv(*install)  # the cache was emptied since the tests' own environment was made


def _link_mode(directory: Path) -> str:
    """Hard links where they can be, symbolic ones from another file system: never gigabytes."""
    cache = Path(_uv("cache", "dir").strip())
    same = cache.exists() and cache.stat().st_dev == directory.stat().st_dev
    return "hardlink" if same else "symlink"


def _uv(*arguments: object) -> str:
    program = Path(sys.executable).parent / "uv"
    command = [str(program if program.exists() else "uv"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        error.add_note(done.stderr)
        raise error
    return done.stdout


def clean_variables() -> dict[str, str]:
    """Return environment variables for a program: no Python settings of ours, one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    kept.pop("VIRTUAL_ENV", None)
    # Two test processes share two cores, and sums come out the same with one thread everywhere.
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONUTF8": "1"}
