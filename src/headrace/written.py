"""Errors of the system, told with what was being written and what is still whole."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
