"""Reads pickles of arrays and plain values without unpickling: nothing in them is ever called.

CIFAR's usual form is a pickle: a dict with an array of bytes and lists of numbers and names. To
unpickle is to do what the file says. Here its instructions are read one by one instead, and the few
that build plain values are carried out by the table at the end. Names in the file are compared with
those that arrays need, and are never looked up. Instructions that make objects, or that refer to
classes, persistent ids, the registry of extensions or buffers outside, are not in the table. What
is allocated is never larger than the file by more than a small factor, and nothing recurses.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from headrace.errors import SourceError

PLAIN = "numbers, text, bytes, lists, tuples, dicts and arrays of uint8"


class _Refused(Exception):
    """What a file says and what is not done."""


class _Name:
    """A name that a file gives, in the place of what it stands for."""


_RECONSTRUCT, _FROM_BUFFER, _NDARRAY, _DTYPE, _ENCODE = (_Name() for _ in range(5))
_NAMES = {
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _RECONSTRUCT,
    "numpy.core.numeric _frombuffer": _FROM_BUFFER,
    "numpy._core.numeric _frombuffer": _FROM_BUFFER,
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _DTYPE,
    "_codecs encode": _ENCODE,  # how Python 3 writes bytes for Python 2
}


class _Bytes:
    """The type uint8."""


class _Array:
    """An array, which comes in two instructions: that it is one, and what is in it."""

    values: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def fill(self, shape: Any, dtype: Any, fortran: Any, data: bytes | bytearray) -> None:
        if not isinstance(dtype, _Bytes):
            raise _Refused("an array of something other than uint8")
        if not isinstance(shape, tuple):
            raise _Refused("an array without a shape")
        order: Literal["F", "C"] = "F" if fortran else "C"
        self.values = np.frombuffer(data, np.uint8).reshape(shape, order=order)  # checks it


def read_pickle(path: str) -> dict[str, Any]:
    """Return the dict of plain values and arrays of uint8 that a pickle holds.

    Raises:
        SourceError: it holds anything else, or is damaged.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        found = _Machine(len(data)).run(data)
    except (_Refused, ValueError, TypeError, LookupError, OverflowError) as error:
        what = f"it has {error}" if isinstance(error, _Refused) else f"it is damaged ({error})"
        raise SourceError(
            f"{path} is not read: {what}. A pickle may hold {PLAIN} only. Fetch the file again."
        ) from error
    if type(found) is not dict:
        raise SourceError(f"{path} holds no dict. Fetch the file again.")
    return {k: v.values if isinstance(v, _Array) else v for k, v in found.items()}


class _Machine:
    """Carries out the instructions of one file on a stack, as pickle's machine does."""

    def __init__(self, size_bytes: int) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        self._encodable = size_bytes  # text may be encoded once, not a thousand times over

    def run(self, data: bytes) -> Any:
        """Return what the file describes."""
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name == "STOP":
                return self._stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise _Refused(f"the instruction {name}")
        raise ValueError("it has no end")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def tuple_since_mark(self, _: Any) -> None:
        items = tuple(self._since_mark())
        self._stack.append(items)

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise ValueError("a tuple of what is not there")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise _Refused("something appended to what is no list")
        target.extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def set_items(self, _: Any) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise _Refused("an item set in what is no dict")
        keys, values = items[::2], items[1::2]
        if not all(type(key) in (str, int) for key in keys):
            raise _Refused("a key that is neither text nor a number")
        target.update(zip(keys, values, strict=True))

    def put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def named(self, name: str) -> None:
        if name not in _NAMES:
            raise _Refused(f"the name {name[:100]!r}")
        self._stack.append(_NAMES[name])

    def stack_named(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise _Refused("a name that is no text")
        self.named(f"{module} {name}")

    def reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(arguments) is not tuple:
            raise _Refused("a call without arguments")
        if function is _RECONSTRUCT and arguments[0] is _NDARRAY:
            made: Any = _Array()
        elif function is _DTYPE and arguments[0] == "u1":
            made = _Bytes()
        elif function is _ENCODE:
            text, encoding = arguments
            if type(text) is not str or encoding != "latin1":
                raise _Refused("bytes in an unknown encoding")
            made = self._as_bytes(text)
        elif function is _FROM_BUFFER:
            raw, dtype, shape, order = arguments
            made = _Array()
            made.fill(shape, dtype, order == "F", self._as_bytes(raw))
        else:
            raise _Refused("a call of something else than an array or the type uint8")
        self._stack.append(made)

    def build(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, _Array):
            _version, shape, dtype, fortran, raw = state
            target.fill(shape, dtype, fortran, self._as_bytes(raw))
        elif not isinstance(target, _Bytes):  # whose state says nothing new
            raise _Refused("a state for what is no array")

    def _as_bytes(self, raw: Any) -> bytes | bytearray:
        if isinstance(raw, (bytes, bytearray)):
            return raw
        if not isinstance(raw, str):
            raise _Refused("an array of something other than bytes")
        self._encodable -= len(raw)
        if self._encodable < 0:
            raise _Refused("the same text encoded again and again")
        return raw.encode("latin-1")  # Python 2 has str only


_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_since_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.stack_named,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
