"""The epoch that a sampler's order follows from, where somebody counts it who knows of no state.

Fabric, and loops that begin at 0, call ``set_epoch`` with a count of their own before each
``iter()``. Behind a state of another epoch that count is too low, for as long as it lasts.
"""

from __future__ import annotations

from typing import Any

from headrace.engine.order.facts import epoch_setter
from headrace.notices import warn_user


class EpochCount:
    """Sets a sampler to the epoch that is due, whatever a count that began anew says."""

    def __init__(self) -> None:
        self._counted: tuple[int, int] | None = None  # what was set for an epoch, and what it is

    def resume(self, epoch: int | None, finished: bool, index_sampler: Any) -> None:
        """Go on in the epoch of a state, or behind it, whatever was set since it was loaded."""
        setter = epoch_setter(index_sampler)
        if epoch is None or setter is None:
            return
        was, due = setter.epoch, epoch + finished
        if self._counted is not None and self._counted[1] == due == was:
            return  # begun before, and interrupted: the count is known
        self._counted = None
        # Behind an epoch that is over, the next one is for the program to say, but none before it.
        if was >= epoch if finished else was == epoch:
            return
        setter.set_epoch(due)
        self._counted = was, due
        warn_user(
            f"set_epoch({was}) was called after load_state_dict() of a state "
            f"{'behind' if finished else 'in'} epoch {epoch}: this is "
            f"{'' if finished else 'the rest of '}epoch {due}. A count that goes on with {was + 1} "
            f"is taken for {due + 1}, and so on; or write sampler.set_epoch({due}) before."
        )

    def next(self, index_sampler: Any) -> None:
        """Begin another epoch: one behind the last where the count goes on, else what is set."""
        setter = epoch_setter(index_sampler)
        if self._counted is None or setter is None:
            return
        was, epoch = (last + 1 for last in self._counted)
        if setter.epoch != was:  # set on purpose, from the state's epoch on
            self._counted = None
            return
        setter.set_epoch(epoch)
        self._counted = was, epoch
