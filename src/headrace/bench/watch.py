"""Watch the memory of a process and its descendants; run as a program, with the process's id.

It prints the proportional set size of the tree in bytes, looks until its standard input is closed,
and prints the largest it saw. A thread could not do this: the watched process is going to fork.
The file is run by its path and imports nothing of ours, so that it starts at once.
"""

import os
import select
import sys
from pathlib import Path

_LOOK_EVERY_S = 0.02


def main(root: int) -> None:
    """Watch the process ``root`` until standard input is closed."""
    highest = tree_bytes(root)
    print(highest, flush=True)
    while not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
        highest = max(highest, tree_bytes(root))
    print(highest, flush=True)


def tree_bytes(root: int) -> int:
    """Return the bytes of the process ``root`` and its descendants, this one left out."""
    import psutil

    try:
        descendants = psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    family = {root, *(process.pid for process in descendants)} - {os.getpid()}
    return sum(_proportional_bytes(pid) for pid in family)


def _proportional_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # it has ended since it was listed
        return 0
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main(int(sys.argv[1]))
