"""What each rank of a training run does, and how several of them are started."""

import json
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, Subset

from headrace import DataLoader, TensorDataset
from state.loaders import AtFirst, Augmented, Stream, plain


def together(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run a function on so many ranks with gloo; each one's answer, or its error as text.

    Called in a fresh process: forks of one with threads would not be safe.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = []
    for rank in range(world_size):
        ours, theirs = os.pipe()
        if not os.fork():
            answer = _one_rank(rank, world_size, port, function, arguments)
            with os.fdopen(theirs, "wb") as pipe:
                pickle.dump(answer, pipe)
            os._exit(0)
        os.close(theirs)
        pipes.append(ours)
    answers = []
    for ours in pipes:
        with os.fdopen(ours, "rb") as pipe:
            answers.append(pickle.load(pipe))
    for _ in pipes:
        os.wait()
    return answers


def _one_rank(
    rank: int, world_size: int, port: int, function: Callable[..., Any], arguments: Any
) -> Any:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    try:
        dist.init_process_group("gloo")
        torch.manual_seed(100 + rank)  # ranks that were seeded differently
        return function(rank, *arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    finally:
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def make(rank: int, n: int, options: dict[str, Any]) -> DataLoader[Any]:
    """Make a rank's loader; an option that is a list has a value for each rank."""
    mine = {k: v[rank] if isinstance(v, list) else v for k, v in options.items()}
    if mine.pop("custom", False):
        mine["sampler"] = AtFirst(n)
    length = mine.pop("length", n)
    return DataLoader(Augmented(length), **{"shard": "auto", "batch_size": 2, **mine})


def epochs(
    rank: int, n: int, options: dict[str, Any], states: Any, stop: int | None, count: int
) -> Any:
    """Iterate over so many epochs; stop inside the first where asked.

    ``states`` is one for all ranks, or a list of one for each. Returned are the indices of each
    batch of each epoch, and the state at the end.
    """
    loader = make(rank, n, options)
    if states is not None:
        loader.load_state_dict(json.loads(states[rank] if isinstance(states, list) else states))
    seen = []
    for _ in range(count):
        seen.append([])
        for batch in loader:
            seen[-1].append(plain(batch)["index"])
            if len(seen[-1]) == stop:
                return seen, json.dumps(loader.state_dict())
    return seen, json.dumps(loader.state_dict())


def lengths(rank: int, n: int, options: dict[str, Any]) -> Any:
    loader = make(rank, n, options)
    iterator = iter(loader)
    return len(loader), len(iterator), len(list(iterator))


def noise(rank: int, n: int) -> Any:
    return [plain(batch["noise"]) for batch in make(rank, n, {"seed": 5})]


class Parts(IterableDataset[Any]):
    """A stream that can be divided."""

    def __init__(self, n: int, first: int = 0, step: int = 1) -> None:
        self.n, self.first, self.step = n, first, step

    def __iter__(self) -> Any:
        return iter(range(self.first, self.n, self.step))

    def shard(self, index: int, count: int) -> "Parts":
        return Parts(self.n, self.first + index * self.step, self.step * count)


def streams(rank: int, n: int) -> Any:
    return [plain(batch) for batch in DataLoader(Parts(n), batch_size=2, shard="auto")]


def undivided(rank: int, n: int) -> Any:
    return DataLoader(Stream(n), shard="auto")


DATASETS: dict[str, Callable[[int], Any]] = {
    "floats": lambda rank: TensorDataset(torch.full((20, 2), 1.0 + rank)),
    "integers": lambda rank: TensorDataset(torch.arange(20) + rank),
    "types": lambda rank: range(20) if rank else list(range(20)),
    "subsets": lambda rank: Subset(range(50), list(range(rank, 20 + rank))),
    "last bits": lambda rank: TensorDataset(torch.arange(20.0) * (1 + 1e-7 * rank)),
    "no numbers": lambda rank: TensorDataset(torch.full((20,), float("nan"))),
    "lists": lambda rank: [[1, 2]] * 20,
}


def steps_of(rank: int, name: str) -> int:
    """Return the steps over a dataset that may be another one on each rank."""
    dataset = DATASETS[name](rank)
    return len(list(DataLoader(dataset, batch_size=2, shuffle=True, shard="auto")))
