"""What ``get_worker_info()`` says, ours and torch's: in worker processes, and in each thread.

torch keeps it in one global variable of the process, which is right for processes. Programs hold
torch's function under many names, so the first worker thread gives the function itself another
body, that looks at the thread first.
"""

from __future__ import annotations

import threading
from typing import Any

from torch.utils.data._utils import worker as torch_worker

from headrace.rng import TaskRng


def worker_info(
    worker: int, num_workers: int, seed: int, dataset: Any, method: str = "multiprocessing"
) -> Any:
    """Return torch's description of a worker, with the generators of its tasks in ``rng``."""
    known: dict[str, Any] = {
        "id": worker,
        "num_workers": num_workers,
        "seed": seed,
        "dataset": dataset,
    }
    try:
        rng: Any = TaskRng()  # what torch keeps there is looked up by these three names
        return torch_worker.WorkerInfo(**known, rng=rng, worker_method=method)
    except TypeError:  # before torch 2.14 it had neither
        return torch_worker.WorkerInfo(**known)


class _Here(threading.local):
    info: Any = None


def set_thread_info(info: Any) -> None:
    """Let ``get_worker_info()`` say ``info`` in this thread."""
    torch_worker._headrace_here.info = info  # type: ignore[attr-defined]


def set_process_info(info: Any) -> None:
    """Let ``get_worker_info()`` say ``info`` in this process, forked by a worker thread or not."""
    torch_worker._worker_info = info
    if hasattr(torch_worker, "_headrace_here"):
        set_thread_info(None)


def look_at_threads() -> None:
    """Make torch's ``get_worker_info`` look at the thread that calls it, from now on."""
    if hasattr(torch_worker, "_headrace_here"):
        return
    torch_worker._headrace_here = _Here()  # type: ignore[attr-defined]
    torch_worker.get_worker_info.__code__ = _get_worker_info.__code__


# Runs among the globals of torch's module, which the names below are looked up in.
def _get_worker_info() -> Any:
    return _headrace_here.info or _worker_info  # type: ignore[name-defined]  # noqa: F821
