"""What the ranks of one training run agree on before an epoch: its seeds, and that they match."""

from __future__ import annotations

import math
import os
import struct
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist

from headrace.errors import OptionError
from headrace.rng import mix

_REL_TOL = 1e-3  # of a sum over numbers that other machines have computed for themselves

ShardOption: TypeAlias = Literal["auto"] | tuple[int, int] | None


def which_rank(shard: ShardOption) -> tuple[int, int] | None:
    """Return (rank, world size) of a loader's ``shard=`` option; None for one that is not divided.

    ``"auto"`` asks torch.distributed, or the variables that torchrun sets.

    Raises:
        OptionError: it is neither None, "auto" nor a pair of integers.
    """
    if shard is None:
        return None
    if shard == "auto":
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    pair: Any = shard
    if (
        isinstance(pair, (tuple, list))
        and len(pair) == 2
        and all(isinstance(value, int) for value in pair)
    ):
        return int(pair[0]), int(pair[1])
    raise OptionError(
        f"shard={shard!r} is neither None, 'auto' nor (rank, world_size). "
        f"Write DataLoader(..., shard='auto') under torchrun, or shard=(0, 2)."
    )


def seeds_of(seed: int, round_number: int) -> list[int]:
    """Return the base seed and the order's seed of an epoch of a loader with ``seed=``."""
    return [mix(seed, round_number, n) >> 1 for n in (1, 2)]


def agree(
    seeds: tuple[int, ...], facts: dict[str, int], total: float, rank: int, world_size: int
) -> list[int]:
    """Return rank 0's seeds, once all ranks have shown that their loaders are alike.

    ``facts`` are what must be the same on all: length of the dataset, global batch, position.
    ``total`` is a sum of numbers of the dataset, which may differ in its last digits.

    Raises:
        OptionError: on every rank, when one differs, or when there is no way to ask.
    """
    if world_size == 1:
        return list(seeds)
    if not (dist.is_available() and dist.is_initialized()):
        raise OptionError(
            f"shard=({rank}, {world_size}) needs one order for all ranks, and there is no process "
            f"group to agree on it. Call torch.distributed.init_process_group() first, or give "
            f"every rank the same seed: DataLoader(..., seed=0)."
        )
    if dist.get_world_size() != world_size:
        raise OptionError(
            f"shard=({rank}, {world_size}), but the process group has {dist.get_world_size()} "
            f"ranks. Write shard='auto'."
        )
    device = "cpu"
    if dist.get_backend() == "nccl":
        device = f"cuda:{torch.cuda.current_device()}"
    [bits] = struct.unpack("q", struct.pack("d", total))
    mine = torch.tensor([*seeds, *facts.values(), bits], dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(everyone, mine)
    table = [values.tolist() for values in everyone]
    for place, name in enumerate(facts, start=len(seeds)):
        values = [row[place] for row in table]
        if len(set(values)) > 1:
            raise OptionError(
                f"the ranks' loaders differ: {name} is {values} on ranks 0 to {world_size - 1}. "
                f"Make them from the same dataset, batch size and state on every rank."
            )
    totals = [struct.unpack("d", struct.pack("q", row[-1]))[0] for row in table]
    if not all(math.isclose(value, totals[0], rel_tol=_REL_TOL) for value in totals):
        raise OptionError(
            f"the ranks' loaders differ: some numbers of the dataset add up to {totals} on ranks 0 "
            f"to {world_size - 1}. Make them from the same dataset on every rank: shard='auto' "
            f"divides it among them."
        )
    return table[0][: len(seeds)]
