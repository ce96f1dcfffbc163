"""Watch the memory of a process and its descendants; run as a program, with the process's id.

It prints the proportional set size of the tree in bytes, and from then on looks again and again. A
line "look" on its standard input makes it look at once and answer with a line, a line "end" makes
it print the largest it saw. (The end of the input would not do: processes that are forked meanwhile
hold the pipe open.) A thread could not do this: the watched process is going to fork.
The file is run by its path and imports nothing of ours, so that it starts at once.
"""

import os
import select
import sys
from pathlib import Path

_LOOK_EVERY_S = 0.02


def main(root: int) -> None:
    """Watch the process ``root``, whose child this is, until it says to end, or ends itself."""
    highest = tree_bytes(root)
    print(highest, flush=True)
    while os.getppid() == root:
        asked = select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]
        if asked and sys.stdin.readline() != "look\n":
            break
        highest = max(highest, tree_bytes(root))
        if asked:
            print("looked", flush=True)
    print(highest, flush=True)


def tree_bytes(root: int) -> int:
    """Return the bytes of the process ``root`` and its descendants, this one left out.

    When a process is forked or ends between two looks, pages that it shares are counted with the
    old share here and with the new one there: the sum would be of no moment that there was. Such a
    sum is dropped and made again.
    """
    family = _family(root)
    while True:
        total = sum(_proportional_bytes(pid) for pid in family)
        now = _family(root)
        if now == family:
            return total
        family = now


def _family(root: int) -> set[int]:
    import psutil

    try:
        descendants = psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return set()
    return {root, *(process.pid for process in descendants)} - {os.getpid()}


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
