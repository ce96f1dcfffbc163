"""Several processes that train one model: what they agree on, add up and tell each other.

What is agreed on are numbers on the host, over gloo, so that no device has to be waited for.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.data as torch_data
from torch import nn

from headrace.errors import InUseError, TrainingError
from headrace.sized import length_of


class Ranks:
    """This process among those of the run; alone, every method returns at once.

    Args:
        rank, size: which of how many.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self._group: Any = None
        if size > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all ranks."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return total.tolist()

    def gather(self, mine: bytes) -> list[bytes]:
        """Return the bytes of every rank."""
        if self.size == 1:
            return [mine]
        lengths = [
            int(n) for n in self.sum([len(mine) * (r == self.rank) for r in range(self.size)])
        ]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(mine)] = torch.tensor(list(mine), dtype=torch.uint8)
        everyone = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(everyone, padded, group=self._group)
        return [bytes(t[:n].numpy()) for t, n in zip(everyone, lengths, strict=True)]

    def wait(self) -> None:
        """Return when every rank has come here."""
        self.sum([0.0])

    def raise_together(self, problem: Exception | None) -> None:
        """Return when every rank has come here; raise what rank 0 has met, on each of them.

        Raises:
            Exception: ``problem``, where it is given.
            InUseError, TrainingError: that of rank 0, on the others.
        """
        mine = "" if problem is None else f"{type(problem).__name__}: {problem}"
        met = max(self.gather(mine.encode())).decode()
        if problem is not None:
            raise problem
        if met:
            kind = InUseError if met.startswith("InUseError") else TrainingError
            raise kind(f"rank 0 cannot write. {met}")

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all ranks; some ranks may have none.

        For the rare step in which a rank has no batch: what DistributedDataParallel would wait for
        never comes then.
        """
        used = self.sum([float(p.grad is not None) for p in parameters])
        for parameter, count in zip(parameters, used, strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0: the running statistics that it will save."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def check_alike(self, loaders: dict[str, Any], options: dict[str, Any]) -> None:
        """Make sure that each rank gets a part of the same data of its own. AGREE.

        Args:
            loaders: those of this rank by name, None where there is none.
            options: what else must be the same on all ranks.

        Raises:
            TrainingError: on every rank: a loader gives every rank all of it, or is divided for
                other ranks; or the ranks do not want the same.
        """
        if self.size == 1:
            return
        problem: TrainingError | None = None
        wants = dict(options)
        for name, loader in loaders.items():
            wants[name] = "none" if loader is None else "given"
            if loader is None:
                continue
            problem = problem or self._undivided(loader, name)
            if isinstance(loader, torch_data.DataLoader):
                wants[f"the batch size of {name}"] = loader.batch_size
                wants[f"the length of {name}'s dataset"] = _length_of(loader.dataset)
        mine = {"problem": str(problem or ""), "wants": wants}
        everyone = [json.loads(raw) for raw in self.gather(json.dumps(mine).encode())]
        if problem is not None:
            raise problem
        for rank, one in enumerate(everyone):
            if one["problem"]:
                raise TrainingError(f"on rank {rank}: {one['problem']}")
        for what in {key: None for one in everyone for key in one["wants"]}:
            values = [one["wants"].get(what) for one in everyone]
            if any(value != values[0] for value in values):
                raise TrainingError(
                    f"the ranks do not want the same: {what} is {values} on ranks 0 to "
                    f"{self.size - 1}. Run the same program with the same options on every rank."
                )

    def _undivided(self, loader: Any, name: str) -> TrainingError | None:
        """Return what is wrong with a loader that does not give each rank a part of its own."""
        remedy = f"Write {name} = headrace.DataLoader(dataset, ..., shard='auto')."
        if not isinstance(loader, torch_data.DataLoader):
            self._cannot_see(f"{name} is a {type(loader).__name__}", remedy)
            return None
        divided = _divided_among(loader)
        if divided == self.size:
            return None
        if divided is None and isinstance(loader.dataset, torch_data.IterableDataset):
            self._cannot_see(f"{name} reads an IterableDataset without shard=", remedy)
            return None
        what = "all of the data" if divided is None else f"one of {divided} parts"
        return TrainingError(
            f"{name} gives each of the {self.size} ranks {what}, so that samples would count more "
            f"than once. {remedy}"
        )

    def _cannot_see(self, what: str, remedy: str) -> None:
        if self.rank == 0:
            warnings.warn(
                f"{what}: each of the {self.size} ranks has to get its own part of the data from "
                f"it, and that cannot be seen from outside. {remedy}",
                stacklevel=5,
            )


def _length_of(dataset: Any) -> int | None:
    return None if isinstance(dataset, torch_data.IterableDataset) else length_of(dataset)


def _divided_among(loader: Any) -> int | None:
    """Return among how many ranks a loader, or one of its samplers, is divided."""
    shard = getattr(loader, "shard", None)
    if shard == "auto":
        return dist.get_world_size()
    if shard is not None:
        return int(shard[1])
    batch_sampler = loader.batch_sampler
    for sampler in (loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
        replicas = getattr(sampler, "num_replicas", None)
        if isinstance(replicas, int):
            return replicas
    return None


def tell_epoch(loader: Any, epoch: int) -> None:
    """Call ``set_epoch(epoch)`` on a loader and its samplers, wherever there is one."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", None)
    holders: tuple[Any, ...] = (loader, getattr(loader, "sampler", None), batch_sampler, inner)
    told: list[Any] = []
    for holder in holders:
        if hasattr(holder, "set_epoch") and not any(holder is other for other in told):
            holder.set_epoch(epoch)
            told.append(holder)
