"""All that an order is a function of, as short values that a state holds and a loader compares.

Positions, ranks and generators are not among them: a state has them beside these. An array is named
by its length and a hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.utils.data as torch_data
from torch.utils.data.distributed import DistributedSampler

from headrace.errors import StateError
from headrace.sampling.random import uses_bijection

Facts: TypeAlias = dict[str, Any]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # another one in each process

# Attributes of torch's samplers, and of those that derive from them.
_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    torch_data.BatchSampler: ("drop_last",),
    torch_data.RandomSampler: ("replacement", "num_samples"),
    torch_data.WeightedRandomSampler: ("weights", "num_samples", "replacement"),
    torch_data.SubsetRandomSampler: ("indices",),
    DistributedSampler: ("num_replicas", "shuffle", "seed", "drop_last"),
}


def facts_of(index_sampler: Any) -> Facts:
    """Return what a loader's order is a function of, by "sampler.attribute".

    Of torch's samplers that is known. Ours say it themselves in ``order_facts()``, whose values may
    be arrays.
    """
    facts: Facts = {}
    for place, sampler in _chain(index_sampler):
        for kind, names in _ATTRIBUTES.items():
            if isinstance(sampler, kind):
                facts |= {f"{place}.{name}": getattr(sampler, name, None) for name in names}
        if isinstance(sampler, torch_data.RandomSampler):
            method: Any = getattr(sampler, "method", "torch")
            bijection = uses_bijection(len(sampler.data_source), method)
            facts[f"{place}.method"] = "bijection" if bijection else "torch"
        if hasattr(sampler, "order_facts"):
            facts |= {f"{place}.{name}": value for name, value in sampler.order_facts().items()}
    return {name: _short(value) for name, value in facts.items()}


def epoch_setter(index_sampler: Any) -> Any:
    """Return the sampler whose order follows from an epoch that the user sets; None for none."""
    for _, sampler in _chain(index_sampler):
        if hasattr(sampler, "set_epoch") and type(getattr(sampler, "epoch", None)) is int:
            return sampler
    return None


def set_epoch(epoch: int | None, index_sampler: Any) -> None:
    """Set the sampler to a state's epoch."""
    setter = epoch_setter(index_sampler)
    if epoch is not None and setter is not None and setter.epoch != epoch:
        setter.set_epoch(epoch)


def compare_facts(saved: Facts, present: Facts, sampler: str) -> None:
    """Raise where an order is a function of something else than that of a state.

    Raises:
        StateError: it names what differs, both values, and the line to write.
    """
    for name in sorted(saved.keys() | present.keys()):
        was, now = saved.get(name), present.get(name)
        if was == now:
            continue
        option = name.rpartition(".")[2]
        line = f"Write {sampler}(..., {option}={was!r})"
        if isinstance(was, str) and " values, " in was:
            line = f"Give {sampler} the same {option}= as then"
        raise StateError(
            f"the state was saved with {name} {was!r}, and this loader has {now!r}: that is "
            f"another order. {line}, or begin a new epoch without load_state_dict()."
        )


def _chain(index_sampler: Any) -> Iterator[tuple[str, Any]]:
    """Yield the batch sampler and the sampler inside it, by the names that a loader gives them."""
    inner = getattr(index_sampler, "sampler", None)
    if inner is None:
        yield "sampler", index_sampler
        return
    yield "batch_sampler", index_sampler
    yield "sampler", inner


def _short(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    if isinstance(value, torch.Tensor):
        value = value.numpy(force=True)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):  # ragged, or no numbers
        array = np.empty(0, object)
    if array.dtype.kind in "iub":
        array = array.astype(np.int64)
    elif array.dtype.kind == "f":
        array = array.astype(np.float64)
    elif array.dtype.kind not in "US":
        text = _ADDRESS.sub("", repr(value))
        return _hashed(text.encode(), len(value) if hasattr(value, "__len__") else 1)
    return _hashed(np.ascontiguousarray(array).tobytes(), len(array) if array.ndim else 1)


def _hashed(raw: bytes, length: int) -> str:
    return f"{length} values, {hashlib.blake2b(raw, digest_size=8).hexdigest()}"
