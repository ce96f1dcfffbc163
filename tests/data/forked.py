"""Running a function in a process of its own, which may be limited, killed, or die."""

import multiprocessing
from collections.abc import Callable

FORK = multiprocessing.get_context("fork")


def exit_code_of(function: Callable[[], object]) -> int | None:
    """Run a function in a forked process; return how it ended (0 where it returned)."""
    process = FORK.Process(target=function)
    process.start()
    process.join(100)
    return process.exitcode


def limit_files(size_bytes: int) -> None:
    """Let no file of this process grow larger: some bytes are written, as on a full disk."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))
