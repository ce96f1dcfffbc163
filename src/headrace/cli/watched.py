"""The process that ``headrace profile`` starts: a program as Python would run it, watched.

Called with the directory to write to, ``script`` or ``module``, its name and its arguments.
"""

import sys

from headrace.cli.problems import CannotGoOn, complain
from headrace.cli.program import Program
from headrace.profile import Watch

CANNOT_BEGIN = 2


def main() -> int:
    """Run the program; return its exit code."""
    directory, kind, name, *arguments = sys.argv[1:]
    watch = Watch(directory)
    watch.start()
    try:
        return Program(name, kind == "module", tuple(arguments), installs=False).run()
    except CannotGoOn as problem:
        watch.note("impossible")
        complain("headrace profile", str(problem))
        return CANNOT_BEGIN
    finally:
        watch.end()


if __name__ == "__main__":
    sys.exit(main())
