"""A list in one buffer, which worker processes read without copying it page by page.

The elements of a Python list are objects, and to look at one is to write to it: its reference
count changes. In a forked worker each first write to a page copies the page, so that after an epoch
every worker has a list of its own. Here the elements are bytes in one anonymous file that all
processes map; an element becomes an object when it is asked for, and is gone when it is let go.

What has no plainer form (tuples, dicts, arrays, tensors) is kept as its pickle. It is the user's
own objects, pickled in this process into memory that only it and the workers it starts map: no
pickle is ever taken from a file or the network here. A pickled SharedList holds its elements, not
the buffer; workers that are spawned inherit the buffer's descriptor and map it.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, overload

import numpy as np
import torch

from headrace.data.progress import Progress
from headrace.errors import SampleIndexError

T = TypeVar("T")

_CHUNK = 256  # elements encoded at once: quick for small ones, and large ones do not pile up
_SHOWN = 3
_INT64 = range(-(1 << 63), 1 << 63)
_TEXTS: tuple[type, ...] = (str, type(Path()), np.str_)
_TEXT = ("utf-8", "surrogatepass")  # file names may hold surrogates
_NUMBERS: dict[type, str] = {int: "q", float: "d", bool: "?"}


class _Layout(NamedTuple):
    """What the bytes of a buffer mean.

    Texts, bytes and pickles lie one behind the other, and their ends behind them, at ``ends_at``;
    numbers need no ends.
    """

    kind: type  # of every element; object where they differ, or have no plainer form
    dtype: str  # of NumPy scalars
    length: int
    size_bytes: int
    ends_at: int


class _Buffer:
    """A file without a name, mapped for reading."""

    def __init__(self, descriptor: int, layout: _Layout) -> None:
        self.descriptor = descriptor
        self.layout = layout
        self._close = os.close  # module globals may be gone when this is wanted
        pages = mmap.mmap(descriptor, layout.size_bytes, access=mmap.ACCESS_READ)
        self.read = _reader(pages, layout)

    def __reduce__(self) -> Any:
        """Hand the file to a process that is being started."""
        return _inherited, (reduction.DupFd(self.descriptor), self.layout)

    def __del__(self) -> None:
        if hasattr(self, "_close"):  # or it was interrupted before it had begun
            self._close(self.descriptor)


def _inherited(duplicate: Any, layout: _Layout) -> _Buffer:
    return _Buffer(duplicate.detach(), layout)


class SharedList(Sequence[T]):
    """A read-only list whose elements lie in one buffer that workers share.

    Use it for long lists of small things that a dataset keeps: paths, captions, labels. With a
    plain list the memory of every worker grows to a copy of it within an epoch::

        class Images(Dataset):
            def __init__(self, folder):
                self.paths = SharedList(folder.rglob("*.jpg"))

    Texts, bytes, paths, integers of 64 bits, floats, booleans and NumPy scalars of one type take
    their own size and at most 8 bytes; everything else that can be pickled (None, tuples, dicts,
    arrays, tensors, mixtures) the size of its pickle. Reading an element makes a new object: to
    change it changes nothing here.

    Slices are views of the same buffer. Like a list it compares with lists and has no hash.

    Args:
        elements: any iterable, a generator too: it is read once, an element at a time.

    Raises:
        pickle.PicklingError, TypeError, AttributeError: an element that cannot be pickled; a note
            names it.
    """

    __slots__ = ("_buffer", "_places")

    def __init__(self, elements: Iterable[T] = ()) -> None:
        self._buffer = _store(elements)
        self._places = range(self._buffer.layout.length)

    @classmethod
    def _of(cls, buffer: _Buffer, places: range) -> SharedList[T]:
        view = cls.__new__(cls)
        view._buffer, view._places = buffer, places
        return view

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> SharedList[T]: ...
    def __getitem__(self, index: int | slice) -> T | SharedList[T]:
        """Return an element, or a view of several.

        Raises:
            SampleIndexError: (an IndexError) there is no such element.
            TypeError: the index is neither an integer nor a slice.
        """
        try:
            place = self._places[index]
        except IndexError:
            raise SampleIndexError(
                f"index {index} is outside of a SharedList of {len(self):,} elements."
            ) from None
        except TypeError:
            raise TypeError(
                f"a SharedList is indexed by an integer or a slice, not by {index!r}."
            ) from None
        if isinstance(place, range):
            return self._of(self._buffer, place)
        element: T = self._buffer.read(place)
        return element

    def __iter__(self) -> Iterator[T]:
        return map(self._buffer.read, self._places)

    def __reversed__(self) -> Iterator[T]:
        return map(self._buffer.read, reversed(self._places))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (SharedList, list)):
            return NotImplemented
        return len(self) == len(other) and all(
            mine is theirs or mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # a list has none either

    @property
    def size_bytes(self) -> int:
        """The size of the buffer; slices share it."""
        return self._buffer.layout.size_bytes

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, islice(self, _SHOWN)))
        more = ", ..." if len(self) > _SHOWN else ""
        return f"SharedList([{shown}{more}], {len(self):,} elements, {self.size_bytes:,} bytes)"

    def __copy__(self) -> SharedList[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedList[T]:
        return self

    def __reduce__(self) -> Any:
        if get_spawning_popen() is not None:
            return self._of, (self._buffer, self._places)
        return type(self), (list(self),)


# Writing


def _store(elements: Iterable[Any]) -> _Buffer:
    """Write elements to a buffer, in the plainest form that holds all of them."""
    total = len(elements) if isinstance(elements, Sequence) else None
    source = iter(elements)
    first = list(islice(source, _CHUNK))
    with Progress("storing a SharedList", total, "elements") as progress:
        kind, dtype = _kind_of(first)
        buffer, rest = _write(chain(first, source), kind, dtype, progress)
        if rest is not None:  # not all of one kind after all
            stored = map(buffer.read, range(buffer.layout.length))
            progress.advance(-buffer.layout.length)
            buffer, _ = _write(chain(stored, rest), object, "", progress)
    return buffer


def _write(
    source: Iterator[Any], kind: type, dtype: str, progress: Progress
) -> tuple[_Buffer, Iterator[Any] | None]:
    """Write elements of one kind; return what is left from where another kind begins."""
    ends = array("Q", [0])
    length = 0
    rest = None
    with _anonymous_file() as file:
        while chunk := list(islice(source, _CHUNK)):
            if kind is not object and _kind_of(chunk) != (kind, dtype):
                rest = chain(chunk, source)
                break
            if kind in _NUMBERS or dtype:
                file.write(np.array(chunk, dtype or _NUMBERS[kind]).tobytes())
            else:
                _write_chunk(file, chunk, kind, ends)
            length += len(chunk)
            progress.advance(len(chunk))
        file.write(bytes(-file.tell() % ends.itemsize))
        ends_at = file.tell()
        file.write(ends)
        file.flush()
        layout = _Layout(kind, dtype, length, file.tell(), ends_at)
        return _Buffer(os.dup(file.fileno()), layout), rest


def _write_chunk(file: BinaryIO, chunk: list[Any], kind: type, ends: array[int]) -> None:
    """Write elements one behind the other, and note where each one ends."""
    encode = _ENCODERS.get(kind, _encode_text)
    end = ends[-1]
    for element in chunk:
        try:
            data = encode(element)
        except Exception as error:
            error.add_note(
                f"Element {len(ends) - 1} of the SharedList, of type {type(element).__name__}, "
                f"cannot be stored. Keep what it is made from, and make it in __getitem__."
            )
            raise
        file.write(data)
        end += len(data)
        ends.append(end)


def _kind_of(chunk: list[Any]) -> tuple[type, str]:
    """Return the type of all these elements and their NumPy type; object where there is none."""
    types = set(map(type, chunk))
    if len(types) != 1:
        return object, ""
    (kind,) = types
    if kind is int and not (min(chunk) in _INT64 and max(chunk) in _INT64):
        return object, ""
    if kind is bytes or kind in _TEXTS or kind in _NUMBERS:
        return kind, ""
    if issubclass(kind, np.generic) and chunk[0].dtype.kind in "biufcmM":
        dtypes = {element.dtype.str for element in chunk}
        if len(dtypes) == 1:
            return kind, dtypes.pop()
    return object, ""


def _encode_text(text: Any) -> bytes:
    return str(text).encode(*_TEXT)


class _Pickler(pickle.Pickler):
    """Pickles plain tensors as their bytes: torch's own way takes a kilobyte for each."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not torch.Tensor or not _is_plain(value):
            return NotImplemented
        flat = value.contiguous().view(-1).view(torch.uint8)
        return _tensor, (bytearray(flat.numpy()), value.dtype, tuple(value.shape))


def _tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.view(shape)


def _is_plain(tensor: torch.Tensor) -> bool:
    odd = tensor.requires_grad or tensor.is_nested or tensor.is_quantized
    lazy = tensor.is_conj() or tensor.is_neg()
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not (odd or lazy)


def _pickled(element: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, 5).dump(element)
    return file.getvalue()


_ENCODERS: dict[type, Callable[[Any], bytes]] = {bytes: bytes, object: _pickled}


def _anonymous_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):  # counts as memory, and does not need /dev/shm
        return os.fdopen(os.memfd_create("headrace-list", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile("w+b")


# Reading


def _reader(pages: mmap.mmap, layout: _Layout) -> Callable[[int], Any]:
    """Return the function that makes an object of the element at a place."""
    kind, whole = layout.kind, memoryview(pages)
    if layout.dtype:
        return np.frombuffer(whole, layout.dtype, layout.length).__getitem__
    if kind in _NUMBERS:
        form: Any = _NUMBERS[kind]
        numbers: Any = whole[: layout.length * struct.calcsize(form)].cast(form)
        read: Callable[[int], Any] = numbers.__getitem__
        return read
    ends = whole[layout.ends_at :].cast("Q")
    if kind is object:  # may be large: not copied before it is unpickled
        return lambda place: pickle.loads(whole[ends[place] : ends[place + 1]])
    if kind is bytes:
        return lambda place: pages[ends[place] : ends[place + 1]]
    if kind is str:
        return lambda place: pages[ends[place] : ends[place + 1]].decode(*_TEXT)
    return lambda place: kind(pages[ends[place] : ends[place + 1]].decode(*_TEXT))
