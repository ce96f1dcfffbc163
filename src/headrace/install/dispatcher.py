"""States behind accelerate's dispatcher, which reads a batch for each process at a time.

Its first process asks for a state before each of these batches, so the last one stands in the
middle of what is not handed out yet: loaded, all but one of them would be left out. accelerate sets
this right in the fields of torchdata's states, and names the method to override for others. With
ours the state of the whole group is the one from before its first batch.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from headrace.loader import DataLoader

_METHOD = "adjust_state_dict_for_prefetch"
_GROUP = "_headrace_group"  # of a dispatcher: how many states of a group were taken, and the first

_before: tuple[type, Any] | None = None


def correct() -> None:
    """Set the states of our loaders right in accelerate's dispatcher, where there is one."""
    global _before
    dispatcher = getattr(sys.modules.get("accelerate.data_loader"), "DataLoaderDispatcher", None)
    method = getattr(dispatcher, _METHOD, None)
    if _before is not None or dispatcher is None or method is None:
        return
    _before = dispatcher, vars(dispatcher).get(_METHOD)

    @wraps(method)
    def adjust_state_dict_for_prefetch(self: Any) -> None:
        method(self)
        one = self.split_batches or getattr(self, "submesh_tp", None)
        reads = 1 if one else self.state.num_processes
        if (
            reads > 1 and DataLoader in type(self.base_dataloader).__mro__
        ):  # installed, torch's is one
            self.dl_state_dict = _of_group(self, self.dl_state_dict, reads)

    setattr(dispatcher, _METHOD, adjust_state_dict_for_prefetch)


def undo() -> None:
    """Put accelerate's method back."""
    global _before
    if _before is None:
        return
    (dispatcher, method), _before = _before, None
    if method is None:
        delattr(dispatcher, _METHOD)
    else:
        setattr(dispatcher, _METHOD, method)


def _of_group(dispatcher: Any, state: dict[str, Any], reads: int) -> dict[str, Any]:
    """Return the state from before the first batch of the group that ``state`` belongs to."""
    taken, first = vars(dispatcher).get(_GROUP, (reads, state))
    another = state["round"] != first["round"] or state["steps"] <= first["steps"]
    if taken >= reads or another:  # what was left over at the end of an epoch makes a short group
        taken, first = 0, state
    vars(dispatcher)[_GROUP] = taken + 1, first
    return dict(first)
