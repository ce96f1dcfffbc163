"""The command line: ``headrace demo``, ``headrace peek``, ``headrace bench``."""

import sys
from typing import NoReturn

__all__ = ["main"]

_EXTRA_MODULES = {"typer", "click", "rich"}


def main() -> NoReturn:
    """Run the ``headrace`` command and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    try:
        from headrace.cli.app import run
    except ModuleNotFoundError as missing:
        module = (missing.name or "").partition(".")[0]
        if module not in _EXTRA_MODULES:
            raise
        line = f'headrace: {module} is not installed; pip install "headrace[cli]"'
        print(line, file=sys.stderr)
        sys.exit(2)
    sys.exit(run())
