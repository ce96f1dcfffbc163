"""How files come into being: whole or not at all, with errors that say what became of them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_ABANDONED_S = 60.0
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust say what the system said


@contextmanager
def told(path: Path, what: Callable[[], str] | str) -> Iterator[None]:
    """Have an error of the system name a path, and say what became of it.

    Args:
        path: what was being written.
        what: became of it, and what to do; a function is called when it is needed.

    What names a file in another directory is not about this one, and left as it is.

    Raises:
        OSError: of the same number, and so of the same type.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        said = _OS_ERROR.search(str(error))
        if number is None and said is not None:
            number = int(said[1])
        if number is None or _is_elsewhere(getattr(error, "filename", None), path):
            raise
        text = what if isinstance(what, str) else what()
        raise OSError(number, f"{os.strerror(number)}; {text}", str(path)) from error


def _is_elsewhere(name: object, path: Path) -> bool:
    if not isinstance(name, (str, os.PathLike)):
        return False
    return not os.path.abspath(name).startswith(os.path.abspath(path.parent))


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write; it takes the place of ``path`` at the end, or leaves no trace.

    Any number of processes may write the same file, and any of them may be killed: the last one
    to finish wins, readers see one whole file or another, and what a killed one left behind is
    removed by the next one to write.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with told(path, "it was not written, and nothing is left behind"):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(path)
            with open(part, "xb") as file:
                _lock(file)
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power cut may leave the name without the bytes
                os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def save_figure(figure: Any, path: Path, **options: Any) -> None:
    """Write a figure of matplotlib as its ``savefig(path)`` would, but whole or not at all."""
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    with written_whole(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), **options)


def _remove_abandoned(path: Path) -> None:
    """Remove the parts of writers that were killed: nobody holds their lock any more."""
    for part in path.parent.glob(f"{path.name}.*.part"):
        with suppress(OSError), open(part, "rb") as file:
            # A moment lies between a writer's open and its lock.
            if time.time() - os.stat(part).st_mtime > _ABANDONED_S and _lock(file):
                part.unlink()


def _lock(file: BinaryIO) -> bool:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows refuses to remove what is open
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
