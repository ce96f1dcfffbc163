"""How worker processes start: fork, spawn or forkserver."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from typing import Any

import torch


def worker_context(given: Any) -> Any:
    """Return the multiprocessing context for workers, with its forkserver told what to import."""
    context = torch.multiprocessing.get_context() if given is None else given
    if context.get_start_method() == "forkserver":
        wanted = ["__main__", "torch", "headrace"]
        modules = [*forkserver._forkserver._preload_modules]  # type: ignore[attr-defined]
        context.set_forkserver_preload(modules + [m for m in wanted if m not in modules])
    return context


def is_forked(given: Any) -> bool:
    """Say whether workers start as forks, without settling the start method of the program."""
    context = torch.multiprocessing.get_context() if given is None else given
    method = context.get_start_method(allow_none=True)
    return (method or multiprocessing.get_all_start_methods()[0]) == "fork"
