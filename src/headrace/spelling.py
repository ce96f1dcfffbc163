"""Names of options that are not there, and those that are probably meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar, cast

_Init = TypeVar("_Init", bound=Callable[..., None])


def suggests_names(init: _Init) -> _Init:
    """Have a constructor say which of its options an unknown one may be.

    Python itself does so from version 3.13 on, without the line to write.
    """
    names = [p for p in inspect.signature(init).parameters if p != "self"]

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            if name not in names:
                raise unknown_option(type(self).__name__, name, value, names)
        init(self, *args, **kwargs)

    return cast("_Init", __init__)


def unknown_option(call: str, name: str, value: Any, names: list[str]) -> TypeError:
    """Return Python's error for an option that a call does not have, with the line to write.

    Args:
        call: the name of the class or function.
        name: the option that came.
        value: what it was set to.
        names: the options that there are.
    """
    text = f"{call}.__init__() got an unexpected keyword argument {name!r}."
    squeezed = {known.replace("_", ""): known for known in names}
    close = get_close_matches(name.replace("_", "").lower(), squeezed, n=1, cutoff=0.7)
    if not close:
        return TypeError(f"{text} There are {', '.join(names)}.")
    meant = squeezed[close[0]]
    shown = repr(value) if isinstance(value, (int, float, str, bool)) else "..."
    return TypeError(f"{text} Write {call}(..., {meant}={shown}).")
