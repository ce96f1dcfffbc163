"""A loader built again with the same arguments but for some."""

from __future__ import annotations

import copy
from inspect import signature
from typing import Any

import torch.utils.data as torch_data
from torch.utils.data import IterableDataset

from headrace.loader import DataLoader

# What only worker processes have.
_PROCESSES_ONLY = ("multiprocessing_context",)
_WORKERS_ONLY = (*_PROCESSES_ONLY, "prefetch_factor", "persistent_workers", "timeout")


def cloned(loader: DataLoader[Any], backend: str, num_workers: int) -> DataLoader[Any]:
    """Return a fresh loader with the arguments of another, but for who makes the batches.

    It shares the dataset; samplers and generators are copied, so that nothing is drawn from the
    other's.
    """
    names = [name for name in signature(DataLoader.__init__).parameters if hasattr(loader, name)]
    arguments = {name: getattr(loader, name) for name in names}
    arguments |= {"backend": backend, "num_workers": num_workers}
    for name in _WORKERS_ONLY if num_workers == 0 else _PROCESSES_ONLY:
        if num_workers == 0 or backend != "process":
            arguments.pop(name)
    if num_workers and loader.num_workers == 0:
        arguments.pop("prefetch_factor")  # None there: the default then
    batch_sampler = arguments.pop("batch_sampler", None)
    sampler = arguments.pop("sampler", None)
    # The dataset may be large, and is what both read: it is not copied along. A generator that
    # loader and sampler share stays one.
    shared = {id(loader.dataset): loader.dataset}
    arguments["generator"] = copy.deepcopy(loader.generator, shared)
    if isinstance(loader.dataset, IterableDataset):
        return DataLoader(**arguments)
    if loader.batch_size is None and batch_sampler is not None:
        for name in ("batch_size", "drop_last"):
            del arguments[name]
        return DataLoader(**arguments, batch_sampler=copy.deepcopy(batch_sampler, shared))
    if type(sampler) is not torch_data.SequentialSampler:
        arguments["sampler"] = copy.deepcopy(sampler, shared)
    return DataLoader(**arguments)
