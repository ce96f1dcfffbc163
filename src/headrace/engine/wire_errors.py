"""Exceptions of user code, from a worker to the loop: own type, original traceback, notes."""

from __future__ import annotations

import pickle
from typing import Any

from torch._utils import ExceptionWrapper

from headrace.errors import CollateError


class WrappedError(ExceptionWrapper):
    """torch's wrapper ("Caught X in DataLoader worker process N."), with notes and fields."""

    def __init__(self, error: BaseException, where: str) -> None:
        self.notes = [str(note) for note in getattr(error, "__notes__", ())]
        if self.notes:
            error.__notes__ = []  # they travel on their own, and the text below would repeat them
        trace = (type(error), error, error.__traceback__)
        super().__init__(trace, where)  # type: ignore[no-untyped-call]
        if self.notes:
            error.__notes__ = self.notes
        self.fields: dict[str, Any] = {}
        if isinstance(error, CollateError):
            self.fields = {name: vars(error)[name] for name in ("positions", "path", "indices")}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "exc_type": pickle.dumps(self.exc_type)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        try:
            self.exc_type = pickle.loads(state["exc_type"])
        except Exception:  # of a module that only the worker could import
            self.exc_type = RuntimeError

    def rebuild(self) -> BaseException:
        """Return the exception to raise: of the original type, or RuntimeError."""
        try:
            self.reraise()  # type: ignore[no-untyped-call]
        except self.exc_type as error:
            error.__traceback__ = None
            rebuilt: BaseException = error
        except Exception:
            # The type wants other arguments than torch guesses: its text says what it was.
            rebuilt = RuntimeError(
                f"Caught {self.exc_type.__name__} {self.where}.\nOriginal {self.exc_msg}"
            )
        for note in self.notes:
            rebuilt.add_note(note)
        vars(rebuilt).update(self.fields)
        return rebuilt


def wrap_error(error: BaseException, where: str) -> WrappedError:
    """Wrap an exception so that it can cross; a type that cannot becomes RuntimeError."""
    wrapped = WrappedError(error, where)
    try:
        pickle.loads(pickle.dumps(wrapped))
    except Exception:
        wrapped.exc_msg = f"{type(error).__name__}: {wrapped.exc_msg}"
        wrapped.exc_type = RuntimeError
        wrapped.fields = {}
    return wrapped
